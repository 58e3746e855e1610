"""The agent publishes what NVML says, and does its work whatever NVML does."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from migcompat.nvml import calls, gpus
from migcompat.nvml.gpus import Nvml
from migcompat_deviceplugin.devnodes import DevDir
from migcompat_deviceplugin.sysfs import Sysfs

from tests.deviceplugin.world import World, eventually, world
from tests.nvml.conftest import GPU, IDS, VF
from tests.support.fabricate import add_driver, write
from tests.support.nvml import DRIVER, Stub

TYPE = "vfio.migcompat.io/nvidia-1414"


@pytest.fixture
async def node() -> AsyncIterator[World]:
    """A node with a vGPU and another VF; in a short path, because a socket's path has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="migcompat-") as directory:
        async with world(Path(directory)) as made:
            add_driver(made.sysfs, "pci", "nvidia", version=DRIVER)
            made.add_function(f"pci0000:40/{GPU}", driver="nvidia", group=5, ids=IDS)
            vf = made.add_function(
                f"pci0000:40/{VF}", driver="nvidia", group=77, ids=IDS, vfio_dev="vfio9", physfn=GPU
            )
            (vf / "nvidia").mkdir()
            write(vf / "nvidia", {"current_vgpu_type": "1414"})
            made.add_function("pci0000:00/0000:01:00.1", group=2)
            yield made


@pytest.fixture
def asking(node: World, stub: Stub, monkeypatch: pytest.MonkeyPatch) -> World:
    """The same node, whose agent asks NVML."""
    flags = {"nvml": True, "nvml_library": str(stub.library)}
    settings = node.settings
    monkeypatch.setattr(node, "settings", lambda **given: msgspec.structs.replace(settings(**given), **flags))
    return node


def shown(node: World) -> dict[str, dict[str, str]]:
    """What devices show as published, by their ids."""
    status = node.vfionode.status
    return {device.id: status.shown.get(device.shown, {}) for device in status.devices}


async def test_what_nvml_says_is_published_and_so_is_what_a_new_driver_says(
    asking: World, stub: Stub
) -> None:
    async with asking.running():
        await asking.registered(TYPE)
        await eventually(lambda: shown(asking)[VF].get("ecc_mode") == "enabled")
        assert shown(asking)[VF]["vgpu_manager_version"] == DRIVER
        assert shown(asking)[VF]["type_name"] == "NVIDIA H200X-1-18C"
        assert "ecc_mode" not in shown(asking)["0000:01:00.1"]

        stub.says("driver", "590.44.01")
        write(asking.sysfs / "module/nvidia", {"version": "590.44.01"})
        await eventually(lambda: shown(asking)[VF].get("vgpu_manager_version") == "590.44.01")
        assert shown(asking)[VF]["software_version"] == "590.44.01"


async def test_nothing_waits_for_nvml_that_hangs(
    asking: World, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpus, "PATIENCE", 0.1)
    monkeypatch.setattr(calls, "INIT_DEADLINE", 3.0)
    stub.hangs("nvmlInitWithFlags")
    async with asking.running() as agent:
        await asking.registered(TYPE)
        await eventually(lambda: agent.state.problem() is None)
        assert "ecc_mode" not in shown(asking)[VF]
        assert shown(asking)[VF]["driver_version"] == DRIVER
        assert all(condition.status == "True" for condition in asking.vfionode.status.conditions)


async def test_an_agent_that_may_not_ask_does_not(node: World, stub: Stub) -> None:
    async with node.running() as agent:
        await node.registered(TYPE)
        await eventually(lambda: agent.state.problem() is None)
        assert not {"ecc_mode", "vgpu_versions", "vgpu_manager_version"} & shown(node)[VF].keys()


async def test_a_device_that_is_reread_keeps_what_nvml_said(asking: World, stub: Stub) -> None:
    """Though NVML would not answer now: the guard judges by what it reads again."""
    asked = Nvml(str(stub.library))
    sysfs = Sysfs(asking.sysfs, dev=DevDir(asking.dev), nvml=asked)
    whole = await sysfs.scan()
    assert whole[VF].found.declaration.shown["ecc_mode"] == "enabled"
    stub.hangs("nvmlInitWithFlags")
    for ids in (["0000:01:00.1"], [VF], [VF, "0000:01:00.1"]):
        assert await sysfs.reread(ids) == {id_: whole[id_] for id_ in ids}
    assert sysfs.last == whole
    assert not [thread for thread in threading.enumerate() if thread.name == "nvml"]
