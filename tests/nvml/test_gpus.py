"""What NVML says becomes attributes; what it does not say is left out and harms nothing else."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
import pytest
from migcompat.nvml import calls
from migcompat.nvml.calls import Answer, Question
from migcompat.nvml.gpus import REFRESH, Nvml
from migcompat.sysfs.scan import FoundDevice, scan

from tests.nvml.conftest import GPU, LONG, ON_VF, OTHER, UUID, VF, settle
from tests.support.fabricate import write
from tests.support.nvml import DRIVER, Stub

NAMES = {"ecc_mode", "vgpu_versions", "vgpu_versions_allowed", "vgpu_manager_version"}


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def nvml(stub: Stub, clock: Clock) -> Nvml:
    return Nvml(str(stub.library), clock=clock)


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + LONG
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def maps(pid: int) -> str:
    """What a process has loaded; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return ""


def look(nvml: Nvml, sys: Path, patience: float = LONG) -> dict[str, FoundDevice]:
    result = scan(sys)
    assert result.problems == ()
    return {device.id: device for device in nvml.completed(sys, result.devices, patience)}


def more(nvml: Nvml, sys: Path, patience: float = LONG) -> dict[str, Mapping[str, str]]:
    """What devices show besides what sysfs has, by their ids."""
    before = {device.id: device.declaration.shown for device in scan(sys).devices}
    return {
        id_: {key: value for key, value in device.declaration.shown.items() if before[id_].get(key) != value}
        for id_, device in look(nvml, sys, patience).items()
    }


def refreshed(nvml: Nvml, sys: Path, clock: Clock) -> dict[str, Mapping[str, str]]:
    """The same after a refresh that is due."""
    clock.now += REFRESH
    more(nvml, sys)
    settle()
    return more(nvml, sys)


def test_devices_show_what_is_true_of_their_gpu(nvml: Nvml, sys: Path) -> None:
    found = more(nvml, sys)
    versions = found[VF]["vgpu_versions"].split("+")
    assert {"7.1", "24.1", "24.2", "25.1"} <= set(versions)
    assert not {"6.1", "25.2", "26.1"} & set(versions)
    assert versions == sorted(versions)
    ranges = dict.fromkeys(("vgpu_versions", "vgpu_versions_allowed"), "+".join(versions))
    common = {"vgpu_manager_version": DRIVER, **ranges}
    assert found[VF] == {**common, "ecc_mode": "enabled", "type_name": "NVIDIA H200X-1-18C"}
    assert found[ON_VF] == {**common, "ecc_mode": "enabled"}
    assert found[UUID] == common
    assert found["0000:01:00.1"] == {}
    assert nvml.problems == (f"ecc_mode {OTHER}: Not Supported",)


def test_only_what_is_shown_changes_and_the_name_for_people(nvml: Nvml, sys: Path) -> None:
    found = look(nvml, sys)
    for device in scan(sys).devices:
        after = found.pop(device.id)
        name = device.type_name or after.declaration.shown.get("type_name", "")
        assert msgspec.structs.replace(after, declaration=device.declaration) == msgspec.structs.replace(
            device, type_name=name
        )
        assert msgspec.structs.replace(after.declaration, shown={}) == msgspec.structs.replace(
            device.declaration, shown={}
        )
        if device.id == VF:
            assert (device.type_name, after.type_name) == ("", "NVIDIA H200X-1-18C")
    assert found == {}


def test_a_name_of_sysfs_stays(nvml: Nvml, sys: Path) -> None:
    vf = sys / f"devices/pci0000:40/{VF}/nvidia"
    write(vf, {"creatable_vgpu_types": "1414 : From sysfs"})
    assert look(nvml, sys)[VF].type_name == "From sysfs"


def test_a_version_of_the_stream_is_supplied_where_the_module_has_none(
    nvml: Nvml, stub: Stub, sys: Path
) -> None:
    stub.says("driver", "570.1.2")
    assert look(nvml, sys)[VF].declaration.shown["software_version"] == DRIVER
    (sys / "module/nvidia/version").unlink()
    assert look(nvml, sys)[VF].declaration.shown["software_version"] == "570.1.2"


def test_without_nvidias_devices_nvml_is_not_touched(sys: Path) -> None:
    """Neither where there are none, nor where the GPU itself was given to vfio-pci."""

    def fail(asked: Sequence[Question], library: str) -> list[Answer]:
        raise AssertionError("asked")

    for id_ in (ON_VF, UUID):
        (sys / "bus/mdev/devices" / id_).unlink()
    for address in (VF, "0000:41:00.5", GPU):
        (sys / "bus/pci/devices" / address).unlink()
    driver = sys / f"devices/pci0000:40/{OTHER}/driver"
    driver.unlink()
    driver.symlink_to("../../../bus/pci/drivers/vfio-pci")
    nvml = Nvml(ask=fail)
    devices = scan(sys).devices
    assert {device.id for device in devices} == {OTHER, "0000:01:00.1"}
    assert nvml.completed(sys, devices) == devices
    assert (nvml.problems, [t for t in threading.enumerate() if t.name == "nvml"]) == ((), [])


def test_the_pythons_package_is_missing(sys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    nvml = Nvml()
    assert not any(more(nvml, sys).values())
    [problem] = nvml.problems
    assert "nvidia-ml-py is not installed" in problem


def test_the_library_is_missing_and_comes(
    stub: Stub, sys: Path, tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    place = tmp_path / "libnvidia-ml.so.1"
    nvml = Nvml(str(place), clock=clock)
    assert not any(more(nvml, sys).values())
    [problem] = nvml.problems
    assert problem.startswith(f"{place}: {place}: cannot open shared object file")
    assert not any(refreshed(nvml, sys, clock).values())
    assert sum(str(place) in record.message for record in caplog.records) == 1

    shutil.copy(stub.library, place)
    stub.says("ecc.2", 1)
    assert refreshed(nvml, sys, clock)[VF].keys() >= NAMES
    assert nvml.problems == ()
    assert "NVML tells everything again" in caplog.text


def test_the_linkers_search_finds_no_library(sys: Path, stub: Stub) -> None:
    nvml = Nvml()
    assert not any(more(nvml, sys).values())
    assert nvml.problems == ("libnvidia-ml.so.1: NVML Shared Library Not Found",)


def test_what_is_no_library(sys: Path, tmp_path: Path) -> None:
    place = tmp_path / "libnvidia-ml.so.1"
    place.write_text("no library")
    nvml = Nvml(str(place))
    assert not any(more(nvml, sys).values())
    assert "invalid ELF header" in nvml.problems[0] or "file too short" in nvml.problems[0]


@pytest.mark.parametrize(
    ("code", "says"),
    [(9, "Driver Not Loaded"), (18, "NVML/RM version mismatch"), (4, "Insufficient Permissions")],
)
def test_nvml_cannot_be_initialised(nvml: Nvml, stub: Stub, sys: Path, code: int, says: str) -> None:
    stub.returns("nvmlInitWithFlags", code)
    assert not any(more(nvml, sys).values())
    [problem] = nvml.problems
    assert says in problem


@pytest.mark.parametrize(
    ("function", "lost"),
    [
        ("nvmlSystemGetDriverVersion", {"vgpu_manager_version"}),
        ("nvmlGetVgpuVersion", {"vgpu_versions", "vgpu_versions_allowed"}),
        ("nvmlDeviceGetEccMode", {"ecc_mode"}),
        ("nvmlDeviceGetHandleByPciBusId_v2", {"ecc_mode", "type_name"}),
        ("nvmlDeviceGetSupportedVgpus", {"type_name"}),
        ("nvmlVgpuTypeGetName", {"type_name"}),
    ],
)
@pytest.mark.parametrize("failure", ["returns", "hangs", "crashes"])
def test_a_call_that_fails_costs_its_own_attribute(  # noqa: PLR0917 - fixtures
    nvml: Nvml,
    stub: Stub,
    sys: Path,
    monkeypatch: pytest.MonkeyPatch,
    function: str,
    lost: set[str],
    failure: str,
) -> None:
    monkeypatch.setattr(calls, "CALL_DEADLINE", 0.3)
    stub.says("ecc.2", 1)
    if failure == "returns":
        stub.returns(function, 999)
    else:
        getattr(stub, failure)(function)
    assert more(nvml, sys)[VF].keys() == {*NAMES, "type_name"} - lost
    assert nvml.problems
    says = {"returns": "Unknown Error", "hangs": "no answer within 0.3 s", "crashes": "SIGABRT"}
    assert all(says[failure] in problem for problem in nvml.problems)


def test_a_gpu_whose_calls_hang_does_not_cost_the_others(
    stub: Stub, sys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until too many have hung: then nothing more is asked this time."""
    monkeypatch.setattr(calls, "CALL_DEADLINE", 0.3)
    stub.hangs("nvmlDeviceGetEccMode")
    asked = [("ecc_mode", GPU)] * (calls.STOPS - 1) + [
        ("driver_version",),
        ("ecc_mode", GPU),
        ("driver_version",),
    ]
    answers = calls.ask(asked, str(stub.library))
    assert [answer.value for answer in answers] == [None, None, DRIVER, None, None]
    assert answers[-1].error == "not asked, after 3 that did not answer"


def test_nvml_that_cannot_be_opened_a_second_time_has_said_what_it_said(
    stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub.crashes("nvmlDeviceGetEccMode")
    once = calls._ask

    def ask(questions: Sequence[Question], library: str) -> tuple[list[Answer], str]:
        answered = once(questions, library)
        stub.returns("nvmlInitWithFlags", 9)
        return answered

    monkeypatch.setattr(calls, "_ask", ask)
    asked = [("driver_version",), ("ecc_mode", GPU), ("vgpu_versions",), ("driver_version",)]
    first, second, *others = calls.ask(asked, str(stub.library))
    assert first.value == DRIVER
    assert "SIGABRT" in second.error
    assert [answer.error for answer in others] == ["Driver Not Loaded"] * 2


def test_nvml_hangs_from_the_start(
    nvml: Nvml, stub: Stub, sys: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scan is held up for its patience once, and no second process is started meanwhile."""
    stub.hangs("nvmlInitWithFlags")
    monkeypatch.setattr(calls, "INIT_DEADLINE", 2.0)
    for _ in range(3):
        assert not any(more(nvml, sys, patience=0.01).values())
        assert sum(thread.name == "nvml" for thread in threading.enumerate()) <= 1
    assert all(thread.daemon for thread in threading.enumerate() if thread.name == "nvml")
    settle()
    assert nvml.problems == (f"{stub.library}: no answer within 2 s",)
    stub.heals()
    assert refreshed(nvml, sys, clock)[VF].keys() >= NAMES


def test_no_process_is_left(nvml: Nvml, stub: Stub, sys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "INIT_DEADLINE", 0.5)
    stub.hangs("nvmlInitWithFlags")
    more(nvml, sys)
    children = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    programs = [Path(f"/proc/{pid}/cmdline") for file in children for pid in file.read_text().split()]
    assert not [p for p in programs if p.exists() and b"migcompat.nvml.program" in p.read_bytes()]


def test_the_process_ends_with_the_one_that_asks(stub: Stub) -> None:
    stub.hangs("nvmlInitWithFlags")
    asking = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"from migcompat.nvml import calls; calls.ask([('ecc_mode', 'x')], '{stub.library}')",
        ]
    )
    children = Path(f"/proc/{asking.pid}/task/{asking.pid}/children")

    def hanging() -> list[int]:
        """Processes with the library that have nothing to do."""
        return [pid for pid in map(int, children.read_text().split()) if str(stub.library) in maps(pid)]

    try:
        wait_until(lambda: hanging() != [])
        [pid] = hanging()
    finally:
        asking.kill()
        asking.wait(LONG)
    wait_until(lambda: str(stub.library) not in maps(pid))


def test_an_answer_holds_for_a_minute(stub: Stub, sys: Path, clock: Clock) -> None:
    asked: list[float] = []

    def counted(questions: Sequence[Question], library: str) -> list[Answer]:
        asked.append(clock.now)
        return calls.ask(questions, library)

    nvml = Nvml(str(stub.library), ask=counted, clock=clock)
    begun = clock.now
    assert more(nvml, sys)[VF]["ecc_mode"] == "enabled"
    stub.says("ecc.1", 0)
    clock.now += REFRESH - 1
    assert more(nvml, sys)[VF]["ecc_mode"] == "enabled"
    settle()
    assert asked == [begun]
    clock.now = begun
    assert refreshed(nvml, sys, clock)[VF]["ecc_mode"] == "disabled"
    assert asked == [begun, begun + REFRESH]


def test_the_drivers_upgrade_under_it(nvml: Nvml, stub: Stub, sys: Path) -> None:
    """What the old driver said is forgotten at once, though nothing is due."""
    assert more(nvml, sys)[VF]["vgpu_manager_version"] == DRIVER
    stub.says("driver", "590.44.01")
    stub.supports(0x70001, 0x1A0001)
    write(sys / "module/nvidia", {"version": "590.44.01"})
    found = more(nvml, sys)[VF]
    assert found["vgpu_manager_version"] == "590.44.01"
    assert "26.1" in found["vgpu_versions"].split("+")

    stub.returns("nvmlInitWithFlags", 18)
    write(sys / "module/nvidia", {"version": "600.1.1"})
    assert not any(more(nvml, sys).values())


def test_another_driver_that_answers_late(nvml: Nvml, stub: Stub, sys: Path) -> None:
    """What was asked of the old one is no answer for the new one."""
    asked: list[threading.Event] = []

    def slow(questions: Sequence[Question], library: str) -> list[Answer]:
        asked.append(threading.Event())
        asked[-1].wait(LONG)
        return calls.ask(questions, library)

    nvml = Nvml(str(stub.library), ask=slow)
    assert not any(more(nvml, sys, patience=0.01).values())
    write(sys / "module/nvidia", {"version": "590.44.01"})
    assert not any(more(nvml, sys, patience=0.01).values())
    assert len(asked) == 1
    assert nvml.asking
    asked[0].set()
    wait_until(lambda: len(asked) == 2)
    assert not any(more(nvml, sys, patience=0.01).values())
    asked[1].set()
    settle()
    assert not nvml.asking
    assert more(nvml, sys)[VF].keys() >= NAMES
    write(sys / "module/nvidia", {"version": "600.1.1"})
    assert not any(more(nvml, sys, patience=0.01).values()), "what the old one said is not shown meanwhile"
    wait_until(lambda: len(asked) == 3)
    asked[2].set()
    settle()


def test_a_gpu_that_is_bound_anew_or_gets_another_type_is_asked_at_once(
    nvml: Nvml, stub: Stub, sys: Path
) -> None:
    more(nvml, sys)
    stub.says("ecc.1", 0)
    driver = sys / f"devices/pci0000:40/{GPU}/driver"
    target = os.readlink(driver)
    os.symlink(target, driver.with_name("again"))
    os.replace(driver.with_name("again"), driver)
    assert more(nvml, sys)[VF]["ecc_mode"] == "disabled"
    write(sys / f"devices/pci0000:40/{VF}/nvidia", {"current_vgpu_type": "1428"})
    assert more(nvml, sys)[VF]["type_name"] == "NVIDIA H200X-141C"
    write(sys / f"devices/pci0000:40/{VF}/nvidia", {"current_vgpu_type": "99"})
    assert "type_name" not in more(nvml, sys)[VF]
    assert f"type_name {GPU} 99: the GPU has no vGPU type 99" in nvml.problems


class Slow:
    """NVML that answers only while it is let; ``asked``: how often it was."""

    def __init__(self) -> None:
        self.asked = 0
        self.let = threading.Event()
        self.let.set()

    def __call__(self, questions: Sequence[Question], library: str) -> list[Answer]:
        self.asked += 1
        self.let.wait(LONG)
        return calls.ask(questions, library)


def one(nvml: Nvml, sys: Path, id_: str, patience: float = LONG) -> Mapping[str, str]:
    """What a look at one device alone shows of it."""
    [found] = nvml.completed(sys, scan(sys, frozenset({id_})).devices, patience, whole=False)
    return found.declaration.shown


def test_a_look_at_one_device_neither_asks_nor_forgets_what_is_known(stub: Stub, sys: Path) -> None:
    slow = Slow()
    nvml = Nvml(str(stub.library), ask=slow)
    stub.says("ecc.2", 1)
    whole = look(nvml, sys)
    slow.let.clear()
    try:
        for id_ in (VF, UUID, ON_VF, VF):
            assert one(nvml, sys, id_) == whole[id_].declaration.shown
            assert one(nvml, sys, id_)["ecc_mode"] == "enabled"
        again = look(nvml, sys)
        assert {id_: d.declaration.shown for id_, d in again.items()} == {
            id_: d.declaration.shown for id_, d in whole.items()
        }
        assert slow.asked == 1
    finally:
        slow.let.set()


def test_a_new_type_in_a_look_at_one_device_is_asked_and_the_rest_stays(stub: Stub, sys: Path) -> None:
    slow = Slow()
    nvml = Nvml(str(stub.library), ask=slow)
    look(nvml, sys)
    slow.let.clear()
    try:
        write(sys / f"devices/pci0000:40/{VF}/nvidia", {"current_vgpu_type": "1428"})
        shown = one(nvml, sys, VF, patience=0.01)
        assert "type_name" not in shown
        assert shown.keys() >= NAMES, "of the GPU itself all is known"
        assert one(nvml, sys, ON_VF).keys() >= NAMES
        wait_until(lambda: slow.asked == 2)
    finally:
        slow.let.set()
    settle()
    assert one(nvml, sys, VF)["type_name"] == "NVIDIA H200X-141C"
    look(nvml, sys)
    settle()
    assert slow.asked == 2, "that the former type is gone is no question"


def test_a_gpu_that_is_bound_anew_is_asked_in_a_look_at_one_device_and_the_other_gpu_stays(
    stub: Stub, sys: Path
) -> None:
    slow = Slow()
    nvml = Nvml(str(stub.library), ask=slow)
    stub.says("ecc.2", 1)
    look(nvml, sys)
    stub.says("ecc.1", 0)
    driver = sys / f"devices/pci0000:40/{GPU}/driver"
    os.symlink(os.readlink(driver), driver.with_name("again"))
    os.replace(driver.with_name("again"), driver)
    slow.let.clear()
    try:
        assert "ecc_mode" not in one(nvml, sys, VF, patience=0.01)
        assert one(nvml, sys, UUID)["ecc_mode"] == "enabled"
    finally:
        slow.let.set()
    settle()
    assert one(nvml, sys, VF)["ecc_mode"] == "disabled"
    assert one(nvml, sys, UUID)["ecc_mode"] == "enabled"


def test_a_look_at_one_device_sees_another_driver(nvml: Nvml, stub: Stub, sys: Path) -> None:
    look(nvml, sys)
    stub.says("driver", "590.44.01")
    write(sys / "module/nvidia", {"version": "590.44.01"})
    assert one(nvml, sys, VF)["vgpu_manager_version"] == "590.44.01"
    assert one(nvml, sys, UUID)["vgpu_manager_version"] == "590.44.01"


def test_only_a_look_at_all_devices_forgets_a_gpu(stub: Stub, sys: Path) -> None:
    """Bound to another driver and back, it may have another mode."""
    slow = Slow()
    nvml = Nvml(str(stub.library), ask=slow)
    look(nvml, sys)
    entry = sys / "bus/mdev/devices" / UUID
    target = os.readlink(entry)
    entry.unlink()
    look(nvml, sys)
    settle()
    assert slow.asked == 1
    os.symlink(target, entry)
    look(nvml, sys)
    settle()
    assert slow.asked == 2


def test_asking_fails_in_an_unforeseen_way(sys: Path, stub: Stub) -> None:
    def fail(asked: Sequence[Question], library: str) -> list[Answer]:
        raise KeyError("unforeseen")

    nvml = Nvml(ask=fail)
    assert not any(more(nvml, sys).values())
    assert nvml.problems == ("KeyError: 'unforeseen'",)
