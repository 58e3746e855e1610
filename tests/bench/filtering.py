"""How long ``/filter`` takes, beside a Go extender that decides nothing.

Both are processes of their own and get the same call over HTTP/1.1 on a kept connection on loopback, in
turns, so that whatever else the machine does hits both alike. Time runs from sending the request to the last
byte of the answer; nothing here decodes the answers meanwhile.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from tests.bench.figures import BenchError, Row, percentile
from tests.bench.large_fleet import ACCEPTING, NODES, filter_call
from tests.cluster.binaries.build import BuildError, build_go

ROUNDS = 300
WARM_UP = 30
CALL_SECONDS = 30.0
START_SECONDS = 120.0
ROOT = Path(__file__).parents[2]
NULL = "null extender (Go, decides nothing)"
OURS = "ours, verdicts remembered"
CHANGED = "ours, a VFIONode changed before each call"


class Connection:
    """A kept connection to one extender."""

    def __init__(self, address: str) -> None:
        split = urlsplit(address)
        self._http = http.client.HTTPConnection(split.hostname or "", split.port, timeout=CALL_SECONDS)

    def post(self, path: str, body: bytes) -> tuple[float, bytes]:
        """Seconds that the call took, and the answer. Raises BenchError for any status but 200."""
        start = time.perf_counter()
        self._http.request("POST", path, body, {"Content-Type": "application/json"})
        answer = self._http.getresponse()
        content = answer.read()
        seconds = time.perf_counter() - start
        if answer.status != 200:
            raise BenchError(
                f"POST {path} was answered {answer.status}: {content[:500].decode(errors='replace')}"
            )
        return seconds, content

    def close(self) -> None:
        """Give the connection up."""
        self._http.close()


@contextlib.contextmanager
def extender(command: Sequence[str | Path]) -> Iterator[Connection]:
    """Run *command*, which prints its address and ends with its standard input."""
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            address = process.stdout.readline().strip()
            if not address.startswith("http://"):
                raise BenchError(f"{' '.join(map(str, command))} did not start; its messages are above")
            connection = Connection(address)
            try:
                yield connection
            finally:
                connection.close()
        finally:
            process.stdin.close()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def check(name: str, answer: bytes) -> None:
    """Raise BenchError unless *answer* passes the 500 nodes and rejects the 4,500."""
    said = json.loads(answer)
    passed = set(said["NodeNames"] or ())
    failed = set(said["FailedAndUnresolvableNodes"] or ())
    if passed != ACCEPTING or failed != set(NODES) - ACCEPTING:
        raise BenchError(
            f"{name}: {len(passed)} nodes passed and {len(failed)} failed where {len(ACCEPTING)} and"
            f" {len(NODES) - len(ACCEPTING)} should have: {answer[-300:].decode(errors='replace')}"
        )


def measure() -> list[Row]:
    """p50 and p99 of both, in milliseconds. Raises BenchError."""
    try:
        null_program = build_go(Path(__file__).parent / "nullextender", "nullextender")
    except BuildError as problem:
        raise BenchError(f"the null extender cannot be built: {problem}") from problem
    call = filter_call()
    samples: dict[str, list[float]] = {NULL: [], OURS: [], CHANGED: []}
    ours_command = [sys.executable, "-m", "tests.bench.extender_process"]
    with extender([null_program]) as null, extender(ours_command) as ours:
        first, answer = ours.post("/filter", call)
        check("our extender", answer)
        check("the null extender", null.post("/filter", call)[1])
        for number in range(WARM_UP + ROUNDS):
            taken = {NULL: null.post("/filter", call)[0], OURS: ours.post("/filter", call)[0]}
            if number >= WARM_UP:
                for name, seconds in taken.items():
                    samples[name].append(seconds)
        for _ in range(ROUNDS):
            ours.post("/change", b"")
            samples[CHANGED].append(ours.post("/filter", call)[0])
    return [
        *_rows(samples),
        Row(
            name="filter, ours, first call of the process (no verdict remembered)",
            value=first * 1000,
            unit="ms",
        ),
    ]


def _rows(samples: dict[str, list[float]]) -> Iterator[Row]:
    for percent in (50, 99):
        null = percentile(samples[NULL], percent)
        for name, taken in samples.items():
            value = percentile(taken, percent)
            yield Row(
                name=f"filter, {name}, p{percent}",
                value=value * 1000,
                unit="ms",
                baseline="" if name == NULL else f"null extender, p{percent}",
                ratio=None if name == NULL else value / null,
            )
