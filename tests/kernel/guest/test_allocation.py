"""What a container gets leads to the device; and devices that go while a pod holds them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from migcompat.kube.kinds import PODS

from tests.kernel.guest import hardware, vfio
from tests.kernel.guest.hardware import IGB, NVME
from tests.kernel.guest.node import NAME, Node
from tests.kernel.guest.test_probe import MAKERS
from tests.support import fleets
from tests.support.kubelet import AdmissionError

pytestmark = pytest.mark.asyncio(loop_scope="session")

MTTY = f"{hardware.DOMAIN}/mtty-1"
POD = ("tenant-a", "virt-launcher-vm-src")


@pytest.mark.parametrize("kind", ["mtty-1", "mdpy", "nvme VF", "igb VF"])
async def test_the_nodes_of_the_answer_open_the_device(node: Node, kind: str) -> None:
    device = MAKERS[kind]()
    await node.settled()
    (pool,) = node.view
    node.api.put(PODS, fleets.pod("vm", NAME, resources=[pool]))
    answer = (await node.kubelet.admit(*POD, "compute", {pool: 1}))[pool]
    try:
        await node.kubelet.prestart(*POD, "compute")
        assert list(answer.envs.values()) == [device]
        paths = [Path(spec.host_path) for spec in answer.devices]
        assert [spec.container_path for spec in answer.devices] == [str(path) for path in paths]
        assert set(paths) == {
            Path("/dev/vfio/vfio"),
            Path("/dev/iommu"),
            vfio.group_node(device),
            vfio.device_node(device),
        }
        assert all(stat.S_ISCHR(os.stat(path).st_mode) for path in paths)
        (group,) = [path for path in paths if path.parent.name == "vfio" and path.name.isdigit()]
        with vfio.opened(device, group):
            pass
        (own,) = [path for path in paths if path.parent.name == "devices"]
        with vfio.opened_node(own):
            pass
    finally:
        node.kubelet.release(*POD)


async def test_an_mdev_removed_while_a_pod_holds_it_is_gone(node: Node) -> None:
    device, other = hardware.create("mtty-1"), hardware.create("mtty-1")
    await node.settled()
    await node.kubelet.admit(*POD, "compute", {MTTY: 2})
    try:
        await node.comes_true(lambda: node.published[device].allocated_to is not None)
        hardware.remove(device)
        await node.settled()
        assert node.view == {MTTY: {other: True}}
        await node.comes_true(lambda: node.published.keys() == {other})
        assert node.published[other].allocated_to is not None
        hardware.create("mtty-1", device)
        await node.settled()
        assert node.view == {MTTY: {device: True, other: True}}
    finally:
        node.kubelet.release(*POD)


async def test_a_device_that_has_just_gone_is_not_handed_out(node: Node) -> None:
    """The kubelet asks before it has heard: Allocate looks at the device itself."""
    device, _ = hardware.create("mtty-1"), hardware.create("mtty-1")
    await node.settled()
    hardware.remove(device)
    with pytest.raises(AdmissionError, match=f"{device} is gone"):
        await node.kubelet.admit(*POD, "compute", {MTTY: 2})


@pytest.mark.parametrize("ids", [NVME, IGB], ids=["nvme", "igb"])
async def test_vfs_that_go_while_a_pod_holds_one(node: Node, ids: tuple[str, str]) -> None:
    pf = hardware.physical_function(ids)
    vf = hardware.set_vfs(pf, 2)[1]
    hardware.bind(vf)
    await node.settled()
    (pool,) = node.view
    await node.kubelet.admit(*POD, "compute", {pool: 1})
    try:
        hardware.set_vfs(pf, 0)
        await node.settled()
        assert node.view == {}
    finally:
        node.kubelet.release(*POD)
