"""Life with the kubelet: registration, again after its restart, and what it is told when devices change."""

from __future__ import annotations

import shutil

import pytest
from migcompat.kubelet.deviceplugin_v1beta1 import deviceplugin_pb2 as pb

from tests.deviceplugin.world import POOL, World, eventually, uuid

VF_POOL = "vfio.migcompat.io/pci-15b3-101e"


async def test_devices_are_registered_with_both_options(node: World) -> None:
    node.add(1)
    node.add(2)
    async with node.running():
        await node.registered(count=2)

        (request,) = node.kubelet.registrations
        assert (request.version, request.resource_name) == ("v1beta1", POOL)
        assert request.options.pre_start_required
        assert request.options.get_preferred_allocation_available
        options = await node.kubelet.plugins[POOL].stub.GetDevicePluginOptions(pb.Empty())
        assert options == request.options
        assert node.kubelet.resources[POOL] == {uuid(1): True, uuid(2): True}


async def test_vfionode_is_published_before_devices_are_registered(node: World) -> None:
    node.add(1)
    node.api.broken.add("vfionodes")
    async with node.running() as agent:
        await eventually(lambda: "vfionodes" in (agent.state.problem() or ""))
        assert not node.kubelet.registrations

        node.api.broken.clear()
        await node.registered()
        assert [device.id for device in node.vfionode.status.devices] == [uuid(1)]


async def test_kubelet_restart_brings_a_new_registration(node: World) -> None:
    node.add(1)
    async with node.running():
        await node.registered()
        before = node.kubelet.registrations[-1].endpoint

        await node.kubelet.restart()

        await node.registered(count=1)
        assert node.kubelet.registrations[-1].endpoint != before
        assert node.kubelet.resources[POOL] == {uuid(1): True}


async def test_lost_stream_brings_a_new_registration(node: World) -> None:
    node.add(1)
    async with node.running():
        await node.registered()

        await node.kubelet.forget(POOL)

        await eventually(lambda: len(node.kubelet.registrations) == 2)
        await node.registered(count=1)


async def test_only_real_changes_are_sent(node: World) -> None:
    node.add(1)
    async with node.running() as agent:
        await node.registered()
        for _ in range(3):
            agent.state.set_inventory(await agent.sysfs.scan())
            agent.state.to_serve.set()
        node.add(2)
        await node.registered(count=2)

        assert [sorted(devices) for _, devices in node.kubelet.messages] == [[uuid(1)], [uuid(1), uuid(2)]]


async def test_device_that_turns_unhealthy_recovers_without_restart(node: World) -> None:
    device = node.add(1)
    node.add(2)
    async with node.running():
        await node.registered(count=2)
        driver = (device / "driver").readlink()

        (device / "driver").unlink()
        await eventually(lambda: node.kubelet.resources[POOL] == {uuid(1): False, uuid(2): True})

        (device / "driver").symlink_to(driver)
        await eventually(lambda: node.kubelet.resources[POOL] == {uuid(1): True, uuid(2): True})
    assert len(node.kubelet.registrations) == 1


async def test_device_whose_type_cannot_be_read_stays_unhealthy_in_its_pool(node: World) -> None:
    device = node.add(1)
    async with node.running():
        await node.registered()
        (device / "mdev_type").unlink()
        await eventually(lambda: node.kubelet.resources[POOL] == {uuid(1): False})
        assert set(node.kubelet.resources) == {POOL}


async def test_device_that_cannot_be_taken_for_one_now_stays_unhealthy(node: World) -> None:
    """Its driver cannot be read, so a scan does not see that it is VFIO's; that it has gone is not so."""
    function = node.add_function("pci0000:00/0000:00:05.0", group=7)
    async with node.running():
        await node.registered(VF_POOL)
        driver = (function / "driver").readlink()
        (function / "driver").unlink()
        (function / "driver").touch()
        await eventually(lambda: node.kubelet.resources[VF_POOL] == {"0000:00:05.0": False})
        # The kubelet hears first, what is published follows.
        await eventually(
            lambda: "driver is no readable link" in "".join(d.problem for d in node.vfionode.status.devices)
        )

        (function / "driver").unlink()
        (function / "driver").symlink_to(driver)
        await eventually(lambda: node.kubelet.resources[VF_POOL] == {"0000:00:05.0": True})

        (node.sysfs / "bus/pci/devices/0000:00:05.0").unlink()
        await eventually(lambda: VF_POOL not in node.kubelet.plugins)
        assert node.kubelet.messages[-1] == (VF_POOL, {})


async def test_empty_list_when_the_last_device_goes_then_serving_ends(node: World) -> None:
    node.add(1)
    async with node.running():
        await node.registered()
        node.remove(1)
        await eventually(lambda: POOL not in node.kubelet.plugins)
        assert node.kubelet.messages[-1] == (POOL, {})

        node.add(2)
        await node.registered(count=1)
        assert len(node.kubelet.registrations) == 2


async def test_no_empty_list_at_the_end_of_the_process(node: World) -> None:
    node.add(1)
    async with node.running():
        await node.registered()
    assert all(devices for _, devices in node.kubelet.messages)
    assert not list(node.kubelet.plugin_dir.glob("migcompat-*"))


async def test_sockets_of_an_earlier_process_are_removed(node: World) -> None:
    node.add(1)
    left, foreign = (node.kubelet.plugin_dir / name for name in ("migcompat-0123456789-7.sock", "other.sock"))
    left.touch()
    foreign.touch()
    async with node.running():
        await node.registered()
        assert (left.exists(), foreign.exists()) == (False, True)


async def test_a_socket_that_somebody_removes_brings_a_new_registration(node: World) -> None:
    """The kubelet's stream goes on, but who has to connect anew would find nobody."""
    node.add(1)
    async with node.running():
        await node.registered()
        (ours,) = node.kubelet.plugin_dir.glob("migcompat-*.sock")
        ours.unlink()
        await eventually(lambda: len(node.kubelet.registrations) == 2)
        assert [path.exists() for path in node.kubelet.plugin_dir.glob("migcompat-*.sock")] == [True]
        await node.registered(count=1)


async def test_pools_are_registered_each_on_its_own(node: World) -> None:
    node.add(1)
    node.add_function("pci0000:00/0000:00:05.0", group=7, node=1, ids=("0x15b3", "0x101e"))
    async with node.running():
        await node.registered()
        await node.registered(VF_POOL)
        assert node.kubelet.topology["0000:00:05.0"] == [1]


async def test_malformed_tree_harms_only_its_device(node: World) -> None:
    node.add(1)
    bad = node.add(2)
    shutil.rmtree(bad / "migration/self")
    (bad / "migration/self").mkdir()
    (bad / "migration/self/software_version").write_bytes(b"\x00\xff" * 10)
    (node.sysfs / "bus/mdev/devices/no-uuid").symlink_to("../../../devices/nowhere")
    async with node.running():
        await node.registered(count=2)
        status = node.vfionode.status
        presences = {d.id: status.profiles[d.profile].self.presence for d in status.devices}
        assert presences == {uuid(1): "Present", uuid(2): "Malformed"}


async def test_absent_kubelet_is_waited_for(node: World) -> None:
    node.add(1)
    await node.kubelet.stop()
    async with node.running() as agent:
        await eventually(lambda: "kubelet.sock" in str(agent.state.registrations.get(POOL)))
        await node.kubelet.start()
        await node.registered()
        await eventually(lambda: agent.state.problem() is None)


async def test_nobody_is_told_that_all_is_well_before_the_kubelet_has_the_devices(node: World) -> None:
    node.add(1)
    node.kubelet.takes_registrations.clear()
    async with node.running() as agent:
        await eventually(lambda: agent.state.published)
        assert node.vfionode.status.conditions[0].reason == "NotRegistered"
        assert agent.state.problem() == f"{POOL}: not registered yet"
        node.kubelet.takes_registrations.set()
        await eventually(lambda: node.vfionode.status.conditions[0].reason == "Published")


@pytest.mark.parametrize("bus", ["mdev", "pci"])
async def test_a_bus_that_cannot_be_listed_is_a_failed_scan_and_not_a_node_without_devices(
    node: World, bus: str
) -> None:
    node.add(1)
    async with node.running() as agent:
        await node.registered()
        devices = node.sysfs / f"bus/{bus}/devices"
        devices.rename(node.sysfs / "elsewhere")
        devices.symlink_to("devices")
        await eventually(lambda: agent.state.scan_problem)
        await eventually(lambda: node.vfionode.status.conditions[0].reason == "ScanFailed")
        assert f"bus/{bus}/devices cannot be listed" in node.vfionode.status.conditions[0].message
        assert node.kubelet.resources[POOL] == {uuid(1): True}
        devices.unlink()
        (node.sysfs / "elsewhere").rename(devices)
        await eventually(lambda: node.vfionode.status.conditions[0].reason == "Published")


@pytest.mark.parametrize("gone", ["bus", "devices"])
async def test_failed_scan_keeps_the_last_state_and_says_so(node: World, gone: str) -> None:
    node.add(1)
    async with node.running() as agent:
        await node.registered()
        (node.sysfs / gone).rename(node.sysfs / "elsewhere")
        await eventually(lambda: agent.state.scan_problem)
        await eventually(lambda: node.vfionode.status.conditions[0].reason == "WrongHostPath")
        assert node.kubelet.resources[POOL] == {uuid(1): True}
        (node.sysfs / "elsewhere").rename(node.sysfs / gone)
        await eventually(lambda: node.vfionode.status.conditions[0].reason == "Published")
