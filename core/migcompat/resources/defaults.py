"""Default names of resources: where no configuration says otherwise."""

from __future__ import annotations

import hashlib
import re

from migcompat.api.names import RESOURCE_DOMAIN
from migcompat.engine.declaration import Kind
from migcompat.sysfs.found import FoundDevice

NAME_LIMIT = 63
"""Kubernetes: the part of a qualified name after the slash."""

_ILLEGAL = re.compile(r"[^a-z0-9-]+")


def resource_name(found: FoundDevice, domain: str = RESOURCE_DOMAIN) -> str:
    """``<domain>/<type>`` for what has a type, else ``<domain>/pci-<vendor>-<device>``.

    A VF that has the ids of its PF is in a pool of its own (``pci-8086-56c0-vf``): who asks for a part of a
    card must not get the whole.
    Type names are lower-cased, and what a resource name may not hold becomes ``-``
    (``i915-GVTg_V5_4``: ``i915-gvtg-v5-4``). What is too long is cut and told apart by a digest (96 bits).
    A device whose type or PCI id could not be read, so one with a problem, is in the pool ``unknown``.
    """
    raw = found.pool or found.type
    if not raw and found.kind is not Kind.MDEV and found.pci_id:
        raw = f"pci-{found.pci_id[:4]}-{found.pci_id[4:]}"
    name = _ILLEGAL.sub("-", raw.lower()).strip("-") or "unknown"
    if len(name) > NAME_LIMIT:
        tail = hashlib.sha256(raw.encode()).hexdigest()[:24]
        name = f"{name[: NAME_LIMIT - len(tail) - 1].rstrip('-')}-{tail}"
    return f"{domain}/{name}"
