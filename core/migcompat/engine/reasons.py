"""The reasons of verdicts (semantics §4), apart so that every chapter can name its own."""

from __future__ import annotations

import enum


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
