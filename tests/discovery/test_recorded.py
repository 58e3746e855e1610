"""In each recorded tree, exactly the devices are found that the recording itself shows."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from migcompat.engine.declaration import Kind
from migcompat.sysfs.scan import FoundDevice, scan

from tests.discovery import listings
from tests.support.sysfs import DATA, KERNELS, TREES, unpack

Recorded = Callable[[str, str], Path]

RECORDED_STAGE = "2-vfio-mdev"
"""The stage at which dev-and-modules.txt was written (tests/data/sysfs/README.md)."""

OLD, NEW = KERNELS

each_tree = pytest.mark.parametrize(("kernel", "tree"), [(k, t) for k in KERNELS for t in TREES])
each_kernel = pytest.mark.parametrize("kernel", KERNELS)


def by_id(root: Path) -> dict[str, FoundDevice]:
    result = scan(root)
    assert result.problems == ()
    found = {device.id: device for device in result.devices}
    assert len(found) == len(result.devices), "a device is found twice"
    return found


@each_tree
def test_exactly_the_registered_devices_are_found(recorded: Recorded, kernel: str, tree: str) -> None:
    root = recorded(kernel, tree)
    found = by_id(root)
    assert {device.id: device.vfio_dev for device in found.values()} == listings.registered(root)
    assert set(found) == listings.bound(root)


@each_tree
def test_kinds_and_groups_are_those_the_kernel_lists(recorded: Recorded, kernel: str, tree: str) -> None:
    root = recorded(kernel, tree)
    found = by_id(root)
    assert {device.id for device in found.values() if device.kind is Kind.MDEV} == listings.mediated(root)
    groups = listings.grouped(root)
    assert {device.id: device.iommu_group for device in found.values()} == {id: groups[id] for id in found}


@each_tree
def test_paths_lead_to_the_devices(recorded: Recorded, kernel: str, tree: str) -> None:
    root = recorded(kernel, tree)
    for device in by_id(root).values():
        bus = "mdev" if device.kind is Kind.MDEV else "pci"
        assert root / device.path == (root / "bus" / bus / "devices" / device.id).resolve()


@pytest.mark.parametrize(
    ("kernel", "tree", "physical", "mediated"),
    [
        (OLD, "0-host-drivers", 0, 0),
        (OLD, "1-sriov", 0, 0),
        (OLD, "2-vfio-mdev", 6, 14),
        (OLD, "3-pf-on-vfio-pci", 6, 14),
        (OLD, "4-after-remove", 6, 13),
        (NEW, "0-host-drivers", 0, 0),
        (NEW, "1-sriov", 0, 0),
        (NEW, "2-vfio-mdev", 9, 14),
        (NEW, "3-pf-on-vfio-pci", 6, 14),
        (NEW, "4-after-remove", 6, 13),
    ],
)
def test_counts(recorded: Recorded, kernel: str, tree: str, physical: int, mediated: int) -> None:
    kinds = [device.kind for device in by_id(recorded(kernel, tree)).values()]
    assert (kinds.count(Kind.PHYSICAL), kinds.count(Kind.MDEV)) == (physical, mediated)


@each_kernel
def test_devices_are_those_the_guest_listed(recorded: Recorded, kernel: str) -> None:
    listing = listings.Listing(kernel)
    found = by_id(recorded(kernel, RECORDED_STAGE))
    assert {device.id: device.vfio_dev for device in found.values()} == listing.registered()
    assert {device.iommu_group for device in found.values()} == listing.groups() == listing.group_nodes()


@each_kernel
def test_the_listing_is_of_the_stage_it_is_compared_with(recorded: Recorded, kernel: str) -> None:
    listed = listings.Listing(kernel).registered()
    assert [t for t in TREES if listings.registered(recorded(kernel, t)) == listed] == [RECORDED_STAGE]


def test_character_devices_and_debugfs_agree_where_the_kernel_has_them(recorded: Recorded) -> None:
    listing = listings.Listing(NEW)
    found = by_id(recorded(NEW, RECORDED_STAGE))
    assert {device.vfio_dev for device in found.values()} == listing.character_devices()
    assert set(found) == listing.debugged()


@each_kernel
def test_every_device_that_the_guest_opened_is_found(recorded: Recorded, kernel: str) -> None:
    answers = json.loads((DATA / kernel / "vfio-results.json").read_text())["devices"]
    stages = [*by_id(recorded(kernel, "2-vfio-mdev")), *by_id(recorded(kernel, "3-pf-on-vfio-pci"))]
    assert set(answers) == set(stages)


@each_kernel
def test_vfs_of_a_pf_on_vfio_pci_are_unusable(recorded: Recorded, kernel: str) -> None:
    answers = json.loads((DATA / kernel / "vfio-results.json").read_text())["devices"]
    assert answers["0000:01:00.1"]["group"] == {"open": "errno EACCES"}
    found = by_id(recorded(kernel, "3-pf-on-vfio-pci"))
    assert {device.id for device in found.values() if device.problem} == {"0000:01:00.1", "0000:01:00.2"}
    assert "VF token" in found["0000:01:00.1"].problem
    assert "0000:01:00.0 is bound to vfio-pci" in found["0000:01:00.1"].problem


@each_kernel
def test_devices_are_usable_when_each_pf_has_its_host_driver(recorded: Recorded, kernel: str) -> None:
    assert [d.id for d in by_id(recorded(kernel, "2-vfio-mdev")).values() if d.problem] == []


@each_kernel
def test_a_removed_mdev_is_gone(recorded: Recorded, kernel: str) -> None:
    before = set(by_id(recorded(kernel, "3-pf-on-vfio-pci")))
    after = set(by_id(recorded(kernel, "4-after-remove")))
    assert before - after == {"c0caaab8-c856-5d7a-b255-221bc0d589ba"}
    assert after < before


def test_a_virtual_function(recorded: Recorded) -> None:
    vf = by_id(recorded(NEW, "2-vfio-mdev"))["0000:02:10.2"]
    assert vf.kind is Kind.PHYSICAL
    assert vf.path == "devices/pci0000:00/0000:00:04.0/0000:02:10.2"
    assert (vf.is_vf, vf.physfn, vf.parent) == (True, "0000:02:00.0", "0000:02:00.0")
    assert (vf.driver, vf.driver_version, vf.device_api) == ("vfio-pci", "", "vfio-pci")
    assert (vf.pci_id, vf.revision) == ("808610ca", "0x01")
    assert (vf.iommu_group, vf.vfio_dev, vf.numa_node) == ("18", "vfio4", None)
    assert (vf.type, vf.type_name) == ("", "")


def test_a_physical_function(recorded: Recorded) -> None:
    pf = by_id(recorded(OLD, "3-pf-on-vfio-pci"))["0000:01:00.0"]
    assert (pf.is_vf, pf.physfn, pf.parent) == (False, "", "")
    assert (pf.pci_id, pf.revision, pf.iommu_group, pf.vfio_dev) == ("1b360010", "0x02", "9", "vfio0")


def test_functions_behind_a_bridge_share_a_group_and_are_usable(recorded: Recorded) -> None:
    found = by_id(recorded(OLD, "2-vfio-mdev"))
    twins = found["0000:04:01.0"], found["0000:04:02.0"]
    assert {device.iommu_group for device in twins} == {"10"}
    assert [device.problem for device in twins] == ["", ""]


def test_an_mdev_without_a_pci_parent(recorded: Recorded) -> None:
    mdev = by_id(recorded(NEW, "2-vfio-mdev"))["336f95d5-1d9d-5a8e-9e77-55f722edd4e6"]
    assert mdev.kind is Kind.MDEV
    assert mdev.path == "devices/virtual/mtty/mtty/336f95d5-1d9d-5a8e-9e77-55f722edd4e6"
    assert (mdev.parent, mdev.driver, mdev.driver_version) == ("mtty", "mtty", "0.1")
    assert (mdev.type, mdev.type_name, mdev.device_api) == ("mtty-1", "Single port serial", "vfio-pci")
    assert (mdev.pci_id, mdev.revision, mdev.numa_node) == ("", "", None)
    assert (mdev.iommu_group, mdev.vfio_dev, mdev.problem) == ("30", "vfio19", "")


@each_tree
def test_what_devices_show_is_what_their_files_say(recorded: Recorded, kernel: str, tree: str) -> None:
    root = recorded(kernel, tree)
    for device in by_id(root).values():
        says, path = device.declaration.shown, root / device.path
        assert says["device_api"] == "vfio-pci"
        assert says["driver"] == (path / "driver").resolve().name
        if device.kind is Kind.MDEV:
            type_dir = (path / "mdev_type").resolve()
            assert (says["type"], says["type_name"]) == (type_dir.name, content(type_dir / "name"))
            module = path / "driver/module/version"
            version = content(module) if module.exists() else None
            assert says.get("software_version") == says.get("driver_version") == version
            assert not {name for name in says if "pci" in name}, "these live on no PCI function"
        else:
            vendor, model, revision, *subsystem = (
                content(path / name).removeprefix("0x")
                for name in ("vendor", "device", "revision", "subsystem_vendor", "subsystem_device")
            )
            assert (says["type"], says["pci_id"]) == (f"pci-{vendor}-{model}", vendor + model)
            assert (says["pci_revision"], says["pci_subsystem"]) == (revision, "".join(subsystem))
            role = next((role for role, file in ROLES.items() if os.path.lexists(path / file)), "function")
            assert says["pci_function"] == role
            assert "software_version" not in says, "vfio-pci has no version"


ROLES = {"vf": "physfn", "pf": "sriov_totalvfs"}


def test_each_role_of_a_function_is_in_a_recording(recorded: Recorded) -> None:
    """So that the test above cannot pass without them."""
    roles = {
        device.declaration.shown.get("pci_function")
        for tree in ("2-vfio-mdev", "3-pf-on-vfio-pci")
        for device in by_id(recorded(OLD, tree)).values()
    }
    assert roles == {"vf", "pf", "function", None}


def content(file: Path) -> str:
    return file.read_text().strip()


def test_versions_are_shown_in_the_recording(recorded: Recorded) -> None:
    """So that the test above cannot pass without a version anywhere."""
    shown = [device.declaration.shown for device in by_id(recorded(NEW, "2-vfio-mdev")).values()]
    assert {says["software_version"] for says in shown if says["driver"] == "mtty"} == {"0.1"}


def test_recorded_devices_declare_nothing(recorded: Recorded) -> None:
    found = by_id(recorded(NEW, "2-vfio-mdev"))
    assert {device.declaration.layout for device in found.values()} == {""}
    assert all(device.declaration.kind is device.kind for device in found.values())


def test_what_debugfs_tells_is_what_the_devices_answered(tmp_path: Path) -> None:
    """The recording has no debugfs, but its listing; the ioctl's answers were recorded beside it."""
    root, listing = unpack(NEW, RECORDED_STAGE, tmp_path), listings.Listing(NEW)
    for device in listing.debugged():
        (root / "kernel/debug/vfio" / device).mkdir(parents=True)
    for device in listing.migratable():
        (root / "kernel/debug/vfio" / device / "migration").mkdir()
    told = {id: device.declaration.shown.get("migration_features") for id, device in by_id(root).items()}
    answers = json.loads((DATA / NEW / "vfio-results.json").read_text())["devices"]
    refused = {id for id, ways in answers.items() if "errno ENOTTY" in json.dumps(ways)}
    assert listing.migratable() == {id for id in told if told[id] is None} == told.keys() - refused
    assert {told[id] for id in told.keys() & refused} == {"none"}
