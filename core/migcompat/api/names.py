"""Names other programs rely on: API group, labels, annotations, digests."""

from __future__ import annotations

import hashlib
import re

import msgspec

GROUP = "migcompat.io"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
RESOURCE_DOMAIN = "vfio.migcompat.io"

NODE_MANAGED = "migcompat.io/managed"
NODE_TYPE_PREFIX = "type.migcompat.io/"
NODE_OFFERS_PREFIX = "offers.migcompat.io/"

MANAGED_BY = "app.kubernetes.io/managed-by"
OPERATOR = "migcompat-operator"
"""Value of that label on the objects that the operator makes."""
CATALOGUE_PREFIX = "catalogue-"
"""What the names of the catalogue's CompatibilityPolicies begin with."""

MODE = "migcompat.io/mode"
REQUIRE_RETURN_PATH = "migcompat.io/require-return-path"
CROSS_TYPE = "migcompat.io/cross-type"
SOURCE = "migcompat.io/source"
RETRY = "migcompat.io/retry"

LAUNCHER_LABEL = "kubevirt.io"
LAUNCHER_VALUE = "virt-launcher"
MIGRATION_UID = "kubevirt.io/migrationJobUID"
CREATED_BY = "kubevirt.io/created-by"
VMI_NAME = "kubevirt.io/domain"
VMI_KIND = "VirtualMachineInstance"
NODE_NAME = "kubevirt.io/nodeName"

LABEL_LIMIT = 63
_ILLEGAL = re.compile(r"[^A-Za-z0-9._-]+")
_LEGAL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")


def digest(content: object) -> str:
    """24 hex digits (96 bits) of SHA-256 over the canonical JSON of *content* (keys sorted)."""
    raw = msgspec.json.encode(msgspec.to_builtins(content, order="sorted"), order="sorted")
    return hashlib.sha256(raw).hexdigest()[:24]


def is_node_label(key: str) -> bool:
    """Whether the agents write the label *key* on Nodes (contract, Labels and annotations)."""
    return key == NODE_MANAGED or key.startswith((NODE_TYPE_PREFIX, NODE_OFFERS_PREFIX))


def label_name(text: str) -> str:
    """*text* as the name part of a label key: unchanged when legal, else a readable prefix and a digest."""
    if _LEGAL.fullmatch(text):
        return text
    tail = hashlib.sha256(text.encode()).hexdigest()[:24]
    prefix = _ILLEGAL.sub("-", text).strip("._-")[: LABEL_LIMIT - len(tail) - 1].rstrip("._-")
    return f"{prefix}-{tail}" if prefix else tail
