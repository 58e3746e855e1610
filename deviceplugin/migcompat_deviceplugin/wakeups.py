"""When to look at sysfs again: soon after the kernel told of a change, and now and then in any case."""

from __future__ import annotations

import asyncio
import logging
from typing import NamedTuple

from migcompat.sysfs.uevents import Listener

from migcompat_deviceplugin import metrics

log = logging.getLogger(__name__)

SOON = 0.01
"""Seconds after an event at which a look is due where there was none for ``CALM`` seconds before."""
CALM = 1.0
QUIET = 0.05
"""Seconds without a further event after which a look is worth while: one device's coming is many events."""
DEVPATHS = 1024
"""Paths of events that are kept apart."""
AT_MOST = 0.5
"""Seconds after the first event at which a look is due however many follow."""


class News(NamedTuple):
    """Events heard: the loop's time of the first, and what they are about; empty if some were lost."""

    at: float
    devpaths: frozenset[str]


class Wakeups:
    """Waits for the kernel's events; without a *listener* only for time to pass.

    Nothing is lost: what is heard while a look is under way ends the next :meth:`wait`, and so does a
    message that the kernel had to drop.
    """

    def __init__(self, listener: Listener | None) -> None:
        self._listener = listener
        self._heard = asyncio.Event()
        self._first = 0.0
        self._latest = 0.0
        self._before = 0.0
        self._devpaths: set[str] = set()
        self._lost = False

    @property
    def listening(self) -> bool:
        """Whether the kernel's events are heard."""
        return self._listener is not None

    def start(self) -> None:
        """Listen from now on."""
        if self._listener is not None:
            asyncio.get_running_loop().add_reader(self._listener.fileno(), self._drain)

    def stop(self) -> None:
        """Listen no more."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener.fileno())
            self._listener.close()
            self._listener = None

    async def wait(self, seconds: float) -> News | None:
        """Return when a look is due: what was heard, None when *seconds* have passed."""
        try:
            async with asyncio.timeout(seconds):
                await self._heard.wait()
        except TimeoutError:
            return None
        pause = self._pause()
        while pause > 0:
            await asyncio.sleep(pause)
            pause = self._pause()
        self._heard.clear()
        news = News(self._first, frozenset() if self._lost else frozenset(self._devpaths))
        self._devpaths.clear()
        self._lost = False
        return news

    def _pause(self) -> float:
        quiet = SOON if self._first - self._before > CALM else QUIET
        due = min(self._latest + quiet, self._first + AT_MOST)
        return due - asyncio.get_running_loop().time()

    def _drain(self) -> None:
        assert self._listener is not None  # noqa: S101 - for the type checker
        try:
            heard = self._listener.drain()
        except OSError as error:
            log.warning("the kernel's device events are heard no more (%s); scans go on by time alone", error)
            self.stop()
            return
        metrics.UEVENTS.inc(heard.relevant)
        metrics.UEVENT_OVERRUNS.inc(heard.overruns)
        if heard:
            before, self._latest = self._latest, asyncio.get_running_loop().time()
            if not self._heard.is_set():
                self._before, self._first = before, self._latest
                self._heard.set()
            self._devpaths |= heard.devpaths
            self._lost |= bool(heard.overruns) or len(self._devpaths) > DEVPATHS
            if self._lost:
                self._devpaths.clear()
