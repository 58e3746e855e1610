"""Trees that are half written, broken or hostile: one item suffers, everything else is found."""

from __future__ import annotations

import os
import sys as interpreter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from migcompat.engine.declaration import Declaration, Kind
from migcompat.sysfs.declaration import read_declaration
from migcompat.sysfs.scan import FoundDevice, ScanError, scan
from migcompat.sysfs.tree import Tree

from tests.discovery.finding import problem_of
from tests.support.fabricate import add_function, add_mdev, write

UUID = "336f95d5-1d9d-5a8e-9e77-55f722edd4e6"
OTHER = "3eeb13bc-4835-50d9-ae6a-0712004468f2"
MTTY = "virtual/mtty/mtty"


@pytest.fixture
def sound(sys: Path) -> Iterator[None]:
    """Two sound devices; the test fails when one of them is not found as such in the end."""
    add_function(sys, "pci0000:00/0000:09:00.0", group=90)
    add_mdev(sys, MTTY, OTHER, type_id="mtty-2", driver="mtty", group=91)
    yield
    found = {device.id: device.problem for device in scan(sys).devices}
    assert found["0000:09:00.0"] == found[OTHER] == ""


def find(sys: Path, wanted: str) -> FoundDevice:
    return next(device for device in scan(sys).devices if device.id == wanted)


@pytest.mark.parametrize("missing", ["bus", "devices"])
def test_a_root_that_is_no_sysfs(tmp_path: Path, missing: str) -> None:
    for directory in {"bus", "devices"} - {missing}:
        (tmp_path / directory).mkdir()
    with pytest.raises(ScanError, match="is no sysfs: it has no directory " + missing) as caught:
        scan(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "/sys" in str(caught.value)


def test_a_root_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ScanError, match="nowhere is no sysfs"):
        scan(tmp_path / "nowhere")


def test_a_root_that_cannot_be_looked_at_may_be_a_sysfs(tmp_path: Path) -> None:
    (tmp_path / "bus").symlink_to("bus")
    with pytest.raises(OSError, match="Too many levels"):
        scan(tmp_path)


@pytest.mark.usefixtures("sound")
class TestLinksOnTheBus:
    @pytest.mark.parametrize("bus", ["pci", "mdev"])
    def test_broken(self, sys: Path, bus: str) -> None:
        name = UUID if bus == "mdev" else "0000:01:00.0"
        entry = f"bus/{bus}/devices/{name}"
        (sys / entry).symlink_to("../../../devices/gone")
        assert "link is broken" in problem_of(sys, entry)

    @pytest.mark.parametrize("bus", ["pci", "mdev"])
    def test_loop(self, sys: Path, bus: str) -> None:
        name = UUID if bus == "mdev" else "0000:01:00.0"
        entry = f"bus/{bus}/devices/{name}"
        (sys / entry).symlink_to(name)
        assert problem_of(sys, entry)

    def test_out_of_the_tree(self, sys: Path, tmp_path: Path) -> None:
        elsewhere = add_mdev(sys, MTTY, UUID, type_id="mtty-2", driver="mtty", group=92)
        elsewhere.rename(tmp_path / "elsewhere")
        (sys / f"bus/mdev/devices/{UUID}").unlink()
        (sys / f"bus/mdev/devices/{UUID}").symlink_to(tmp_path / "elsewhere")
        assert "not below devices/" in problem_of(sys, f"bus/mdev/devices/{UUID}")

    @pytest.mark.parametrize("name", ["not-a-uuid", UUID.upper(), f"{UUID} "])
    def test_name_that_is_no_uuid(self, sys: Path, name: str) -> None:
        (sys / "bus/mdev/devices" / name).mkdir()
        assert "not a UUID" in problem_of(sys, f"bus/mdev/devices/{name}")

    def test_name_that_is_no_text(self, sys: Path) -> None:
        (sys / "bus/pci/devices" / os.fsdecode(b"\xff\n")).mkdir()
        assert "not a PCI address" in problem_of(sys, "bus/pci/devices/\\xff\\x0a")

    def test_plain_file_for_a_device(self, sys: Path) -> None:
        write(sys / "bus/mdev/devices", {UUID: "x"})
        assert problem_of(sys, f"bus/mdev/devices/{UUID}")


def absent(file: Path) -> None:
    file.unlink()


def directory(file: Path) -> None:
    file.unlink()
    file.mkdir()


def fifo(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def loop(file: Path) -> None:
    file.unlink()
    file.symlink_to(file.name)


def endless(file: Path) -> None:
    file.unlink()
    file.symlink_to("/dev/zero")


def huge(file: Path) -> None:
    file.write_bytes(b"0" * 5000)


def binary(file: Path) -> None:
    file.write_bytes(b"\x00\xff")


def empty(file: Path) -> None:
    file.write_bytes(b"")


def words(file: Path) -> None:
    file.write_text("no number\n")


BREAKAGES = (absent, directory, fifo, loop, endless, huge, binary, empty, words)

each_breakage = pytest.mark.parametrize("spoil", BREAKAGES, ids=lambda spoil: spoil.__name__)


@pytest.mark.usefixtures("sound")
class TestAttributes:
    @pytest.fixture
    def function(self, sys: Path) -> Path:
        return add_function(sys, "pci0000:00/0000:01:00.0", group=1)

    @each_breakage
    @pytest.mark.parametrize("attribute", ["vendor", "device"])
    def test_pci_id_must_be_readable(
        self, sys: Path, function: Path, attribute: str, spoil: Callable[[Path], None]
    ) -> None:
        spoil(function / attribute)
        found = find(sys, "0000:01:00.0")
        assert found.pci_id == ""
        assert attribute in found.problem

    @pytest.mark.parametrize("spoil", sorted({*BREAKAGES} - {absent, empty}, key=BREAKAGES.index))
    def test_numa_node_may_be_absent_but_not_rubbish(
        self, sys: Path, function: Path, spoil: Callable[[Path], None]
    ) -> None:
        spoil(function / "numa_node")
        found = find(sys, "0000:01:00.0")
        assert found.numa_node is None
        assert "numa_node" in found.problem

    @each_breakage
    def test_module_version_never_matters(
        self, sys: Path, function: Path, spoil: Callable[[Path], None]
    ) -> None:
        write(sys / "module/vfio_pci", {"version": "1"})
        spoil(sys / "module/vfio_pci/version")
        assert find(sys, "0000:01:00.0").problem == ""

    @each_breakage
    @pytest.mark.parametrize(
        ("attribute", "name"),
        [
            ("revision", "pci_revision"),
            ("subsystem_vendor", "pci_subsystem"),
            ("subsystem_device", "pci_subsystem"),
        ],
    )
    def test_what_is_only_shown_is_left_out(
        self, sys: Path, function: Path, attribute: str, name: str, spoil: Callable[[Path], None]
    ) -> None:
        write(function, {"revision": "0x02", "subsystem_vendor": "0x15b3", "subsystem_device": "0x0061"})
        before = find(sys, "0000:01:00.0").declaration.shown
        spoil(function / attribute)
        found = find(sys, "0000:01:00.0")
        assert found.problem == ""
        assert found.declaration.shown == {key: value for key, value in before.items() if key != name}

    @each_breakage
    def test_debugfs_never_matters(self, sys: Path, function: Path, spoil: Callable[[Path], None]) -> None:
        debug = sys / "kernel/debug/vfio/0000:01:00.0/migration"
        debug.mkdir(parents=True)
        write(debug, {"features": "stop-copy"})
        assert find(sys, "0000:01:00.0").declaration.shown["migration_features"] == "stop-copy"
        spoil(debug / "features")
        found = find(sys, "0000:01:00.0")
        assert found.problem == ""
        assert "stop-copy" not in found.declaration.shown.get("migration_features", "")

    @each_breakage
    def test_the_name_of_an_mdev_type_never_matters(self, sys: Path, spoil: Callable[[Path], None]) -> None:
        device = add_mdev(sys, MTTY, UUID, type_id="mtty-1", driver="mtty", group=2)
        spoil((device / "mdev_type").resolve() / "name")
        found = find(sys, UUID)
        assert (found.type, found.problem) == ("mtty-1", "")
        assert found.type_name in ("", "no number")
        assert found.declaration.shown.get("type_name", "") == found.type_name

    def test_driver_that_is_no_link(self, sys: Path, function: Path) -> None:
        (function / "driver").unlink()
        (function / "driver").mkdir()
        assert "driver is no readable link" in problem_of(sys, "bus/pci/devices/0000:01:00.0")

    def test_links_that_loop(self, sys: Path, function: Path) -> None:
        for name in ("iommu_group", "physfn", "vfio-dev"):
            (function / name).unlink(missing_ok=True)
            (function / name).symlink_to(name)
        assert "vfio-dev cannot be listed" in find(sys, "0000:01:00.0").problem

    def test_driver_name_that_is_no_text(self, sys: Path, function: Path) -> None:
        (function / "driver").unlink()
        (function / "driver").symlink_to(os.fsdecode(b"../\xffvfio-pci"))
        assert find(sys, "0000:01:00.0").driver == "\\xffvfio-pci"


@pytest.mark.usefixtures("sound")
class TestHalfWritten:
    def test_empty_mdev(self, sys: Path) -> None:
        device = sys / "devices" / MTTY / UUID
        device.mkdir()
        (sys / f"bus/mdev/devices/{UUID}").symlink_to(f"../../../devices/{MTTY}/{UUID}")
        found = find(sys, UUID)
        assert "no driver is bound to it" in found.problem
        assert "no mdev_type" in found.problem

    def test_mdev_type_that_leads_nowhere(self, sys: Path) -> None:
        device = add_mdev(sys, MTTY, UUID, type_id="mtty-2", driver="mtty", group=1)
        (device / "mdev_type").unlink()
        (device / "mdev_type").symlink_to("../mdev_supported_types/gone")
        assert "mdev_type leads nowhere" in find(sys, UUID).problem

    def test_mdev_type_loop(self, sys: Path) -> None:
        device = add_mdev(sys, MTTY, UUID, type_id="mtty-2", driver="mtty", group=1)
        (device / "mdev_type").unlink()
        (device / "mdev_type").symlink_to("mdev_type")
        assert find(sys, UUID).problem

    def test_function_registered_but_not_bound(self, sys: Path) -> None:
        device = add_function(sys, "pci0000:00/0000:01:00.0", group=1, vfio_dev="vfio0")
        (device / "driver").unlink()
        assert "no driver is bound to it" in find(sys, "0000:01:00.0").problem

    def test_strange_names_in_vfio_dev(self, sys: Path) -> None:
        device = add_function(sys, "pci0000:00/0000:01:00.0", group=1, vfio_dev="vfio7")
        for name in ("power", "vfio10x"):
            (device / "vfio-dev" / name).mkdir()
        assert find(sys, "0000:01:00.0").vfio_dev == "vfio7"


def test_a_bus_that_cannot_be_listed(sys: Path) -> None:
    add_mdev(sys, MTTY, UUID, type_id="mtty-2", driver="mtty", group=1)
    (sys / "bus/pci/devices").rmdir()
    (sys / "bus/pci/devices").symlink_to("devices")
    result = scan(sys)
    assert [device.id for device in result.devices] == [UUID]
    assert [problem.path for problem in result.problems] == ["bus/pci/devices"]
    assert "no PCI device is found" in result.problems[0].message


@pytest.mark.usefixtures("sound")
def test_a_device_that_vanishes_while_it_is_read(sys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_function(sys, "pci0000:00/0000:01:00.0", group=1)
    entry = sys / "bus/pci/devices/0000:01:00.0"
    read = Tree.numa_node

    def read_and_lose(self: Tree, device: str, notes: list[str]) -> int | None:
        if device.endswith("0000:01:00.0"):
            entry.unlink()
        return read(self, device, notes)

    monkeypatch.setattr(Tree, "numa_node", read_and_lose)
    result = scan(sys)
    assert [(problem.path, problem.message) for problem in result.problems] == [
        ("bus/pci/devices/0000:01:00.0", "went away while it was being read, or its link is broken")
    ]
    assert "0000:01:00.0" not in {device.id for device in result.devices}


@pytest.mark.usefixtures("sound")
def test_an_mdev_that_vanishes_while_it_is_read(sys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_mdev(sys, MTTY, UUID, type_id="mtty-2", driver="mtty", group=1)
    entry = sys / "bus/mdev/devices" / UUID

    def read_and_lose(directory: str, kind: Kind) -> Declaration:
        if directory.endswith(UUID):
            entry.unlink()
        return read_declaration(directory, kind)

    monkeypatch.setattr("migcompat.sysfs.mdev.read_declaration", read_and_lose)
    assert "went away while it was being read" in problem_of(sys, f"bus/mdev/devices/{UUID}")


@pytest.mark.usefixtures("sound")
def test_an_error_of_the_operating_system_costs_one_device(
    sys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_function(sys, "pci0000:00/0000:01:00.0", group=1)

    def fail(directory: str, kind: Kind) -> Declaration:
        if directory.endswith("0000:01:00.0"):
            raise OSError(5, "Input/output error")
        return read_declaration(directory, kind)

    monkeypatch.setattr("migcompat.sysfs.pci.read_declaration", fail)
    assert "Input/output error" in problem_of(sys, "bus/pci/devices/0000:01:00.0")


_opened: list[str] = []
_watching: list[bool] = []


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    if _watching and event == "open":
        _opened.append(os.fsdecode(arguments[0]) if isinstance(arguments[0], str | bytes) else "")


def test_files_whose_reading_disturbs_a_device_are_never_opened(sys: Path) -> None:
    function = add_function(sys, "pci0000:00/0000:01:00.0", group=1, vfio_dev="vfio0")
    mdev = add_mdev(sys, "pci0000:00/0000:01:00.0", UUID, type_id="x-1", driver="x", group=2)
    forbidden = ("config", "rom", "resource", "resource0", "resource0_wc", "reset", "remove")
    for device in (function, mdev):
        write(device, dict.fromkeys(forbidden, "secret"))
    interpreter.addaudithook(_watch)
    _watching.append(True)
    try:
        result = scan(sys)
    finally:
        _watching.clear()
    assert len(result.devices) == 2
    names = {path.rpartition("/")[2] for path in _opened}
    assert "vendor" in names
    assert names.isdisjoint(forbidden)
