"""QuickAssist VFs: the services of the card, which the PF has."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from migcompat.sysfs.scan import scan

from tests.discovery.finding import only, shown
from tests.support.fabricate import add_function, write

PF = "0000:6b:00.0"
VF = "0000:6b:00.1"


@pytest.fixture
def pf(sys: Path) -> Path:
    """The directory ``qat`` of a PF, with one VF beside it."""
    device = add_function(sys, f"pci0000:6b/{PF}", driver="4xxx", group=5, ids=("0x8086", "0x4940"))
    add_vf(sys, VF)
    (device / "qat").mkdir()
    write(device / "qat", {"cfg_services": "sym;asym", "state": "up"})
    return device / "qat"


def add_vf(sys: Path, address: str, *, driver: str = "qat_vfio_pci", physfn: str = PF) -> None:
    group = 70 + int(address[-1])
    add_function(
        sys, f"pci0000:6b/{address}", driver=driver, group=group, ids=("0x8086", "0x4941"), physfn=physfn
    )


def test_a_vf_shows_the_services(sys: Path, pf: Path) -> None:
    assert (only(sys).parent, only(sys).is_vf) == (PF, True)
    assert shown(sys) == {
        "device_api": "vfio-pci",
        "type": "pci-8086-4941",
        "pci_id": "80864941",
        "pci_revision": "00",
        "pci_subsystem": "80860001",
        "pci_function": "vf",
        "driver": "qat_vfio_pci",
        "services": "asym+sym",
    }


@pytest.mark.parametrize(
    ("text", "services"),
    [
        ("asym;sym", "asym+sym"),
        ("dc", "dc"),
        ("asym;dc;sym", "asym+dc+sym"),
        ("", None),
        ("sym;", None),
        ("sym asym", None),
        ("{sym}", None),
        ("sym+asym", None),
        (";".join(["dc"] * 9), None),
    ],
)
def test_their_order_means_nothing_and_what_is_not_understood_is_left_out(
    sys: Path, pf: Path, text: str, services: str | None
) -> None:
    write(pf, {"cfg_services": text})
    assert shown(sys).get("services") == services


def test_what_is_not_there_cannot_be_read_or_blocks_is_left_out(
    sys: Path, pf: Path, broken: Callable[[Path], None]
) -> None:
    broken(pf / "cfg_services")
    assert "services" not in shown(sys)
    (pf / "cfg_services").unlink()
    assert "services" not in shown(sys)
    os.mkfifo(pf / "cfg_services")
    assert "services" not in shown(sys)


def test_all_vfs_of_a_card_show_the_same_and_other_functions_nothing(sys: Path, pf: Path) -> None:
    add_vf(sys, "0000:6b:00.2")
    add_vf(sys, "0000:6b:00.3", driver="vfio-pci")
    add_vf(sys, "0000:6b:00.4", physfn="")
    found = {device.id: device.declaration.shown.get("services") for device in scan(sys).devices}
    assert found == {
        VF: "asym+sym",
        "0000:6b:00.2": "asym+sym",
        "0000:6b:00.3": None,
        "0000:6b:00.4": None,
    }
