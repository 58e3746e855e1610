"""No device is handed out that no container could open, because its nodes are not in the host's /dev."""

from __future__ import annotations

from pathlib import Path

import pytest
from migcompat.engine.declaration import Declaration, Kind
from migcompat.sysfs.scan import FoundDevice
from migcompat_deviceplugin.devnodes import DevDir

from tests.deviceplugin.world import CONTAINER, HOST_DEV, POOL, World, eventually, uuid
from tests.support.fabricate import add_device_nodes
from tests.support.kubelet import AdmissionError

BY_GROUP = ("vfio/vfio", "vfio/12")
BY_CDEV = ("vfio/devices/vfio3", "iommu")


def found(group: str = "12", vfio_dev: str = "vfio3", problem: str = "") -> FoundDevice:
    return FoundDevice(
        "id",
        Kind.MDEV,
        "devices/id",
        Declaration(Kind.MDEV),
        iommu_group=group,
        vfio_dev=vfio_dev,
        problem=problem,
    )


@pytest.mark.parametrize(
    ("there", "handed_out"),
    [
        (BY_GROUP, BY_GROUP),
        (BY_CDEV, BY_CDEV),
        ((*BY_GROUP, *BY_CDEV), (*BY_GROUP, *BY_CDEV)),
        ((*BY_GROUP, "iommu"), BY_GROUP),
        (("vfio/vfio", *BY_CDEV), BY_CDEV),
    ],
    ids=["group", "cdev", "both", "iommufd without cdev", "cdev without group"],
)
def test_one_way_to_open_a_device_is_enough(
    tmp_path: Path, there: tuple[str, ...], handed_out: tuple[str, ...]
) -> None:
    add_device_nodes(tmp_path, *there)
    dev = DevDir(tmp_path)
    assert dev.checked(found()).problem == ""
    assert dev.nodes([found()]) == list(handed_out)


@pytest.mark.parametrize(
    ("there", "device", "named"),
    [
        ((), found(), "/node/dev/vfio/vfio and /node/dev/vfio/12 missing"),
        (("vfio/vfio", "iommu"), found(), "no device node: /node/dev/vfio/12 missing"),
        (("vfio/12",), found(), "no device node: /node/dev/vfio/vfio missing"),
        (("iommu",), found(group=""), "no device node: /node/dev/vfio/devices/vfio3 missing"),
    ],
)
def test_a_device_that_cannot_be_opened_says_which_nodes_are_missing_on_the_host(
    tmp_path: Path, there: tuple[str, ...], device: FoundDevice, named: str
) -> None:
    add_device_nodes(tmp_path, *there)
    problem = DevDir(tmp_path, HOST_DEV).checked(device).problem
    assert named in problem
    assert "hostPaths.dev" in problem
    assert len(problem) <= 256, "it would be cut where it is published"
    assert DevDir(tmp_path).nodes([device]) == []


def test_a_plain_file_is_no_device_node(tmp_path: Path) -> None:
    (tmp_path / "vfio").mkdir()
    for name in BY_GROUP:
        (tmp_path / name).touch()
    assert DevDir(tmp_path).checked(found(vfio_dev="")).problem


def test_an_earlier_problem_comes_first(tmp_path: Path) -> None:
    device = found(problem="no driver is bound to it")
    assert DevDir(tmp_path).checked(device) == device


async def test_a_device_without_nodes_is_never_handed_out_and_recovers(node: World) -> None:
    node.add(1)
    node.add(2)
    missing = node.dev / "vfio/101"
    missing.unlink()
    async with node.running():
        await eventually(lambda: node.kubelet.resources.get(POOL) == {uuid(1): False, uuid(2): True})
        (published,) = (d for d in node.vfionode.status.devices if d.id == uuid(1))
        assert published.problem.startswith(f"no device node: {HOST_DEV}/vfio/101 missing")

        node.kubelet.resources[POOL] = {uuid(1): True}
        with pytest.raises(AdmissionError, match="is unhealthy: no device node"):
            await node.kubelet.admit("ns", "vm", CONTAINER, {POOL: 1})

        add_device_nodes(node.dev, "vfio/101")
        await eventually(lambda: node.kubelet.resources.get(POOL) == {uuid(1): True, uuid(2): True})
        answers = await node.kubelet.admit("ns", "vm", CONTAINER, {POOL: 1})
        assert [d.container_path for d in answers[POOL].devices] == ["/dev/vfio/vfio", "/dev/vfio/101"]
