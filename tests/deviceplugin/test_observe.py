"""Mode ``observe``: devices that another plugin serves, under its names; the way from there to ``serve``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from migcompat.api.meta import Condition
from migcompat.api.vfionode import Device, Health, Mode, PodRef
from migcompat_deviceplugin import metrics, observation
from migcompat_deviceplugin.observing import NOT_OFFERED

from tests.deviceplugin.world import CONTAINER, NODE, POOL, World, eventually, uuid
from tests.support import fleets
from tests.support.kubelet import AdmissionError
from tests.support.otherplugin import OtherPlugin, other_plugin

VGPU = "nvidia.com/GRID_T4-1Q"
VF = "example.com/connectx"
POD = ("tenant-a", "virt-launcher-vm-src")
HOLDER = PodRef(*POD)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observation, "INTERVAL", 0.2)
    monkeypatch.setattr("migcompat_deviceplugin.allocations.HELD", 0.2)


@asynccontextmanager
async def plugin(node: World, resource: str, *ids: str) -> AsyncIterator[OtherPlugin]:
    async with other_plugin(node.kubelet.plugin_dir, resource, *ids) as running:
        await node.kubelet.wait_for(lambda: set(node.kubelet.resources.get(resource, ())) == set(ids))
        yield running


def devices(node: World) -> dict[str, Device]:
    if ("vfionodes", "", NODE) not in node.api.objects:
        return {}
    return {device.id: device for device in node.vfionode.status.devices}


def places(node: World) -> dict[str, tuple[str, Health]]:
    return {id_: (device.resource, device.health) for id_, device in devices(node).items()}


def condition(node: World, type_: str) -> Condition:
    if ("vfionodes", "", NODE) not in node.api.objects:
        return Condition(type_, "")
    return next((c for c in node.vfionode.status.conditions if c.type == type_), Condition(type_, ""))


async def reason(node: World, type_: str, wanted: str) -> str:
    """Wait for the reason; the message."""
    await eventually(lambda: condition(node, type_).reason == wanted)
    return condition(node, type_).message


async def holds(node: World, resource: str) -> str:
    """A pod that gets a device from the other plugin; the id that this is for the kubelet."""
    await node.kubelet.admit(*POD, CONTAINER, {resource: 1})
    (id_,) = node.kubelet.allocated(resource)
    return id_


def configure(node: World, name: str, selector: str, others: str = "advertise") -> None:
    node.config = node.directory / "resources.yaml"
    node.config.write_text(f"resources: [{{name: {name}, selectors: [{{{selector}}}]}}]\nothers: {others}\n")


HEALTHY, UNHEALTHY = Health.HEALTHY, Health.UNHEALTHY


async def test_kubevirts_groups_are_published_as_devices_under_its_name(node: World) -> None:
    node.add(1)
    node.add(2, "1.1.0")
    async with plugin(node, VGPU, "101", "102"), node.running(mode=Mode.OBSERVE):
        await eventually(lambda: places(node) == {uuid(n): (VGPU, HEALTHY) for n in (1, 2)})
        assert await holds(node, VGPU) == "101"
        await eventually(lambda: devices(node)[uuid(1)].allocated_to == HOLDER)
        assert devices(node)[uuid(2)].allocated_to is None
        status = node.vfionode.status
        assert status.mode is Mode.OBSERVE
        assert len(status.profiles) == 2
        await eventually(lambda: f"type.migcompat.io/{fleets.TYPE}" in node.labels)
        held = {"resource": VGPU, "kind": "mdev"}
        assert metrics.REGISTRY.get_sample_value("migcompat_agent_allocated_devices", held) == 1
        node.kubelet.release(*POD)
        await eventually(lambda: devices(node)[uuid(1)].allocated_to is None)


async def test_nothing_is_registered_steered_guarded_or_opened(node: World) -> None:
    node.add(1)
    node.plug(1)
    async with plugin(node, VGPU, "101"), node.running(mode=Mode.OBSERVE) as agent:
        await reason(node, "Ready", "Published")
        guarded = condition(node, "Guarded")
        assert (guarded.status, guarded.reason) == ("False", "ObserveMode")
        assert "nothing here keeps a migration target from starting" in guarded.message
        assert agent.state.problem() is None, "ready all the same"
        await asyncio.sleep(0.5)
        assert [request.resource_name for request in node.kubelet.registrations] == [VGPU]
        assert not list(node.kubelet.plugin_dir.glob("migcompat-*"))
        assert node.vfio.opened == [], "the other plugin may hand it out at this moment"
        assert devices(node)[uuid(1)].migration is None


@pytest.mark.parametrize("id_", [uuid(1), uuid(1).upper()])
async def test_nvidias_uuids_are_published_under_its_name(node: World, id_: str) -> None:
    node.add(1)
    async with plugin(node, VGPU, id_), node.running(mode=Mode.OBSERVE):
        await eventually(lambda: places(node) == {uuid(1): (VGPU, HEALTHY)})
        await holds(node, VGPU)
        await eventually(lambda: devices(node)[uuid(1)].allocated_to == HOLDER)


async def test_pci_addresses_and_groups_of_functions_are_devices_too(node: World) -> None:
    for number in (1, 2):
        node.add_function(f"pci0000:00/0000:03:00.{number}", group=30 + number)
    async with (
        plugin(node, VF, "0000:03:00.1"),
        plugin(node, "example.com/by-group", "32"),
        node.running(mode=Mode.OBSERVE),
    ):
        wanted = {"0000:03:00.1": (VF, HEALTHY), "0000:03:00.2": ("example.com/by-group", HEALTHY)}
        await eventually(lambda: places(node) == wanted)
        assert condition(node, "IdsUnderstood").reason == "AllUnderstood"


async def test_what_no_plugin_offers_is_said_and_cannot_be_had(node: World) -> None:
    node.add(1)
    node.add(2)
    async with plugin(node, VGPU, "101") as other, node.running(mode=Mode.OBSERVE):
        await eventually(
            lambda: places(node) == {uuid(1): (VGPU, HEALTHY), uuid(2): (NOT_OFFERED, UNHEALTHY)}
        )
        assert devices(node)[uuid(2)].problem == "no plugin offers it"
        assert "1 device(s) are offered by no plugin" in condition(node, "IdsUnderstood").message
        other.say({"101": True, "102": True})
        await eventually(lambda: places(node)[uuid(2)] == (VGPU, HEALTHY))
        other.say({"101": True, "102": False})
        await eventually(lambda: places(node)[uuid(2)] == (VGPU, UNHEALTHY))
        assert devices(node)[uuid(2)].problem == f"no plugin offers it any more as {VGPU}"


async def test_without_a_plugin_the_condition_asks_for_it(node: World) -> None:
    node.add(1)
    async with node.running(mode=Mode.OBSERVE):
        assert "does one run here" in await reason(node, "IdsUnderstood", "NothingOffered")
        assert places(node) == {uuid(1): (NOT_OFFERED, UNHEALTHY)}


async def test_a_plugin_or_an_agent_that_is_restarted_makes_devices_nobodys_not(node: World) -> None:
    node.add(1)
    node.add(2)
    async with node.running(mode=Mode.OBSERVE):
        async with plugin(node, VGPU, "101", "102"):
            await eventually(lambda: places(node) == {uuid(n): (VGPU, HEALTHY) for n in (1, 2)})
            await holds(node, VGPU)
            await eventually(lambda: devices(node)[uuid(1)].allocated_to == HOLDER)
        await eventually(lambda: places(node) == {uuid(n): (VGPU, UNHEALTHY) for n in (1, 2)})
        assert devices(node)[uuid(1)].allocated_to == HOLDER
        assert "does not offer it now" in devices(node)[uuid(1)].problem
    writes = len(node.api.requests)
    async with node.running(mode=Mode.OBSERVE) as agent:
        await eventually(lambda: agent.state.published)
        assert places(node) == {uuid(n): (VGPU, UNHEALTHY) for n in (1, 2)}
        assert not [r for r in node.api.requests[writes:] if r[0] == "PUT"], "nothing has changed"
        async with plugin(node, VGPU, "101", "102"):
            await eventually(lambda: places(node) == {uuid(n): (VGPU, HEALTHY) for n in (1, 2)})


async def test_a_group_of_several_devices_is_told_apart_by_the_configuration_or_not_at_all(
    node: World,
) -> None:
    for number in (1, 2):
        node.add_function(f"pci0000:00/0000:03:00.{number}", group=31)
    one, two = "0000:03:00.1", "0000:03:00.2"
    async with plugin(node, VF, "31"):
        async with node.running(mode=Mode.OBSERVE):
            message = await reason(node, "IdsUnderstood", "Ambiguous")
            assert f"{one}: 31 of {VF} is the IOMMU group of {one}, {two}" in message
            assert places(node) == {one: (VF, UNHEALTHY), two: (VF, UNHEALTHY)}
        configure(node, VF, f'addresses: ["{two}"]')
        async with node.running(mode=Mode.OBSERVE):
            await eventually(lambda: places(node) == {one: (NOT_OFFERED, UNHEALTHY), two: (VF, HEALTHY)})
            await reason(node, "IdsUnderstood", "AllUnderstood")


async def test_numbers_of_somebody_else_are_not_taken_for_groups(node: World) -> None:
    node.add(1)
    async with plugin(node, "example.com/slots", "0", "1", "101"), node.running(mode=Mode.OBSERVE):
        await reason(node, "IdsUnderstood", "NothingOffered")
        await eventually(lambda: places(node) == {uuid(1): (NOT_OFFERED, UNHEALTHY)})


async def test_the_configuration_is_the_rehearsal_of_mode_serve(node: World) -> None:
    node.add(1)
    node.add(2, type_="GRID-T4-2Q")
    configure(node, VGPU, f"types: [{fleets.TYPE}]")
    async with plugin(node, VGPU, uuid(1), uuid(2)), node.running(mode=Mode.OBSERVE):
        message = await reason(node, "ConfigurationValid", "Differs")
        assert f"{uuid(2)}: in {VGPU}, by the file in vfio.migcompat.io/grid-t4-2q" in message
        configure(node, VGPU, f"types: [{fleets.TYPE}, GRID-T4-2Q]")
        await reason(node, "ConfigurationValid", "Valid")


async def test_a_kubelet_that_does_not_tell_what_is_offered_is_named(
    node: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.add(1)
    node.kubelet.tells_offers = False
    async with plugin(node, VGPU, "101"), node.running(mode=Mode.OBSERVE):
        message = await reason(node, "Ready", "KubeletTooOld")
        assert message.endswith("meanwhile devices are published as they were known before")
        assert places(node) == {uuid(1): (NOT_OFFERED, UNHEALTHY)}
        assert devices(node)[uuid(1)].problem == "it is not known yet whether a plugin offers it"
        await holds(node, VGPU)
        await eventually(lambda: devices(node)[uuid(1)].allocated_to == HOLDER)


async def test_from_observe_to_serve_with_a_vm_running(node: World) -> None:
    """docs/observe.md, the node's part of it: the VM's device is neither lost nor given out once more."""
    node.add(1)
    node.add(2)
    node.plug(1)
    node.plug(2)
    configure(node, VGPU, f"types: [{fleets.TYPE}]")
    async with plugin(node, VGPU, "101", "102"), node.running(mode=Mode.OBSERVE):
        await holds(node, VGPU)
        await eventually(lambda: uuid(1) in devices(node) and devices(node)[uuid(1)].allocated_to == HOLDER)
    async with node.running() as agent:
        await node.kubelet.wait_for(
            lambda: node.kubelet.resources.get(VGPU) == {uuid(1): False, uuid(2): True}
        )
        assert devices(node)[uuid(1)].allocated_to == HOLDER
        problem = f"pod {'/'.join(POD)} holds it as 101 of {VGPU}, given out by another plugin"
        assert devices(node)[uuid(1)].problem == problem
        assert [c.type for c in node.vfionode.status.conditions if c.type == "IdsUnderstood"] == []
        await reason(node, "Guarded", "ServeMode")
        await reason(node, "DevicesUsable", "AllUsable")
        assert node.vfionode.status.mode is Mode.SERVE
        assert "vfio/101" not in node.vfio.opened
        assert "vfio/devices/vfio1" not in node.vfio.opened, "the VM has it open"
        assert agent.poller.interval() <= 2.0, "that the VM is over is to be seen soon"

        await node.kubelet.admit("tenant-a", "second", CONTAINER, {VGPU: 1})
        assert node.kubelet.allocated(VGPU) == {"101", uuid(2)}
        with pytest.raises(AdmissionError, match="devices unavailable"):
            await node.kubelet.admit("tenant-a", "third", CONTAINER, {VGPU: 1})

        node.kubelet.release(*POD)
        await node.kubelet.wait_for(
            lambda: node.kubelet.resources.get(VGPU) == {uuid(1): True, uuid(2): True}
        )
        await eventually(lambda: devices(node)[uuid(1)].allocated_to is None)
        await node.kubelet.admit("tenant-a", "third", CONTAINER, {VGPU: 1})
        assert node.kubelet.allocated(VGPU) == {uuid(1), uuid(2)}


async def test_another_plugins_pool_is_not_kept_in_mode_serve(node: World) -> None:
    """Where no file says so, a held device too is in the pool that has our name."""
    node.add(1)
    async with plugin(node, VGPU, uuid(1)), node.running(mode=Mode.OBSERVE):
        await holds(node, VGPU)
        await eventually(lambda: uuid(1) in devices(node) and devices(node)[uuid(1)].allocated_to == HOLDER)
    async with node.running():
        await node.kubelet.wait_for(lambda: node.kubelet.resources.get(POOL) == {uuid(1): False})
        assert devices(node)[uuid(1)].resource == POOL


async def test_a_kubelet_that_has_not_heard_yet_is_refused_the_held_device(node: World) -> None:
    """Between a pod's start and the kubelet's taking in of the new list."""
    node.add(1)
    configure(node, VGPU, f"types: [{fleets.TYPE}]")
    async with plugin(node, VGPU, "101"):
        await holds(node, VGPU)
    async with node.running():
        await node.kubelet.wait_for(lambda: node.kubelet.resources.get(VGPU) == {uuid(1): False})
        node.kubelet.resources[VGPU] = {uuid(1): True}
        with pytest.raises(
            AdmissionError, match="is not to be had: pod tenant-a/virt-launcher-vm-src holds it"
        ):
            await node.kubelet.admit("tenant-a", "second", CONTAINER, {VGPU: 1})


async def test_a_device_that_a_pod_has_from_another_plugins_pool_is_not_given_out(node: World) -> None:
    """Two plugins with one device: the SR-IOV network plugin's pool holds the function that is ours, too."""
    node.add_function("pci0000:00/0000:03:00.1", group=31)
    ours = "vfio.migcompat.io/pci-15b3-101e"
    async with plugin(node, VF, "0000:03:00.1"), node.running():
        await node.registered(ours)
        await holds(node, VF)
        await node.kubelet.wait_for(lambda: node.kubelet.resources[ours] == {"0000:03:00.1": False})
        await eventually(lambda: devices(node)["0000:03:00.1"].allocated_to == HOLDER)
        node.kubelet.release(*POD)
        await node.kubelet.wait_for(lambda: node.kubelet.resources[ours] == {"0000:03:00.1": True})
