"""Child processes that end with us, whatever happens to us."""

from __future__ import annotations

import atexit
import contextlib
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path

_WRAPPER = Path(__file__).with_name("die_with_parent.py")


class Process:
    """A program in a session of its own, its output in a file.

    It gets SIGKILL from the kernel when this process dies, and is stopped at interpreter exit.
    """

    def __init__(
        self, name: str, command: Sequence[str], *, log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.command = list(command)
        self.log = log

        def start() -> subprocess.Popen[bytes]:
            with log.open("ab") as output:
                return subprocess.Popen(
                    [sys.executable, "-IS", str(_WRAPPER), str(os.getpid()), *command],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=dict(environment) if environment is not None else None,
                    start_new_session=True,
                )

        self._popen = _spawner.call(start)
        _alive.add(self)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._popen.pid

    def exit_code(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        code = self._popen.poll()
        if code is not None:
            _alive.discard(self)
        return code

    def terminate(self) -> None:
        """Sends SIGTERM."""
        if self.exit_code() is None:
            self._popen.terminate()

    def kill(self) -> None:
        """Sends SIGKILL."""
        if self.exit_code() is None:
            self._popen.kill()

    def stop(self, grace: float = 10.0) -> None:
        """SIGTERM, and SIGKILL after `grace` seconds; returns when it is gone."""
        self.terminate()
        try:
            self._popen.wait(grace)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait(10)
        _alive.discard(self)

    def tail(self, size: int = 3000) -> str:
        """The end of its output, at most `size` bytes."""
        with contextlib.suppress(OSError), self.log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - size))
            return file.read().decode(errors="replace")
        return ""


class _Spawner:
    """Starts children from one thread that lives as long as the process.

    The kernel's death signal comes when the *thread* that made the child ends (prctl(2)).
    """

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[
            tuple[Callable[[], subprocess.Popen[bytes]], Future[subprocess.Popen[bytes]]]
        ] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def call(self, start: Callable[[], subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, daemon=True, name="spawner")
                self._thread.start()
        future: Future[subprocess.Popen[bytes]] = Future()
        self._jobs.put((start, future))
        return future.result(30)

    def _run(self) -> None:
        while True:
            start, future = self._jobs.get()
            try:
                future.set_result(start())
            except OSError as error:
                future.set_exception(error)


_spawner = _Spawner()
_alive: set[Process] = set()


@atexit.register
def _stop_all() -> None:
    remaining = list(_alive)
    for process in remaining:
        process.terminate()
    for process in remaining:
        process.stop(5)
