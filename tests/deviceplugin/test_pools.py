"""In which pool a device is, pure: by the configuration, and by where it was."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from migcompat.api.vfionode import Device as PublishedDevice
from migcompat.engine.declaration import Declaration, Kind
from migcompat.resources.selection import Configuration, Others, Resource, Selector
from migcompat.sysfs.found import FoundDevice, ScanResult
from migcompat_deviceplugin.allocate import Refused, answer
from migcompat_deviceplugin.devnodes import DevDir
from migcompat_deviceplugin.inventory import Device, Inventory, recalled, take

NEW = "example.com/new"
DEFAULT = "vfio.migcompat.io/t-1"


def found(id_: str = "d", *, type_: str = "t-1", driver: str = "mtty", **more: Any) -> FoundDevice:
    return FoundDevice(
        id=id_,
        kind=Kind.MDEV,
        path="p",
        declaration=Declaration(Kind.MDEV),
        type=type_,
        driver=driver,
        **more,
    )


def selecting(name: str, **wanted: str) -> Resource:
    return Resource(name, (Selector({key: frozenset({value}) for key, value in wanted.items()}),))


RENAMED = Configuration(resources=(selecting(NEW, types="t-1"),))
IGNORING = Configuration(others=Others.IGNORE)


def free(_resource: str, _id: str) -> bool:
    return False


def held(_resource: str, _id: str) -> bool:
    return True


def pools(inventory: Inventory) -> dict[str, str]:
    return {id_: device.resource for id_, device in inventory.items()}


def test_a_free_device_goes_where_the_configuration_has_it() -> None:
    result = ScanResult((found(),))
    before = take(result, {}, Configuration(), free)
    assert pools(before) == {"d": DEFAULT}
    assert pools(take(result, before, RENAMED, free)) == {"d": NEW}
    assert take(result, before, IGNORING, free) == {}


@pytest.mark.parametrize("configuration", [RENAMED, IGNORING, None])
def test_a_held_device_stays_where_it_is(configuration: Configuration | None) -> None:
    result = ScanResult((found(),))
    before = take(result, {}, Configuration(), held)
    now = take(result, before, configuration, held)
    assert pools(now) == {"d": DEFAULT}
    assert now["d"].served


def test_it_is_asked_about_under_its_former_resource() -> None:
    asked = []

    def holding(resource: str, id_: str) -> bool:
        asked.append((resource, id_))
        return False

    result = ScanResult((found(),))
    take(result, take(result, {}, Configuration(), free), RENAMED, holding)
    assert asked == [(DEFAULT, "d")]


def test_another_type_is_another_device_whoever_held_its_id() -> None:
    before = take(ScanResult((found(),)), {}, Configuration(), free)
    now = take(ScanResult((found(type_="t-2"),)), before, Configuration(), held)
    assert pools(now) == {"d": "vfio.migcompat.io/t-2"}


@pytest.mark.parametrize("unclear", [{"type_": ""}, {"driver": ""}])
def test_a_device_that_cannot_be_read_for_the_moment_stays_where_it_is(unclear: dict[str, str]) -> None:
    by_driver = Configuration(resources=(selecting(NEW, drivers="mtty"),))
    before = take(ScanResult((found(),)), {}, by_driver, free)
    assert pools(before) == {"d": NEW}
    now = take(ScanResult((found(**unclear),)), before, by_driver, free)
    assert pools(now) == {"d": NEW}
    assert pools(take(ScanResult((found(),)), now, by_driver, free)) == {"d": NEW}


def test_a_device_that_was_never_readable_is_not_served_until_it_is() -> None:
    never = take(ScanResult((found(type_=""),)), {}, Configuration(), free)
    assert not never["d"].served
    now = take(ScanResult((found(),)), never, Configuration(), held)
    assert pools(now) == {"d": DEFAULT}
    assert now["d"].served


def test_without_a_configuration_nothing_new_is_served_and_nothing_old_goes() -> None:
    result = ScanResult((found("old"), found("new")))
    before: Inventory = {"old": Device(result.devices[0], NEW)}
    assert pools(take(result, before, None, free)) == {"old": NEW}
    assert take(result, {}, None, free) == {}


def test_every_resource_that_selects_a_device_is_known() -> None:
    both = Configuration(resources=(selecting(NEW, types="t-1"), selecting("example.com/b", drivers="mtty")))
    now = take(ScanResult((found(), found("e", type_="t-2"))), {}, both, free)
    assert now["d"].claims == (NEW, "example.com/b")
    assert now["d"].resource == NEW
    assert now["e"].claims == ()


def published(**more: Any) -> PublishedDevice:
    device = PublishedDevice(id="d", resource=NEW, profile="", acceptance="", kind=Kind.MDEV, type="t-1")
    return msgspec.structs.replace(device, **more)


def test_a_type_that_has_lost_its_name_stays_where_the_name_had_it() -> None:
    """NVIDIA's driver lists the types of VFs only while the card has room for one more."""
    named = Configuration(resources=(selecting(NEW, typeNames="A40-8Q"),), others=Others.IGNORE)
    before = take(ScanResult((found(type_name="A40-8Q"),)), {}, named, free)
    assert pools(before) == {"d": NEW}
    full = take(ScanResult((found(),)), before, named, free)
    assert pools(take(ScanResult((found(),)), full, named, free)) == {"d": NEW}
    assert take(ScanResult((found(type_="t-2"),)), before, named, free) == {}, "another device"
    assert take(ScanResult((found(type_name="A40-4Q"),)), before, named, free) == {}


def test_what_an_earlier_agent_published_is_recalled() -> None:
    result = ScanResult((found(), found("e")))
    assert pools(recalled(result, [published(), published(id="gone")])) == {"d": NEW}


@pytest.mark.parametrize(
    "more",
    [{"type": "t-2"}, {"type": ""}, {"kind": Kind.PHYSICAL, "type": "", "pci_id": ""}, {"id": "d" * 64}],
)
def test_what_it_did_not_serve_or_what_is_another_device_is_not_recalled(more: dict[str, Any]) -> None:
    result = ScanResult((found(more.get("id", "d")),))
    assert recalled(result, [published(**more)]) == {}


def test_a_container_gets_devices_of_one_kind() -> None:
    function = FoundDevice(
        "f", Kind.PHYSICAL, "p", Declaration(Kind.PHYSICAL), pci_id="10de2235", iommu_group="1"
    )
    now = {"d": Device(found(iommu_group="2"), NEW), "f": Device(function, NEW)}
    assert dict(answer(NEW, ["d"], now, DevDir()).envs) == {"MDEV_PCI_RESOURCE_EXAMPLE_COM_NEW": "d"}
    assert dict(answer(NEW, ["f"], now, DevDir()).envs) == {"PCI_RESOURCE_EXAMPLE_COM_NEW": "f"}
    with pytest.raises(Refused, match="not of one kind"):
        answer(NEW, ["d", "f"], now, DevDir())
