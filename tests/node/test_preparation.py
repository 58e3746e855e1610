"""What comes before the nodes: interrupted, it leaves nothing; it calls no container engine that is there.

Runs outside of any run (`tests.node.__main__`): packages are fetched, and what stays is seen on the machine.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster.binaries import build
from tests.cluster.processes import Process
from tests.node import images, run, traces
from tests.node.traces import Traces, look

pytestmark = pytest.mark.timeout(900)

ENGINES = ("docker", "podman", "nerdctl")
REACHES, ENDS, AT_ONCE = 600.0, 120.0, 20.0
"""Seconds: until something is under way, an interrupted program has ended, its remains are gone."""
INTERRUPTED = 130

SMALL = """
import sys, tarfile
from tests.image import base, build

PROGRAM, MODE = sys.argv[1:]
DOCKERFILE = f'''
ARG BASE
FROM ${{BASE}} AS dependencies
RUN ["/launcher", "{MODE}"]
FROM dependencies
LABEL of=tests
'''

def make(tar, scratch):
    with tarfile.open(tar, "w") as file:
        file.add(PROGRAM, "launcher")

def copy_context(context):
    context.mkdir()
    (context / "Dockerfile").write_text(DOCKERFILE)

base.make, build._copy_context = make, copy_context
build.main()
"""
"""`tests.image.build` with a Dockerfile that runs nothing but the tests' own program."""

INSTALL = """
import sys
from pathlib import Path
from tests.node import __main__ as command
from tests.node import debian, needs

HOME = Path(sys.argv.pop())
debian._PATH, debian._LISTS, debian._POLICY = (str(HOME / "bin"),), HOME / "lists", HOME / "policy-rc.d"
needs.COMMANDS = {"one": "package"}
sys.exit(command.main())
"""
"""``make test-node`` on a machine that lacks a command, but has an apt-get."""

APT = """#!/bin/sh
touch {home}/begun
until [ -e {home}/go-on ]; do sleep 0.1; done
touch {home}/done
"""


class Program:
    """A Python program in a session of its own, with a cache of its own."""

    def __init__(self, directory: Path, *arguments: str, path: str = "") -> None:
        self.cache = directory / "cache"
        self._process = Process(
            "program",
            [sys.executable, *arguments],
            log=directory / "log",
            environment={
                **os.environ,
                "XDG_CACHE_HOME": str(self.cache),
                "PATH": os.pathsep.join(p for p in (path, os.environ["PATH"]) if p),
            },
        )

    def reach(self, reached: Callable[[], object]) -> None:
        """Waits until something is so; fails when the program ends before."""
        deadline = time.monotonic() + REACHES
        while not reached():
            code = self._process.exit_code()
            if code is not None or time.monotonic() > deadline:
                pytest.fail(f"the program ({code}) got no further:\n{self.said()}", pytrace=False)
            time.sleep(0.2)

    def send(self, number: signal.Signals) -> None:
        """A signal to that one process."""
        os.kill(self._process.pid, number)

    def press_control_c(self) -> None:
        """A terminal sends SIGINT to each process of the foreground group."""
        os.killpg(self._process.pid, signal.SIGINT)

    def exit_code(self, within: float = ENDS) -> int:
        """Waits for it."""
        deadline = time.monotonic() + within
        while (code := self._process.exit_code()) is None:
            if time.monotonic() > deadline:
                pytest.fail(f"the program does not end:\n{self.said()}", pytrace=False)
            time.sleep(0.05)
        return code

    def said(self) -> str:
        """The end of its output."""
        return self._process.tail()

    def stop(self) -> None:
        """Ends it if a test did not."""
        self._process.stop(ENDS)


Begin = Callable[..., Program]


@pytest.fixture(autouse=True)
def _outside() -> Iterator[None]:
    """Orphans of the programs become this process's children: it sees what stays."""
    if run.DIRECTORY in os.environ:
        pytest.fail("this must see the machine itself, not a run's namespaces: start it with make test-node")
    with traces.adopting():
        yield


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    """Starts programs that share a cache; none outlives the test."""
    programs: list[Program] = []

    def one(*arguments: str, path: str = "") -> Program:
        programs.append(Program(tmp_path, *arguments, path=path))
        return programs[-1]

    yield one
    for program in programs:
        program.stop()


@pytest.fixture(scope="module")
def small() -> Callable[[str], list[str]]:
    """The command that builds a small image, running the tests' program in a mode of it on the way."""
    images.launcher()
    program = build.build_go(Path(images.__file__).parent / "launcher", "launcher")
    return lambda mode: ["-c", SMALL, str(program), mode]


def runs(name: str) -> bool:
    """Whether a descendant of this process has that name."""
    return any(process.split(" ", 1)[-1] == name for process in look().processes)


def stays(before: Traces) -> list[str]:
    """Processes, namespaces and mounts that were not there before."""
    return [t for t in look().since(before) if t.split(":")[0] in ("processes", "namespaces", "mounts")]


def assert_nothing_stays(before: Traces, program: Program) -> None:
    """Apart from its cache, the machine is as it was."""
    deadline = time.monotonic() + AT_ONCE
    while left := stays(before):
        assert time.monotonic() < deadline, "\n".join(["stays behind:", *left, program.said()])
        time.sleep(0.1)


def scratch(program: Program) -> list[Path]:
    """What a build keeps in the cache only while it lasts."""
    return sorted((program.cache / "migcompat/image").glob(".*"))


def archives(program: Program) -> list[Path]:
    """The images that were built."""
    return sorted((program.cache / "migcompat/image").glob("migcompat-*.tar"))


WAYS: dict[str, tuple[Callable[[Program], None], int]] = {
    "Ctrl-C": (Program.press_control_c, INTERRUPTED),
    "SIGTERM": (lambda program: program.send(signal.SIGTERM), INTERRUPTED),
    "SIGKILL": (lambda program: program.send(signal.SIGKILL), -signal.SIGKILL),
}


@pytest.mark.parametrize("how", WAYS)
def test_an_image_whose_build_was_interrupted_can_be_built_the_next_time(
    how: str, begin: Begin, small: Callable[[str], list[str]]
) -> None:
    end, code = WAYS[how]
    before = look()
    program = begin(*small("pause"))
    program.reach(lambda: runs("launcher"))
    assert {"processes", "namespaces"} <= {text.split(":")[0] for text in stays(before)}
    end(program)
    assert program.exit_code() == code, program.said()
    assert_nothing_stays(before, program)
    assert archives(program) == []
    if code == INTERRUPTED:
        assert "image: interrupted, everything is ended and removed" in program.said()
        assert scratch(program) == []
    again = begin(*small("probe"))
    assert again.exit_code(REACHES) == 0, again.said()
    assert len(archives(again)) == 1
    assert scratch(again) == []
    assert_nothing_stays(before, again)


def test_nothing_stays_of_a_base_image_that_was_interrupted(begin: Begin) -> None:
    before = look()
    program = begin("-m", "tests.image.build")
    program.reach(lambda: runs("dpkg"))
    program.send(signal.SIGTERM)
    assert program.exit_code() == INTERRUPTED, program.said()
    assert_nothing_stays(before, program)
    assert scratch(program) == archives(program) == []


def test_packages_are_installed_to_the_end_whatever_is_pressed_and_no_policy_stays(
    begin: Begin, tmp_path: Path
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/a_Packages").touch()
    executable(tmp_path / "bin/apt-get", APT.format(home=tmp_path))
    before = look()
    program = begin("-c", INSTALL, str(tmp_path), path=str(tmp_path / "bin"))
    program.reach((tmp_path / "begun").exists)
    assert (tmp_path / "policy-rc.d").exists()
    program.send(signal.SIGTERM)
    program.reach(lambda: "apt-get install: is let to its end" in program.said())
    assert (tmp_path / "policy-rc.d").exists(), "as long as packages are being installed"
    (tmp_path / "go-on").touch()
    assert program.exit_code() == INTERRUPTED, program.said()
    assert "real nodes: interrupted" in program.said()
    assert (tmp_path / "done").exists()
    assert not (tmp_path / "policy-rc.d").exists()
    assert_nothing_stays(before, program)


def test_a_container_engine_that_is_there_is_not_called(
    begin: Begin, small: Callable[[str], list[str]], tmp_path: Path
) -> None:
    (tmp_path / "bin").mkdir()
    for engine in ENGINES:
        executable(tmp_path / "bin" / engine, f'#!/bin/sh\necho "{engine} $*" >> {tmp_path}/called\nexit 1\n')
    program = begin(*small("probe"), path=str(tmp_path / "bin"))
    assert program.exit_code(REACHES) == 0, program.said()
    assert len(archives(program)) == 1
    assert not (tmp_path / "called").exists(), (tmp_path / "called").read_text()


def executable(path: Path, text: str) -> None:
    """Writes a program."""
    path.write_text(text)
    path.chmod(0o755)
