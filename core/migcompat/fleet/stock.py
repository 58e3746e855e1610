"""Which free devices there are, and for which kinds of running device they are among the last.

A device that takes what hardly any other free one takes should be kept for those who need it. So every free
device counts by the worst-off of the devices in use that it would take over: the number of free devices that
would do for that one too. Devices are counted by kind (pool, content, policy), not one by one.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Collection, Iterable

import msgspec

from migcompat.fleet.fit import Target, cannot_migrate
from migcompat.fleet.judge import Judge, Overlay

MOST_HELD = 32
MOST_FREE = 256
"""Kinds of a pool that are compared, the most frequent first: at worst a few milliseconds after a change."""

NOBODYS = 2**31
"""What a device counts that no device in use could move to: nobody will miss it."""

Kind = tuple[str, str, str, bool]
"""Pool, content key, policy key, whether it can migrate as far as is known."""

_PLAIN = Overlay()


class _Shelf(msgspec.Struct, frozen=True):
    """One node's part: its free devices by id, how many there are of each kind, and the kinds in use."""

    free_ids: dict[str, Kind] = {}
    free: Counter[Kind] = msgspec.field(default_factory=Counter)
    held: Counter[Kind] = msgspec.field(default_factory=Counter)


_EMPTY = _Shelf()


class Stock:
    """The devices of all nodes that count. A node's change costs that node, not the fleet."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._shelves: dict[str, _Shelf] = {}
        self._free: Counter[Kind] = Counter()
        self._held: Counter[Kind] = Counter()
        self._examples: dict[Kind, Target] = {}
        self._common: dict[Kind, int] | None = {}

    def put(self, node: str, targets: Iterable[Target], *, takes_pods: bool) -> None:
        """The devices of *node* as they are now; none where nothing it publishes counts.

        Where it does not take pods, none of them is free, but its VMs still want to go elsewhere.
        """
        new = _Shelf()
        for target in targets:
            kind = kind_of(target)
            if target.held:
                new.held[kind] += 1
            elif target.free and takes_pods:
                new.free_ids[target.id] = kind
                new.free[kind] += 1
            else:
                continue
            self._examples[kind] = target
        old = self._shelves.get(node, _EMPTY)
        if new.free_ids or new.held:
            self._shelves[node] = new
        else:
            self._shelves.pop(node, None)
        if (old.free, old.held) == (new.free, new.held):
            return
        for total, before, after in ((self._free, old.free, new.free), (self._held, old.held, new.held)):
            total.subtract(before)
            total.update(after)
            for kind in before:
                if not total[kind]:
                    del total[kind]
        for kind in {*old.free, *old.held}:
            if kind not in self._free and kind not in self._held:
                del self._examples[kind]
        self._common = None

    def spare(self, node: str, pools: Collection[str]) -> int:
        """How many devices of *pools* are free on *node*."""
        shelf = self._shelves.get(node, _EMPTY)
        return sum(count for kind, count in shelf.free.items() if kind[0] in pools)

    def common(self, node: str, ids: Iterable[str]) -> int:
        """How easily the free devices *ids* of *node* are replaced, that of them which is hardest to replace.

        0 where one is not free (any more), or of a kind so seldom that it was not compared.
        """
        if self._common is None:
            self._common = self._compared()
        shelf = self._shelves.get(node, _EMPTY)
        found = (shelf.free_ids.get(id_) for id_ in ids)
        return min((self._common.get(kind, 0) if kind else 0 for kind in found), default=0)

    def _compared(self) -> dict[Kind, int]:
        common: dict[Kind, int] = {}
        for pool in sorted({kind[0] for kind in self._free}):
            free, held = _most(self._free, pool, MOST_FREE), _most(self._held, pool, MOST_HELD)
            taken = {kind: [other for other in held if self._takes(kind, other)] for kind in free}
            supply: Counter[Kind] = Counter()
            for kind, others in taken.items():
                for other in others:
                    supply[other] += self._free[kind]
            for kind, others in taken.items():
                common[kind] = min((supply[other] for other in others), default=NOBODYS)
        return common

    def _takes(self, free: Kind, held: Kind) -> bool:
        target, source = self._examples[free], self._examples[held]
        if cannot_migrate(source, target):
            return False
        return self._judge.verdict(
            (held[1], source.declaration),
            (free[1], target.declaration),
            (target.policy_key, target.policy),
            _PLAIN,
        ).compatible


def kind_of(target: Target) -> Kind:
    """What *target* is counted as."""
    return target.resource, target.key, target.policy_key, target.migratable is not False


def _most(counts: Counter[Kind], pool: str, limit: int) -> list[Kind]:
    """The most frequent kinds of *pool*, for equal numbers by key."""
    return heapq.nsmallest(
        limit, (kind for kind in counts if kind[0] == pool), key=lambda kind: (-counts[kind], kind)
    )
