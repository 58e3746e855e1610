"""What is wrong with a node is said in the log and as a condition, in words that help; the agent lives on."""

from __future__ import annotations

import asyncio
import shutil

import pytest
from migcompat.api.meta import Condition
from migcompat.engine.declaration import Declaration, Kind, Presence, SelfSet
from migcompat.kube.kinds import NODES, VFIONODES
from migcompat.kubelet import registration
from migcompat.kubelet.connection import MINIMUM_KUBELET
from migcompat.sysfs.found import FoundDevice
from migcompat_deviceplugin import bootid, publisher
from migcompat_deviceplugin.bootid import BootIDError, read_boot_id
from migcompat_deviceplugin.inventory import Device
from migcompat_deviceplugin.state import State
from migcompat_deviceplugin.status import declarations_valid

from tests.deviceplugin.world import HOST_DEV, NODE, POOL, World, eventually, uuid
from tests.support import fleets
from tests.support.fabricate import add_device_nodes

VALID = "DeclarationsValid"
OTHER_BOOT = "b0070002-0000-4000-8000-000000000000"


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootid, "PAUSE", 0.05)
    monkeypatch.setattr(publisher, "RECHECK", 0.2)


def condition(node: World, type_: str = "Ready") -> Condition:
    """As published; an empty one where there is none."""
    if ("vfionodes", "", NODE) not in node.api.objects:
        return Condition(type_, "")
    return next((c for c in node.vfionode.status.conditions if c.type == type_), Condition(type_, ""))


async def reason(node: World, wanted: str, type_: str = "Ready") -> str:
    """Wait for the reason; the message."""
    await eventually(lambda: condition(node, type_).reason == wanted)
    return condition(node, type_).message


# --- sysfs -------------------------------------------------------------------------------------------------


async def test_a_path_that_is_no_sysfs_is_said_and_waited_out(
    node: World, caplog: pytest.LogCaptureFixture
) -> None:
    node.add(1)
    right = node.sysfs.rename(node.directory / "elsewhere")
    node.sysfs.mkdir()
    async with node.running() as agent:
        message = await reason(node, "WrongHostPath")
        assert f"{node.sysfs} is no sysfs: it has no directory bus/" in message
        assert "(hostPaths.sys)" in message
        assert message in caplog.text
        assert agent.state.problem() == message
        assert node.vfionode.status.devices == []

        node.sysfs.rmdir()
        right.rename(node.sysfs)
        await reason(node, "Published")
        await node.registered(count=1)


async def test_what_was_published_stays_while_nothing_can_be_read(node: World) -> None:
    node.add(1)
    async with node.running():
        await node.registered()
        await reason(node, "Published")
    before = node.vfionode.status
    (node.sysfs / "bus").rename(node.sysfs / "elsewhere")
    (node.sysfs / "bus").symlink_to("bus")
    async with node.running():
        message = await reason(node, "ScanFailed")
        assert "cannot be read: [Errno 40] Too many levels of symbolic links" in message
        now = node.vfionode.status
        assert (now.devices, now.profiles, now.boot_id) == (before.devices, before.profiles, before.boot_id)


async def test_what_cannot_be_read_of_single_devices_is_told(
    node: World, caplog: pytest.LogCaptureFixture
) -> None:
    node.add(1)
    device = node.add(2)
    (device / "mdev_type").unlink()
    (device / "mdev_type").symlink_to("mdev_type")
    async with node.running():
        await node.registered()
        message = await reason(node, "DevicesUnhealthy", "DevicesUsable")
        assert message.startswith(f"1 of 2 devices unhealthy: {uuid(2)}: ")
        assert f"unhealthy: {uuid(2)}: " in caplog.text
        assert await reason(node, "Published"), "one device's trouble is not the agent's"

        (node.sysfs / "bus/mdev/devices/no-uuid").symlink_to("../../../devices/nowhere")
        message = await reason(node, "Unreadable", "DevicesUsable")
        assert message.startswith(
            "1 name(s) in sysfs cannot be taken for a device:"
            " bus/mdev/devices/no-uuid: the name is not a UUID, so this is no mdev."
            f" 1 of 2 devices unhealthy: {uuid(2)}: "
        )


async def test_a_device_that_goes_while_a_pod_holds_it_is_missed(node: World) -> None:
    device = node.add(1)
    async with node.running():
        await node.registered()
        await node.kubelet.admit("vms", "launcher", "compute", {POOL: 1})
        node.kubelet.pods["vms", "launcher"]["compute"]["devices.kubevirt.io/kvm"] = ["kvm0"]
        await eventually(lambda: node.vfionode.status.devices[0].allocated_to)
        (node.sysfs / "bus/mdev/devices" / uuid(1)).unlink()
        shutil.rmtree(device)
        message = await reason(node, "HeldDeviceGone", "DevicesUsable")
        assert message == f"1 device(s) went while pods hold them: {uuid(1)} of {POOL}, held by vms/launcher"
        await eventually(lambda: node.vfionode.status.devices == [])
        node.kubelet.release("vms", "launcher")
        await reason(node, "AllUsable", "DevicesUsable")


async def test_declarations_that_are_not_understood_are_told(
    node: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    node.add(1)
    own = node.add(2) / "migration/self/software_version"
    entry = node.add(3) / "migration/compatible/software_version"
    before = own.read_bytes(), entry.read_bytes()
    async with node.running():
        await reason(node, "AllValid", "DeclarationsValid")
        own.write_bytes(b"1" * 70_000)
        message = await reason(node, "Malformed", "DeclarationsValid")
        assert message.startswith(f"1 of 3 devices have a flawed declaration: {uuid(2)}: ")
        assert "migration/self/software_version is longer than 65536 bytes" in message
        assert f"flawed declaration: {uuid(2)}: migration/self/software_version is longer" in caplog.text
        entry.write_bytes(b"\xff")
        await eventually(lambda: f"{uuid(3)}: compatible entry 0: " in condition(node, VALID).message)
        assert condition(node, "DevicesUsable").reason == "AllUsable", "each may be handed out"
        await node.registered(count=3)

        own.write_bytes(before[0])
        entry.write_bytes(before[1])
        await reason(node, "AllValid", VALID)
        assert f"device(s) are understood again: {uuid(2)}" in caplog.text


def test_what_is_unreadable_outweighs_what_is_malformed() -> None:
    state = State()
    state.set_inventory(
        {
            id_: Device(FoundDevice(id_, Kind.MDEV, "", declaration=Declaration(Kind.MDEV, own)), POOL)
            for id_, own in (
                ("a", SelfSet(Presence.MALFORMED, problem="garbled")),
                ("b", SelfSet(Presence.UNREADABLE, problem="cannot be read (Input/output error)")),
                ("c", SelfSet(Presence.MALFORMED, problem="garbled, too")),
                ("d", SelfSet()),
            )
        }
    )
    told = declarations_valid(state)
    assert (told.status, told.reason) == ("False", "Unreadable")
    assert told.message == (
        "3 of 4 devices have a flawed declaration: a: garbled; b: cannot be read (Input/output error);"
        " c: garbled, too"
    )


# --- device nodes ------------------------------------------------------------------------------------------


async def test_missing_device_nodes_are_told_and_recovery_too(
    node: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for number in range(1, 9):
        node.add(number)
    (node.dev / "vfio/vfio").unlink()
    async with node.running():
        message = await reason(node, "DeviceNodesMissing", "DevicesUsable")
        assert message.startswith("8 of 8 devices unhealthy: ")
        assert f"no device node: {HOST_DEV}/vfio/vfio missing on the host" in message
        assert message.endswith("and 3 more")
        assert "hostPaths.dev" in caplog.text

        add_device_nodes(node.dev, "vfio/vfio")
        await reason(node, "AllUsable", "DevicesUsable")
        await node.registered(count=8)
        assert "8 device(s) are healthy again" in caplog.text


# --- boot id -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content", [b"", b"Linux version 6.12\n", b"\xff\xfe" * 4096, fleets.BOOT.encode() + b" and more"]
)
async def test_a_file_that_holds_no_boot_id_is_said_and_waited_out(
    node: World, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    node.add(1)
    node.boot_id.write_bytes(content)
    async with node.running():
        message = await reason(node, "WrongHostPath")
        assert f"{node.boot_id} holds no boot id but " in message
        assert "hostPaths.bootID" in message
        await asyncio.sleep(5 * bootid.PAUSE)
        said = [record.message for record in caplog.records if record.name == bootid.__name__]
        assert len(said) == 1, "once, although it is tried again and again"
        assert message in said[0]
        assert not node.kubelet.registrations

        node.boot_id.write_text(f"{fleets.BOOT}\n")
        await reason(node, "Published")
        await node.registered(count=1)


async def test_an_absent_boot_id_is_said(node: World) -> None:
    node.boot_id.unlink()
    async with node.running():
        assert "cannot be read (No such file or directory)" in await reason(node, "WrongHostPath")
    with pytest.raises(BootIDError, match="Is a directory"):
        read_boot_id(node.directory)


async def test_another_boot_id_than_the_nodes_is_said_when_it_lasts(node: World) -> None:
    node.add(1)
    node.api.put(NODES, fleets.node(NODE, boot_id=OTHER_BOOT))
    async with node.running():
        message = await reason(node, "BootIDMismatch")
        assert f"the boot id is {fleets.BOOT} here and {OTHER_BOOT} for the Node's kubelet" in message
        assert "hostPaths.bootID" in message

        node.api.put(NODES, fleets.node(NODE))
        await reason(node, "Published")


async def test_a_node_that_says_its_new_boot_id_late_is_no_problem(
    node: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher, "RECHECK", 1.0)
    node.add(1)
    node.api.put(NODES, fleets.node(NODE, boot_id=OTHER_BOOT))
    async with node.running() as agent:
        await reason(node, "Published")
        node.api.put(NODES, fleets.node(NODE))
        requests = len(node.api.requests)
        await eventually(lambda: ("GET", f"/api/v1/nodes/{NODE}") in node.api.requests[requests:])
        await asyncio.sleep(0.2)
        assert agent.state.boot_problem is None
        assert condition(node).reason == "Published"


# --- kubelet -----------------------------------------------------------------------------------------------


async def test_a_kubelet_without_pod_resources_is_too_old(
    node: World, caplog: pytest.LogCaptureFixture
) -> None:
    node.add(1)
    await node.kubelet.stop_pod_resources()
    node.kubelet.knows_pod_resources = False
    await node.kubelet.start_pod_resources()
    async with node.running():
        message = await reason(node, "KubeletTooOld")
        assert f"Kubernetes {MINIMUM_KUBELET} or newer is needed on the node" in message
        assert "the guard refuses migration targets; first starts are served" in message
        assert message in caplog.text
        await node.registered(count=1)


async def test_a_kubelet_that_knows_another_plugin_api_only_is_too_old(
    node: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(registration, "API_VERSION", "v1beta2")
    node.add(1)
    async with node.running():
        message = await reason(node, "KubeletTooOld")
        assert f"{POOL}: " in message
        assert "requested API version is not supported by kubelet" in message
        assert f"Kubernetes {MINIMUM_KUBELET} or newer is needed on the node" in message
        assert "is needed on the node" in caplog.text


async def test_pod_resources_switched_off_says_what_follows(
    node: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    node.add(1)
    await node.kubelet.stop_pod_resources()
    shutil.rmtree(node.kubelet.kubelet_dir / "pod-resources")
    async with node.running():
        message = await reason(node, "PodResourcesUnavailable")
        assert "pod-resources/kubelet.sock does not exist" in message
        assert "hostPaths.kubelet" in message
        assert "the guard refuses migration targets; first starts are served" in message
        assert message in caplog.text
        await node.registered(count=1)

        await node.kubelet.start_pod_resources()
        await reason(node, "Published")
        assert "holders of devices are known again" in caplog.text


async def test_a_directory_that_is_not_the_kubelets_is_said(
    node: World, caplog: pytest.LogCaptureFixture
) -> None:
    node.add(1)
    (node.kubelet.plugin_dir / "kubelet.sock").rename(node.directory / "kubelet.sock")
    async with node.running():
        await eventually(lambda: "kubelet.sock does not exist" in condition(node).message)
        message = await reason(node, "NotRegistered")
        assert "device-plugins/kubelet.sock does not exist" in message
        assert "hostPaths.devicePlugins" in message
        assert message.removeprefix(f"{POOL}: ") in caplog.text
        (node.directory / "kubelet.sock").rename(node.kubelet.plugin_dir / "kubelet.sock")
        await reason(node, "Published")


async def test_several_problems_the_gravest_is_the_condition(node: World) -> None:
    node.add(1)
    await node.kubelet.stop_pod_resources()
    node.boot_id.unlink()
    async with node.running():
        await reason(node, "WrongHostPath")
        node.boot_id.write_text(fleets.BOOT)
        await reason(node, "PodResourcesUnavailable")
        await node.kubelet.start_pod_resources()
        await reason(node, "Published")


async def test_nothing_is_said_of_devices_before_some_were_looked_for(node: World) -> None:
    before = fleets.vfionode(NODE, {uuid(1): fleets.declared()}, boot_id="boot-0")
    node.api.put(VFIONODES, before)
    shutil.rmtree(node.sysfs)
    async with node.running():
        await reason(node, "WrongHostPath")
        assert [c.type for c in node.vfionode.status.conditions] == ["Ready"]
        assert node.vfionode.status.boot_id == "boot-0", "so that nobody takes it for this boot's"
