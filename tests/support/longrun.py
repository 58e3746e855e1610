"""Programs that run for minutes: with a line every ten seconds, a deadline, and no remains."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

_WRAPPER = Path(__file__).parent.parent / "cluster" / "die_with_parent.py"
_HEARTBEAT = 10.0
_LOCK_DEADLINE = 3600.0
_GONE = 10.0
_TAIL = 3000


NAMESPACES = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
"""Before a command: its mounts and its processes end with it (unshare(1); needs root)."""


class LongRunError(RuntimeError):
    """What was to be had could not be had; the text says what, and why."""


def say(text: str) -> None:
    """A line of progress, to stderr."""
    sys.stderr.write(f"[tests] {text}\n")
    sys.stderr.flush()


def interruptible() -> None:
    """From now on SIGTERM ends this process as Ctrl-C does: what is under way is ended, or let to its end.

    A shell starts background jobs with SIGINT ignored, and Python leaves it so; that ends, too. Only the main
    thread may call it.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)


def run(
    name: str,
    command: Sequence[str],
    *,
    deadline: float,
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
    let_it_end: float = 0.0,
) -> str:
    """Runs a program to its end and returns what it wrote (both streams).

    It never outlives this process, unless `let_it_end` says so.

    Args:
        name: what is being done, for the lines of progress: "base image".
        command: program and arguments.
        deadline: seconds it may take.
        environment: this process's if None.
        directory: where it runs.
        let_it_end: for programs that must not be killed half-way (apt-get): how many seconds to wait for it
            when this process is interrupted; the kernel does not kill it with this process, either.

    Raises:
        LongRunError: it failed (with the end of its output), took too long, or is not installed.
    """
    start = time.monotonic()
    if not shutil.which(command[0]):
        raise LongRunError(f"{name}: there is no {command[0]}")
    wrapper = [] if let_it_end else [sys.executable, "-IS", str(_WRAPPER), str(os.getpid())]
    with tempfile.TemporaryFile() as output, _pipe() as (reading, writing):
        process = subprocess.Popen(
            [*wrapper, *command],
            cwd=directory,
            env=dict(environment) if environment is not None else None,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            pass_fds=[writing],
        )
        os.close(writing)
        try:
            code = _wait(name, process, start, deadline)
        finally:
            _end(name, process, let_it_end, reading)
        if code:
            output.seek(max(0, output.seek(0, os.SEEK_END) - _TAIL))
            text = output.read().decode(errors="replace").strip()
            raise LongRunError(f"{name}: `{' '.join(command)}` failed ({code}):\n{text}")
        output.seek(0)
        return output.read().decode(errors="replace")


@contextlib.contextmanager
def locked(path: Path, name: str) -> Iterator[None]:
    """Holds an exclusive lock on the file `path`; the kernel lets go of it however this process ends.

    Raises:
        LongRunError: another process has held it for an hour.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        start = said = time.monotonic()
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                now = time.monotonic()
                if now - start > _LOCK_DEADLINE:
                    raise LongRunError(f"{name}: another process holds {path} for an hour; end it") from None
                if now - said >= _HEARTBEAT:
                    said = now
                    say(f"{name}: another process is at it, {now - start:.0f} s")
                time.sleep(0.2)
        yield


def _wait(name: str, process: subprocess.Popen[bytes], start: float, deadline: float) -> int:
    while True:
        elapsed = time.monotonic() - start
        if elapsed > deadline:
            raise LongRunError(f"{name}: not done after {elapsed:.0f} s, ended")
        try:
            return process.wait(min(_HEARTBEAT, max(0.1, deadline - elapsed)))
        except subprocess.TimeoutExpired:
            say(f"{name}: {time.monotonic() - start:.0f} s")


def _end(name: str, process: subprocess.Popen[bytes], patience: float, reading: int) -> None:
    if process.poll() is None and patience:
        say(f"{name}: is let to its end, {patience:.0f} s at most")
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        # What it started dies a moment later, and until then may write to files that are about to be removed.
        select.select([reading], [], [], _GONE)


@contextlib.contextmanager
def _pipe() -> Iterator[tuple[int, int]]:
    """A pipe's ends: the first reads as ended when nobody has the second any more. Closes the first."""
    reading, writing = os.pipe()
    try:
        yield reading, writing
    finally:
        os.close(reading)
