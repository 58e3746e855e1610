"""NVIDIA's VFs with a vGPU type, and those without."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from migcompat.engine.declaration import Kind
from migcompat.resources.defaults import resource_name
from migcompat.sysfs.scan import scan

from tests.discovery.finding import only, problem_of, shown
from tests.support.fabricate import add_driver, add_function, write

PF = "0000:41:00.0"
VF = "0000:41:00.4"

TYPES = "ID    : vGPU Name\n1428  : NVIDIA H200X-141C\n1414 : NVIDIA H200X-1-18C\n"


@pytest.fixture
def vf(sys: Path) -> Path:
    """A VF as NVIDIA's driver leaves it: registered with VFIO, without a type."""
    add_driver(sys, "pci", "nvidia", version="580.95.05")
    add_function(sys, f"pci0000:40/{PF}", driver="nvidia", group=5, ids=("0x10de", "0x2335"), node=1)
    device = add_function(
        sys,
        f"pci0000:40/{VF}",
        driver="nvidia",
        group=77,
        ids=("0x10de", "0x2335"),
        node=1,
        vfio_dev="vfio9",
        physfn=PF,
    )
    (device / "nvidia").mkdir()
    write(device, {"revision": "0xa1", "subsystem_vendor": "0x10de", "subsystem_device": "0x18be"})
    write(device / "nvidia", {"current_vgpu_type": "0", "creatable_vgpu_types": TYPES})
    return device


@pytest.mark.parametrize("number", ["0", "1414"])
def test_it_gets_and_loses_its_type_without_an_event(sys: Path, vf: Path, number: str) -> None:
    write(vf / "nvidia", {"current_vgpu_type": number})
    assert scan(sys).silent


def test_a_vf_that_cannot_have_a_type_is_told_of(sys: Path, vf: Path) -> None:
    """Its vGPUs are mdevs."""
    (vf / "nvidia/current_vgpu_type").unlink()
    assert not scan(sys).silent


def test_a_vf_with_a_type_is_a_vgpu(sys: Path, vf: Path) -> None:
    write(vf / "nvidia", {"current_vgpu_type": "1414"})
    vgpu = only(sys)
    assert (vgpu.id, vgpu.kind, vgpu.problem) == (VF, Kind.PHYSICAL, "")
    assert (vgpu.type, vgpu.type_name) == ("nvidia-1414", "NVIDIA H200X-1-18C")
    assert (vgpu.is_vf, vgpu.parent, vgpu.numa_node) == (True, PF, 1)
    assert (vgpu.iommu_group, vgpu.vfio_dev, vgpu.device_api) == ("77", "vfio9", "vfio-pci")
    assert (vgpu.driver, vgpu.driver_version) == ("nvidia", "580.95.05")
    assert shown(sys) == {
        "device_api": "vfio-pci",
        "type": "nvidia-1414",
        "vgpu_type": "1414",
        "pci_id": "10de2335",
        "pci_revision": "a1",
        "pci_subsystem": "10de18be",
        "pci_function": "vf",
        "driver": "nvidia",
        "driver_version": "580.95.05",
        "software_version": "580.95.05",
    }


def test_its_pool_is_that_of_the_type_for_the_pci_id_says_nothing(sys: Path, vf: Path) -> None:
    write(vf / "nvidia", {"current_vgpu_type": "1414"})
    assert resource_name(only(sys)) == "vfio.migcompat.io/nvidia-1414"


def test_a_vf_without_a_type_is_no_device_though_vfio_serves_it(sys: Path, vf: Path) -> None:
    assert scan(sys).devices == ()
    (vf / "nvidia/current_vgpu_type").unlink()
    assert scan(sys).devices == ()
    assert scan(sys).problems == ()


def test_a_vf_of_a_driver_without_that_framework_is_no_device(sys: Path, vf: Path) -> None:
    for file in (vf / "nvidia").iterdir():
        file.unlink()
    (vf / "nvidia").rmdir()
    (vf / "vfio-dev/vfio9").rmdir()
    result = scan(sys)
    assert (result.devices, result.problems) == ((), ())


def test_a_pf_is_the_hosts(sys: Path, vf: Path) -> None:
    """KubeVirt skips it too (``IsPhysicalFunction``), whatever it says."""
    pf = sys / f"bus/pci/devices/{PF}"
    (pf / "nvidia").mkdir()
    write(pf / "nvidia", {"current_vgpu_type": "1414"})
    assert scan(sys).devices == ()


def test_a_vf_given_to_vfio_pci_is_a_plain_vf(sys: Path, vf: Path) -> None:
    (vf / "driver").unlink()
    add_driver(sys, "pci", "vfio-pci")
    (vf / "driver").symlink_to("../../../bus/pci/drivers/vfio-pci")
    plain = only(sys)
    assert (plain.type, plain.driver, resource_name(plain)) == (
        *("", "vfio-pci"),
        "vfio.migcompat.io/pci-10de-2335-vf",
    )


@pytest.mark.parametrize("listed", ["", TYPES.replace("1414", "1415"), "1414\n", "1414 : \n", "\x01"])
def test_a_type_that_is_listed_no_more_has_no_name(sys: Path, vf: Path, listed: str) -> None:
    write(vf / "nvidia", {"current_vgpu_type": "1414", "creatable_vgpu_types": listed})
    assert (only(sys).type, only(sys).type_name, only(sys).problem) == ("nvidia-1414", "", "")


def test_a_type_with_a_longer_number_is_another(sys: Path, vf: Path) -> None:
    listed = "14140 : NVIDIA X-1Q\n1414 : NVIDIA H200X-1-18C\n"
    write(vf / "nvidia", {"current_vgpu_type": "1414", "creatable_vgpu_types": listed})
    assert only(sys).type_name == "NVIDIA H200X-1-18C"


def test_the_name_is_not_shown_because_it_comes_and_goes(sys: Path, vf: Path) -> None:
    write(vf / "nvidia", {"current_vgpu_type": "1414"})
    before = shown(sys)
    (vf / "nvidia/creatable_vgpu_types").unlink()
    assert shown(sys) == before


@pytest.mark.parametrize("text", ["none", "-1", "1414 1415", "0x586", "9" * 10])
def test_a_type_that_is_no_number(sys: Path, vf: Path, text: str) -> None:
    write(vf / "nvidia", {"current_vgpu_type": text})
    assert "current_vgpu_type reads" in problem_of(sys, f"bus/pci/devices/{VF}")


def test_a_type_that_cannot_be_read(sys: Path, vf: Path, broken: Callable[[Path], None]) -> None:
    broken(vf / "nvidia/current_vgpu_type")
    message = problem_of(sys, f"bus/pci/devices/{VF}")
    assert message == "current_vgpu_type cannot be read (Input/output error)"


def test_a_type_that_blocks(sys: Path, vf: Path) -> None:
    (vf / "nvidia/current_vgpu_type").unlink()
    os.mkfifo(vf / "nvidia/current_vgpu_type")
    assert "not a plain file" in problem_of(sys, f"bus/pci/devices/{VF}")


def test_a_list_that_blocks_or_fails_costs_the_name_only(
    sys: Path, vf: Path, broken: Callable[[Path], None]
) -> None:
    write(vf / "nvidia", {"current_vgpu_type": "1414"})
    broken(vf / "nvidia/creatable_vgpu_types")
    assert (only(sys).type_name, only(sys).problem) == ("", "")
    (vf / "nvidia/creatable_vgpu_types").unlink()
    os.mkfifo(vf / "nvidia/creatable_vgpu_types")
    assert (only(sys).type_name, only(sys).problem) == ("", "")


def test_its_iommu_group_must_be_its_own(sys: Path, vf: Path) -> None:
    write(vf / "nvidia", {"current_vgpu_type": "1414"})
    add_function(sys, "pci0000:40/0000:42:00.0", driver="snd_hda_intel", group=77)
    assert "IOMMU group 77 also holds 0000:42:00.0 (driver snd_hda_intel)" in only(sys).problem


def test_vgpus_of_one_card_may_share_a_group(sys: Path, vf: Path) -> None:
    write(vf / "nvidia", {"current_vgpu_type": "1414"})
    other = add_function(
        sys, "pci0000:40/0000:41:00.5", driver="nvidia", group=77, vfio_dev="vfio10", physfn=PF
    )
    (other / "nvidia").mkdir()
    write(other / "nvidia", {"current_vgpu_type": "0"})
    assert only(sys).problem == ""


def test_a_vf_that_is_not_registered_yet_is_not_its_own_neighbour(sys: Path, vf: Path) -> None:
    (vf / "vfio-dev/vfio9").rmdir()
    write(vf / "nvidia", {"current_vgpu_type": "1414"})
    assert only(sys).problem == ""


def test_no_iommu_group_is_a_problem(sys: Path, vf: Path) -> None:
    write(vf / "nvidia", {"current_vgpu_type": "1414"})
    (vf / "iommu_group").unlink()
    assert "no IOMMU group" in only(sys).problem
