"""vfio-ccw mdevs: the type of their subchannel."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from migcompat.sysfs.scan import scan

from tests.discovery.finding import only, shown
from tests.support.fabricate import add_mdev, write

UUID = "336f95d5-1d9d-5a8e-9e77-55f722edd4e6"
OTHER = "3eeb13bc-4835-50d9-ae6a-0712004468f2"


@pytest.fixture
def subchannel(sys: Path) -> Path:
    """A subchannel with an mdev on it."""
    device = add_ccw(sys, "css0/0.0.0313")
    write(device.parent, {"type": "0"})
    return device.parent


def add_ccw(sys: Path, parent: str, uuid: str = UUID) -> Path:
    return add_mdev(
        sys, parent, uuid, type_id="vfio_ccw-io", driver="vfio_ccw_mdev", group=3, device_api="vfio-ccw"
    )


def test_a_subchannel(sys: Path, subchannel: Path) -> None:
    assert (only(sys).parent, only(sys).pci_id) == ("0.0.0313", "")
    assert shown(sys) == {
        "device_api": "vfio-ccw",
        "type": "vfio_ccw-io",
        "type_name": "The vfio_ccw-io",
        "driver": "vfio_ccw_mdev",
        "subchannel_type": "0",
    }


@pytest.mark.parametrize(
    ("text", "expected"), [("3", "3"), ("f", "15"), ("", None), ("io", None), ("10", None)]
)
def test_types(sys: Path, subchannel: Path, text: str, expected: str | None) -> None:
    write(subchannel, {"type": text})
    assert shown(sys).get("subchannel_type") == expected


def test_each_has_the_type_of_its_own(sys: Path, subchannel: Path) -> None:
    other = add_ccw(sys, "css0/0.0.0314", OTHER)
    write(other.parent, {"type": "3"})
    found = {device.id: device.declaration.shown["subchannel_type"] for device in scan(sys).devices}
    assert found == {UUID: "0", OTHER: "3"}


def test_a_parent_below_the_subchannel(sys: Path) -> None:
    device = add_ccw(sys, "css0/0.0.0313/parent")
    write(device.parent.parent, {"type": "1"})
    assert shown(sys)["subchannel_type"] == "1"


def test_a_parent_that_is_no_subchannel(sys: Path) -> None:
    device = add_ccw(sys, "virtual/other")
    write(device.parent, {"type": "1"})
    assert "subchannel_type" not in shown(sys)


def test_what_cannot_be_read_or_blocks_is_left_out(
    sys: Path, subchannel: Path, broken: Callable[[Path], None]
) -> None:
    broken(subchannel / "type")
    assert "subchannel_type" not in shown(sys)
    (subchannel / "type").unlink()
    os.mkfifo(subchannel / "type")
    assert "subchannel_type" not in shown(sys)
