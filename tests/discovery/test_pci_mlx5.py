"""ConnectX VFs: firmware version and PSID of the card, which the PF's RDMA device has."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from migcompat.sysfs.scan import scan

from tests.discovery.finding import only, shown
from tests.support.fabricate import add_function, write

PF = "0000:3b:00.0"
VF = "0000:3b:00.2"
CARD = {"firmware_version": "28.41.1000", "psid": "MT_0000000834"}


@pytest.fixture
def rdma(sys: Path) -> Path:
    """The RDMA device of a PF, with one VF beside it."""
    pf = add_function(sys, f"pci0000:3a/{PF}", driver="mlx5_core", group=5, ids=("0x15b3", "0x1021"))
    add_function(sys, f"pci0000:3a/{VF}", driver="mlx5_vfio_pci", group=77, physfn=PF)
    device = pf / "infiniband" / "mlx5_0"
    device.mkdir(parents=True)
    write(device, {"fw_ver": "28.41.1000", "board_id": "MT_0000000834", "hca_type": "MT4129"})
    return device


def test_a_vf_shows_the_card(sys: Path, rdma: Path) -> None:
    assert (only(sys).parent, only(sys).is_vf) == (PF, True)
    assert shown(sys) == {
        "device_api": "vfio-pci",
        "type": "pci-15b3-101e",
        "pci_id": "15b3101e",
        "pci_revision": "00",
        "pci_subsystem": "15b30001",
        "pci_function": "vf",
        "driver": "mlx5_vfio_pci",
        **CARD,
    }


def test_all_vfs_of_a_card_show_the_same(sys: Path, rdma: Path) -> None:
    for number in range(3, 7):
        add_function(
            sys, f"pci0000:3a/0000:3b:00.{number}", driver="mlx5_vfio_pci", group=number + 100, physfn=PF
        )
    devices = scan(sys).devices
    assert [{key: device.declaration.shown.get(key) for key in CARD} for device in devices] == [CARD] * 5


def test_each_vf_shows_the_card_that_it_is_on(sys: Path, rdma: Path) -> None:
    pf, vf = "0000:5e:00.0", "0000:5e:00.2"
    device = add_function(sys, f"pci0000:5d/{pf}", driver="mlx5_core", group=6, ids=("0x15b3", "0x1021"))
    add_function(sys, f"pci0000:5d/{vf}", driver="mlx5_vfio_pci", group=78, physfn=pf)
    (device / "infiniband/mlx5_1").mkdir(parents=True)
    write(device / "infiniband/mlx5_1", {"fw_ver": "28.39.1002", "board_id": "MT_0000000838"})
    found = {one.id: {key: one.declaration.shown.get(key) for key in CARD} for one in scan(sys).devices}
    assert found == {VF: CARD, vf: {"firmware_version": "28.39.1002", "psid": "MT_0000000838"}}


@pytest.mark.parametrize(
    ("file", "text", "missing"),
    [
        ("fw_ver", "", "firmware_version"),
        ("fw_ver", "28.41", "firmware_version"),
        ("fw_ver", "unknown", "firmware_version"),
        ("board_id", "", "psid"),
        ("board_id", "two words", "psid"),
        ("board_id", "{psid}", "psid"),
        ("board_id", "x" * 17, "psid"),
    ],
)
def test_what_is_not_understood_is_left_out(
    sys: Path, rdma: Path, file: str, text: str, missing: str
) -> None:
    write(rdma, {file: text})
    assert {key: value for key, value in shown(sys).items() if key in CARD} == {
        key: value for key, value in CARD.items() if key != missing
    }


@pytest.mark.parametrize("file", ["fw_ver", "board_id"])
def test_what_cannot_be_read_or_blocks_is_left_out(
    sys: Path, rdma: Path, broken: Callable[[Path], None], file: str
) -> None:
    broken(rdma / file)
    assert len(CARD.keys() & shown(sys).keys()) == 1
    (rdma / file).unlink()
    os.mkfifo(rdma / file)
    assert len(CARD.keys() & shown(sys).keys()) == 1


def test_a_pf_without_an_rdma_device(sys: Path, rdma: Path) -> None:
    for file in rdma.iterdir():
        file.unlink()
    assert not CARD.keys() & shown(sys).keys()
    rdma.rmdir()
    assert not CARD.keys() & shown(sys).keys()
    rdma.parent.rmdir()
    rdma.parent.write_text("no directory")
    assert not CARD.keys() & shown(sys).keys()


def test_several_rdma_devices_have_to_agree(sys: Path, rdma: Path) -> None:
    other = rdma.with_name("mlx5_1")
    other.mkdir()
    write(other, {"fw_ver": "28.41.1000", "board_id": "MT_0000000838"})
    assert {key for key in CARD if key in shown(sys)} == {"firmware_version"}


def test_a_vf_whose_pf_is_not_there(sys: Path, rdma: Path) -> None:
    (sys / "bus/pci/devices" / PF).unlink()
    [vf] = (device for device in scan(sys).devices if device.id == VF)
    assert not CARD.keys() & vf.declaration.shown.keys()


def test_a_function_of_another_driver_and_a_pf_of_this_one_show_no_card(sys: Path, rdma: Path) -> None:
    add_function(sys, "pci0000:3a/0000:3b:00.3", driver="vfio-pci", group=78, physfn=PF)
    add_function(sys, "pci0000:3a/0000:3b:01.0", driver="mlx5_vfio_pci", group=79)
    by_id = {device.id: device.declaration.shown for device in scan(sys).devices}
    assert len(by_id) == 3
    assert [id for id, attributes in by_id.items() if CARD.keys() & attributes.keys()] == [VF]


def test_of_bonded_ports_the_one_with_the_rdma_device_tells_for_all(sys: Path, rdma: Path) -> None:
    """VF-LAG: the second PF of the card, and so its VFs, have no RDMA device of their own."""
    second, vf = "0000:3b:00.1", "0000:3b:08.2"
    add_function(sys, f"pci0000:3a/{second}", driver="mlx5_core", group=6, ids=("0x15b3", "0x1021"))
    add_function(sys, f"pci0000:3a/{vf}", driver="mlx5_vfio_pci", group=78, physfn=second)
    rdma.rename(rdma.with_name("mlx5_bond_0"))
    found = {device.id: device.declaration.shown for device in scan(sys).devices}
    assert [{key: found[id].get(key) for key in CARD} for id in (VF, vf)] == [CARD, CARD]
    part = {device.id: device.declaration.shown for device in scan(sys, frozenset({vf})).devices}
    assert part == {vf: found[vf]}, "a look at no more than this VF"


def test_a_pf_with_an_rdma_device_tells_for_itself(sys: Path, rdma: Path) -> None:
    other = add_function(
        sys, "pci0000:3a/0000:3b:00.1", driver="mlx5_core", group=6, ids=("0x15b3", "0x1021")
    )
    (other / "infiniband/mlx5_1").mkdir(parents=True)
    write(other / "infiniband/mlx5_1", {"fw_ver": "1.2.3", "board_id": "OTHER"})
    assert shown(sys).items() >= CARD.items()


@pytest.mark.parametrize("address", ["0000:3b:01.0", "0000:3c:00.0", "0001:3b:00.0"])
def test_another_slot_is_another_card(sys: Path, rdma: Path, address: str) -> None:
    other = add_function(sys, f"pci0000:3a/{address}", driver="mlx5_core", group=6, ids=("0x15b3", "0x1021"))
    rdma.parent.rename(other / "infiniband")
    assert not CARD.keys() & shown(sys).keys()


def test_a_vf_of_the_slot_tells_nothing_of_the_card(sys: Path, rdma: Path) -> None:
    other = add_function(sys, "pci0000:3a/0000:3b:00.3", driver="mlx5_core", group=6, physfn=PF)
    rdma.parent.rename(other / "infiniband")
    assert not CARD.keys() & shown(sys).keys()
