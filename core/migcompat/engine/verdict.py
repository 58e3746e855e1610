"""The verdict (semantics §4)."""

from __future__ import annotations

import enum

import msgspec

from migcompat.engine.declaration import Declaration
from migcompat.engine.policy import DEFAULT_POLICY, Policy


class Reason(enum.StrEnum):
    """Why a device accepts a source, or why not."""

    COMPATIBLE = "Compatible"
    NOT_MIGRATABLE = "NotMigratable"
    UNKNOWN = "Unknown"
    MALFORMED_SELF = "MalformedSelf"
    NO_COMPATIBLE_ENTRY = "NoCompatibleEntry"
    DEVICE_API_MISMATCH = "DeviceApiMismatch"
    API_SPECIFIC_MISMATCH = "ApiSpecificMismatch"
    TYPE_MISMATCH = "TypeMismatch"
    VERSION_MALFORMED = "VersionMalformed"
    VERSION_MAJOR_MISMATCH = "VersionMajorMismatch"
    VERSION_MINOR_OLDER = "VersionMinorOlder"
    ATTRIBUTE_MISSING_ON_SOURCE = "AttributeMissingOnSource"
    ATTRIBUTE_MISSING_ON_TARGET = "AttributeMissingOnTarget"
    ATTRIBUTE_MISMATCH = "AttributeMismatch"
    RETURN_PATH = "ReturnPath"


class Verdict(msgspec.Struct, frozen=True):
    """Whether a target accepts a source, and why.

    ``message`` names the attribute and both values, never a node or a device, so that equal causes
    aggregate. ``rank``: smaller is better; null without versions.
    """

    compatible: bool
    reason: Reason
    message: str
    entry: int | None = None
    bindings: dict[str, str] = {}
    obligations: dict[str, str] = {}
    rank: tuple[int, ...] | None = None


def decide(source: Declaration, target: Declaration, policy: Policy = DEFAULT_POLICY) -> Verdict:
    """May the state of *source* migrate to *target* (§3, §4)?"""
    raise NotImplementedError
