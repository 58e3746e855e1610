"""What the janitor and the next run remove, and what they leave. Of whole runs: test_interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.node import janitor, run
from tests.node.run import MADE_BY_US

NO_CGROUP = "migcompat-mcn-of-no-run"
ENDS = 30.0


@contextmanager
def cleaning(directory: Path, *mount_points: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A janitor, and the pipe's end that its run holds."""
    reading, writing = os.pipe()
    command = [sys.executable, "-IS", janitor.__file__, str(directory), NO_CGROUP, MADE_BY_US, str(reading)]
    with subprocess.Popen([*command, *map(str, mount_points)], pass_fds=[reading]) as process:
        os.close(reading)
        try:
            yield process, writing
        finally:
            process.kill()


def made_by_us(path: Path) -> Path:
    path.mkdir()
    (path / MADE_BY_US).touch()
    return path


def test_it_waits_for_the_end_of_the_run_whatever_it_is_told_and_leaves_what_was_there(
    tmp_path: Path,
) -> None:
    directory = tmp_path / "mcn-a"
    (directory / "below").mkdir(parents=True)
    ours, theirs = made_by_us(tmp_path / "ours"), tmp_path / "theirs"
    theirs.mkdir()
    with cleaning(directory, ours, theirs) as (process, writing):
        time.sleep(0.5)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            process.send_signal(number)
        time.sleep(0.5)
        assert process.poll() is None
        assert directory.exists()
        os.close(writing)
        assert process.wait(ENDS) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["theirs"]


def test_what_runs_share_stays_for_another_one(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"mcn-{name}").mkdir()
    ours = made_by_us(tmp_path / "ours")
    with cleaning(tmp_path / "mcn-a", ours) as (process, writing):
        os.close(writing)
        assert process.wait(ENDS) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mcn-b", "ours"]
    assert (ours / MADE_BY_US).exists()


def test_who_is_still_in_a_cgroup_is_killed_and_what_stays_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory that looks like a cgroup, and like one that the kernel does not give up."""
    monkeypatch.setattr(janitor, "CGROUPS", tmp_path)
    (tmp_path / "cgroup.controllers").touch()
    top, directory = tmp_path / "top", tmp_path / "mcn-a"
    (top / "empty").mkdir(parents=True)
    directory.mkdir()
    with subprocess.Popen(["sleep", "60"]) as process:
        (top / "cgroup.procs").write_text(f"{process.pid}\n")
        try:
            assert janitor.remove_run(directory, "top", time.monotonic() + 0.2) == [top]
            assert process.wait(5.0) == -signal.SIGKILL
        finally:
            process.kill()
    assert not (top / "empty").exists()
    assert not directory.exists()


def test_a_run_removes_what_killed_runs_left_and_nobody_holds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left, held, begins = (tmp_path / f"mcn-{name}" for name in ("left", "held", "begins"))
    for directory in (left, held, begins):
        directory.mkdir()
    os.close(run._hold(left))
    descriptor = run._hold(held)
    run.sweep(tmp_path)
    os.close(descriptor)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mcn-begins", "mcn-held"]
    assert capsys.readouterr().err == f"real nodes: removing what a killed run left: {left}\n"
