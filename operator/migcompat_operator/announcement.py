"""What the operator says in events, and that it says it once."""

from __future__ import annotations

from collections import OrderedDict

import msgspec
from migcompat.api.cluster import Pod, VirtualMachineInstance
from migcompat.api.event import ObjectReference

WARNING = "Warning"
NORMAL = "Normal"

MIGRATION_IMPOSSIBLE = "MigrationImpossible"
MIGRATION_POSSIBLE = "MigrationPossible"
NO_ACCEPTING_NODE = "NoAcceptingNode"
UNKNOWN_ANNOTATION_VALUE = "UnknownAnnotationValue"
RULES_LOOSENED = "RulesLoosened"
LOOSENING_IGNORED = "LooseningIgnored"
GUARD_REFUSED = "GuardRefused"

_REMEMBERED = 20_000


class Announcement(msgspec.Struct, frozen=True):
    """One event.

    Two in a row about the same object with the same reason and *cause* say the same thing, though their
    messages may differ in a count. Without a *cause* it is always news: :mod:`.memory` knows what was told.
    """

    about: ObjectReference
    type: str
    reason: str
    message: str
    cause: str = ""


class Said:
    """What this process has said already, so that no event comes again and again."""

    def __init__(self) -> None:
        self._causes: OrderedDict[tuple[str, str], str] = OrderedDict()

    def is_news(self, announcement: Announcement) -> bool:
        """Whether it differs from the last one about its object with its reason."""
        key = (announcement.about.uid, announcement.reason)
        return not announcement.cause or self._causes.get(key) != announcement.cause

    def remember(self, announcement: Announcement) -> None:
        """It has been written: only now, so that what was dropped or refused is said later."""
        if not announcement.cause:
            return
        key = (announcement.about.uid, announcement.reason)
        self._causes[key] = announcement.cause
        self._causes.move_to_end(key)
        if len(self._causes) > _REMEMBERED:
            self._causes.popitem(last=False)


def about_vmi(vmi: VirtualMachineInstance) -> ObjectReference:
    """The reference that ``kubectl describe vmi`` looks for."""
    meta = vmi.metadata
    return ObjectReference("kubevirt.io/v1", "VirtualMachineInstance", meta.name, meta.namespace, meta.uid)


def about_pod(pod: Pod) -> ObjectReference:
    """The reference that ``kubectl describe pod`` looks for."""
    return ObjectReference("v1", "Pod", pod.metadata.name, pod.metadata.namespace, pod.metadata.uid)
