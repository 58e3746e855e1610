"""A stub of NVIDIA's management library: compiled from C once a session, told in a file what to answer."""

from __future__ import annotations

import os
from pathlib import Path

from tests.node import debian
from tests.support import longrun

SOURCE = Path(__file__).parent / "nvml_stub" / "nvml_stub.c"
NAME = "libnvidia-ml.so.1"

TOOLS = {"gcc": "gcc", "/usr/include/stdio.h": "libc6-dev"}
"""What compiles it, as of :func:`tests.node.debian.need`."""

DRIVER = "580.95.05"
SUPPORTED = (0x70001, 0x190001)


def build(directory: Path) -> Path:
    """Compiles the stub in *directory*; returns the library's path. Raises DebianError, LongRunError."""
    gcc = debian.need(TOOLS)["gcc"]
    library = directory / NAME
    options = ["-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-Wno-sign-compare", f"-Wl,-soname,{NAME}"]
    longrun.run("gcc", [str(gcc), *options, "-o", str(library), str(SOURCE)], deadline=120)
    return library


class Stub:
    """What the library answers: a host with the vGPU manager ``DRIVER`` and no GPU yet."""

    def __init__(self, directory: Path, library: Path) -> None:
        self.library = library
        self.file = directory / "nvml"
        self._says: dict[str, str] = {}
        self.says("driver", DRIVER)
        self.supports(*SUPPORTED)

    def says(self, key: str, value: object) -> None:
        """Answer so from now on, by a key of the stub's file; None takes it away."""
        if value is None:
            self._says.pop(key, None)
        else:
            self._says[key] = str(value)
        written = self.file.with_suffix(".new")
        written.write_text("".join(f"{key} {value}\n" for key, value in self._says.items()))
        os.replace(written, self.file)

    def supports(self, first: int, last: int, current: tuple[int, int] | None = None) -> None:
        """The vGPU manager knows these versions; *current*: what the administrator has left of them."""
        self.says("supported", f"{first:#x} {last:#x}")
        self.says("current", f"{current[0]:#x} {current[1]:#x}" if current else None)

    def add_gpu(self, address: str, *, ecc: bool | None = True, types: dict[int, str] | None = None) -> int:
        """A GPU; ecc None: it has none. Returns its number."""
        number = 1 + sum(key.startswith("gpu.") for key in self._says)
        self.says(f"gpu.{address}", number)
        self.says(f"ecc.{number}", None if ecc is None else int(ecc))
        self.says(f"types.{number}", " ".join(map(str, types or {})))
        for type_id, name in (types or {}).items():
            self.says(f"name.{type_id}", name)
        return number

    def returns(self, function: str, code: int) -> None:
        """*function* returns an error code."""
        self.says(f"return.{function}", code)

    def hangs(self, function: str) -> None:
        """*function* never returns."""
        self.says(f"hang.{function}", "")

    def crashes(self, function: str) -> None:
        """*function* ends the process."""
        self.says(f"crash.{function}", "")

    def heals(self) -> None:
        """All functions return again."""
        for key in list(self._says):
            if key.startswith(("return.", "hang.", "crash.")):
                self.says(key, None)
