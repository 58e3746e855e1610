"""Which device an id of another plugin is, pure: in mode ``observe``, and in ``serve`` after that."""

from __future__ import annotations

from typing import Any

import pytest
from migcompat.api.vfionode import Device as PublishedDevice
from migcompat.api.vfionode import Health, PodRef
from migcompat.engine.declaration import Declaration, Kind
from migcompat.kubelet.podresources import Allocations, Offers
from migcompat.resources.selection import Configuration, Others, Resource, Selector
from migcompat.sysfs.found import FoundDevice
from migcompat_deviceplugin.foreign import Seen, held_ids, serving
from migcompat_deviceplugin.inventory import Device, Inventory
from migcompat_deviceplugin.observation import Observation
from migcompat_deviceplugin.observing import NOT_OFFERED, observed
from migcompat_deviceplugin.state import State

POOL, OTHER = "example.com/pool", "example.com/other"
A, B = PodRef("tenant-a", "virt-launcher-a"), PodRef("tenant-a", "virt-launcher-b")
UUID = "0000000a-0000-4000-8000-00000000000b"
GPU, SOUND = "0000:03:00.0", "0000:03:00.1"
BLOCKED = Health.UNHEALTHY
DEFAULTS = Configuration()


def device(
    id_: str, group: str, *, kind: Kind = Kind.PHYSICAL, resource: str = POOL, pci_id: str = "10de1eb8"
) -> Device:
    found = FoundDevice(
        id=id_,
        kind=kind,
        path="p",
        declaration=Declaration(kind),
        pci_id=pci_id,
        type="t-1" if kind is Kind.MDEV else "",
        driver="vfio-pci",
        iommu_group=group,
    )
    return Device(found, resource)


def inventory(*devices: Device) -> Inventory:
    return {one.id: one for one in devices}


def config(name: str = POOL, others: Others = Others.ADVERTISE, **wanted: str) -> Configuration:
    selector = Selector({key: frozenset({value}) for key, value in wanted.items()})
    return Configuration(resources=(Resource(name, (selector,)),), others=others)


def see(
    devices: Inventory,
    offers: Offers,
    allocations: Allocations | None = None,
    configuration: Configuration | None = DEFAULTS,
    former: dict[str, str] | None = None,
) -> Seen:
    return observed(devices, allocations or {}, offers, configuration, former or {})


def places(seen: Seen) -> dict[str, str]:
    """Pools by device; those that nobody may have in brackets."""
    return {
        id_: f"({d.resource})" if d.health is BLOCKED else d.resource for id_, d in seen.inventory.items()
    }


def offers(*ids: str, resource: str = POOL) -> Offers:
    return {resource: frozenset(ids)}


CARD = inventory(device(GPU, "7"), device(SOUND, "7", pci_id="10de10f8"))
TWINS = inventory(device(GPU, "7"), device(SOUND, "7"))
MDEV = inventory(device(UUID, "12", kind=Kind.MDEV))


def test_of_a_card_with_several_functions_the_first_is_the_device() -> None:
    seen = see(CARD, offers("7"))
    assert places(seen) == {GPU: POOL, SOUND: f"({NOT_OFFERED})"}
    assert seen.doubts == ()


def test_a_card_whose_functions_are_in_two_resources_is_told_apart_by_the_configuration_alone() -> None:
    """KubeVirt that permits a GPU and its sound: it calls both by their group."""
    both = {**offers("7"), **offers("7", resource=OTHER)}
    seen = see(CARD, both)
    assert places(seen) == {GPU: f"({OTHER})", SOUND: f"({OTHER})"}
    assert all(
        f"7 of {OTHER} and {POOL} is the IOMMU group of {GPU}, {SOUND}" in told for told in seen.doubts
    )
    assert len(seen.doubts) == 2
    told = Configuration(
        resources=(
            Resource(POOL, (Selector({"devices": frozenset({"1eb8"})}),)),
            Resource(OTHER, (Selector({"devices": frozenset({"10f8"})}),)),
        )
    )
    assert places(see(CARD, both, {}, told)) == {GPU: POOL, SOUND: OTHER}


def test_somebody_elses_equal_number_does_not_matter() -> None:
    seen = see(CARD, {**offers("7"), **offers("7", "8", "9", "x", resource=OTHER)})
    assert places(seen) == {GPU: POOL, SOUND: f"({NOT_OFFERED})"}
    assert seen.doubts == ()


def test_a_resource_of_which_half_could_be_devices_is_told_and_not_taken() -> None:
    """One of its groups may have left VFIO since; or these are no groups at all."""
    seen = see(MDEV, offers("12", "20"))
    assert places(seen) == {UUID: f"({NOT_OFFERED})"}
    assert seen.doubts == (
        f"{POOL}: 12 may be IOMMU groups of devices here, 20 cannot be: name it in the configuration if these"
        " devices are meant",
    )
    assert see(MDEV, offers("12", *map(str, range(100, 200)))).doubts == ()
    assert see(MDEV, offers("12", "20"), {}, config(OTHER, Others.IGNORE, types="t-1")).doubts == ()


def test_the_first_function_is_that_of_the_lowest_number_in_whatever_order_they_were_found() -> None:
    seen = see(dict(reversed(list(CARD.items()))), offers("7"))
    assert places(seen) == {GPU: POOL, SOUND: f"({NOT_OFFERED})"}


def test_different_functions_of_a_group_that_are_not_of_one_card_are_not_told_apart() -> None:
    devices = inventory(device(GPU, "7"), device("0000:04:00.0", "7", pci_id="10de10f8"))
    assert places(see(devices, offers("7"))) == dict.fromkeys(devices, f"({POOL})")


def test_equal_functions_of_a_group_are_not_told_apart_and_all_are_held() -> None:
    seen = see(TWINS, offers("7"), {(POOL, "7"): A})
    assert places(seen) == {GPU: f"({POOL})", SOUND: f"({POOL})"}
    assert seen.holders == {(POOL, GPU): A, (POOL, SOUND): A}, "so that no verdict is about the wrong one"
    assert len(seen.doubts) == 2


def test_an_address_tells_a_function_of_a_group_apart_even_where_the_group_is_offered_too() -> None:
    seen = see(TWINS, offers("7", GPU))
    assert places(seen) == {GPU: POOL, SOUND: f"({POOL})"}
    assert len(seen.doubts) == 1
    assert seen.doubts[0].startswith(f"{SOUND}: 7 of {POOL} is the IOMMU group")


def test_the_configuration_tells_them_apart() -> None:
    seen = see(TWINS, offers("7"), {(POOL, "7"): A}, config(addresses=SOUND))
    assert places(seen) == {GPU: f"({NOT_OFFERED})", SOUND: POOL}
    assert seen.holders == {(POOL, SOUND): A}


def test_a_device_of_two_plugins_is_named_and_nobody_may_have_it() -> None:
    both = {**offers(UUID), **offers("12", resource=OTHER)}
    seen = see(MDEV, both)
    assert places(seen) == {UUID: f"({OTHER})"}
    assert seen.doubts == (f"{UUID}: {OTHER} and {POOL} both have it: it may be given out twice",)
    seen = see(MDEV, both, {(POOL, UUID): A})
    assert places(seen) == {UUID: f"({POOL})"}, "the one that somebody has asked for"
    assert seen.holders == {(POOL, UUID): A}


def test_an_id_that_is_no_device_is_told() -> None:
    seen = see(MDEV, offers("12", "13"), {(POOL, "13"): A}, former={UUID: POOL})
    assert places(seen) == {UUID: POOL}
    assert seen.doubts == (f"{POOL}: no device here is 13",)
    assert seen.holders == {}


@pytest.mark.parametrize(
    ("offered", "configuration", "former", "place"),
    [
        (offers("12"), Configuration(), {}, POOL),
        (offers("12", "0"), Configuration(), {}, f"({NOT_OFFERED})"),
        (offers("12", "0"), config(types="t-1"), {}, POOL),
        (offers("12", "0"), Configuration(), {UUID: POOL}, POOL),
        (offers("12", "card-1"), Configuration(), {}, f"({NOT_OFFERED})"),
        (offers(UUID, "card-1"), Configuration(), {}, POOL),
        (offers("12"), None, {}, f"({NOT_OFFERED})"),
        (offers("12"), None, {UUID: POOL}, POOL),
        ({}, Configuration(), {UUID: POOL}, f"({POOL})"),
    ],
)
def test_numbers_count_as_groups_where_all_are_or_where_it_is_known(
    offered: Offers, configuration: Configuration | None, former: dict[str, str], place: str
) -> None:
    assert places(see(MDEV, offered, {}, configuration, former)) == {UUID: place}


def test_a_configuration_that_ignores_others_looks_at_no_other_resource() -> None:
    devices = {**MDEV, **CARD}
    both = {**offers("7"), **offers(UUID, resource=OTHER)}
    seen = see(devices, both, {}, config(OTHER, Others.IGNORE, types="t-1"), {GPU: POOL})
    assert places(seen) == {UUID: OTHER}


def test_a_device_that_the_file_selects_is_published_although_nobody_offers_it() -> None:
    configuration = config(OTHER, Others.IGNORE, types="t-1")
    assert places(see({**MDEV, **CARD}, {}, {}, configuration)) == {UUID: f"({NOT_OFFERED})"}


def test_what_is_held_tells_whose_it_is_before_anything_is_offered() -> None:
    seen = observed(MDEV, {(POOL, "12"): A}, None, Configuration(), {})
    assert places(seen) == {UUID: POOL}
    seen = observed(MDEV, None, None, Configuration(), {})
    assert (places(seen), seen.holders) == ({UUID: f"({NOT_OFFERED})"}, None)


def test_who_had_a_device_is_remembered_until_it_goes() -> None:
    observation = Observation()
    configuration = Configuration()
    observation.see(MDEV, {}, offers("12"), configuration)
    assert places(observation.see(MDEV, {}, {}, configuration)) == {UUID: f"({POOL})"}
    observation.see({}, {}, {}, configuration)
    assert places(observation.see(MDEV, {}, {}, configuration)) == {UUID: f"({NOT_OFFERED})"}


def test_what_was_published_before_counts_where_nothing_was_seen_since() -> None:
    observation = Observation()
    observation.see({**MDEV, **CARD}, {}, offers("12"), Configuration())
    observation.recall([PublishedDevice(id_, OTHER, "p", "a", Kind.MDEV) for id_ in (UUID, GPU)])
    seen = observation.see({**MDEV, **CARD}, {}, {}, Configuration())
    assert places(seen) == {UUID: f"({POOL})", GPU: f"({OTHER})", SOUND: f"({NOT_OFFERED})"}


# -- mode serve ---------------------------------------------------------------------------------------------


def barred(seen: Seen) -> dict[str, str]:
    return {id_: one.barred for id_, one in seen.inventory.items() if one.barred}


@pytest.mark.parametrize(
    ("allocations", "held"),
    [
        ({(POOL, UUID): A}, {}),
        ({(POOL, "12"): A}, {UUID: "12 of example.com/pool"}),
        ({(OTHER, "12"): A}, {}),
        ({(OTHER, UUID): A}, {UUID: f"{UUID} of example.com/other"}),
        ({(OTHER, UUID.upper()): A}, {UUID: f"{UUID.upper()} of example.com/other"}),
        ({(POOL, "13"): A, (POOL, "card-1"): A, (POOL, "²"): A}, {}),
    ],
)
def test_what_pods_hold_under_another_plugins_id_is_not_to_be_had(
    allocations: Allocations, held: dict[str, Any]
) -> None:
    devices = inventory(device(UUID, "12"), device(GPU, ""))
    seen = serving(devices, allocations)
    assert {id_: text.split(" as ")[1].split(",")[0] for id_, text in barred(seen).items()} == held
    assert seen.holders is not None
    assert {key: pod for key, pod in seen.holders.items() if key not in allocations} == {
        (POOL, id_): A for id_ in held
    }
    unknown = {key for key in seen.holders if key[1] not in devices}
    assert len(unknown) == (0 if held else len(allocations.keys() - {(POOL, UUID)})), "nothing is told twice"


def test_it_is_to_be_had_again_when_they_are_gone() -> None:
    devices = inventory(device(UUID, "12"))
    seen = serving(devices, {(POOL, "12"): A})
    assert barred(seen)
    assert serving(seen.inventory, {(POOL, UUID): B}).inventory == devices
    assert serving(seen.inventory, None) == Seen(devices, None)


async def test_the_kubelet_is_told_at_once_of_what_is_to_be_had_no_more() -> None:
    state = State()
    state.set_inventory(inventory(device(UUID, "12")))
    for allocations in ({(OTHER, UUID): A}, {}):
        await state.to_serve.wait(0)
        assert not state.to_serve.is_set()
        state.set_allocations(allocations)
        assert state.to_serve.is_set()


def test_a_group_is_all_of_the_pools_devices_in_it() -> None:
    devices = inventory(device(GPU, "7"), device(SOUND, "7", resource=OTHER), device(UUID, "7"))
    assert set(barred(serving(devices, {(POOL, "7"): A}))) == {GPU, UUID}


def test_no_device_is_opened_of_which_any_number_may_be_the_group() -> None:
    devices = inventory(device(GPU, "7"), device(SOUND, "7"), device(UUID, "12"))
    assert held_ids({("anybody.example/x", "7"): A}, devices) == {GPU, SOUND}
    assert held_ids({(OTHER, UUID): A, (OTHER, "nothing"): B}, devices) == {UUID}
