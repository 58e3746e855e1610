"""Reads a docker-archive: what `docker save` writes and what `ctr images import` and `docker load` take."""

from __future__ import annotations

import json
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Layer:
    """One of the tars that make the file system."""

    name: str
    """Inside the archive."""

    size: int
    """Bytes."""

    compressed: int
    """Bytes as a registry holds it (gzip)."""


class Archive:
    """The first image in the archive at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with tarfile.open(path) as tar:
            manifest = json.loads(_read(tar, "manifest.json"))[0]
            self.tags: list[str] = manifest["RepoTags"]
            self.config: dict[str, Any] = json.loads(_read(tar, manifest["Config"]))
            """The image's configuration as a whole: ``config``, ``history``, ``rootfs``."""
        self._layers: list[str] = manifest["Layers"]

    def layers(self) -> list[Layer]:
        """From the lowest on; compresses all of them to know their size."""
        found = []
        with tarfile.open(self.path) as tar:
            for name in self._layers:
                compressor, compressed = zlib.compressobj(6), 0
                file = tar.extractfile(name)
                assert file is not None
                while chunk := file.read(_CHUNK):
                    compressed += len(compressor.compress(chunk))
                found.append(Layer(name, tar.getmember(name).size, compressed + len(compressor.flush())))
        return found

    def unpack(self, directory: Path) -> None:
        """Lays the layers over one another in `directory`, as a container has them.

        Raises:
            ValueError: a layer removes something of one below (no layer of ours does).
        """
        with tarfile.open(self.path) as tar:
            for name in self._layers:
                with tarfile.open(fileobj=tar.extractfile(name)) as layer:
                    for member in layer:
                        if Path(member.name).name.startswith(".wh."):
                            raise ValueError(f"{self.path}: layer {name} removes {member.name}")
                        layer.extract(member, directory, numeric_owner=True, filter="fully_trusted")


def _read(tar: tarfile.TarFile, name: str) -> bytes:
    file = tar.extractfile(name)
    assert file is not None
    return file.read()
