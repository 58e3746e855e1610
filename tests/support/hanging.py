"""Drivers that hang whoever reads their attributes: a regular file, and a read that stays."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from migcompat.sysfs.reader import DeviceDirectory
from migcompat.sysfs.tree import Tree


class Hanging:
    """Reads of paths with one of ``parts`` in them stay until it is taken away, ``threads`` with them."""

    def __init__(self) -> None:
        self.parts: set[str] = set()
        self.threads: list[threading.Thread] = []
        self._changed = threading.Condition()

    def add(self, *parts: str) -> None:
        """These hang from now on."""
        self.parts.update(parts)

    def release(self, *parts: str) -> None:
        """These answer again; without any, all do."""
        with self._changed:
            self.parts -= set(parts) or self.parts
            self._changed.notify_all()

    def read(self, path: str) -> None:
        """Returns once *path* can be read."""
        if self._hangs(path):
            with self._changed:
                self.threads.append(threading.current_thread())
                self._changed.wait_for(lambda: not self._hangs(path))
                self.threads.remove(threading.current_thread())

    def _hangs(self, path: str) -> bool:
        return any(part in path for part in self.parts)


@contextmanager
def hanging_reads() -> Iterator[Hanging]:
    """Reads of attributes go by what is told to hang; at the end none does any more."""
    hanging = Hanging()
    text, content = Tree._text, DeviceDirectory._read

    def shown(tree: Tree, path: str, notes: list[str]) -> str:
        hanging.read(path)
        return text(tree, path, notes)

    def declared(place: str, limit: int) -> bytes:
        hanging.read(place)
        return content(place, limit)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tree, "_text", shown)
        patch.setattr(DeviceDirectory, "_read", staticmethod(declared))
        try:
            yield hanging
        finally:
            threads = list(hanging.threads)
            hanging.release()
            for thread in threads:
                thread.join(60)
