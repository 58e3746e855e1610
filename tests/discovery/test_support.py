"""The helpers that give devices a ``migration/`` tree, which other tests rely on."""

from __future__ import annotations

from pathlib import Path

import pytest
from migcompat.sysfs.scan import scan

from tests.support.fabricate import add_mdev
from tests.support.sysfs import add_migration, set_migration

UUID = "336f95d5-1d9d-5a8e-9e77-55f722edd4e6"
SELF = {"device_api": "vfio-pci", "software_version": "1.2.0", "type": "mtty-2"}
OLDER = {**SELF, "software_version": "1.1.0"}


@pytest.fixture
def device(sys: Path) -> Path:
    add_mdev(sys, "virtual/mtty/mtty", UUID, type_id="mtty-2", driver="mtty", group=1)
    return sys / "bus/mdev/devices" / UUID


def declared(sys: Path) -> tuple[dict[str, str], list[dict[str, str]]]:
    [found] = scan(sys).devices
    return found.declaration.self.attributes, [e.attributes for e in found.declaration.accepts.entries]


def test_what_is_added_is_read_back(sys: Path, device: Path) -> None:
    add_migration(device, SELF, [SELF, OLDER, {"type": "mtty-1"}])
    assert declared(sys) == (SELF, [SELF, OLDER, {"type": "mtty-1"}])


def test_what_is_set_replaces_all_and_leaves_nothing_behind(sys: Path, device: Path) -> None:
    add_migration(device, {**SELF, "aggregator": "2"}, [SELF, OLDER])
    set_migration(device, OLDER, [OLDER])
    assert declared(sys) == (OLDER, [OLDER])
    assert [path.name for path in device.iterdir() if "migration" in path.name] == ["migration"]


def test_setting_a_device_that_had_none(sys: Path, device: Path) -> None:
    set_migration(device, SELF)
    assert declared(sys) == (SELF, [])


def test_adding_twice_is_an_error_and_changes_nothing(sys: Path, device: Path) -> None:
    add_migration(device, SELF)
    with pytest.raises(FileExistsError, match="migration"):
        add_migration(device, OLDER)
    assert declared(sys) == (SELF, [])
    assert [path.name for path in device.iterdir() if "migration" in path.name] == ["migration"]
