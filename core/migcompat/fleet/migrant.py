"""The VM that is to be moved: which devices its state comes from, and how strictly it is to be treated."""

from __future__ import annotations

import enum

import msgspec

from migcompat.engine.declaration import Declaration
from migcompat.engine.policy import VersionScheme


class Mode(enum.StrEnum):
    """Annotation ``migcompat.io/mode`` (contract, Labels and annotations)."""

    ENFORCE = "enforce"
    PREFER = "prefer"
    IGNORE = "ignore"


class Facts(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """What policies select devices by (semantics §5). ``vendor``: 4 hex digits, empty outside PCI.

    ``declares``: whether the device says itself what it is or accepts, so that it needs no catalogue.
    """

    driver: str = ""
    type: str = ""
    device_api: str = ""
    vendor: str = ""
    declares: bool = False


class MigrantDevice(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """One device of the VM, with what its source's policy supplies already filled in.

    ``migratable``: whether its driver can save and load state at all, ``peer_to_peer``: whether it supports
    P2P migration states; None where that is not known.
    ``key``: digest of the declaration, where it was computed already.
    """

    resource: str
    declaration: Declaration
    id: str = ""
    profile: str = ""
    migratable: bool | None = None
    peer_to_peer: bool | None = None
    key: str = ""


class Migrant(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """A VM to be moved.

    ``asks``: how many devices of each pool (resource name) its target needs.
    ``problem`` is non-empty when the source devices cannot be known (its node publishes nothing, or the pod
    holds no device yet): ``devices`` is empty then and the verdict is ``Unknown`` for every target.
    ``version_scheme`` overrides the targets' policies, for questions only (MigrationCompatibility).
    """

    namespace: str
    name: str
    uid: str
    node: str
    asks: dict[str, int] = {}
    devices: tuple[MigrantDevice, ...] = ()
    mode: Mode = Mode.ENFORCE
    require_return_path: bool = False
    deny_cross_type: bool = False
    allow_cross_type: bool = False
    problem: str = ""
    version_scheme: VersionScheme | None = None
