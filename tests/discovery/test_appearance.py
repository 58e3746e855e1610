"""One device, or another in its place?"""

from __future__ import annotations

from pathlib import Path

import pytest
from migcompat.sysfs.appearance import Appearance, appearance

from tests.support.fabricate import add_function, make_sysfs

PATH = "pci0000:00/0000:00:05.0"


@pytest.fixture
def device(tmp_path: Path) -> Path:
    return add_function(make_sysfs(tmp_path), PATH, group=7)


def seen(device: Path) -> Appearance:
    return appearance(device.parents[2], f"devices/{PATH}")


def test_a_device_that_stays_keeps_its_appearance(device: Path) -> None:
    before = seen(device)
    (device / "numa_node").write_text("1\n")
    (device / "vfio-dev/vfio3").mkdir(parents=True)
    assert before == seen(device)
    assert None not in before


def test_a_device_in_its_place_has_another(device: Path) -> None:
    before = seen(device)
    device.rename(device.with_name("earlier"))
    device.mkdir()
    assert seen(device).device != before.device


def test_a_device_that_is_bound_anew_has_another(device: Path) -> None:
    before = seen(device)
    driver = device / "driver"
    target = driver.readlink()
    driver.rename(device / "earlier")
    unbound = seen(device)
    driver.symlink_to(target)
    assert unbound == Appearance(before.device, None)
    assert seen(device).binding not in (None, before.binding)


def test_what_is_not_there_has_none(device: Path) -> None:
    assert appearance(device, "nowhere") == Appearance(None, None)
