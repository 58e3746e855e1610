"""The part of Kubernetes' object metadata and conditions that we read and write."""

from __future__ import annotations

import msgspec


class OwnerReference(msgspec.Struct, omit_defaults=True, rename="camel"):
    """``metav1.OwnerReference``."""

    api_version: str = msgspec.field(name="apiVersion")
    kind: str
    name: str
    uid: str
    controller: bool | None = None
    block_owner_deletion: bool | None = None


class ObjectMeta(msgspec.Struct, omit_defaults=True, rename="camel"):
    """``metav1.ObjectMeta``, as far as we use it."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    generate_name: str = ""
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    owner_references: list[OwnerReference] | None = None
    finalizers: list[str] | None = None


class Condition(msgspec.Struct, omit_defaults=True, rename="camel"):
    """``metav1.Condition`` (``last_transition_time``: RFC 3339; the writer stamps it on change only)."""

    type: str
    status: str
    reason: str = ""
    message: str = ""
    last_transition_time: str | None = None
    observed_generation: int | None = None
