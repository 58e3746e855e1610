"""Writes are limited; the clock is ours."""

from __future__ import annotations

import asyncio

import pytest
from migcompat.kube.limiter import Limiter


class Clock:
    """A clock that moves only when someone sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


async def test_a_burst_passes_at_once_then_the_rate_holds() -> None:
    clock = Clock()
    limiter = Limiter(2.0, 3, clock=clock, sleep=clock.sleep)
    passed = []
    for _ in range(7):
        await limiter.wait()
        passed.append(clock.now)
    assert passed == [0, 0, 0, 0.5, 1.0, 1.5, 2.0]


async def test_idle_time_fills_up_to_the_burst_only() -> None:
    clock = Clock()
    limiter = Limiter(1.0, 2, clock=clock, sleep=clock.sleep)
    clock.now = 100.0
    assert [limiter.take() for _ in range(3)] == [True, True, False]
    clock.now = 101.0
    assert [limiter.take() for _ in range(2)] == [True, False]


async def test_waiters_queue_and_a_cancelled_one_gives_its_turn_back() -> None:
    clock = Clock()
    asked: list[float] = []
    release = asyncio.Event()

    async def sleep(seconds: float) -> None:
        asked.append(seconds)
        await release.wait()

    limiter = Limiter(1.0, 1, clock=clock, sleep=sleep)
    await limiter.wait()
    first, second = (asyncio.create_task(limiter.wait()) for _ in range(2))
    await asyncio.sleep(0)
    assert asked == [1.0, 2.0]
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    third = asyncio.create_task(limiter.wait())
    await asyncio.sleep(0)
    assert asked == [1.0, 2.0, 2.0]
    release.set()
    await asyncio.gather(first, third)


@pytest.mark.parametrize(("rate", "burst"), [(0, 1), (-1, 1), (1, 0)])
def test_a_limiter_that_would_never_let_through_is_refused(rate: float, burst: float) -> None:
    with pytest.raises(ValueError, match="rate must be above 0"):
        Limiter(rate, burst)
