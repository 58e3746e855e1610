"""What the kubelet takes as the name of an extended resource.

``IsExtendedResourceName`` (kubernetes, pkg/apis/core/v1/helper/helpers.go), which the kubelet asks when a
plugin registers: no native name (one without ``/``, or with ``kubernetes.io/`` in it), not in ``requests.``,
and with ``requests.`` before it still a qualified name (apimachinery, pkg/util/validation).
"""

from __future__ import annotations

import re

from migcompat.resources.defaults import NAME_LIMIT

DOMAIN_LIMIT = 253 - len("requests.")
"""A DNS name has at most 253 characters, and quotas put ``requests.`` before this one."""

_DOMAIN = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")


def check_domain(domain: str) -> None:
    """Raises ValueError for a *domain* under which the kubelet takes no extended resource."""
    if not _DOMAIN.fullmatch(domain):
        raise ValueError(
            f"resource domain {domain!r} is no DNS name: lower-case letters, digits, '-' and '.',"
            " such as gpus.example.com"
        )
    if len(domain) > DOMAIN_LIMIT:
        raise ValueError(f"resource domain {domain!r} is longer than {DOMAIN_LIMIT} characters")
    if domain.endswith("kubernetes.io"):
        raise ValueError(f"resource domain {domain!r}: names in kubernetes.io belong to Kubernetes")
    if domain.startswith("requests."):
        raise ValueError(f"resource domain {domain!r}: names that begin with requests. are those of quotas")


def full_name(name: str, domain: str) -> str:
    """*name* in *domain*, unless it brings one of its own (``example.com/vgpu``).

    Raises ValueError for what the kubelet would refuse.
    """
    own, slash, short = name.rpartition("/")
    if slash:
        check_domain(own)
    if not _NAME.fullmatch(short):
        raise ValueError(
            f"resource name {short!r}: letters, digits, '-', '_' and '.', a letter or digit first and last"
        )
    if len(short) > NAME_LIMIT:
        raise ValueError(f"resource name {short!r} is longer than {NAME_LIMIT} characters")
    return name if slash else f"{domain}/{name}"


def environment_name(resource: str) -> str:
    """What virt-launcher makes of a *resource*: upper case, ``/`` and ``.`` as ``_``.

    KubeVirt, pkg/util ``ResourceNameToEnvVar``, without its prefix.
    """
    return resource.upper().replace("/", "_").replace(".", "_")
