"""A run of tests in the booted machine, as the host follows it."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.kernel import image, machine
from tests.kernel.image import HERE, ROOT, Image

DEADLINE = 1200.0
"""Seconds from switching the machine on until it is off again; 180 on a quiet machine."""
SOURCES = (
    *("core", "deviceplugin", "charts/migcompat/files/catalogue", "pyproject.toml"),
    *("tests/support", "tests/deviceplugin", "tests/kernel"),
)
"""What the machine sees of this repository."""

_POLL = 0.1
_TAIL = 4000
_PANICS = ("Kernel panic", "Oops", "BUG:")

Report = dict[str, Any]


class GuestError(Exception):
    """The machine did not do what it was switched on for; the text says what it did, with its last words."""


class GuestRun:
    """Boots a machine that runs the tests *selected* (pytest's node ids), one after another, by *script*.

    ``boot_seconds``: from switching it on until its first program runs, 0.0 before that.

    Raises:
        LongRunError: a file of ours is no Python.
    """

    def __init__(
        self,
        made: Image,
        selected: Sequence[str],
        *,
        script: Path = HERE / "guest.sh",
        deadline: float = DEADLINE,
    ) -> None:
        self.boot_seconds = 0.0
        self._deadline = deadline
        self._reports: dict[str, list[Report]] = {}
        self._broken: list[str] = []
        self._read = 0
        self._pending = b""
        self._stack = ExitStack()
        self.directory = self._stack.enter_context(machine.run_directory())
        try:
            _lay_out(self.directory, made, selected, script)
            self._start = time.monotonic()
            self._process = machine.boot(made, self.directory)
        except BaseException:
            self._stack.close()
            raise
        self._stack.callback(self._process.kill)

    def reports(self, node_id: str) -> list[Report]:
        """The reports of one test, as soon as it is done.

        Raises:
            GuestError: the machine ended before, or has not ended in time.
        """
        while True:
            running = self._process.exit_code() is None
            self._take()
            found = self._reports.get(node_id, [])
            if found and found[-1]["when"] == "teardown":
                return found
            if self._broken:
                raise GuestError("\n".join(("the tests cannot be loaded in the machine:", *self._broken)))
            if not running:
                raise GuestError(self._why_it_ended())
            if time.monotonic() - self._start > self._deadline:
                self._process.kill()
                raise GuestError(
                    self._last_words(f"the machine was not done after {self._deadline:.0f} s; it was ended")
                )
            time.sleep(_POLL)

    def close(self) -> None:
        """Ends the machine and removes what it wrote."""
        self._process.stop(0)
        self._stack.close()

    def _take(self) -> None:
        try:
            with (self.directory / "out/results.jsonl").open("rb") as file:
                file.seek(self._read)
                text = file.read()
        except FileNotFoundError:
            return
        self.boot_seconds = self.boot_seconds or time.monotonic() - self._start
        self._read += len(text)
        *lines, self._pending = (self._pending + text).split(b"\n")
        for line in filter(None, lines):
            report = json.loads(line)
            if "when" in report:
                self._reports.setdefault(report["nodeid"], []).append(report)
            else:
                self._broken.append(f"{report['nodeid']}: {_words(report['longrepr'])}")

    def _why_it_ended(self) -> str:
        console = self._process.tail(64 * 1024)
        if any(word in console for word in _PANICS):
            return self._last_words("the machine's kernel crashed")
        left = self.directory / "out/exit"
        if left.exists():
            return self._last_words(
                f"the machine's tests ended (status {left.read_text().strip()}) without this one"
            )
        return self._last_words("the machine ended by itself")

    def _last_words(self, what: str) -> str:
        log = self.directory / "out/guest.log"
        said = log.read_text(errors="replace")[-_TAIL:].strip() if log.exists() else ""
        return f"{what}\n--- its tests said:\n{said}\n--- its console:\n{self._process.tail(_TAIL).strip()}"


def _lay_out(directory: Path, made: Image, selected: Sequence[str], script: Path) -> None:
    source = directory / "source"
    for name in SOURCES:
        here, there = ROOT / name, source / name
        there.parent.mkdir(parents=True, exist_ok=True)
        if here.is_dir():
            shutil.copytree(here, there, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(here, there)
    image.compile_all(made.root, source, "/mnt/source")
    shutil.copy(script, source / "guest.sh")
    (source / "selected").write_text("".join(f"{node_id}\n" for node_id in selected))
    (directory / "out").mkdir()


def _words(longrepr: object) -> str:
    """What pytest wrote of a failed import."""
    return str(longrepr.get("longrepr") or longrepr) if isinstance(longrepr, dict) else str(longrepr)
