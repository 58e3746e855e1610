"""``POST /prioritize``: three criteria in the eleven points that kube-scheduler gives an extender."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from operator import itemgetter

import msgspec
from migcompat.fleet.fleet import Fleet, Preference

from migcompat_extender.wire import HostPriority, read_args

MAX_SCORE = 10
"""``MaxExtenderPriority`` (k8s.io/kube-scheduler/extender/v1)."""


def scores(preferences: Sequence[Preference | None]) -> list[int]:
    """0 for nodes that do not take the VM now (None), else 10 for the most preferred ones, down to 1.

    Preferences are compared part by part: no later part ever outweighs an earlier one. Where there are more
    different ones than points, the points go to the best: later parts are told apart first where the earlier
    ones are best, and the rest shares the last point of its group.
    """
    usable = sorted({preference for preference in preferences if preference is not None})
    score = {key: MAX_SCORE - level for key, level in zip(usable, _levels(usable, MAX_SCORE), strict=True)}
    return [0 if preference is None else score[preference] for preference in preferences]


def _levels(keys: Sequence[Preference], room: int, part: int = 0) -> list[int]:
    """For each of the sorted, distinct *keys* its level, from 0 (best) to below *room* (at least 1)."""
    if len(keys) <= room:
        return list(range(len(keys)))
    groups = [list(group) for _, group in itertools.groupby(keys, itemgetter(part))]
    levels: list[int] = []
    spare = max(0, room - len(groups))
    first = 0
    for group in groups:
        extra = min(spare, len(group) - 1)
        spare -= extra
        inside = [0] * len(group) if not extra else _levels(group, 1 + extra, part + 1)
        levels += [min(first + level, room - 1) for level in inside]
        first += 1 + extra
    return levels


class Prioritize:
    """Answers prioritize calls; all nodes alike where the extender has no say."""

    def __init__(self, fleet: Fleet, problem: Callable[[], str | None]) -> None:
        self._fleet = fleet
        self._problem = problem

    def answer(self, body: bytes) -> bytes:
        """The HostPriorityList for *body*.

        Raises:
            WireError: the call cannot be understood.
        """
        pod, names, _ = read_args(body)
        ours = pod.is_migration_target and not self._problem()
        migrant = self._fleet.migrant_for_pod(pod) if ours else None
        if migrant is None:
            points = [0] * len(names)
        else:
            fits = [(name, self._fleet.fit(migrant, name)) for name in names]
            points = scores(
                [self._fleet.preference(migrant, name, fit) if fit.free else None for name, fit in fits]
            )
        return msgspec.json.encode([HostPriority(*pair) for pair in zip(names, points, strict=True)])
