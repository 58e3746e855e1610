"""What keeps an agent from its work, as its log, ``/readyz`` and the conditions of its VFIONode say it."""

from __future__ import annotations

import enum

import msgspec


class Reason(enum.StrEnum):
    """Reasons of the condition ``Ready`` (docs/reference/device-plugin.md)."""

    WRONG_HOST_PATH = "WrongHostPath"
    BOOT_ID_MISMATCH = "BootIDMismatch"
    SCAN_FAILED = "ScanFailed"
    CONFIGURATION_INVALID = "ConfigurationInvalid"
    KUBELET_TOO_OLD = "KubeletTooOld"
    POD_RESOURCES_UNAVAILABLE = "PodResourcesUnavailable"
    NOT_REGISTERED = "NotRegistered"


class Problem(msgspec.Struct, frozen=True):
    """Why, in one word for programs and in a sentence for people: what, where and what to do."""

    reason: Reason
    message: str

    def __str__(self) -> str:
        return self.message


NOT_YET = Problem(Reason.NOT_REGISTERED, "not registered yet")
