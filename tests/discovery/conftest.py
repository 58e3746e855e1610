"""Recorded trees, unpacked once a session, and an empty fabricated one for each test."""

from __future__ import annotations

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
