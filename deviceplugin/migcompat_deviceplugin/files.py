"""The kubelet's files as a source of news: heard where the kernel tells of them, looked at where not."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from migcompat.kubelet.directories import Directories

log = logging.getLogger(__name__)

PAUSE = 0.1
"""Seconds from the first sign of a change to the look at it: a starting kubelet removes before it makes."""
UNWATCHED = 1.0
"""Seconds between two looks where nothing is heard."""
AGAIN = 10.0
"""Seconds after which the directories are watched anew: they may be others by now."""


class KubeletFiles:
    """Calls *changed* when files of *directories* may have changed; ``watched``: whether that is at once."""

    def __init__(self, directories: Directories, changed: Callable[[], None]) -> None:
        self._directories = directories
        self._changed = changed
        self._heard: asyncio.TimerHandle | None = None
        self.watched = False

    async def run(self) -> None:
        """Listen until cancelled."""
        loop = asyncio.get_running_loop()
        descriptor = self._directories.open()
        if descriptor is None:
            log.info("the kubelet's directories cannot be watched (inotify): looking every %g s", UNWATCHED)
        else:
            loop.add_reader(descriptor, self._hear)
        try:
            while True:
                self.watched = descriptor is not None and self._directories.watched()
                self._changed()
                await asyncio.sleep(AGAIN if self.watched else UNWATCHED)
        finally:
            if descriptor is not None:
                loop.remove_reader(descriptor)
            self._directories.close()

    def _hear(self) -> None:
        self._directories.drain()
        if self._heard is None:
            self._heard = asyncio.get_running_loop().call_later(PAUSE, self._tell)

    def _tell(self) -> None:
        self._heard = None
        self._changed()
