"""The guard over real sockets: whom it lets start, whom not, and what it writes before."""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio
import pytest
from migcompat.api import names
from migcompat.api.cluster import ContainerState, ContainerStatus, Pod, PodStatus, Waiting
from migcompat.api.compatibilitypolicy import CompatibilityPolicy
from migcompat.api.meta import ObjectMeta
from migcompat.fleet.migrant import Migrant, MigrantDevice, Mode
from migcompat.fleet.stamp import encode
from migcompat.kube.kinds import PODS, VMIS
from migcompat.kubelet.deviceplugin_v1beta1 import deviceplugin_pb2 as pb
from migcompat_deviceplugin import guard, inquiry

from tests.deviceplugin.world import CONTAINER, NODE, POOL, SOURCE, World, eventually, uuid
from tests.support import fleets
from tests.support.kubelet import PreStartError
from tests.support.sysfs import set_migration

AGGREGATED = {"aggregator": "4"}


async def refused(node: World, pod: Pod) -> str:
    """Admit and start *pod*; the text with which the guard refuses it."""
    with pytest.raises(PreStartError) as caught:
        await node.start_target(pod)
    return str(caught.value)


def stamp(version: str, *, vm: str = "vm", migration: str = "migration-vm", mode: Mode = Mode.ENFORCE) -> str:
    migrant = Migrant(
        namespace="tenant-a",
        name=vm,
        uid=f"uid-{vm}",
        node=SOURCE,
        asks={POOL: 1},
        devices=(MigrantDevice(POOL, fleets.declared(version)),),
        mode=mode,
    )
    return encode(migrant, migration)


async def test_accepting_device_may_start_without_a_stamp(node: World) -> None:
    node.add(1, "1.1.0")
    node.source_vm(version="1.0.0")
    pod = node.target_pod()
    async with node.running():
        await node.registered()
        env = await node.start_target(pod)
        assert list(env.values()) == [uuid(1)]
        await eventually(lambda: node.vfionode.status.devices[0].allocated_to is not None)
        assert node.vfionode.status.devices[0].allocated_to.name == pod.metadata.name  # type: ignore[union-attr]


async def test_refusing_device_does_not_start_and_the_text_says_why(node: World) -> None:
    node.add(1, "1.0.0")
    node.source_vm(version="1.1.0")
    pod = node.target_pod()
    async with node.running():
        await node.registered()
        text = await refused(node, pod)
        assert "migcompat guard: VersionMinorOlder: " in text
        assert "1.1.0" in text
        with pytest.raises(PreStartError, match="VersionMinorOlder"):
            await node.kubelet.prestart("tenant-a", pod.metadata.name, CONTAINER)


async def test_device_is_judged_as_it_is_now(node: World) -> None:
    device = node.add(1, "1.1.0")
    node.source_vm(version="1.1.0")
    pod = node.target_pod()
    async with node.running():
        await node.registered()
        await node.kubelet.admit("tenant-a", pod.metadata.name, CONTAINER, {POOL: 1})
        own = {"software_version": "1.0.0", "device_api": "vfio-pci", "type": fleets.TYPE}
        set_migration(device, own, [own])
        with pytest.raises(PreStartError, match="VersionMinorOlder"):
            await node.kubelet.prestart("tenant-a", pod.metadata.name, CONTAINER)


async def test_first_start_is_never_judged(node: World) -> None:
    node.add(1)
    pod = fleets.pod("new", "node-1", phase="Pending")
    node.api.put(PODS, pod)
    node.api.broken.update({"virtualmachineinstances", "compatibilitypolicies"})
    async with node.running():
        await node.registered()
        await node.start_target(pod)


async def test_obligations_are_written_and_read_back(node: World) -> None:
    device = node.add(1)
    (device / "aggregator").write_text("16\n")
    node.source_vm(extra=AGGREGATED)
    async with node.running():
        await node.registered()
        await node.start_target(node.target_pod())
    assert (device / "aggregator").read_text().strip() == "4"


@pytest.mark.parametrize("attribute", ["absent", "link", "directory"])
async def test_unfulfilled_obligation_keeps_the_container_from_starting(node: World, attribute: str) -> None:
    device = node.add(1)
    outside = node.directory / "outside"
    outside.write_text("16")
    if attribute == "link":
        (device / "aggregator").symlink_to(outside)
    elif attribute == "directory":
        (device / "aggregator").mkdir()
    node.source_vm(extra=AGGREGATED)
    async with node.running():
        await node.registered()
        text = await refused(node, node.target_pod())
    assert "migcompat guard: ObligationFailed: aggregator " in text
    assert outside.read_text() == "16"


async def test_source_names_no_obligation(node: World) -> None:
    """An attribute of the source that neither policy nor target names as dynamic is never written."""
    device = node.add(1)
    (device / "driver_override").write_text("(null)")
    node.source_vm(extra={"driver_override": "evil"})
    async with node.running():
        await node.registered()
        assert "AttributeMissingOnTarget" in await refused(node, node.target_pod())
    assert (device / "driver_override").read_text() == "(null)"


async def test_policy_cannot_make_a_dangerous_attribute_an_obligation(node: World) -> None:
    device = node.add(1)
    (device / "driver_override").write_text("(null)")
    put_policy(node, b'{"dynamicAttributes": ["driver_override"]}')
    node.source_vm(extra={"driver_override": "evil"})
    async with node.running():
        await node.registered()
        assert "AttributeMissingOnTarget" in await refused(node, node.target_pod())
    assert (device / "driver_override").read_text() == "(null)"


async def test_policies_govern_the_guard_as_they_govern_the_extender(node: World) -> None:
    node.add(1, "1.0.0")
    node.source_vm(version="1.0.1")
    put_policy(node, b'{"versionScheme": "exact"}')
    async with node.running():
        await node.registered()
        assert "VersionMajorMismatch" in await refused(node, node.target_pod())


def put_policy(node: World, spec: bytes) -> None:
    import json

    name = ObjectMeta(name="policy")
    obj = {"metadata": {"name": name.name}, "kind": CompatibilityPolicy.__name__, "spec": json.loads(spec)}
    node.api.put_raw("compatibilitypolicies", obj)


# -- stamps


async def test_stamp_counts_when_the_source_cannot_be_asked(node: World) -> None:
    node.add(1, "1.0.0")
    pod = node.target_pod(annotations={names.SOURCE: stamp("1.0.0")})
    node.api.broken.add("virtualmachineinstances")
    async with node.running():
        await node.registered()
        await node.start_target(pod)


async def test_stamp_counts_when_the_api_server_hangs(node: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inquiry, "SOURCE_DEADLINE", 0.2)
    node.add(1, "1.0.0")
    pod = node.target_pod(annotations={names.SOURCE: stamp("1.0.0")})
    node.api.hanging.add("virtualmachineinstances")
    async with node.running():
        await node.registered()
        await node.start_target(pod)


async def test_guard_answers_before_the_kubelet_gives_up(
    node: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert guard.DEADLINE < 30
    monkeypatch.setattr(guard, "DEADLINE", 0.5)
    node.add(1, "1.0.0")
    pod = node.target_pod()
    node.api.hanging.add("compatibilitypolicies")
    async with node.running():
        await node.registered()
        assert "migcompat guard: DeadlineExceeded: " in await refused(node, pod)


async def test_stamp_counts_where_the_sources_agent_publishes_nothing(node: World) -> None:
    node.add(1, "1.0.0")
    node.api.put(VMIS, fleets.vmi("vm", SOURCE))
    pod = node.target_pod(annotations={names.SOURCE: stamp("1.0.0")})
    async with node.running():
        await node.registered()
        await node.start_target(pod)


async def test_stamp_does_not_count_for_a_vm_that_does_not_exist(node: World) -> None:
    node.add(1, "1.0.0")
    pod = node.target_pod(annotations={names.SOURCE: stamp("1.0.0")})
    async with node.running():
        await node.registered()
        assert "migcompat guard: Unknown: " in await refused(node, pod)


async def test_stamp_does_not_settle_a_contradiction(node: World) -> None:
    """Pod and VMI name different source nodes: somebody is wrong, and the stamp may be the liar."""
    node.add(1, "1.0.0")
    node.source_vm(version="1.1.0")
    node.api.put(VMIS, fleets.vmi("vm", "somewhere-else"))
    pod = node.target_pod(annotations={names.SOURCE: stamp("1.0.0")})
    async with node.running():
        await node.registered()
        assert "different source nodes" in await refused(node, pod)


async def test_stamp_does_not_count_while_the_source_publishes_other_devices(node: World) -> None:
    node.add(1, "1.0.0")
    node.source_vm(version="1.1.0")
    node.put_source({"source-of-vm": fleets.declared("1.1.0")}, {})
    pod = node.target_pod(annotations={names.SOURCE: stamp("1.0.0")})
    async with node.running():
        await node.registered()
        assert "has not published which devices" in await refused(node, pod)


async def test_refusing_stamp_refuses(node: World) -> None:
    node.add(1, "1.0.0")
    node.api.broken.add("virtualmachineinstances")
    pod = node.target_pod(annotations={names.SOURCE: stamp("1.1.0")})
    async with node.running():
        await node.registered()
        assert "VersionMinorOlder" in await refused(node, pod)


async def test_stamp_for_another_migration_does_not_count(node: World) -> None:
    node.add(1, "1.0.0")
    node.source_vm(version="1.1.0")
    pod = node.target_pod(annotations={names.SOURCE: stamp("1.0.0", migration="an-older-one")})
    async with node.running():
        await node.registered()
        assert "VersionMinorOlder" in await refused(node, pod)


async def test_stamp_of_another_vm_does_not_count(node: World) -> None:
    node.add(1, "1.0.0")
    pod = node.target_pod(annotations={names.SOURCE: stamp("1.0.0", vm="other")})
    async with node.running():
        await node.registered()
        assert "migcompat guard: Unknown: " in await refused(node, pod)


async def test_forged_stamp_does_not_outweigh_what_the_api_server_says(node: World) -> None:
    node.add(1, "1.0.0")
    node.source_vm(version="1.1.0")
    pod = node.target_pod(annotations={names.SOURCE: stamp("1.0.0")})
    async with node.running():
        await node.registered()
        assert "VersionMinorOlder" in await refused(node, pod)


async def test_garbled_stamp_does_not_count(node: World) -> None:
    node.add(1, "1.0.0")
    pod = node.target_pod(annotations={names.SOURCE: '{"version": 1, "migration": '})
    async with node.running():
        await node.registered()
        assert "migcompat guard: Unknown: " in await refused(node, pod)


# -- what cannot be found out


async def test_unknown_source_is_refused(node: World) -> None:
    node.add(1)
    pod = node.target_pod()
    async with node.running():
        await node.registered()
        assert "migcompat guard: Unknown: " in await refused(node, pod)


async def test_unknown_source_is_allowed_where_policy_allows_it(node: World) -> None:
    node.add(1)
    put_policy(node, b'{"unknown": "Allow"}')
    pod = node.target_pod()
    async with node.running():
        await node.registered()
        await node.start_target(pod)


async def test_unreachable_api_server_refuses(node: World) -> None:
    node.add(1)
    node.source_vm()
    pod = node.target_pod()
    async with node.running():
        await node.registered()
        node.api.broken.add("compatibilitypolicies")
        assert "migcompat guard: SourceUnknown: " in await refused(node, pod)
        node.api.broken = {"pods"}
        with pytest.raises(PreStartError, match="migcompat guard: PodUnknown: "):
            await node.kubelet.prestart("tenant-a", pod.metadata.name, CONTAINER)
        node.api.broken = set()
        await node.kubelet.prestart("tenant-a", pod.metadata.name, CONTAINER)


async def test_unreachable_pod_resources_refuses(node: World) -> None:
    node.add(1)
    node.source_vm()
    pod = node.target_pod()
    async with node.running() as agent:
        await node.registered()
        await eventually(lambda: agent.state.problem() is None)
        await node.kubelet.stop_pod_resources()
        assert "migcompat guard: PodResourcesUnavailable: " in await refused(node, pod)
        await eventually(lambda: agent.state.allocations_problem)
        await eventually(lambda: node.vfionode.status.conditions[0].reason == "PodResourcesUnavailable")
        await node.kubelet.start_pod_resources()
        await node.kubelet.prestart("tenant-a", pod.metadata.name, CONTAINER)


async def test_without_pod_resources_a_first_start_is_served(node: World) -> None:
    """Only migration targets are ever judged; the API server knows of none that waits for such a device."""
    node.add(1)
    node.source_vm()
    other_pool = fleets.pod(
        "elsewhere", NODE, source=SOURCE, suffix="dst", resources=["a.b/c"], phase="Pending"
    )
    arrived = fleets.pod("arrived", NODE, source=SOURCE, suffix="dst")
    arrived.status = PodStatus("Running", container_statuses=[ContainerStatus(CONTAINER)])
    over = fleets.pod("over", NODE, source=SOURCE, suffix="dst", phase="Failed")
    for pod in (other_pool, arrived, over):
        node.api.put(PODS, pod)
    async with node.running():
        await node.registered()
        await node.kubelet.stop_pod_resources()
        await node.kubelet.admit("ns", "first-start", CONTAINER, {POOL: 1})
        await node.kubelet.prestart("ns", "first-start", CONTAINER)

        node.api.broken.add("pods")
        with pytest.raises(PreStartError, match=r"migcompat guard: PodResourcesUnavailable: .*out of order"):
            await node.kubelet.prestart("ns", "first-start", CONTAINER)


@pytest.mark.parametrize(
    "status",
    [
        PodStatus("Pending"),
        PodStatus("Running"),
        PodStatus("Running", container_statuses=[ContainerStatus("compute", ContainerState(Waiting()))]),
    ],
    ids=["pending", "nothing known of its containers", "one container waits"],
)
async def test_without_pod_resources_nothing_starts_beside_a_target_that_may(
    node: World, status: PodStatus
) -> None:
    node.add(1)
    node.source_vm()
    pod = node.target_pod()
    pod.status = status
    node.api.put(PODS, pod)
    async with node.running():
        await node.registered()
        await node.kubelet.stop_pod_resources()
        await node.kubelet.admit("ns", "first-start", CONTAINER, {POOL: 1})
        with pytest.raises(
            PreStartError, match=f"may be for the migration target tenant-a/{pod.metadata.name}"
        ):
            await node.kubelet.prestart("ns", "first-start", CONTAINER)


async def test_pod_resources_that_hangs_leaves_time_to_ask_the_api_server(
    node: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.add(1)
    async with node.running() as agent:
        await node.registered()
        await node.kubelet.admit("ns", "first-start", CONTAINER, {POOL: 1})
        hang = asyncio.Event()
        monkeypatch.setattr(guard, "HOLDER_PATIENCE", 0.2)
        monkeypatch.setattr(agent.poller, "refresh", hang.wait)
        await node.kubelet.prestart("ns", "first-start", CONTAINER)


async def test_mode_ignore_counts_only_where_the_admin_allows_it(node: World) -> None:
    node.add(1, "1.0.0")
    lax = {names.MODE: "ignore"}
    node.source_vm(version="1.1.0", annotations=lax)
    pod = node.target_pod(annotations=lax)
    async with node.running():
        await node.registered()
        assert "VersionMinorOlder" in await refused(node, pod)
    node.kubelet.release("tenant-a", pod.metadata.name)
    async with node.running(allow_loosening=True):
        await node.registered()
        await node.start_target(pod)


async def test_device_that_vanished_is_refused(node: World) -> None:
    node.add(1)
    node.add(2)
    node.source_vm()
    pod = node.target_pod()
    async with node.running():
        await node.registered(count=2)
        answers = await node.kubelet.admit("tenant-a", pod.metadata.name, CONTAINER, {POOL: 1})
        (given,) = answers[POOL].envs.values()
        node.remove(int(given[-1]))
        with pytest.raises(PreStartError, match="migcompat guard: DeviceGone: "):
            await node.kubelet.prestart("tenant-a", pod.metadata.name, CONTAINER)


async def test_device_that_came_in_place_of_the_one_given_out_is_refused(node: World) -> None:
    """Under its id, but of another type: what the kubelet gave out is no more."""
    node.add(1)
    node.add(2, "2.0.0")
    node.source_vm()
    pod = node.target_pod()
    async with node.running():
        await node.registered(count=2)
        await node.kubelet.admit("tenant-a", pod.metadata.name, CONTAINER, {POOL: 1})
        assert node.kubelet.allocated(POOL) == {uuid(1)}
        node.remove(1)
        node.add(1, type_="GRID-T4-2Q")
        with pytest.raises(PreStartError, match=f"migcompat guard: DeviceGone: a device of {POOL} is gone"):
            await node.kubelet.prestart("tenant-a", pod.metadata.name, CONTAINER)


async def test_device_that_is_unhealthy_by_now_is_refused(node: World) -> None:
    device = node.add(1)
    node.source_vm()
    pod = node.target_pod()
    async with node.running():
        await node.registered()
        await node.kubelet.admit("tenant-a", pod.metadata.name, CONTAINER, {POOL: 1})
        (device / "driver").unlink()
        with pytest.raises(PreStartError, match="migcompat guard: DeviceUnhealthy: no driver is bound"):
            await node.kubelet.prestart("tenant-a", pod.metadata.name, CONTAINER)


async def test_mode_prefer_does_not_open_the_guard(node: World) -> None:
    node.add(1, "1.0.0")
    lax = {names.MODE: "prefer"}
    node.source_vm(version="1.1.0", annotations=lax)
    pod = node.target_pod(annotations=lax)
    async with node.running(allow_loosening=True):
        await node.registered()
        assert "VersionMinorOlder" in await refused(node, pod)


async def test_devices_of_other_plugins_are_none_of_the_guards_business(node: World) -> None:
    node.add(1)
    node.source_vm()
    pod = node.target_pod()
    async with node.running():
        await node.registered()
        held = {"other": {"devices.kubevirt.io/kvm": ["kvm0"]}}
        node.kubelet.pods[("tenant-a", pod.metadata.name)] = dict(held)
        await node.start_target(pod)


def vm_with_two(node: World) -> Pod:
    """A VM that moves with two devices, each of which is to be aggregated; its target pod."""
    both = [POOL, POOL]
    node.api.put(VMIS, fleets.vmi("vm", SOURCE, resources=both))
    node.api.put(PODS, fleets.pod("vm", SOURCE, resources=both))
    declared = fleets.declared(extra=AGGREGATED)
    holder = ("tenant-a", "virt-launcher-vm-src")
    node.put_source({"s1": declared, "s2": declared}, {"s1": holder, "s2": holder})
    pod = fleets.pod("vm", NODE, source=SOURCE, suffix="dst", resources=both, phase="Pending")
    node.api.put(PODS, pod)
    return pod


async def test_each_container_is_judged_by_all_that_the_pod_holds_and_only_its_devices_are_written(
    node: World,
) -> None:
    attributes = [node.add(number) / "aggregator" for number in (1, 2)]
    for attribute in attributes:
        attribute.write_text("16\n")
    pod = vm_with_two(node)
    where = ("tenant-a", pod.metadata.name)
    async with node.running():
        await node.registered(count=2)
        for container in ("one", "two"):
            await node.kubelet.admit(*where, container, {POOL: 1})
        await node.kubelet.prestart(*where, "one")
        assert sorted(attribute.read_text().strip() for attribute in attributes) == ["16", "4"]
        await node.kubelet.prestart(*where, "two")
        assert [attribute.read_text().strip() for attribute in attributes] == ["4", "4"]


async def test_stamp_that_asks_for_other_devices_than_the_pod_does_not_count(node: World) -> None:
    node.add(1)
    node.add(2)
    pod = vm_with_two(node)
    node.api.drop("vfionodes", SOURCE)
    found = node.api.get("pods", pod.metadata.name, "tenant-a")
    found["metadata"]["annotations"][names.SOURCE] = stamp("1.0.0")
    async with node.running():
        await node.registered(count=2)
        await node.kubelet.admit("tenant-a", pod.metadata.name, CONTAINER, {POOL: 2})
        with pytest.raises(PreStartError, match="migcompat guard: Unknown: "):
            await node.kubelet.prestart("tenant-a", pod.metadata.name, CONTAINER)


async def test_devices_of_which_several_pods_are_named_are_refused(
    node: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "HOLDER_PAUSE", 0.0)
    node.add(1)
    node.add(2)
    async with node.running():
        await node.registered(count=2)
        for number in (1, 2):
            node.api.put(PODS, fleets.pod(f"vm-{number}", NODE))
            held = {CONTAINER: {POOL: [uuid(number)]}}
            pod = ("tenant-a", f"virt-launcher-vm-{number}-src")
            node.kubelet.pods[pod] = held
            await node.kubelet.admit(*pod, CONTAINER, {})
        await eventually(lambda: len(node.kubelet.shown()) == 2)
        request = pb.PreStartContainerRequest(devices_ids=[uuid(1), uuid(2)])
        with pytest.raises(grpc.aio.AioRpcError, match="migcompat guard: PodUnknown: "):
            await node.kubelet.plugins[POOL].stub.PreStartContainer(request)


async def test_stamp_loosens_nothing_where_the_admin_does_not_allow_it(node: World) -> None:
    other = fleets.declared(type_="OTHER")
    node.add(1, entries=[other.self.attributes])
    put_policy(node, b'{"crossType": "Deny"}')
    migrant = Migrant(
        namespace="tenant-a",
        name="vm",
        uid="uid-vm",
        node=SOURCE,
        asks={POOL: 1},
        devices=(MigrantDevice(POOL, other),),
        allow_cross_type=True,
    )
    node.api.broken.add("virtualmachineinstances")
    pod = node.target_pod(annotations={names.SOURCE: encode(migrant, "migration-vm")})
    async with node.running():
        await node.registered()
        assert "TypeMismatch" in await refused(node, pod)
    node.kubelet.release("tenant-a", pod.metadata.name)
    async with node.running(allow_loosening=True):
        await node.registered()
        await node.start_target(pod)
