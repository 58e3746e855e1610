"""A look tells where it is, leaves out where others hang, and ends when nobody waits for it any more."""

from __future__ import annotations

import threading
from collections.abc import Hashable
from pathlib import Path

import pytest
from migcompat.sysfs.progress import Abandoned, Progress
from migcompat.sysfs.scan import scan

from tests.support.fabricate import add_function
from tests.support.hanging import hanging_reads

ONE, TWO, THREE = ("0000:01:00.1", "0000:01:00.2", "0000:01:00.3")
ENTRY = "bus/pci/devices/"


@pytest.fixture
def three(sys: Path) -> Path:
    for number, address in enumerate((ONE, TWO, THREE)):
        add_function(sys, f"pci0000:00/{address}", group=number)
    return sys


def test_places_are_told_from_the_inside_out() -> None:
    progress, seen = Progress(), []

    def inner() -> int:
        seen.append(progress.at)
        return 3

    def outer() -> int:
        found = progress.step("inner", inner)
        seen.append(progress.at)
        return found

    assert progress.step("outer", outer) == 3
    assert seen == ["inner", "outer"]
    assert (progress.at, progress.steps) == (None, 4)


def test_a_look_that_raises_is_over() -> None:
    progress = Progress()

    def fail() -> None:
        raise KeyError

    with pytest.raises(KeyError):
        progress.step("here", fail)
    assert progress.at is None


def test_an_abandoned_look_goes_nowhere_else() -> None:
    progress, seen = Progress(), list[Hashable]()

    def here() -> None:
        seen.append(progress.abandon())

    with pytest.raises(Abandoned):
        progress.step("here", here)
    with pytest.raises(Abandoned):
        progress.step("there", lambda: seen.append("there"))
    assert seen == ["here"]


def test_a_device_where_a_look_hangs_is_a_problem_and_no_other_is(three: Path) -> None:
    with hanging_reads() as hanging:
        hanging.add(TWO)
        result = scan(three, None, Progress(frozenset({ENTRY + TWO})))
        assert hanging.threads == []
    assert [device.id for device in result.devices] == [ONE, THREE]
    [problem] = result.problems
    assert problem.path == ENTRY + TWO
    assert problem.message.startswith("its driver hangs in an attribute that was read")


def test_a_scan_that_is_abandoned_reads_no_further_device(three: Path) -> None:
    progress, ended = Progress(), list[Exception]()

    def run() -> None:
        try:
            scan(three, None, progress)
        except Abandoned as error:
            ended.append(error)

    with hanging_reads() as hanging:
        hanging.add(ONE)
        thread = threading.Thread(target=run)
        thread.start()
        while not hanging.threads:
            pass
        assert progress.abandon() == ENTRY + ONE
        hanging.add(THREE)
        hanging.release(ONE)
        thread.join(60)
    assert len(ended) == 1
