"""What others see: VFIONode and the labels of the Node."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from migcompat.api import names
from migcompat.api.vfionode import PodRef, declaration, split
from migcompat.engine.declaration import Acceptance, Declaration, Entry, Kind, Presence, SelfSet
from migcompat.kube.kinds import VFIONODES
from migcompat_deviceplugin.publisher import Publisher
from migcompat_deviceplugin.status import CONTENT_LIMIT, bounded, label_patch, labels

from tests.deviceplugin.world import NODE, POOL, World, eventually, uuid
from tests.support import fleets
from tests.support.fabricate import link, write
from tests.support.sysfs import set_migration


async def test_vfionode_says_what_was_found(node: World) -> None:
    node.add(1, "1.1.0", attributes={"aggregator": "2"})
    async with node.running():
        await node.registered()
        await eventually(lambda: node.vfionode.status.conditions[0].reason == "Published")
        item = node.vfionode
    (device,) = item.status.devices
    assert item.status.boot_id == fleets.BOOT
    assert item.metadata.owner_references is not None
    assert item.metadata.owner_references[0].name == NODE
    assert (device.id, device.resource, device.driver) == (uuid(1), POOL, "nvidia")
    assert (device.iommu_group, device.type, device.health) == ("101", fleets.TYPE, "Healthy")
    assert device.dynamic == {"aggregator": "2"}
    declared = declaration(item.status, device)
    assert declared is not None
    assert declared.self.attributes["software_version"] == "1.1.0"


async def test_node_labels_are_exact_and_only_own_keys_are_touched(node: World) -> None:
    foreign = {"kubernetes.io/hostname": NODE, "migcompat.io/other": "kept", "offers.example.org/x": "true"}
    stale = {"type.migcompat.io/old": "true", "offers.migcompat.io/0123456789abcdef01234567": "true"}
    node.api.get("nodes", NODE)["metadata"]["labels"] = {**foreign, **stale}
    node.add(1, "1.0.0")
    node.add(2, "1.1.0")
    node.add(3, "1.1.0")
    async with node.running():
        await node.registered(count=3)
        profiles = node.vfionode.status.profiles
        assert len(profiles) == 2
        wanted = {
            **foreign,
            "migcompat.io/managed": "true",
            f"type.migcompat.io/{fleets.TYPE}": "true",
            **{f"offers.migcompat.io/{key}": "true" for key in profiles},
        }
        await eventually(lambda: node.labels == wanted)

        node.remove(1)
        await eventually(lambda: len(node.vfionode.status.profiles) == 1)
        await eventually(lambda: sum(k.startswith(names.NODE_OFFERS_PREFIX) for k in node.labels) == 1)


async def test_nothing_is_written_while_nothing_changes(node: World) -> None:
    node.add(1)
    async with node.running() as agent:
        await node.registered()
        await eventually(lambda: agent.state.problem() is None)
        before = (node.api.writes("vfionodes"), node.api.writes("nodes"))
        agent.state.to_publish.set()
        await eventually(lambda: not agent.state.to_publish.is_set())
        await agent.publisher.publish()
        assert (node.api.writes("vfionodes"), node.api.writes("nodes")) == before


async def test_driver_upgrade_reaches_vfionode_and_labels_without_restart(node: World) -> None:
    device = node.add(1, "1.0.0")
    async with node.running():
        await node.registered()
        (before,) = node.vfionode.status.profiles
        own = {"software_version": "1.1.0", "device_api": "vfio-pci", "type": fleets.TYPE}
        set_migration(device, own, [own])
        await eventually(lambda: before not in node.vfionode.status.profiles)
        (after,) = node.vfionode.status.profiles
        await eventually(lambda: names.NODE_OFFERS_PREFIX + after in node.labels)
        assert names.NODE_OFFERS_PREFIX + before not in node.labels


async def test_another_version_of_the_driver_is_shown_without_restart(node: World) -> None:
    """A module that was replaced: that the device left and came back may have been missed."""
    node.add(1)
    module = node.sysfs / "module/nvidia"

    def shown() -> list[dict[str, str]]:
        return list(node.vfionode.status.shown.values())

    async with node.running():
        await node.registered()
        write(module, {"version": "580.95.05"})
        await eventually(lambda: [each.get("driver_version") for each in shown()] == ["580.95.05"])
        write(module, {"version": "580.105.08"})
        await eventually(lambda: [each.get("driver_version") for each in shown()] == ["580.105.08"])
        assert node.kubelet.resources[POOL] == {uuid(1): True}


async def test_another_iommu_group_is_published_and_handed_out(node: World) -> None:
    device = node.add(1)
    async with node.running():
        await node.registered()
        assert node.vfionode.status.devices[0].iommu_group == "101"
        moved = node.sysfs / "kernel/iommu_groups/7"
        (device / "iommu_group").resolve().rename(moved)
        link(device / "new", moved)
        (device / "new").rename(device / "iommu_group")
        (node.dev / "vfio/101").rename(node.dev / "vfio/7")
        answer = await node.kubelet.admit("ns", "pod", "compute", {POOL: 1})
        assert "/dev/vfio/7" in [spec.container_path for spec in answer[POOL].devices]
        await eventually(lambda: node.vfionode.status.devices[0].iommu_group == "7")


async def test_holders_are_published_and_a_released_device_is_free_again(node: World) -> None:
    node.add(1)
    async with node.running():
        await node.registered()
        await node.kubelet.admit("ns", "pod", "compute", {POOL: 1})
        await eventually(lambda: node.vfionode.status.devices[0].allocated_to == PodRef("ns", "pod"))
        node.kubelet.release("ns", "pod")
        await eventually(lambda: node.vfionode.status.devices[0].allocated_to is None)


async def test_holders_outlive_a_restart_of_the_agent_while_pod_resources_is_down(node: World) -> None:
    node.add(1)
    async with node.running():
        await node.registered()
        await node.kubelet.admit("ns", "pod", "compute", {POOL: 1})
        await eventually(lambda: node.vfionode.status.devices[0].allocated_to is not None)
    await node.kubelet.stop_pod_resources()
    async with node.running():
        await eventually(lambda: node.vfionode.status.conditions[0].reason == "PodResourcesUnavailable")
        assert node.vfionode.status.devices[0].allocated_to == PodRef("ns", "pod")


async def test_holders_of_an_earlier_boot_are_forgotten_while_pod_resources_is_down(node: World) -> None:
    node.add(1)
    before = fleets.vfionode(
        NODE, {uuid(1): fleets.declared()}, allocated={uuid(1): ("ns", "pod")}, boot_id="boot-0"
    )
    node.api.put(VFIONODES, before)
    await node.kubelet.stop_pod_resources()
    async with node.running():
        await eventually(lambda: node.vfionode.status.boot_id == fleets.BOOT)
        assert node.vfionode.status.devices[0].allocated_to is None


async def test_a_resource_that_is_not_registered_is_not_ready(node: World) -> None:
    node.add(1)
    await node.kubelet.stop()
    await node.kubelet.start_pod_resources()
    async with node.running():
        await eventually(lambda: ("vfionodes", "", NODE) in node.api.objects)
        await eventually(lambda: node.vfionode.status.conditions)
        await eventually(lambda: node.vfionode.status.conditions[0].reason == "NotRegistered")
        assert POOL in node.vfionode.status.conditions[0].message


def test_only_devices_that_say_what_they_are_are_offered() -> None:
    silent = Declaration(Kind.MDEV, SelfSet(Presence.MALFORMED, {}, "garbled"))
    status = fleets.vfionode("n", {"x": silent}).status
    status.devices = [msgspec.structs.replace(d, type="nvidia-63") for d in status.devices]
    assert labels(status) == {names.NODE_MANAGED: "true", "type.migcompat.io/nvidia-63": "true"}


async def test_what_others_delete_or_change_is_mended(node: World) -> None:
    node.add(1)
    async with node.running() as agent:
        await node.registered()
        await eventually(lambda: agent.state.problem() is None)
        node.api.drop("vfionodes", NODE)
        node.add(2)
        await eventually(lambda: ("vfionodes", "", NODE) in node.api.objects)
        await eventually(lambda: len(node.vfionode.status.devices) == 2)


async def test_what_nothing_tells_of_is_mended_at_the_next_resync(node: World) -> None:
    node.add(1)
    async with node.running() as agent:
        await node.registered()
        await eventually(lambda: agent.state.problem() is None)
        node.api.drop("vfionodes", NODE)
        node.labels.pop(names.NODE_MANAGED)
        publisher = Publisher(node.client, NODE, agent.state, resync=0.05)
        task = asyncio.create_task(publisher.run())
        await eventually(lambda: ("vfionodes", "", NODE) in node.api.objects)
        await eventually(lambda: len(node.vfionode.status.devices) == 1)
        await eventually(lambda: names.NODE_MANAGED in node.labels)
        task.cancel()


async def test_missing_node_is_named(node: World) -> None:
    node.api.drop("nodes", NODE)
    async with node.running() as agent:
        await eventually(lambda: "check --node-name" in (agent.state.problem() or ""))


def test_too_much_content_harms_only_who_says_it() -> None:
    def wordy(number: int) -> Declaration:
        entries = tuple(Entry({f"attribute{i}": f"{number}" + "x" * 4000}) for i in range(60))
        return Declaration(Kind.MDEV, SelfSet(), Acceptance(Presence.PRESENT, entries))

    modest = fleets.declared()
    declared = {"modest": modest, **{f"wordy{n}": wordy(n) for n in range(4)}}

    kept = bounded(declared)

    assert kept["modest"] is modest
    cut = [id_ for id_, item in kept.items() if item.accepts.presence is Presence.MALFORMED]
    assert len(cut) == 2
    parts = [part for item in kept.values() for part in (split(item)[1], split(item)[3])]
    assert sum(len(msgspec.json.encode(part)) for part in parts) < CONTENT_LIMIT


def test_content_that_devices_share_counts_once_and_goes_with_the_last_of_them() -> None:
    entries = tuple(Entry({f"attribute{i}": "x" * 4000}) for i in range(60))
    wordy = Declaration(Kind.MDEV, SelfSet(), Acceptance(Presence.PRESENT, entries))
    declared = {"modest": fleets.declared(), "one": wordy, "two": wordy}
    assert bounded(declared) == declared
    kept = bounded(declared, 4096)
    assert [id_ for id_, item in kept.items() if item != declared[id_]] == ["one", "two"]


@pytest.mark.parametrize(
    ("current", "patch"),
    [
        ({}, {names.NODE_MANAGED: "true"}),
        ({names.NODE_MANAGED: "true"}, {}),
        ({names.NODE_MANAGED: "false"}, {names.NODE_MANAGED: "true"}),
        (
            {names.NODE_MANAGED: "true", "type.migcompat.io/x": "true", "type.example.org/x": "true"},
            {"type.migcompat.io/x": None},
        ),
    ],
)
def test_label_patch(current: dict[str, str], patch: dict[str, str | None]) -> None:
    assert label_patch(current, {names.NODE_MANAGED: "true"}) == patch
