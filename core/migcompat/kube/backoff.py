"""How long to wait before trying again."""

from __future__ import annotations

import random


class Backoff:
    """Delays that double from *first* to *most* seconds, each shortened at random by up to half.

    The jitter keeps many agents from coming back to a restarted API server in one moment.
    """

    def __init__(self, first: float = 0.2, most: float = 30.0) -> None:
        self._first = first
        self._most = most
        self._next = first

    def reset(self) -> None:
        """Start again from the shortest delay: things work."""
        self._next = self._first

    def delay(self) -> float:
        """Seconds to wait this time."""
        now = self._next
        self._next = min(self._most, now * 2)
        return now * random.uniform(0.5, 1.0)  # noqa: S311 - spreading load, not a secret
