"""What a container gets, what is refused, and which devices are preferred."""

from __future__ import annotations

import grpc
import grpc.aio
import pytest
from migcompat.api.cluster import Pod
from migcompat.engine.declaration import Kind
from migcompat.kube.kinds import PODS, VMIS
from migcompat.kubelet.deviceplugin_v1beta1 import deviceplugin_pb2 as pb
from migcompat.kubelet.podresources import PodResources
from migcompat_deviceplugin import preferred
from migcompat_deviceplugin.allocate import env_name
from migcompat_deviceplugin.inquiry import Inquiry
from migcompat_deviceplugin.state import State

from tests.deviceplugin.world import CONTAINER, NODE, POOL, SOURCE, World, eventually, uuid
from tests.support import fleets
from tests.support.fabricate import add_device_nodes
from tests.support.kubelet import AdmissionError

VF_POOL = "vfio.migcompat.io/pci-15b3-101e"
VFS = ("0000:00:05.0", "0000:00:05.1")


@pytest.mark.parametrize(
    ("resource", "kind", "expected"),
    [
        ("vfio.migcompat.io/grid-t4-1q", Kind.MDEV, "MDEV_PCI_RESOURCE_VFIO_MIGCOMPAT_IO_GRID-T4-1Q"),
        (VF_POOL, Kind.PHYSICAL, "PCI_RESOURCE_VFIO_MIGCOMPAT_IO_PCI-15B3-101E"),
        ("a.b/c.d_e-F", Kind.PHYSICAL, "PCI_RESOURCE_A_B_C_D_E-F"),
    ],
)
def test_env_name_is_the_one_kubevirt_looks_for(resource: str, kind: Kind, expected: str) -> None:
    assert env_name(resource, kind) == expected


async def allocate(node: World, resource: str, *ids: str) -> pb.ContainerAllocateResponse:
    request = pb.AllocateRequest(container_requests=[pb.ContainerAllocateRequest(devices_ids=ids)])
    answer = await node.kubelet.plugins[resource].stub.Allocate(request)
    (only,) = answer.container_responses
    return only


async def test_mdev_gets_env_and_legacy_nodes(node: World) -> None:
    node.add(1)
    async with node.running():
        await node.registered()
        answer = await allocate(node, POOL, uuid(1))
    assert dict(answer.envs) == {"MDEV_PCI_RESOURCE_VFIO_MIGCOMPAT_IO_GRID-T4-1Q": uuid(1)}
    nodes = [(d.container_path, d.host_path, d.permissions) for d in answer.devices]
    assert nodes == [
        ("/dev/vfio/vfio", "/node/dev/vfio/vfio", "mrw"),
        ("/dev/vfio/101", "/node/dev/vfio/101", "mrw"),
    ]


async def test_functions_come_in_the_order_asked_with_cdevs_where_they_exist(node: World) -> None:
    for number, address in enumerate(VFS):
        node.add_function(f"pci0000:00/{address}", group=7 + number, vfio_dev=f"vfio{number}")
    add_device_nodes(node.dev, "iommu", "vfio/devices/vfio1")
    async with node.running():
        await node.registered(VF_POOL, count=2)
        answer = await allocate(node, VF_POOL, VFS[1], VFS[0])
    assert dict(answer.envs) == {"PCI_RESOURCE_VFIO_MIGCOMPAT_IO_PCI-15B3-101E": f"{VFS[1]},{VFS[0]}"}
    assert [d.container_path for d in answer.devices] == [
        "/dev/vfio/vfio",
        "/dev/vfio/8",
        "/dev/vfio/7",
        "/dev/vfio/devices/vfio1",
        "/dev/iommu",
    ]


async def test_gone_and_unhealthy_devices_are_refused_before_any_scan_saw_it(node: World) -> None:
    node.add(1)
    device = node.add(2)
    async with node.running():
        await node.registered(count=2)
        node.kubelet.resources[POOL] = {uuid(1): True}
        node.remove(1)
        with pytest.raises(AdmissionError, match="is gone"):
            await node.kubelet.admit("ns", "gone", CONTAINER, {POOL: 1})

    (device / "driver").unlink()
    async with node.running():
        await eventually(lambda: node.kubelet.resources.get(POOL) == {uuid(2): False})
        node.kubelet.resources[POOL] = {uuid(2): True}
        with pytest.raises(AdmissionError, match="is unhealthy: no driver is bound"):
            await node.kubelet.admit("ns", "sick", CONTAINER, {POOL: 1})


async def test_first_waiting_target_is_steered_to_what_accepts_its_source(node: World) -> None:
    for number, version in enumerate(["1.0.0", "1.0.0", "1.0.0", "1.2.0"], start=1):
        node.add(number, version)
    node.source_vm(version="1.1.0")
    pod = node.target_pod()
    async with node.running():
        await node.registered(count=4)
        env = await node.start_target(pod)
    assert env["MDEV_PCI_RESOURCE_VFIO_MIGCOMPAT_IO_GRID-T4-1Q"] == uuid(4)


async def test_nearest_version_is_preferred(node: World) -> None:
    node.add(1, "1.3.0")
    node.add(2, "1.1.0")
    node.source_vm(version="1.1.0")
    pod = node.target_pod()
    async with node.running():
        await node.registered(count=2)
        env = await node.start_target(pod)
    assert list(env.values()) == [uuid(2)]


async def test_two_targets_admitted_blindly_get_one_device_each(node: World) -> None:
    node.add(1, "1.0.0")
    node.add(2, "1.1.0")
    node.add(3, "1.2.0")
    first, second = two_targets(node, "1.2.0", "1.1.0")
    async with node.running():
        await node.registered(count=3)
        assert await admitted_together(node, first, second) == [uuid(3), uuid(2)]
        await node.kubelet.prestart("tenant-a", first.metadata.name, CONTAINER)
        await node.kubelet.prestart("tenant-a", second.metadata.name, CONTAINER)


async def test_target_admitted_blindly_after_another_is_not_taken_for_it(node: World) -> None:
    """The first pod is not steered for twice while it is not shown, though another device suits it, too."""
    for number, version in enumerate(["1.0.0", "1.2.0", "1.2.0", "1.1.0", "1.0.0"], start=1):
        node.add(number, version)
    first, second = two_targets(node, "1.2.0", "1.1.0")
    async with node.running():
        await node.registered(count=5)
        assert await admitted_together(node, first, second) == [uuid(2), uuid(4)]
        await node.kubelet.prestart("tenant-a", first.metadata.name, CONTAINER)
        await node.kubelet.prestart("tenant-a", second.metadata.name, CONTAINER)


def two_targets(node: World, first: str, second: str) -> tuple[Pod, Pod]:
    """The pending target pods of two VMs that run on the source node with devices at these versions."""
    node.source_vm("first")
    node.source_vm("second")
    # One VFIONode holds both devices.
    declared = {"source-of-first": fleets.declared(first), "source-of-second": fleets.declared(second)}
    holders = {f"source-of-{vm}": ("tenant-a", f"virt-launcher-{vm}-src") for vm in ("first", "second")}
    node.put_source(declared, holders)
    return node.target_pod("first"), node.target_pod("second")


async def admitted_together(node: World, *pods: Pod) -> list[str]:
    """Admit *pods* before PodResources shows any of them; the device of each."""
    node.kubelet.shown_after = 1.5
    given: list[str] = []
    for pod in pods:
        answers = await node.kubelet.admit("tenant-a", pod.metadata.name, CONTAINER, {POOL: 1})
        given += answers[POOL].envs.values()
    pod_resources = PodResources(node.kubelet.kubelet_dir / "pod-resources/kubelet.sock")
    assert await pod_resources.allocations() == {}
    return given


async def test_ordinary_pods_are_steered_away_from_rare_devices(node: World) -> None:
    node.add(1, "1.2.0")
    node.add(2, "1.0.0")
    node.add(3, "1.0.0")
    async with node.running():
        await node.registered(count=3)
        answers = await node.kubelet.admit("ns", "first-start", CONTAINER, {POOL: 1})
    assert list(answers[POOL].envs.values()) == [uuid(2)]


async def test_steering_survives_an_api_server_that_fails(node: World) -> None:
    node.add(1)
    node.add(2)
    async with node.running():
        await node.registered(count=2)
        node.api.broken.add("*")
        answers = await node.kubelet.admit("ns", "pod", CONTAINER, {POOL: 1})
    assert list(answers[POOL].envs.values()) == [uuid(1)]


async def test_preference_keeps_what_must_be_included_and_the_size(node: World) -> None:
    for number in (1, 2, 3):
        node.add(number)
    async with node.running():
        await node.registered(count=3)
        asked = pb.ContainerPreferredAllocationRequest(
            available_deviceIDs=[uuid(1), uuid(2), uuid(3)],
            must_include_deviceIDs=[uuid(3)],
            allocation_size=2,
        )
        answer = await node.kubelet.plugins[POOL].stub.GetPreferredAllocation(
            pb.PreferredAllocationRequest(container_requests=[asked])
        )
    (only,) = answer.container_responses
    assert list(only.deviceIDs) == [uuid(3), uuid(1)]


async def test_pods_that_are_no_targets_of_this_node_do_not_steer(node: World) -> None:
    node.add(1, "1.0.0")
    node.add(2, "1.0.0")
    node.add(3, "1.2.0")
    node.source_vm(version="1.2.0")
    elsewhere = fleets.pod("vm", "node-2", source="node-0", suffix="dst", phase="Pending")
    node.api.put(PODS, elsewhere)
    async with node.running():
        await node.registered(count=3)
        answers = await node.kubelet.admit("ns", "pod", CONTAINER, {POOL: 1})
    assert list(answers[POOL].envs.values()) == [uuid(1)]


def two_vms(node: World, first: str, second: str, *, of_first: int = 1) -> tuple[Pod, Pod]:
    """Target pods of two VMs, *first* with devices at 1.2.0, *second* with one at 1.1.0."""
    declared, holders, targets = {}, {}, []
    for name, version, count in ((first, "1.2.0", of_first), (second, "1.1.0", 1)):
        resources = [POOL] * count
        node.api.put(VMIS, fleets.vmi(name, SOURCE, resources=resources))
        node.api.put(PODS, fleets.pod(name, SOURCE, resources=resources))
        for number in range(count):
            declared[f"{name}-{number}"] = fleets.declared(version)
            holders[f"{name}-{number}"] = ("tenant-a", f"virt-launcher-{name}-src")
        target = fleets.pod(name, NODE, source=SOURCE, suffix="dst", resources=resources, phase="Pending")
        node.api.put(PODS, target)
        targets.append(target)
    node.put_source(declared, holders)
    return targets[0], targets[1]


async def given(node: World, pod: Pod) -> str:
    answers = await node.kubelet.admit("tenant-a", pod.metadata.name, CONTAINER, {POOL: 1})
    (ids,) = answers[POOL].envs.values()
    return ids


async def test_oldest_target_that_is_not_being_deleted_is_served_first(node: World) -> None:
    for number, version in enumerate(["1.0.0", "1.1.0", "1.2.0"], start=1):
        node.add(number, version)
    newer, oldest = two_vms(node, "a-newer", "b-oldest")
    newer.metadata.creation_timestamp = "2026-01-02T00:00:00Z"
    oldest.metadata.creation_timestamp = "2026-01-01T00:00:00Z"
    leaving = fleets.pod("a-newer", NODE, source=SOURCE, suffix="leaving", phase="Pending")
    leaving.metadata.creation_timestamp = "2025-01-01T00:00:00Z"
    leaving.metadata.deletion_timestamp = "2026-01-01T00:00:00Z"
    for pod in (newer, oldest, leaving):
        node.api.put(PODS, pod)
    async with node.running():
        await node.registered(count=3)
        assert await given(node, oldest) == uuid(2)
        assert await given(node, newer) == uuid(3)


async def test_a_target_that_wants_another_number_of_devices_is_not_the_one_asked_for(node: World) -> None:
    for number, version in enumerate(["1.1.0", "1.2.0", "1.2.0"], start=1):
        node.add(number, version)
    _, small = two_vms(node, "big", "small", of_first=2)
    async with node.running():
        await node.registered(count=3)
        assert await given(node, small) == uuid(1)


async def test_a_target_that_holds_its_device_is_served_no_more(
    node: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preferred, "SERVED_SECONDS", 0.0)
    for number, version in enumerate(["1.1.0", "1.2.0", "1.2.0"], start=1):
        node.add(number, version)
    first, second = two_vms(node, "first", "second")
    async with node.running() as agent:
        await node.registered(count=3)
        assert await given(node, first) == uuid(2)
        await eventually(lambda: agent.state.allocations)
        assert await given(node, second) == uuid(1)


async def test_a_target_that_was_just_served_is_not_served_again(node: World) -> None:
    for number, version in enumerate(["1.1.0", "1.2.0", "1.2.0"], start=1):
        node.add(number, version)
    first, second = two_vms(node, "first", "second")
    async with node.running():
        await node.registered(count=3)
        assert [await given(node, first), await given(node, second)] == [uuid(2), uuid(1)]


async def test_steering_survives_whatever_goes_wrong() -> None:
    class Broken(Inquiry):
        def __init__(self) -> None:
            pass

        async def pending_targets(self, resource: str) -> list[Pod]:
            raise RuntimeError("a bug")

    assert await preferred.Preferred(State(), Broken()).choose(POOL, ["b", "a"], [], 1) == ["a"]


async def test_a_device_of_another_pool_is_refused(node: World) -> None:
    node.add(1)
    node.add_function(f"pci0000:00/{VFS[0]}", group=7)
    async with node.running():
        await node.registered()
        with pytest.raises(grpc.aio.AioRpcError, match=f"is in the pool {VF_POOL} by now"):
            await allocate(node, POOL, VFS[0])


async def test_devices_of_one_group_name_its_node_once(node: World) -> None:
    for address in VFS:
        node.add_function(f"pci0000:00/{address}", group=7)
    async with node.running():
        await node.registered(VF_POOL, count=2)
        answer = await allocate(node, VF_POOL, *VFS)
    assert [d.container_path for d in answer.devices] == ["/dev/vfio/vfio", "/dev/vfio/7"]
