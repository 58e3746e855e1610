"""Short ways to make declarations and to ask for verdicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from migcompat.engine.attributes import Draft
from migcompat.engine.declaration import Acceptance, Declaration, Entry, Kind, Presence, SelfSet
from migcompat.engine.policy import parse_policy
from migcompat.engine.verdict import Verdict, decide

SELF = {"software_version": "1.2.3", "device_api": "vfio-pci", "type": "T", "pci_id": "8086591d"}
ENTRY = {"software_version": "1.2.3", "device_api": "vfio-pci", "type": "T"}


def own(attributes: Mapping[str, str], kind: Kind = Kind.MDEV) -> SelfSet:
    """A self set as any layout would give it."""
    draft = Draft(literal=True)
    for name, value in attributes.items():
        draft.add(name, value)
    return draft.self_set(kind)


def entry(attributes: Mapping[str, str]) -> Entry:
    """An entry as any layout would give it."""
    draft = Draft(literal=False)
    for name, value in attributes.items():
        draft.add(name, value)
    found = draft.entry()
    assert found is not None
    return found


def source(**attributes: str) -> Declaration:
    """An mdev with these attributes beside, or instead of, SELF's."""
    return Declaration(Kind.MDEV, own({**SELF, **attributes}))


def target(*entries: Mapping[str, str], kind: Kind = Kind.MDEV, **attributes: str) -> Declaration:
    """A device that accepts *entries*, with these attributes beside, or instead of, SELF's."""
    accepts = Acceptance(Presence.PRESENT, tuple(entry(attributes) for attributes in entries))
    return Declaration(kind, own({**SELF, **attributes}, kind), accepts if entries else Acceptance())


def verdict(ours: Declaration, theirs: Declaration, **policy: Any) -> Verdict:
    """The verdict under a policy given by its keys."""
    return decide(ours, theirs, parse_policy(policy))


def reason(ours: Declaration, theirs: Declaration, **policy: Any) -> str:
    """The verdict's reason."""
    found = verdict(ours, theirs, **policy)
    assert found.compatible == (found.reason == "Compatible" or (found.reason == "Unknown" and bool(policy)))
    return found.reason.value


def accepts_text(pattern: Mapping[str, str], value: Mapping[str, str], **policy: Any) -> str:
    """The reason when the source has *value* beside SELF's attributes and the one entry *pattern*."""
    return reason(source(**value), target({**ENTRY, **pattern}), **policy)
