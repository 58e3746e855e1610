"""Mdevs on PCI functions: what they show of the function and of its driver."""

from __future__ import annotations

from pathlib import Path

import pytest
from migcompat.sysfs.scan import scan

from tests.discovery.finding import only, shown
from tests.support.fabricate import add_driver, add_function, add_mdev, link, write

UUID = "336f95d5-1d9d-5a8e-9e77-55f722edd4e6"
OTHER = "3eeb13bc-4835-50d9-ae6a-0712004468f2"
GPU = "pci0000:40/0000:41:00.0"


@pytest.fixture
def gpu(sys: Path) -> Path:
    """A GPU on NVIDIA's driver, whose mdevs are bound to another that is only glue."""
    add_driver(sys, "pci", "nvidia", version="580.95.05")
    add_driver(sys, "mdev", "nvidia-vgpu-vfio")
    device = add_function(sys, GPU, driver="nvidia", group=5, ids=("0x10de", "0x20b5"), node=1)
    write(device, {"revision": "0xa1", "subsystem_vendor": "0x10de", "subsystem_device": "0x1533"})
    return device


def add_vgpu(sys: Path, uuid: str = UUID) -> Path:
    return add_mdev(sys, GPU, uuid, type_id="nvidia-475", driver="nvidia-vgpu-vfio", group=77)


def test_a_vgpu(sys: Path, gpu: Path) -> None:
    add_vgpu(sys)
    assert shown(sys) == {
        "device_api": "vfio-pci",
        "type": "nvidia-475",
        "type_name": "The nvidia-475",
        "vgpu_type": "475",
        "parent_pci_id": "10de20b5",
        "pci_revision": "a1",
        "pci_subsystem": "10de1533",
        "driver": "nvidia-vgpu-vfio",
        "driver_version": "580.95.05",
        "software_version": "580.95.05",
    }


@pytest.mark.parametrize(
    ("vendor", "type_id"), [("0x8086", "nvidia-475"), ("0x10de", "i915-475"), ("0x10de", "nvidia-x")]
)
def test_what_is_no_vgpu_type_of_nvidia(sys: Path, gpu: Path, vendor: str, type_id: str) -> None:
    write(gpu, {"vendor": vendor})
    add_mdev(sys, GPU, UUID, type_id=type_id, driver="nvidia-vgpu-vfio", group=77)
    assert "vgpu_type" not in shown(sys)


def test_the_version_is_the_parents_drivers_even_if_the_glue_has_one(sys: Path, gpu: Path) -> None:
    add_vgpu(sys)
    write(sys / "module/nvidia_vgpu_vfio", {"version": "1.0"})
    assert shown(sys)["software_version"] == "580.95.05"
    assert only(sys).driver_version == "1.0", "the table is of the driver that is bound"


def test_version_and_id_are_those_of_its_own_parent(sys: Path, gpu: Path) -> None:
    add_vgpu(sys)
    add_driver(sys, "pci", "other", version="2.0")
    add_function(sys, "pci0000:5d/0000:5e:00.0", driver="other", group=6)
    other = UUID.replace("3", "4")
    add_mdev(sys, "pci0000:5d/0000:5e:00.0", other, type_id="x-1", driver="nvidia-vgpu-vfio", group=78)
    shows = {one.id: one.declaration.shown for one in scan(sys).devices}
    found = {id_: (shown["software_version"], shown["parent_pci_id"]) for id_, shown in shows.items()}
    assert found == {UUID: ("580.95.05", "10de20b5"), other: ("2.0", "15b3101e")}


def test_without_a_driver_of_the_parent_it_is_its_own(sys: Path, gpu: Path) -> None:
    add_vgpu(sys)
    write(sys / "module/nvidia_vgpu_vfio", {"version": "1.0"})
    (gpu / "driver").unlink()
    assert shown(sys)["software_version"] == "1.0"


@pytest.mark.parametrize("target", ["driver", "../../../devices", "/dev/null", "../../nowhere/drivers/x"])
def test_a_parents_driver_that_leads_anywhere_else(sys: Path, gpu: Path, target: str) -> None:
    add_vgpu(sys)
    (gpu / "driver").unlink()
    (gpu / "driver").symlink_to(target)
    assert "software_version" not in shown(sys)


def test_a_driver_upgrade_is_seen_by_the_next_scan(sys: Path, gpu: Path) -> None:
    add_vgpu(sys)
    assert shown(sys)["software_version"] == "580.95.05"
    write(sys / "module/nvidia", {"version": "580.105.08"})
    assert shown(sys)["software_version"] == "580.105.08"


def test_a_vgpu_on_a_vf_has_the_vfs_pf(sys: Path, gpu: Path) -> None:
    """With SR-IOV vGPUs each mdev lives on a VF of its own: what they have in common is the PF."""
    vf = "pci0000:40/0000:41:00.4"
    add_function(sys, vf, driver="nvidia", group=6, ids=("0x10de", "0x20b5"), physfn=gpu.name)
    add_vgpu(sys)
    add_mdev(sys, vf, OTHER, type_id="nvidia-475", driver="nvidia-vgpu-vfio", group=78)
    found = {device.id: (device.parent, device.physfn, device.is_vf) for device in scan(sys).devices}
    assert found == {UUID: (gpu.name, "", False), OTHER: ("0000:41:00.4", gpu.name, False)}


def test_a_vgpu_is_not_taken_for_a_physical_function(sys: Path, gpu: Path) -> None:
    """Its self would need a pci_id then, and every source would have to have the same (semantics §1, §3)."""
    add_vgpu(sys)
    assert "pci_id" not in shown(sys)


def test_a_parent_deeper_than_the_function(sys: Path) -> None:
    add_function(sys, "pci0000:6a/0000:6a:01.0", driver="idxd", group=5, ids=("0x8086", "0x0b25"))
    parent = "pci0000:6a/0000:6a:01.0/dsa0/wq0.0"
    add_mdev(sys, parent, UUID, type_id="idxd-1dwq-v1", driver="idxd_mdev", group=77)
    add_driver(sys, "dsa", "mdev", version="2.0")
    link(sys / "devices" / parent / "driver", sys / "bus/dsa/drivers/mdev")
    assert shown(sys)["parent_pci_id"] == "80860b25"
    assert shown(sys)["software_version"] == "2.0", "a parent's driver may be on any bus"


def test_what_is_unreadable_of_the_function_is_left_out(sys: Path, gpu: Path) -> None:
    for name in ("vendor", "revision", "subsystem_vendor"):
        write(gpu, {name: "?"})
    add_vgpu(sys)
    assert {"parent_pci_id", "pci_revision", "pci_subsystem"}.isdisjoint(shown(sys))


def test_types_are_not_mixed_up(sys: Path, gpu: Path) -> None:
    add_vgpu(sys)
    add_mdev(sys, GPU, OTHER, type_id="nvidia-474", driver="nvidia-vgpu-vfio", group=78)
    says = {device.id: device.declaration.shown for device in scan(sys).devices}
    assert {id_: each["type"] for id_, each in says.items()} == {UUID: "nvidia-475", OTHER: "nvidia-474"}
    assert says[OTHER]["type_name"] == "The nvidia-474"
