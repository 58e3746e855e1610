"""The scanner sees what the kernel says, read independently."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from migcompat.engine.declaration import Kind
from migcompat.sysfs.scan import FoundDevice, scan

from tests.kernel.guest import hardware
from tests.kernel.guest.conftest import Figure
from tests.kernel.guest.hardware import EDU, IGB, MDEV, NVME, PCI, SYS, link, read

SCANS = 50
CANNOT_MIGRATE = {"migration_features": "none"}
"""Of all drivers here but mtty (`test_probe`); this kernel tells so in debugfs, but not yet the features."""


def found() -> dict[str, FoundDevice]:
    result = scan(SYS)
    assert result.problems == ()
    return {device.id: device for device in result.devices}


def healthy() -> dict[str, FoundDevice]:
    devices = found()
    assert {device.id: device.problem for device in devices.values() if device.problem} == {}
    return devices


def test_a_machine_as_booted_has_no_vfio_device() -> None:
    assert found() == {}


@pytest.mark.parametrize(
    "type_id",
    ["mtty-1", "mtty-2", "mdpy-vga", "mdpy-xga", "mdpy-hd", "mbochs-small", "mbochs-medium", "mbochs-large"],
)
def test_an_mdev_of_each_type(type_id: str) -> None:
    name = hardware.create(type_id)
    kernels = hardware.mdev_types()[type_id]
    device = healthy()[name]
    assert device.kind is Kind.MDEV
    assert SYS / device.path == (MDEV / name).resolve()
    assert (device.type, device.type_name) == (type_id, read(kernels / "name"))
    assert device.device_api == read(kernels / "device_api")
    assert device.parent == type_id.split("-", maxsplit=1)[0]
    assert device.driver == link(MDEV / name / "driver")
    assert device.iommu_group == link(MDEV / name / "iommu_group")
    assert [device.vfio_dev] == os.listdir(MDEV / name / "vfio-dev")
    assert (device.pci_id, device.numa_node, device.declaration.layout) == ("", None, "")
    version = MDEV / name / "driver/module/version"
    versions = ("driver_version", "software_version") if version.exists() else ()
    assert device.declaration.shown == {
        **{"device_api": device.device_api, "type": type_id, "type_name": read(kernels / "name")},
        **{"driver": device.driver, **{attribute: read(version) for attribute in versions}},
        **({} if device.driver == "mtty" else CANNOT_MIGRATE),
    }


def test_all_mdevs_that_the_driver_can_make() -> None:
    made = [hardware.create("mtty-1") for _ in range(hardware.available("mtty-1"))]
    assert len(made) == hardware.MTTY_PORTS
    assert hardware.available("mtty-1") == hardware.available("mtty-2") == 0
    with pytest.raises(OSError, match="No space left"):
        hardware.create("mtty-2")
    assert sorted(healthy()) == sorted(made)


@pytest.mark.parametrize(("ids", "count"), [(NVME, 4), (IGB, 7)])
def test_vfs_are_devices_when_vfio_has_them(ids: tuple[str, str], count: int) -> None:
    pf = hardware.physical_function(ids)
    vfs = hardware.set_vfs(pf, count)
    assert found() == {}
    for vf in vfs:
        hardware.bind(vf)
    devices = healthy()
    assert sorted(devices) == sorted(vfs)
    for vf in vfs:
        device = devices[vf]
        assert (device.kind, device.is_vf, device.physfn, device.parent) == (Kind.PHYSICAL, True, pf, pf)
        assert (device.driver, device.device_api) == ("vfio-pci", "vfio-pci")
        assert SYS / device.path == (PCI / vf).resolve()
        assert device.pci_id == (read(PCI / vf / "vendor") + read(PCI / vf / "device")).replace("0x", "")
        assert device.revision == read(PCI / vf / "revision")
        assert device.iommu_group == link(PCI / vf / "iommu_group")
        assert [device.vfio_dev] == os.listdir(PCI / vf / "vfio-dev")
        vendor, model, revision, *subsystem = (
            read(PCI / vf / name).removeprefix("0x")
            for name in ("vendor", "device", "revision", "subsystem_vendor", "subsystem_device")
        )
        assert device.declaration.shown == {
            **{"device_api": "vfio-pci", "type": f"pci-{vendor}-{model}", "pci_id": vendor + model},
            **{"pci_revision": revision, "pci_subsystem": "".join(subsystem), "driver": "vfio-pci"},
            "pci_function": "vf",
            **CANNOT_MIGRATE,
        }, "what VFs share is read from one of them: it is what each one's own files say"
    assert len({device.iommu_group for device in devices.values()}) == count


def test_a_function_on_another_numa_node() -> None:
    (far,) = [address for address in hardware.functions(NVME) if read(PCI / address / "numa_node") == "1"]
    assert hardware.driver(far) == "nvme"
    hardware.unbind(far)
    hardware.bind(far)
    device = healthy()[far]
    assert (device.numa_node, device.is_vf, device.pci_id) == (1, False, "1b360010")


def test_functions_behind_a_bridge_share_a_group() -> None:
    for address in hardware.functions(EDU):
        hardware.bind(address)
    groups = [device.iommu_group for device in healthy().values()]
    assert len(groups) == 3
    assert len(set(groups)) == 2


def test_a_vf_of_a_pf_on_vfio_pci_cannot_be_used() -> None:
    """The kernel wants a VF token then; the scanner must say so before a VM is refused."""
    pf = hardware.physical_function(NVME)
    hardware.unbind(pf)
    hardware.bind(pf)
    parameter = SYS / "module/vfio_pci/parameters/enable_sriov"
    hardware.write(parameter, "Y")
    try:
        (vf,) = hardware.set_vfs(pf, 1)
        hardware.bind(vf)
        devices = found()
        assert devices[pf].problem == ""
        assert "VF token" in devices[vf].problem
    finally:
        hardware.write(PCI / pf / "sriov_numvfs", "0")
        hardware.write(parameter, "N")


def test_an_mdev_without_a_driver_cannot_be_used() -> None:
    name = hardware.create("mtty-1")
    hardware.unbind_mdev(name)
    assert "no driver" in found()[name].problem


def test_the_command_lists_the_same_devices() -> None:
    made = {hardware.create("mtty-1"), hardware.create("mdpy-vga")}
    command = [sys.executable, "-c", "from migcompat.cli import main; main()", "scan", "-o", "json"]
    listed = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)
    assert {device["id"] for device in listed["devices"]} == made


def test_how_long_a_scan_takes(figure: Figure) -> None:
    for _ in range(hardware.available("mtty-1")):
        hardware.create("mtty-1")
    for ids, count in ((NVME, 4), (IGB, 7)):
        for vf in hardware.set_vfs(hardware.physical_function(ids), count):
            hardware.bind(vf)
    seconds = []
    for _ in range(SCANS):
        start = time.perf_counter()
        assert len(scan(Path("/sys")).devices) == hardware.MTTY_PORTS + 11
        seconds.append(time.perf_counter() - start)
    figure(f"scan of {hardware.MTTY_PORTS + 11} devices, median", sorted(seconds)[SCANS // 2] * 1000, "ms")
    figure(f"scan of {hardware.MTTY_PORTS + 11} devices, longest of {SCANS}", max(seconds) * 1000, "ms")
