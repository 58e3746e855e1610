"""Where a look at sysfs is, for whoever waits for it: a driver that hangs hangs who reads its attributes."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from collections.abc import Set as AbstractSet
from typing import TypeVar

T = TypeVar("T")


class Abandoned(Exception):
    """Nobody waits for this look any more."""


class Progress:
    """One look, taken in one thread and watched by another.

    ``at``: what it is at, an entry of a bus or what several devices share; None between these. ``steps``
    grows with each; ``ended``: it is over. *avoided*: where earlier looks still hang.
    """

    def __init__(self, avoided: AbstractSet[Hashable] = frozenset()) -> None:
        self.at: Hashable = None
        self.steps = 0
        self.ended = False
        self._avoided = avoided
        self._abandoned = False

    def watch(self, look: Callable[[Progress], T]) -> T:
        """All of the look: what *look* returns or raises."""
        try:
            return look(self)
        finally:
            self.ended = True

    def step(self, key: Hashable, look: Callable[[], T]) -> T:
        """What *look* returns, or raises, at *key*. Raises ValueError where an earlier look still hangs.

        Raises :class:`Abandoned` as soon as :meth:`abandon` was called, also after *look* has returned.
        """
        if key in self._avoided:
            raise ValueError(
                "its driver hangs in an attribute that was read; it is read again once that ends"
            )
        outer = self.at
        try:
            self._move(key)
            found = look()
        finally:
            self.at = outer
        self._move(outer)
        return found

    def abandon(self) -> Hashable:
        """Nobody waits any more: end with the next step. Returns where the look is until then."""
        self._abandoned = True
        return self.at

    def _move(self, key: Hashable) -> None:
        # In this order, and abandon() in the other one: either it sees the new place, or this its call.
        self.at = key
        self.steps += 1
        if self._abandoned:
            raise Abandoned
