"""A node with thousands of devices: its VFIONode stays an object that an API server takes."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Collection
from pathlib import Path

import msgspec
import pytest
from migcompat.api.meta import ObjectMeta
from migcompat.api.vfionode import Device, Health, Migration, PodRef, VFIONode, VFIONodeStatus
from migcompat.engine.declaration import Kind
from migcompat.fleet.fleet import Fleet
from migcompat.kube.client import Client
from migcompat.kube.config import connection
from migcompat.kube.kinds import NODES, VFIONODES
from migcompat.sysfs.found import FoundDevice
from migcompat_deviceplugin.folding import folded
from migcompat_deviceplugin.inventory import Device as InventoryDevice
from migcompat_deviceplugin.status import build

from tests.cluster.controlplane import ControlPlane
from tests.support import fleets

CRDS = Path(__file__).parents[2] / "charts/migcompat/files/crds"
MANY = 10_000
POD = PodRef("vms", "virt-launcher-vm-a-x")
NOW = "2026-01-01T00:00:00Z"


def uuid(number: int) -> str:
    return f"{number:08x}-0000-4000-8000-000000000000"


def device(number: int, **fields: object) -> Device:
    base = Device(
        uuid(number),
        fleets.POOL,
        "p",
        "a",
        Kind.MDEV,
        parent=f"0000:{number % 200:02x}:00.0",
        iommu_group=str(number),
    )
    return msgspec.structs.replace(base, **fields)


def many(count: int, held: Collection[int] = (0, 7)) -> VFIONodeStatus:
    """As the agent of a node with *count* mdevs of two kinds publishes it; some of them are *held*."""
    kinds = [fleets.declared("1.0.0"), fleets.declared("1.1.0")]
    inventory = {
        uuid(n): InventoryDevice(
            FoundDevice(
                uuid(n),
                Kind.MDEV,
                f"devices/x/{uuid(n)}",
                msgspec.structs.replace(kinds[n % 2], shown={"driver_version": "580.95.05"}),
                type=fleets.TYPE,
                parent=f"0000:{n % 200:02x}:00.0",
                iommu_group=str(n),
                numa_node=n % 2,
            ),
            fleets.POOL,
        )
        for n in range(count)
    }
    holders = {(fleets.POOL, uuid(n)): POD for n in held}
    return build(inventory, holders, boot_id=fleets.BOOT, conditions=[], now=NOW)


def test_what_fits_is_left_alone() -> None:
    devices = [device(n) for n in range(1000)]
    kept, condition = folded(devices)
    assert kept == devices
    assert (condition.status, condition.reason) == ("True", "AllListed")


def test_equal_devices_that_nobody_holds_are_counted_under_the_first() -> None:
    held = device(1, allocated_to=POD)
    other = device(4, problem="no driver")
    kept, condition = folded(
        [device(0, numa_node=0), held, device(2), device(3, numa_node=1), other], limit=600
    )
    assert [(d.id, d.count) for d in kept] == [(uuid(0), 3), (uuid(1), 1), (uuid(4), 1)]
    assert kept[1:] == [held, other]
    assert (kept[0].parent, kept[0].iommu_group, kept[0].numa_node) == ("", "", None)
    assert (condition.status, condition.reason) == ("False", "Folded")
    assert condition.message.startswith("5 devices are too many for one object: 2 that nobody holds")


def size(devices: list[Device]) -> int:
    return len(msgspec.json.encode(devices))


@pytest.mark.parametrize(
    "fields",
    [
        {"resource": "example.org/other"},
        {"profile": "q"},
        {"acceptance": "b"},
        {"kind": Kind.PHYSICAL},
        {"driver": "mtty"},
        {"type": "mtty-2"},
        {"device_api": "vfio-ap"},
        {"pci_id": "10de2235"},
        {"health": Health.UNHEALTHY},
        {"problem": "no driver"},
        {"dynamic": {"aggregator": "2"}},
        {"migration": Migration(False)},
        {"peer_to_peer": True},
        {"shown": "s"},
    ],
    ids=str,
)
def test_devices_that_differ_are_not_counted_together(fields: dict[str, object]) -> None:
    devices = [device(0), device(1), device(2, **fields)]
    kept, _ = folded(devices, size(devices) - 1)
    assert [(d.id, d.count) for d in kept] == [(uuid(0), 2), (uuid(2), 1)]


def test_devices_that_one_pod_holds_are_not_counted_together() -> None:
    held = [device(n, allocated_to=POD) for n in range(2)]
    kept, _ = folded(held, size(held) - 1)
    assert [(d.id, d.count) for d in kept] == [(d.id, 1) for d in held]


def test_the_limit_itself_fits() -> None:
    devices = [device(0), device(1)]
    assert folded(devices, limit=size(devices))[0] == devices
    assert len(folded(devices, limit=size(devices) - 1)[0]) == 1


def test_what_is_held_tells_no_place_before_anything_is_left_out() -> None:
    held = [
        device(n, allocated_to=POD, numa_node=1, problem="why", driver="d", type="t", pci_id="10de2335")
        for n in range(4)
    ]
    short = [
        msgspec.structs.replace(one, parent="", iommu_group="", numa_node=None, problem="") for one in held
    ]
    kept, condition = folded(held, limit=size(short))
    assert kept == short
    assert (condition.status, condition.reason) == ("False", "Shortened")
    assert "parents, NUMA nodes, IOMMU groups and problems are left out" in condition.message


def test_in_the_end_entries_are_left_out_held_ones_last_but_for_half_of_the_room() -> None:
    """Free ones that differ, so that they cannot be folded; and held ones."""
    free = [device(n, shown=f"{n:04}", parent="", iommu_group="") for n in range(20)]
    held = [device(n, allocated_to=POD, parent="", iommu_group="") for n in range(20, 40)]
    for limit in (0, 1, 100, 500, 1000, 2000, 4000):
        kept, condition = folded([*free, *held], limit)
        assert not kept or size(kept) <= limit
        assert condition.reason == "Incomplete"
        assert [d.id for d in kept] == sorted(d.id for d in kept)
        numbers = [sum(one in kept for one in some) for some in (held, free)]
        assert f"; {20 - numbers[0]} devices that pods hold" in condition.message
        assert f", nor {20 - numbers[1]} free ones" in condition.message
    assert numbers[1] * (size(free) - 2) / 20 <= 2000
    assert all(numbers)
    few, _ = folded([*free, *held[:2]], 2500)
    assert [d.id for d in few if d.allocated_to] == [d.id for d in held[:2]]
    assert size(few) > 2500 - 200, "room that is left is used"


def test_thousands_of_held_devices_are_published_as_far_as_possible() -> None:
    status = many(MANY, held=range(0, 8000, 2))
    assert len(msgspec.json.encode(status)) < 1024 * 1024
    condition = next(c for c in status.conditions if c.type == "DevicesListed")
    assert (condition.status, condition.reason) == ("False", "Incomplete")
    assert len(condition.message) <= 1024
    held = [d for d in status.devices if d.allocated_to]
    assert len(held) > 2000
    assert sum(d.count for d in status.devices if not d.allocated_to) == MANY - 4000, "free ones are counted"
    assert f"; {4000 - len(held)} devices that pods hold are not listed" in condition.message
    fleet = Fleet()
    fleet.put_node(fleets.node("big"))
    fleet.put_vfionode(VFIONode(ObjectMeta(name="big"), status))
    assert fleet._targets_of("big")


def test_ten_thousand_mdevs_are_placed_as_if_all_were_listed() -> None:
    status = many(MANY)
    assert len(msgspec.json.encode(status)) < 16 * 1024
    assert sum(d.count for d in status.devices) == MANY
    assert {d.id for d in status.devices if d.allocated_to} == {uuid(0), uuid(7)}
    assert next(c for c in status.conditions if c.type == "DevicesListed").reason == "Folded"
    fleet = Fleet()
    for name, given in (("big", status), ("small", many(4))):
        fleet.put_node(fleets.node(name))
        fleet.put_vfionode(VFIONode(ObjectMeta(name=name), given))
    targets = fleet._targets_of("big")
    assert sum(target.free for target in targets) == 2 * 512
    assert {target.declaration.shown["driver_version"] for target in targets} == {"580.95.05"}


@pytest.mark.cluster
async def test_a_real_api_server_takes_ten_thousand_mdevs(control_plane: ControlPlane) -> None:
    control_plane.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(CRDS))
    control_plane.await_kinds()
    name = f"big-{secrets.token_hex(4)}"
    async with contextlib.AsyncExitStack() as stack:
        client = await stack.enter_async_context(Client(connection(str(control_plane.kubeconfig))))
        await client.create(NODES, {"metadata": {"name": name}})
        made = await client.create(VFIONODES, {"metadata": {"name": name}})
        for count, held in ((2000, 2), (10, 2), (MANY, 2), (MANY, 4000), (MANY, MANY)):
            status = many(count, range(held))
            made = await client.replace(
                VFIONODES, msgspec.structs.replace(made, status=status), name, subresource="status"
            )
            assert made.status == status
