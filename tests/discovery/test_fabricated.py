"""What the recordings do not have: other parents, variant drivers, NUMA nodes, groups the host uses."""

from __future__ import annotations

from pathlib import Path

import pytest
from migcompat.engine.declaration import Kind
from migcompat.sysfs.scan import scan

from tests.discovery.finding import only
from tests.support.fabricate import add_driver, add_function, add_mdev, link, write
from tests.support.vfs import make_vfs

UUID = "336f95d5-1d9d-5a8e-9e77-55f722edd4e6"


def test_a_vgpu_on_a_pci_function_has_its_facts_from_there(sys: Path) -> None:
    add_function(sys, "pci0000:40/0000:41:00.0", driver="nvidia", group=5, ids=("0x10de", "0x20b5"), node=1)
    add_driver(sys, "mdev", "nvidia-vgpu-vfio", version="580.95.05")
    add_mdev(sys, "pci0000:40/0000:41:00.0", UUID, type_id="nvidia-475", driver="nvidia-vgpu-vfio", group=77)
    vgpu = only(sys)
    assert (vgpu.parent, vgpu.numa_node) == ("0000:41:00.0", 1)
    assert (vgpu.pci_id, vgpu.revision) == ("10de20b5", "0x00")
    assert (vgpu.type, vgpu.type_name) == ("nvidia-475", "The nvidia-475")
    assert (vgpu.driver, vgpu.driver_version) == ("nvidia-vgpu-vfio", "580.95.05")
    assert vgpu.problem == ""


def test_a_parent_deeper_than_a_pci_function_has_the_facts_of_the_function_above(sys: Path) -> None:
    add_function(sys, "pci0000:6a/0000:6a:01.0", driver="idxd", group=5, ids=("0x8086", "0x0b25"), node=0)
    add_mdev(
        sys, "pci0000:6a/0000:6a:01.0/dsa0/wq0.0", UUID, type_id="idxd-1dwq-v1", driver="idxd_mdev", group=77
    )
    device = only(sys)
    assert (device.parent, device.pci_id, device.numa_node) == ("wq0.0", "80860b25", 0)


@pytest.mark.parametrize(
    ("parent", "type_id", "driver", "device_api"),
    [
        ("css0/0.0.0313", "vfio_ccw-io", "vfio_mdev", "vfio-ccw"),
        ("vfio_ap/matrix", "vfio_ap-passthrough", "vfio_ap_mdev", "vfio-ap"),
    ],
)
def test_parents_off_the_pci_bus(sys: Path, parent: str, type_id: str, driver: str, device_api: str) -> None:
    add_mdev(sys, parent, UUID, type_id=type_id, driver=driver, group=3, device_api=device_api)
    device = only(sys)
    assert (device.kind, device.parent, device.type) == (Kind.MDEV, parent.split("/")[1], type_id)
    assert (device.device_api, device.pci_id, device.problem) == (device_api, "", "")


def test_a_machine_without_pci(tmp_path: Path) -> None:
    for directory in ("bus", "devices"):
        (tmp_path / directory).mkdir()
    assert scan(tmp_path).devices == ()


@pytest.mark.parametrize(
    "driver",
    [
        "vfio-pci",
        "mlx5_vfio_pci",
        "hisi_acc_vfio_pci",
        "pds_vfio_pci",
        "virtio_vfio_pci",
        "nvgrace_gpu_vfio_pci",
        "qat_vfio_pci",
        "ism_vfio_pci",
        "xe-vfio-pci",
    ],
)
def test_kernel_vfio_drivers_are_known_before_vfio_dev_existed(sys: Path, driver: str) -> None:
    add_function(sys, "pci0000:00/0000:01:00.1", driver=driver, group=4)
    device = only(sys)
    assert (device.driver, device.vfio_dev, device.problem) == (driver, "", "")


def test_an_unknown_driver_that_registered_with_vfio_is_a_variant_driver(sys: Path) -> None:
    add_function(sys, "pci0000:00/0000:01:00.1", driver="acme_passthrough", group=4, vfio_dev="vfio0")
    add_function(sys, "pci0000:00/0000:02:00.0", driver="acme_net", group=5)
    assert only(sys).driver == "acme_passthrough"


def test_the_version_is_that_of_the_module_the_driver_lives_in(sys: Path) -> None:
    add_function(sys, "pci0000:00/0000:01:00.1", driver="xe-vfio-pci", group=4)
    write(sys / "module/xe_vfio_pci", {"version": "1.2"})
    assert only(sys).driver_version == "1.2"


def test_a_built_in_driver_without_module_link(sys: Path) -> None:
    add_function(sys, "pci0000:00/0000:01:00.1", driver="vfio-pci", group=4)
    (sys / "bus/pci/drivers/vfio-pci/module").unlink()
    write(sys / "module/vfio_pci", {"version": "0.2"})
    assert only(sys).driver_version == "0.2"


@pytest.mark.parametrize(("text", "node"), [("-1", None), ("0", 0), ("3", 3)])
def test_numa_node(sys: Path, text: str, node: int | None) -> None:
    add_function(sys, "pci0000:00/0000:01:00.1", group=4, node=int(text))
    assert only(sys).numa_node == node


def test_domains_above_16_bits(sys: Path) -> None:
    add_function(sys, "pci10000:00/10000:01:00.0", group=4)
    assert only(sys).id == "10000:01:00.0"


def test_a_group_that_the_host_uses_too_is_a_problem(sys: Path) -> None:
    add_function(sys, "pci0000:00/0000:01:00.0", group=4)
    add_function(sys, "pci0000:00/0000:01:00.1", group=4, driver="snd_hda_intel")
    assert "IOMMU group 4 also holds 0000:01:00.1 (driver snd_hda_intel)" in only(sys).problem


@pytest.mark.parametrize("driver", ["", "pcieport", "pci-stub"])
def test_neighbours_that_do_no_dma_are_no_problem(sys: Path, driver: str) -> None:
    add_function(sys, "pci0000:00/0000:01:00.0", group=4)
    add_function(sys, "pci0000:00/0000:00:01.0", group=4, driver=driver)
    assert only(sys).problem == ""


def test_no_iommu_group_is_a_problem(sys: Path) -> None:
    add_function(sys, "pci0000:00/0000:01:00.0", group=None)
    assert "no IOMMU group" in only(sys).problem


def test_no_iommu_mode_is_a_problem_of_a_pci_function_only(sys: Path) -> None:
    add_function(sys, "pci0000:00/0000:01:00.0", group=0)
    write(sys / "kernel/iommu_groups/0", {"name": "vfio-noiommu"})
    add_mdev(sys, "virtual/mtty/mtty", UUID, type_id="mtty-1", driver="mtty", group=1)
    function, mdev = scan(sys).devices
    assert "no-IOMMU mode" in function.problem
    assert mdev.problem == ""


def test_an_mdev_on_a_kernel_with_character_devices_only(sys: Path) -> None:
    add_mdev(sys, "virtual/mtty/mtty", UUID, type_id="mtty-1", driver="mtty", group=None, vfio_dev="vfio0")
    device = only(sys)
    assert (device.iommu_group, device.vfio_dev, device.problem) == ("", "vfio0", "")


def test_an_mdev_that_no_driver_took_is_a_problem(sys: Path) -> None:
    add_mdev(sys, "virtual/mtty/mtty", UUID, type_id="mtty-1", driver="", group=1)
    assert only(sys).problem == "no driver is bound to it"


def test_a_device_directory_directly_on_the_bus(sys: Path) -> None:
    device = add_function(sys, "pci0000:00/0000:01:00.0", group=4)
    entry = sys / "bus/pci/devices/0000:01:00.0"
    entry.unlink()
    (device / "driver").unlink()
    (device / "iommu_group").unlink()
    device.rename(entry)
    link(entry / "driver", sys / "bus/pci/drivers/vfio-pci")
    link(entry / "iommu_group", sys / "kernel/iommu_groups/4")
    assert only(sys).path == "bus/pci/devices/0000:01:00.0"


@pytest.mark.parametrize("declare", [False, True])
def test_a_thousand_vfs(tmp_path: Path, declare: bool) -> None:
    result = scan(make_vfs(tmp_path, 1024, declare=declare))
    assert result.problems == ()
    assert len({device.id for device in result.devices}) == len(result.devices) == 1024
    assert {device.problem for device in result.devices} == {""}
    assert {device.physfn for device in result.devices} == {f"0000:{bus:02x}:00.0" for bus in (1, 3, 5, 7)}
    assert {device.numa_node for device in result.devices} == {0, 1}
    shown = [device.declaration.shown for device in result.devices]
    assert shown == [{**shown[0], "pci_id": "15b3101e"}] * 1024
    assert {device.declaration.layout for device in result.devices} == ({"L1"} if declare else {""})
