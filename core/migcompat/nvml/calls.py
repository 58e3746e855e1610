"""Asking NVML without being held up by it: each call has a deadline, and runs in a process of its own."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

INIT_DEADLINE = 15.0
"""Seconds until NVML is initialised. A GPU without persistence mode is only then woken up."""
CALL_DEADLINE = 5.0
"""Seconds for each question."""
STOPS = 3
"""Questions that may hang, or crash NVML, before no more are asked."""

_PROGRAM = (sys.executable, "-P", "-m", "migcompat.nvml.program")
_REAP_DEADLINE = 1.0
_CHUNK = 65536

Question = tuple[str | int, ...]
"""A name of :data:`migcompat.nvml.program.QUESTIONS` and its arguments."""


class Answer(NamedTuple):
    """``value`` as JSON has it, or ``error``: why there is none."""

    value: Any = None
    error: str = ""


class NotAvailable(Exception):
    """NVML cannot be used at all; the text says why."""


def ask(questions: Sequence[Question], library: str = "") -> list[Answer]:
    """The answer to each of *questions*. Raises NotAvailable when NVML cannot be initialised.

    *library*: path of ``libnvidia-ml.so.1``; empty: where the dynamic linker finds it. A question that hangs
    or crashes is answered by an error, and the rest is asked in a new process.
    """
    answers: list[Answer] = []
    stops = 0
    while len(answers) < len(questions):
        if stops == STOPS:
            left = len(questions) - len(answers)
            return answers + [Answer(error=f"not asked, after {STOPS} that did not answer")] * left
        try:
            given, stopped = _ask(questions[len(answers) :], library)
        except NotAvailable as error:
            if not answers:
                raise
            return answers + [Answer(error=str(error))] * (len(questions) - len(answers))
        answers += given
        if stopped:
            stops += 1
            answers.append(Answer(error=stopped))
    return answers


def _ask(questions: Sequence[Question], library: str) -> tuple[list[Answer], str]:
    """Answers from one process, and why it gave none to the next question; empty when it has answered all."""
    said, out = os.pipe()
    try:
        process = subprocess.Popen(  # noqa: S603 - our own program
            [*_PROGRAM, library, json.dumps(questions)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.DEVNULL,
        )
    except OSError as error:
        os.close(said)
        raise NotAvailable(f"no process can be started: {error}") from error
    finally:
        os.close(out)
    answers: list[Answer] = []
    try:
        lines = _answers(process, said)
        opened = next(lines)
        if opened.error:
            raise NotAvailable(opened.error)
        try:
            while len(answers) < len(questions):
                answers.append(next(lines))
        except _Stopped as stopped:
            return answers, str(stopped)
        return answers, ""
    except _Stopped as stopped:
        raise NotAvailable(str(stopped)) from None
    finally:
        os.close(said)
        _end(process)


class _Stopped(Exception):
    """The process gives no answer any more; the text says why."""


def _answers(process: subprocess.Popen[bytes], said: int) -> Iterator[Answer]:
    """What the process says to the descriptor *said*, as it comes. Raises _Stopped."""
    poll = select.poll()
    poll.register(said, select.POLLIN)
    deadline, unread = INIT_DEADLINE, b""
    while True:
        end = time.monotonic() + deadline
        while b"\n" not in unread:
            if not poll.poll(max(0.0, end - time.monotonic()) * 1000):
                raise _Stopped(f"no answer within {deadline:g} s")
            chunk = os.read(said, _CHUNK)
            if not chunk:
                raise _Stopped(_how_it_ended(process))
            unread += chunk
        line, _, unread = unread.partition(b"\n")
        try:
            yield Answer(**json.loads(line))
        except (TypeError, ValueError):
            raise _Stopped(f"said '{line[:64]!r}'") from None
        deadline = CALL_DEADLINE


def _how_it_ended(process: subprocess.Popen[bytes]) -> str:
    try:
        status = process.wait(_REAP_DEADLINE)
    except subprocess.TimeoutExpired:
        return "it broke off"
    return (
        f"it was ended by {signal.Signals(-status).name}" if status < 0 else f"it ended with status {status}"
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the process, unless the driver keeps it: then it is left to end by itself."""
    process.kill()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_REAP_DEADLINE)
