"""What a run says when it cannot go on, and that it leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.binaries import build
from tests.kernel import image, machine
from tests.kernel.image import ROOT, Image, ImageError
from tests.kernel.run import GuestError, GuestRun

A_TEST = "tests/kernel/guest/test_scanner.py::test_a_machine_as_booted_has_no_vfio_device"
ENDED = 20.0
"""Seconds within which everything has to be gone."""


def wait(condition: Callable[[], object], what: str, within: float = 60.0) -> None:
    end = time.monotonic() + within
    while not condition():
        assert time.monotonic() < end, f"not within {within:g} s: {what}"
        time.sleep(0.05)


def processes(word: str) -> set[int]:
    """Processes with *word* in their command lines."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if word in path.read_bytes().replace(b"\0", b" ").decode(errors="replace"):
                found.add(int(path.parent.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def mounts(*places: Path) -> list[str]:
    """Mounts in or from these places; others may mount what they like meanwhile."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line for line in lines if any(str(place) in line for place in places)]


def start(*arguments: str, temporary: Path, cache: Path | None = None) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "TMPDIR": str(temporary)}
    if cache is not None:
        environment["XDG_CACHE_HOME"] = str(cache)
    return subprocess.Popen(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


@pytest.mark.usefixtures("made")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_run_leaves_nothing(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed process cannot remove its files, so the next run does that."""
    run = start("tests.kernel", A_TEST, temporary=tmp_path)
    try:
        wait(lambda: processes(f"{tmp_path}/mc-kernel-"), "the machine is on")
        os.kill(run.pid, number)
        assert run.wait(ENDED) != 0
    finally:
        run.kill()
        run.wait()
    wait(lambda: not processes(str(tmp_path)), "no process is left", ENDED)
    assert mounts(tmp_path, build.cache()) == []
    assert bool(list(tmp_path.iterdir())) == (number == signal.SIGKILL)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with machine.run_directory() as directory:
        assert list(tmp_path.iterdir()) == [directory]
    assert list(tmp_path.iterdir()) == []


def test_a_killed_set_up_leaves_nothing_but_what_the_next_one_removes(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    run = start("tests.kernel.image", temporary=tmp_path, cache=cache)
    try:
        wait(lambda: list(cache.glob("migcompat/kernel/.image-*/apt/conf")), "apt is at work")
        run.kill()
        run.wait()
    finally:
        run.kill()
        run.wait()
    wait(lambda: not processes(str(cache)), "no process is left", ENDED)
    assert mounts(tmp_path) == []
    assert not list(cache.glob("migcompat/kernel/image-*/"))


def test_remains_of_a_killed_set_up_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    remains = tmp_path / "migcompat/kernel/.part-killed"
    remains.mkdir(parents=True)
    home = image._once("part", "key", lambda directory: (directory / "file").touch())
    assert (home / "file").exists()
    assert not remains.exists()
    assert image._once("part", "key", lambda _: pytest.fail("it is there")) == home


def broken(directory: Path, text: str) -> Path:
    script = directory / "guest.sh"
    script.write_text(text)
    return script


def test_a_kernel_that_panics_is_told(made: Image, tmp_path: Path) -> None:
    script = broken(tmp_path, "echo c > /proc/sysrq-trigger\n")
    run = GuestRun(made, [A_TEST], script=script, deadline=120)
    try:
        with pytest.raises(GuestError, match=r"(?s)^the machine's kernel crashed.*sysrq triggered crash"):
            run.reports(A_TEST)
    finally:
        run.close()


def test_a_machine_that_does_not_end_is_ended(made: Image, tmp_path: Path) -> None:
    run = GuestRun(made, [A_TEST], script=broken(tmp_path, "sleep 1000\n"), deadline=2)
    try:
        with pytest.raises(GuestError, match="not done after 2 s"):
            run.reports(A_TEST)
        wait(lambda: not processes(str(run.directory)), "the machine is off", ENDED)
    finally:
        run.close()


def test_tests_that_cannot_start_are_told(made: Image, tmp_path: Path) -> None:
    run = GuestRun(made, [A_TEST], script=broken(tmp_path, "echo no way; exit 3\n"), deadline=120)
    try:
        with pytest.raises(GuestError, match=r"(?s)ended \(status 3\) without this one.*no way"):
            run.reports(A_TEST)
    finally:
        run.close()


def test_only_root_can_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(ImageError, match="needs root"):
        image.image()
    assert not list(tmp_path.glob("migcompat/kernel/*image-*"))


def test_missing_tools_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ImageError, match=r"no apt-get \(package apt\), dpkg-deb \(package dpkg\)"):
        image.image()


SOURCES = """\
'http://mirror.example/debian/dists/{suite}/InRelease' mirror.example_debian_dists_InRelease 0
'http://mirror.example/debian/dists/bookworm/main/binary-amd64/Packages.xz' mirror.example_Packages 0
'https://packages.example/apt/dists/cloud/InRelease' packages.example_InRelease 0
"""


@pytest.mark.parametrize("suite", ["stable", "sid", image._codename()])
def test_the_mirror_is_the_one_that_apt_uses(suite: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.support.longrun.run", lambda *_, **__: SOURCES.format(suite=suite))
    assert image._mirror() == "http://mirror.example/debian"


def test_a_machine_without_a_debian_mirror_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.support.longrun.run", lambda *_, **__: SOURCES.format(suite="noble"))
    with pytest.raises(ImageError, match=r"no source of Debian itself.*https://packages\.example/apt"):
        image._mirror()
