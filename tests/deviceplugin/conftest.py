"""The node that the agent's tests share."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.deviceplugin.world import World, world


@pytest.fixture
async def node() -> AsyncIterator[World]:
    """A node without devices; in a short path, because a socket's path has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="migcompat-") as directory:
        async with world(Path(directory)) as made:
            yield made
