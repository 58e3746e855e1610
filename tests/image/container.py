"""Processes in an unpacked image, as confined as the chart's containers, without a container runtime."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.processes import Process

_INSIDE = Path(__file__).with_name("inside.py")
_IMPORT = re.compile(r"^import time:\s+\d+ \|\s+\d+ \|\s+([\w.]+)$", re.MULTILINE)
_ASK = """
import sys, urllib.error, urllib.request
try:
    answer = urllib.request.urlopen(sys.argv[1], timeout=5)
except urllib.error.HTTPError as error:
    answer = error
except OSError as error:
    sys.exit(print(f"0\\n{error}"))
print(answer.status, answer.read().decode(), sep="\\n", end="")
"""
_NAMESPACES = ("unshare", "--mount", "--pid", "--net", "--ipc", "--uts", "--fork", "--kill-child")


@dataclass(frozen=True)
class Volume:
    """A file or directory of this machine that the container sees."""

    source: Path
    writable: bool = False


@dataclass(frozen=True)
class Node:
    """A character device that the container is given."""

    major: int
    minor: int
    mode: int = 0o666


class Container:
    """A command that runs in the image unpacked at `root`, by default as the image's user.

    Args:
        root: is not changed, but for empty files and directories where something is mounted.
        config: the image's configuration (``config`` of `tests.image.archive.Archive.config`).
        command: its first word is looked up in the image's PATH.
        log: what it writes (both streams), and what it imported.
        volumes: by the path at which they are seen.
        nodes: by their path, below /dev.
        environment: besides the image's.
        uid: 0 is root, without any capability.
    """

    def __init__(
        self,
        root: Path,
        config: Mapping[str, object],
        command: Sequence[str],
        *,
        log: Path,
        volumes: Mapping[str, Volume] | None = None,
        nodes: Mapping[str, Node] | None = None,
        environment: Mapping[str, str] | None = None,
        uid: int | None = None,
    ) -> None:
        given = dict(variable.split("=", 1) for variable in _strings(config["Env"]))
        spec = {
            "root": str(root),
            "nodes": {path: (n.major, n.minor, n.mode) for path, n in (nodes or {}).items()},
            "mounts": {path: (str(v.source), v.writable) for path, v in (volumes or {}).items()},
            "uid": int(str(config["User"]).split(":")[0]) if uid is None else uid,
            "command": [_look_up(root, command[0], given["PATH"]), *command[1:]],
            "environment": {**given, "PYTHONPROFILEIMPORTTIME": "1", **(environment or {})},
        }
        self._process = Process(
            command[0],
            [*_NAMESPACES, sys.executable, "-IS", str(_INSIDE), json.dumps(spec)],
            log=log,
        )

    def output(self) -> str:
        """What it has written so far."""
        text = self._process.log.read_text(errors="replace")
        return "".join(line for line in text.splitlines(keepends=True) if not line.startswith("import time:"))

    def imported(self) -> set[str]:
        """Names of the modules that it has imported, or tried to import, so far."""
        return set(_IMPORT.findall(self._process.log.read_text(errors="replace")))

    def wait(self, timeout: float) -> int:
        """Its exit status.

        Raises:
            AssertionError: it still runs after `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while (code := self._process.exit_code()) is None:
            assert time.monotonic() < deadline, f"still runs after {timeout} s:\n{self.output()}"
            time.sleep(0.05)
        return code

    def get(self, url: str) -> tuple[int, str]:
        """Asks from inside its network: status and body; status 0 while nothing answers."""
        asked = subprocess.run(
            ["nsenter", f"--net=/proc/{self._inner()}/ns/net", sys.executable, "-IS", "-c", _ASK, url],
            capture_output=True, text=True, timeout=30, check=True,
        )  # fmt: skip
        status, _, body = asked.stdout.partition("\n")
        return int(status), body

    def terminate(self) -> None:
        """Tells it to end, as a kubelet does."""
        self.signal("TERM")

    def signal(self, name: str) -> None:
        """Sends it SIG`name`, once it has said that it takes it: the kernel spares a process 1 any other.

        Before that, it may still be this machine's program that makes the container.
        """
        number = signal.Signals[f"SIG{name}"]
        deadline = time.monotonic() + 30
        while _is_ours(inner := self._inner()) or not _catches(inner, number):
            assert time.monotonic() < deadline, f"it does not take SIG{name}:\n{self.output()}"
            time.sleep(0.05)
        os.kill(inner, number)

    def stop(self) -> None:
        """Ends it, with everything in its namespaces."""
        self._process.kill()
        self._process.stop()

    def _inner(self) -> int:
        """The process 1 of its namespaces, as seen from here."""
        outer = self._process.pid
        children = Path(f"/proc/{outer}/task/{outer}/children")
        deadline = time.monotonic() + 10
        while not (found := children.read_text().split()):
            assert self._process.exit_code() is None, f"it has ended:\n{self.output()}"
            assert time.monotonic() < deadline, "unshare makes no namespaces"
            time.sleep(0.05)
        return int(found[0])


def _catches(pid: int, number: signal.Signals) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.partition(":")[2], 16) >> (number - 1) & 1)


def _is_ours(pid: int) -> bool:
    """Whether process `pid` has not become the image's program yet: its root is this machine's."""
    return Path(f"/proc/{pid}/root").readlink() == Path("/") or str(_INSIDE) in _command(pid)


def _command(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")


def _look_up(root: Path, name: str, path: str) -> str:
    for directory in path.split(":"):
        if (root / directory.lstrip("/") / name).exists():
            return f"{directory}/{name}"
    raise FileNotFoundError(f"{name} is nowhere in {path} of {root}")


def _strings(value: object) -> list[str]:
    assert isinstance(value, list)
    return [str(item) for item in value]
