"""A kind of device that only its provider knows, on a bus that is not PCI, from sysfs into a container."""

from __future__ import annotations

import pytest
from migcompat.engine.declaration import Kind
from migcompat.sysfs import scan as discovery
from migcompat.sysfs.scan import PROVIDERS

from tests.deviceplugin.world import World, eventually
from tests.support.cards import PROVIDER, add_card
from tests.support.fabricate import add_device_nodes

POOL = "vfio.migcompat.io/acme-7"


async def test_it_is_published_and_handed_out(node: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "PROVIDERS", (*PROVIDERS, PROVIDER))
    add_card(node.sysfs, "card-a", "ACME-7")
    add_device_nodes(node.dev, "vfio/7")
    async with node.running():
        await node.registered(POOL)
        assert node.kubelet.resources[POOL] == {"card-a": True}
        await eventually(lambda: node.vfionode.status.devices)
        (device,) = node.vfionode.status.devices
        assert (device.id, device.kind, device.type, device.pci_id) == (
            *("card-a", Kind.PHYSICAL),
            *("ACME-7", ""),
        )
        answer = (await node.kubelet.admit("ns", "pod", "compute", {POOL: 1}))[POOL]
        assert list(answer.envs.values()) == ["card-a"]
        assert [spec.container_path for spec in answer.devices] == ["/dev/vfio/vfio", "/dev/vfio/7"]
