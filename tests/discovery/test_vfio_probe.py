"""Asking a device whether it can migrate: both ways of opening it, every error, nothing left open."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from migcompat.api.vfionode import Migration, MigrationState
from migcompat.vfio.calls import Calls
from migcompat.vfio.probe import Handle, NotKnown, Why, forbidden, probe

from tests.support.sysfs import DATA
from tests.support.vfio import P2P, PRE_COPY, STOP_COPY, FakeVfio

DEV = Path("/host/dev")
NAME = "0000:01:00.2"
DEVICE = Handle(NAME, "12", "vfio3")
CAN = Migration(True, (MigrationState.STOP_COPY, MigrationState.P2P, MigrationState.PRE_COPY))

MISSING = {errno.ENOENT, errno.ENOTDIR, errno.ENXIO, errno.ENODEV}
FORBIDDEN = {errno.EPERM, errno.EACCES}
GROUP_CALLS = ("GROUP_GET_STATUS", "GROUP_SET_CONTAINER", "SET_IOMMU", "GROUP_GET_DEVICE_FD")


@pytest.fixture
def by_group() -> Iterator[FakeVfio]:
    """A kernel without devices' own nodes."""
    vfio = FakeVfio(DEV, cdevs=False)
    vfio.plug(NAME)
    yield vfio
    assert vfio.left_open == []


@pytest.fixture
def by_cdev() -> Iterator[FakeVfio]:
    vfio = FakeVfio(DEV)
    vfio.plug(NAME)
    yield vfio
    assert vfio.left_open == []


def why(answer: Migration | NotKnown) -> Why:
    assert isinstance(answer, NotKnown), answer
    assert answer.message
    return answer.why


def test_a_device_with_its_own_node_is_asked_through_an_iommufd(by_cdev: FakeVfio) -> None:
    assert probe(DEVICE, DEV, by_cdev) == CAN
    assert by_cdev.opened == ["iommu", "vfio/devices/vfio3"]
    assert by_cdev.calls == ["DEVICE_BIND_IOMMUFD", "DEVICE_FEATURE"]


def test_a_device_without_is_asked_through_its_group(by_group: FakeVfio) -> None:
    assert probe(DEVICE, DEV, by_group) == CAN
    assert by_group.opened == ["iommu", "vfio/vfio", "vfio/12"]
    assert by_group.calls == [*GROUP_CALLS, "DEVICE_FEATURE"]


@pytest.mark.parametrize(
    ("flags", "answer"),
    [
        (0, Migration(False)),
        (PRE_COPY, Migration(False, (MigrationState.PRE_COPY,))),
        (STOP_COPY, Migration(True, (MigrationState.STOP_COPY,))),
        (STOP_COPY | P2P, Migration(True, (MigrationState.STOP_COPY, MigrationState.P2P))),
        (STOP_COPY | PRE_COPY, Migration(True, (MigrationState.STOP_COPY, MigrationState.PRE_COPY))),
        (STOP_COPY | P2P | PRE_COPY | 1 << 7 | 1 << 63, CAN),
    ],
)
def test_flags_are_states_and_later_kernels_may_have_more(flags: int, answer: Migration) -> None:
    for cdevs in (True, False):
        vfio = FakeVfio(DEV, cdevs=cdevs)
        vfio.plug(NAME, flags)
        assert probe(DEVICE, DEV, vfio) == answer


@pytest.mark.parametrize("number", errno.errorcode)
def test_every_error_of_the_question(number: int) -> None:
    for cdevs in (True, False):
        vfio = FakeVfio(DEV, cdevs=cdevs)
        vfio.plug(NAME, -number)
        answer = probe(DEVICE, DEV, vfio)
        if number == errno.ENOTTY:
            assert answer == Migration(False)
        else:
            assert why(answer) is (Why.IN_USE if number == errno.EBUSY else Why.FAILED)
        assert vfio.left_open == []


@pytest.mark.parametrize("number", errno.errorcode)
@pytest.mark.parametrize("node", ["vfio/vfio", "vfio/12"])
def test_every_error_of_opening_the_group(by_group: FakeVfio, node: str, number: int) -> None:
    by_group.failing[node] = number
    expected = Why.FAILED
    if number == errno.EBUSY:
        expected = Why.IN_USE
    elif number in MISSING:
        expected = Why.NO_NODE
    elif number in FORBIDDEN:
        expected = Why.NOT_ALLOWED
    answer = probe(DEVICE, DEV, by_group)
    assert why(answer) is expected
    if expected is not Why.NO_NODE:
        assert isinstance(answer, NotKnown)
        assert answer.message.startswith(f"opening /host/dev/{node}: {errno.errorcode[number]} (")
    assert by_group.calls.count("DEVICE_FEATURE") == 0


@pytest.mark.parametrize("number", errno.errorcode)
@pytest.mark.parametrize("call", GROUP_CALLS)
def test_every_error_on_the_way_through_the_group(by_group: FakeVfio, call: str, number: int) -> None:
    by_group.failing[call] = number
    answer = probe(DEVICE, DEV, by_group)
    assert why(answer) is (Why.IN_USE if number == errno.EBUSY else Why.FAILED)
    assert isinstance(answer, NotKnown)
    assert answer.message.startswith(f"VFIO_{call}: {errno.errorcode[number]} (")


@pytest.mark.parametrize("number", errno.errorcode)
@pytest.mark.parametrize("step", ["iommu", "vfio/devices/vfio3", "DEVICE_BIND_IOMMUFD"])
def test_what_cannot_be_opened_by_its_own_node_is_opened_by_its_group(
    by_cdev: FakeVfio, step: str, number: int
) -> None:
    by_cdev.failing[step] = number
    answer = probe(DEVICE, DEV, by_cdev)
    if number == errno.EBUSY:
        assert why(answer) is Why.IN_USE
        assert "vfio/12" not in by_cdev.opened
    else:
        assert answer == CAN


def test_the_first_real_obstacle_is_told(by_cdev: FakeVfio) -> None:
    by_cdev.failing = {"vfio/devices/vfio3": errno.EPERM, "vfio/12": errno.EIO}
    assert why(probe(DEVICE, DEV, by_cdev)) is Why.NOT_ALLOWED
    by_cdev.failing = {"vfio/devices/vfio3": errno.ENOENT, "vfio/12": errno.EIO}
    assert why(probe(DEVICE, DEV, by_cdev)) is Why.FAILED


def test_a_group_that_the_host_uses_too_is_not_entered(by_group: FakeVfio) -> None:
    by_group.failing["unviable"] = 0
    assert why(probe(DEVICE, DEV, by_group)) is Why.FAILED
    assert by_group.calls == ["GROUP_GET_STATUS"]


@pytest.mark.parametrize("taken", ["iommu", "vfio/devices/vfio3"])
def test_a_device_that_is_open_is_in_use(by_cdev: FakeVfio, taken: str) -> None:
    descriptor = by_cdev.open(f"/host/dev/{taken}")
    expected = Why.IN_USE if taken != "iommu" else None
    answer = probe(DEVICE, DEV, by_cdev)
    assert (answer.why if isinstance(answer, NotKnown) else None) is expected
    by_cdev.close(descriptor)


def test_whoever_may_open_nothing_learns_so_without_touching_a_device(by_cdev: FakeVfio) -> None:
    assert forbidden(DEV, by_cdev) is None
    by_cdev.failing["iommu"] = errno.EPERM
    assert forbidden(DEV, by_cdev) is None, "the group's way is left"
    by_cdev.failing["vfio/vfio"] = errno.EACCES
    answer = forbidden(DEV, by_cdev)
    assert answer is not None
    assert answer.why is Why.NOT_ALLOWED
    assert not {"vfio/devices/vfio3", "vfio/12"} & set(by_cdev.opened)


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EBUSY, errno.EIO])
def test_what_is_not_there_is_not_forbidden(by_cdev: FakeVfio, number: int) -> None:
    by_cdev.failing = {"iommu": number, "vfio/vfio": number}
    assert forbidden(DEV, by_cdev) is None


@pytest.mark.parametrize(
    "handle",
    [
        Handle(NAME),
        Handle(NAME, "noiommu-0", "noiommu-vfio0"),
        Handle(NAME, "../12", "devices/../vfio3"),
        Handle(NAME, "12 ", "vfio3\n"),
        Handle(NAME, "", "vfio"),
    ],
)
def test_what_has_no_iommu_or_no_proper_name_is_never_opened(by_cdev: FakeVfio, handle: Handle) -> None:
    assert why(probe(handle, DEV, by_cdev)) is Why.NO_NODE
    assert not any(node.startswith("vfio/") for node in by_cdev.opened)


def test_an_error_while_closing_hides_no_answer(by_cdev: FakeVfio) -> None:
    class Grumbling(FakeVfio):
        def close(self, descriptor: int) -> None:
            super().close(descriptor)
            raise OSError(errno.EIO, "late")

    vfio = Grumbling(DEV)
    vfio.plug(NAME)
    assert probe(DEVICE, DEV, vfio) == CAN
    assert vfio.left_open == []


def test_nodes_that_are_no_devices_are_no_answer(tmp_path: Path) -> None:
    """The real calls, on files: the kernel answers ENOTTY to what only a VFIO device understands."""
    (tmp_path / "vfio/devices").mkdir(parents=True)
    for node in ("iommu", "vfio/vfio", "vfio/12"):
        (tmp_path / node).touch()
    os.mkfifo(tmp_path / "vfio/devices/vfio3")
    before = os.listdir("/proc/self/fd")
    answer = probe(DEVICE, tmp_path, Calls())
    assert why(answer) is Why.FAILED
    assert os.listdir("/proc/self/fd") == before


def test_links_in_place_of_nodes_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "vfio").mkdir()
    (tmp_path / "vfio/vfio").symlink_to("/dev/null")
    answer = probe(Handle(NAME, "12"), tmp_path, Calls())
    assert isinstance(answer, NotKnown)
    assert "ELOOP" in answer.message


def recorded() -> Iterator[Any]:
    """What real kernels answered, by every way that was tried: (kernel, device, way, answer)."""
    for file in sorted(DATA.glob("*/vfio-results.json")):
        content = json.loads(file.read_text(encoding="utf-8"))
        for name, ways in content["devices"].items():
            for way in ways.keys() & {"group", "cdev"}:
                yield pytest.param(name, way, ways[way], id=f"{content['kernel']}-{name}-{way}")


@pytest.mark.parametrize(("name", "way", "answered"), list(recorded()))
def test_recorded_answers_of_real_kernels(name: str, way: str, answered: Any) -> None:
    vfio = FakeVfio(DEV, cdevs=way == "cdev")
    handle = Handle(name, "12" if way == "group" else "", "vfio3" if way == "cdev" else "")
    if isinstance(answered, str):  # "… has vfio-dev/vfio1 but no /dev/vfio/devices/vfio1 …"
        assert why(probe(handle, DEV, vfio)) is Why.NO_NODE
        return
    if "open" in answered:  # a VF whose PF is bound to vfio-pci, and no token
        vfio.plug(name)
        vfio.failing["GROUP_GET_DEVICE_FD"] = number(answered["open"])
        assert why(probe(handle, DEV, vfio)) is Why.FAILED
        return
    flags = answered["migration_flags"]
    hexadecimal = re.match(r"0x[0-9a-f]+", flags)
    vfio.plug(name, int(hexadecimal[0], 16) if hexadecimal else -number(flags))
    states = tuple(map(MigrationState, flags.split()[1].split("|"))) if hexadecimal else ()
    assert probe(handle, DEV, vfio) == Migration(bool(states), states)


def test_the_recordings_hold_both_answers() -> None:
    answers = {json.dumps(param.values[2]) for param in recorded()}
    assert any("STOP_COPY|P2P|PRE_COPY" in answer for answer in answers)
    assert any('"migration_flags": "errno ENOTTY"' in answer for answer in answers)
    assert any("EACCES" in answer for answer in answers)


def number(text: str) -> int:
    """The number of ``errno ENOTTY``."""
    value: int = getattr(errno, text.removeprefix("errno "))
    return value
