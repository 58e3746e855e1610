"""``POST /prioritize``: nearest version first (semantics §3, rule V: the bugfix number ranks)."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from migcompat.fleet.fit import Fit
from migcompat.fleet.fleet import Fleet

from migcompat_extender.wire import HostPriority, read_args

MAX_SCORE = 10


def scores(fits: list[Fit]) -> list[int]:
    """0 for nodes that refuse or have nothing free; else 10 for the best rank, one less for each further one.

    Never below 1 for a node that takes the VM; where no versions are known the rank is the worst.
    """
    usable = {fit.rank for fit in fits if fit.compatible and fit.free}
    order = sorted(usable, key=lambda rank: (rank is None, rank or ()))
    score = {rank: max(1, MAX_SCORE - place) for place, rank in enumerate(order)}
    return [score[fit.rank] if fit.compatible and fit.free else 0 for fit in fits]


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
            points = scores([self._fleet.fit(migrant, name) for name in names])
        return msgspec.json.encode([HostPriority(*pair) for pair in zip(names, points, strict=True)])
