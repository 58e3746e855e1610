"""Programs that run for minutes end in time, with us, and say why."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import longrun
from tests.support.processes import is_alive

ROOT = Path(__file__).parents[2]


def until(done: Path) -> str:
    deadline = time.monotonic() + 30
    while not (done.exists() and done.read_text().strip()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return done.read_text()


def test_its_output_is_returned() -> None:
    assert longrun.run("x", ["sh", "-c", "echo out; echo err >&2"], deadline=30) == "out\nerr\n"


def test_a_failure_tells_the_end_of_the_output() -> None:
    with pytest.raises(longrun.LongRunError, match=r"(?s)^thing: `sh -c .*` failed \(3\):\n.*the last line$"):
        longrun.run("thing", ["sh", "-c", "seq 9999; echo the last line; exit 3"], deadline=30)


def test_a_program_that_is_not_there_is_named() -> None:
    with pytest.raises(longrun.LongRunError, match="thing: there is no /no/such/program"):
        longrun.run("thing", ["/no/such/program"], deadline=30)


def test_the_deadline_ends_it_and_its_children(tmp_path: Path) -> None:
    child = tmp_path / "child"
    with pytest.raises(longrun.LongRunError, match="thing: not done after 10 s"):
        longrun.run("thing", ["sh", "-c", f"sleep 100 & echo $! > {child}; wait"], deadline=10)
    deadline = time.monotonic() + 30
    while is_alive(int(until(child))):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_it_started_is_gone_when_it_returns_also_what_its_end_reaches_late(tmp_path: Path) -> None:
    late = tmp_path / "late"
    with pytest.raises(longrun.LongRunError, match="thing: not done after 10 s"):
        longrun.run("thing", ["sh", "-c", f"setsid sh -c 'sleep 13; touch {late}' & wait"], deadline=10)
    assert late.exists()


@pytest.mark.parametrize("patience", [0, 30])
def test_it_ends_with_us_unless_it_must_not_be_cut_off(tmp_path: Path, patience: int) -> None:
    started, ended = tmp_path / "started", tmp_path / "ended"
    # On a busy machine we may come to kill it late.
    seconds = 3 if patience else 60
    script = f"echo $$ > {started}; sleep {seconds}; echo x > {ended}"
    ours = subprocess.Popen(
        [sys.executable, "-c", f"""
from tests.support import longrun
longrun.run("thing", ["sh", "-c", {script!r}], deadline=60, let_it_end={patience})
"""],
        cwd=ROOT,
    )  # fmt: skip
    pid = int(until(started))
    ours.kill()
    ours.wait()
    if patience:
        assert until(ended) == "x\n"
        return
    deadline = time.monotonic() + 30
    while is_alive(pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not ended.exists()


def test_a_lock_is_for_one_at_a_time_and_ends_with_its_holder(tmp_path: Path) -> None:
    lock, held = tmp_path / "lock", tmp_path / "held"
    holder = subprocess.Popen(
        [sys.executable, "-c", f"""
import pathlib, time
from tests.support import longrun
with longrun.locked(pathlib.Path({str(lock)!r}), "x"):
    pathlib.Path({str(held)!r}).write_text("x")
    time.sleep(3)
    pathlib.Path({str(held)!r}).unlink()
    time.sleep(100)
"""],
        cwd=ROOT,
    )  # fmt: skip
    try:
        until(held)
        waiter = subprocess.Popen(
            [sys.executable, "-c", f"""
import pathlib
from tests.support import longrun
with longrun.locked(pathlib.Path({str(lock)!r}), "x"):
    print(pathlib.Path({str(held)!r}).exists())
"""],
            cwd=ROOT, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        while held.exists():
            assert waiter.poll() is None, "it did not wait"
            time.sleep(0.05)
        assert waiter.poll() is None
    finally:
        holder.kill()
        holder.wait()
    assert waiter.communicate(timeout=30)[0] == "False\n"
