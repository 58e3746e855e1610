"""The product's programs as processes, for the parts of the benchmark beside a real control plane."""

from __future__ import annotations

import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from tests.bench.figures import BenchError
from tests.cluster.processes import Process

READY_SECONDS = 90.0


def program(name: str) -> Path:
    """Where the command *name* is installed. Raises BenchError when it is not."""
    path = Path(sys.executable).parent / name
    if not path.exists():
        raise BenchError(f"{path} is missing; make venv installs it")
    return path


def await_ready(process: Process, url: str) -> None:
    """Wait until *url* answers 200. Raises BenchError with the end of the process' log."""
    deadline = time.monotonic() + READY_SECONDS
    problem = "no answer"
    while time.monotonic() < deadline and process.exit_code() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except urllib.error.HTTPError as error:
            problem = f"{error.code} {error.read(500).decode(errors='replace').strip()}"
        except OSError as error:
            problem = str(error)
        time.sleep(0.2)
    ended = (
        f"ended with {process.exit_code()}" if process.exit_code() is not None else f"is not ready: {problem}"
    )
    raise BenchError(f"{process.name} {ended}; the end of its log:\n{process.tail()}")
