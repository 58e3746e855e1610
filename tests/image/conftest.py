"""The image, built once, and its file system."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import pytest

from tests.image import build
from tests.image.archive import Archive
from tests.image.container import Container, Volume


class Start(Protocol):
    """Starts a command in the image; it ends with the test."""

    def __call__(
        self,
        *command: str,
        volumes: Mapping[str, Volume] | None = None,
        environment: Mapping[str, str] | None = None,
        uid: int | None = None,
    ) -> Container: ...


@pytest.fixture(scope="session")
def archive() -> Archive:
    """The product's image."""
    return Archive(build.image())


@pytest.fixture(scope="session")
def unpacked(archive: Archive) -> Iterator[Callable[[str], Path]]:
    """Unpacks the image once for each name; other users can reach it, whatever pytest's directories say."""
    with tempfile.TemporaryDirectory(prefix="mc-image-") as directory:
        Path(directory).chmod(0o755)

        def unpack(name: str) -> Path:
            root = Path(directory, name)
            if not root.exists():
                root.mkdir()
                archive.unpack(root)
            return root

        yield unpack


@pytest.fixture(scope="session")
def root(unpacked: Callable[[str], Path]) -> Path:
    """The image's file system as it is."""
    return unpacked("as-it-is")


@pytest.fixture
def start(archive: Archive, unpacked: Callable[[str], Path], tmp_path: Path) -> Iterator[Start]:
    """Starts commands in the image, confined as the chart's containers are."""
    started: list[Container] = []

    def one(
        *command: str,
        volumes: Mapping[str, Volume] | None = None,
        environment: Mapping[str, str] | None = None,
        uid: int | None = None,
    ) -> Container:
        container = Container(
            unpacked("run"),
            archive.config["config"],
            command,
            log=tmp_path / f"log-{len(started)}",
            volumes=volumes,
            environment=environment,
            uid=uid,
        )
        started.append(container)
        return container

    yield one
    for container in started:
        container.stop()


@pytest.fixture
def shared() -> Iterator[Path]:
    """A directory that the image's user can enter."""
    with tempfile.TemporaryDirectory(prefix="mc-image-") as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)
