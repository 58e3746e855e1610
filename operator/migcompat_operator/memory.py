"""What was told last of each VM, and since when its answer is in doubt. Pure: times are given.

While a migration hands a VM over, three watches that are not ordered among each other tell of it: the source
pod ends, the VMI names another node, that node's agent publishes which devices the new pod holds. In between
the VM's devices are not known, though nothing has become unknown.
"""

from __future__ import annotations

from collections.abc import Container

import msgspec

Key = tuple[str, str]
"""Namespace and name."""
Verdict = tuple[str, str]
"""MIGRATABLE and REASON; both empty: none yet."""

HOLD = 10.0
"""Seconds for which a doubt leaves the answer as it was: twice the 5 s between two scans of an agent, which
is the slowest of the three to tell."""


class _Told(msgspec.Struct):
    uid: str
    verdict: Verdict


class Memory:
    """Of every question: until when a doubt is not written, and which verdict its VM's events told last."""

    def __init__(self) -> None:
        self._until: dict[Key, float] = {}
        self._told: dict[Key, _Told] = {}

    def may_hold(self, key: Key, now: float) -> bool:
        """Whether a doubt may leave the answer as it was at *now* (monotonic seconds)."""
        return now < self._until.get(key, now + HOLD)

    def hold(self, key: Key, now: float) -> float:
        """The answer is in doubt; when to look again at the latest (monotonic seconds)."""
        return self._until.setdefault(key, now + HOLD)

    def settle(self, key: Key) -> None:
        """There is a definite answer: the next doubt is a new one."""
        self._until.pop(key, None)

    def told(self, key: Key, uid: str, otherwise: Verdict) -> Verdict:
        """The last definite verdict told of the VMI *uid*; *otherwise* (and from then on) if none was."""
        found = self._told.get(key)
        if found is None or found.uid != uid:
            found = self._told[key] = _Told(uid, otherwise)
        return found.verdict

    def tell(self, key: Key, verdict: Verdict) -> None:
        """The VM's events have told *verdict*; an empty one tells nothing."""
        found = self._told.get(key)
        if found is not None and verdict[0]:
            found.verdict = verdict

    def keep(self, keys: Container[Key]) -> None:
        """Only these questions and VMs are there still."""
        self._until = {key: until for key, until in self._until.items() if key in keys}
        self._told = {key: told for key, told in self._told.items() if key in keys}
