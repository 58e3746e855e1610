"""The kubelet's files: what is made, replaced and removed is heard, and where it is not, it is looked at."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from migcompat.kubelet.directories import Directories
from migcompat_deviceplugin import files
from migcompat_deviceplugin.files import KubeletFiles

from tests.deviceplugin.world import eventually


class Heard:
    """How often a change was told."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> None:
        self.times += 1


@asynccontextmanager
async def watching(*paths: Path) -> AsyncIterator[tuple[KubeletFiles, Heard]]:
    heard = Heard()
    made = KubeletFiles(Directories(paths), heard)
    task = asyncio.create_task(made.run())
    await eventually(lambda: heard.times)
    heard.times = 0
    yield made, heard
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_a_file_that_is_made_replaced_or_removed_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "AGAIN", 3600.0)
    file = tmp_path / "one/kubelet.sock"
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    async with watching(tmp_path / "one", tmp_path / "two") as (made, heard):
        assert made.watched
        file.touch()
        await eventually(lambda: heard.times == 1)
        (tmp_path / "new").touch()
        (tmp_path / "new").rename(file)
        await eventually(lambda: heard.times == 2)
        file.unlink()
        await eventually(lambda: heard.times == 3)
        (tmp_path / "two/other").touch()
        await eventually(lambda: heard.times == 4)


async def test_much_at_once_is_told_once(tmp_path: Path) -> None:
    async with watching(tmp_path) as (_, heard):
        for number in range(1000):
            (tmp_path / f"file-{number}").touch()
        await eventually(lambda: heard.times)
        await asyncio.sleep(2 * files.PAUSE)
        assert heard.times <= 2


async def test_a_directory_that_is_made_anew_is_watched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "AGAIN", 0.05)
    monkeypatch.setattr(files, "UNWATCHED", 0.05)
    directory = tmp_path / "device-plugins"
    directory.mkdir()
    async with watching(directory) as (made, heard):
        directory.rmdir()
        await eventually(lambda: not made.watched)
        heard.times = 0
        await eventually(lambda: heard.times)  # looked at meanwhile
        directory.mkdir()
        await eventually(lambda: made.watched)
        monkeypatch.setattr(files, "AGAIN", 3600.0)
        await asyncio.sleep(0.2)
        heard.times = 0
        (directory / "kubelet.sock").touch()
        await eventually(lambda: heard.times)


async def test_where_nothing_can_be_heard_it_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "UNWATCHED", 0.01)
    monkeypatch.setattr(Directories, "open", lambda _: None)
    async with watching(tmp_path) as (made, heard):
        assert not made.watched
        await eventually(lambda: heard.times > 3)
