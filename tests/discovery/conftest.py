"""Recorded trees, unpacked once a session, and an empty fabricated one for each test."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.support.fabricate import make_sysfs
from tests.support.sysfs import unpack


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """The sysfs root of a recorded tree; shared by all tests, so not to be written to."""

    @cache
    def root(kernel: str, tree: str) -> Path:
        return unpack(kernel, tree, tmp_path_factory.mktemp(f"{kernel}-{tree}"))

    return root


@pytest.fixture
def sys(tmp_path: Path) -> Path:
    """A sysfs without devices."""
    return make_sysfs(tmp_path)


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Make a file open, and every read of it fail with EIO, as of a driver whose hardware is gone."""
    read = os.read
    files: set[str] = set()

    def fail(descriptor: int, length: int) -> bytes:
        if os.readlink(f"/proc/self/fd/{descriptor}") in files:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(descriptor, length)

    monkeypatch.setattr("migcompat.sysfs.tree.os.read", fail)
    return lambda file: files.add(os.path.realpath(file))
