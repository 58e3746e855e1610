"""However a run ends, nothing of it stays on the machine. Runs outside of any run (`tests.node.__main__`)."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster.processes import Process
from tests.node import one_pod, run, traces
from tests.node.traces import Traces, look

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(1200)

COMMAND = [sys.executable, "-m", "tests.node"]
NOBODY = (
    "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
    # The interpreter may lie where only root reads.
    "--inh-caps=-all,+dac_read_search", "--ambient-caps=+dac_read_search",
)  # fmt: skip
PARTS = {"etcd", "kube-apiserver", "containerd", "containerd-shim", "kubelet", "kube-proxy", "launcher"}
RUNS = 300.0
ENDS = 240.0
"""More than a run takes to end by itself and to clean up (`tests.node.run`)."""
AT_ONCE, LATER = 10.0, 60.0
"""Seconds within which everything is gone: when the run itself waited for that, and when it could not."""


class Run:
    """``python -m tests.node`` with `one_pod`, in a session of its own."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self._told = directory
        self._process = Process(
            "run",
            [*COMMAND, "tests/node/one_pod.py"],
            log=directory / "log",
            environment={**os.environ, one_pod.TOLD: str(directory)},
        )

    @property
    def pid(self) -> int:
        """Of the process that a user would interrupt."""
        return self._process.pid

    @property
    def name(self) -> str:
        """Of its directory; empty before it has one."""
        begun = self._told / "begun"
        return begun.read_text() if begun.exists() else ""

    def wait(self, reached: Callable[[], object]) -> None:
        """Until something is so; fails when the run ends before, or takes longer than `RUNS`."""
        deadline = time.monotonic() + RUNS
        while not reached():
            code = self._process.exit_code()
            if code is not None or time.monotonic() > deadline:
                pytest.fail(f"the run ({code}) got no further:\n{self.said()}", pytrace=False)
            time.sleep(0.1)

    def wait_for_pod(self) -> None:
        """Until its pod runs."""
        self.wait((self._told / "pod-runs").exists)

    def end(self, how: str) -> None:
        """Lets it end by itself: well, or with a failure."""
        (self._told / "end").write_text(how)

    def send(self, number: signal.Signals) -> None:
        """A signal to that one process."""
        os.kill(self.pid, number)

    def press_control_c(self) -> None:
        """A terminal sends SIGINT to each process of the foreground group."""
        os.killpg(self.pid, signal.SIGINT)

    def exit_code(self) -> int:
        """Waits for it."""
        deadline = time.monotonic() + ENDS
        while (code := self._process.exit_code()) is None:
            if time.monotonic() > deadline:
                pytest.fail(f"the run does not end:\n{self.said()}", pytrace=False)
            time.sleep(0.05)
        return code

    def said(self) -> str:
        """The end of its output."""
        return self._process.tail()

    def stop(self) -> None:
        """Ends it if a test did not."""
        self._process.stop(ENDS)


@pytest.fixture(autouse=True)
def _outside() -> Iterator[None]:
    """What a run leaves is seen by this process: it is in no run itself, and adopts what loses its parent."""
    if run.DIRECTORY in os.environ:
        pytest.fail("this must see the machine itself, not a run's namespaces: start it with make test-node")
    with traces.adopting():
        yield


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Callable[[], Run]]:
    runs: list[Run] = []

    def make() -> Run:
        runs.append(Run(tmp_path / f"run-{len(runs)}"))
        return runs[-1]

    yield make
    for one in runs:
        one.stop()


def assert_nothing_stays(before: Traces, of: Run, *, within: float, beside: int = 0) -> None:
    deadline = time.monotonic() + within
    while new := look(of.name, beside=beside).since(before):
        assert time.monotonic() < deadline, "\n".join(["stays behind:", *new, of.said()])
        time.sleep(0.1)


def assert_seen(before: Traces, of: Run, *, beside: int = 0) -> None:
    """Traces of a running run are found: else finding none afterwards would say nothing."""
    new = look(of.name, beside=beside).since(before)
    kinds = {kind: [text for text in new if text.startswith(f"{kind}: ")] for kind in vars(before)}
    assert {text.split()[2].split("-runc")[0] for text in kinds["processes"]} >= PARTS
    for namespace in ("mnt", "net", "pid", "ipc", "uts"):
        # The run's, the node's or the pod's.
        assert len([t for t in kinds["namespaces"] if f" {namespace}:" in t]) >= 2, namespace
    for place in ("/var/lib/kubelet in", "/rootfs in"):
        assert any(place in text for text in kinds["mounts"]), place
    assert any("/node-1/kubepods/besteffort/pod" in text for text in kinds["cgroups"])
    assert f"files: /tmp/{of.name}" in kinds["files"]


def janitors(of: Run) -> list[int]:
    """Process ids of a run's janitor."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_text(errors="replace").split("\0")
            if f"/tmp/{of.name}" in words and any(word.endswith("/janitor.py") for word in words):
                found.append(int(path.parent.name))
    return found


ENDS_OF_A_RUN: dict[str, tuple[Callable[[Run], None], int, str]] = {
    "Ctrl-C": (Run.press_control_c, 130, "interrupted, everything is ended and removed"),
    "SIGTERM": (lambda r: r.send(signal.SIGTERM), 128 + signal.SIGTERM, ""),
    "a test fails": (lambda r: r.end(one_pod.FAIL), 1, "told to fail with the pod running"),
}


@pytest.mark.parametrize("how", ENDS_OF_A_RUN)
def test_nothing_stays_of_a_run_with_a_pod(how: str, begin: Callable[[], Run]) -> None:
    end, code, sentence = ENDS_OF_A_RUN[how]
    before = look()
    one = begin()
    one.wait_for_pod()
    assert_seen(before, one)
    end(one)
    assert one.exit_code() == code, one.said()
    assert sentence in one.said()
    assert_nothing_stays(before, one, within=AT_ONCE)


def test_of_two_runs_side_by_side_one_is_killed_and_the_other_ends_well(begin: Callable[[], Run]) -> None:
    before = look()
    killed, well = begin(), begin()
    killed.wait_for_pod()
    well.wait_for_pod()
    assert_seen(before, killed, beside=well.pid)
    assert_seen(before, well, beside=killed.pid)
    parts = look(well.name, beside=killed.pid)
    killed.send(signal.SIGKILL)
    assert killed.exit_code() == -signal.SIGKILL
    assert_nothing_stays(before, killed, within=LATER, beside=well.pid)
    assert parts.since(look(well.name, beside=killed.pid)) == []
    assert_seen(before, well)
    well.end("well")
    assert well.exit_code() == 0, well.said()
    assert_nothing_stays(before, well, within=AT_ONCE)


def test_a_run_removes_what_a_run_left_whose_janitor_was_killed_too(begin: Callable[[], Run]) -> None:
    before = look()
    lost = begin()
    lost.wait_for_pod()
    # Any run that comes now would remove it.
    with run.no_run_comes_or_goes(Path("/tmp")):
        (janitor,) = janitors(lost)
        os.kill(janitor, signal.SIGKILL)
        lost.send(signal.SIGKILL)
        assert lost.exit_code() == -signal.SIGKILL
        deadline = time.monotonic() + LATER
        while (now := look(lost.name)).processes - before.processes:
            assert time.monotonic() < deadline, now.processes
            time.sleep(0.1)
        new = now.since(before)
        assert f"files: /tmp/{lost.name}" in new
        assert any(text.startswith("cgroups: ") for text in new)
    well = begin()
    well.wait_for_pod()
    assert_nothing_stays(before, lost, within=AT_ONCE, beside=well.pid)
    assert_seen(before, well)
    well.end("well")
    assert well.exit_code() == 0, well.said()
    assert_nothing_stays(before, well, within=AT_ONCE)


def test_nothing_stays_of_a_run_that_is_killed_while_its_node_starts(begin: Callable[[], Run]) -> None:
    before = look()
    one = begin()
    one.wait(lambda: any(p.endswith(" containerd") for p in look(one.name).processes))
    one.send(signal.SIGKILL)
    assert one.exit_code() == -signal.SIGKILL
    assert_nothing_stays(before, one, within=LATER)


def test_who_is_not_root_is_told(tmp_path: Path) -> None:
    before = look()
    ended = subprocess.run(
        [*NOBODY, *COMMAND], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.stderr == "real nodes: root is needed (namespaces, cgroups, mounts): run this as root\n"
    assert ended.returncode == 1
    assert look().since(before) == []


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    before = look()
    ended = subprocess.run(
        COMMAND,
        cwd=ROOT,
        env={**os.environ, "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.stderr.startswith("real nodes: containerd, ")
    assert "missing on this machine, and it has no apt-get to install them with" in ended.stderr
    assert "`apt-get install " in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.returncode == 1
    assert look().since(before) == []
