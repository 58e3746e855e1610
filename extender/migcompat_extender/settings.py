"""What an admin can choose about the extender's answers."""

from __future__ import annotations

import msgspec

DEFAULT_MAX_REQUEST_BYTES = 32 * 1024 * 1024
"""A call with 5,000 full Node objects has about 17 MB (3.3 MB for 1,000, measured), with names 0.2 MB."""

DEFAULT_MAX_NAMES = 100
"""kube-scheduler binds as fast with 100 names as with one, at a third of the speed with 500 (measured)."""


class Settings(msgspec.Struct, frozen=True):
    """Flags that answers depend on (docs/reference/extender.md describes each)."""

    max_request_bytes: int = DEFAULT_MAX_REQUEST_BYTES
    read_seconds: float = 10.0
    preemptible_rejections: bool = False
    max_names: int = DEFAULT_MAX_NAMES
    max_affinity_bytes: int = 64 * 1024
    fail_closed: bool = False
    allow_loosening: bool = False
    scheduler_name: str = ""
    client_certificates: bool = False
