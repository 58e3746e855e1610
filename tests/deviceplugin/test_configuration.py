"""The configuration file under a running agent: in force, changed, mistaken, mended."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from textwrap import dedent

import pytest
from migcompat.api.cluster import Pod
from migcompat.api.meta import Condition
from migcompat.kube.kinds import PODS, VFIONODES, VMIS
from migcompat_deviceplugin import app, metrics
from migcompat_deviceplugin import sysfs as sysfs_module
from migcompat_deviceplugin.config import ConfigFile
from migcompat_deviceplugin.sysfs import Sysfs

from tests.deviceplugin.world import CONTAINER, NODE, POOL, SOURCE, World, eventually, uuid
from tests.support import fleets
from tests.support.kubelet import PreStartError

GPU = "example.com/gpu"
OTHER = "vfio.migcompat.io/other"
VALID = "ConfigurationValid"


def resource(name: str, **wanted: object) -> str:
    """A resource with one selector, as YAML."""
    return f"- {{name: {name}, selectors: [{{{', '.join(f'{k}: {v}' for k, v in wanted.items())}}}]}}\n"


def write(node: World, text: str) -> None:
    """The file as the kubelet mounts it from a ConfigMap: a link through ``..data``, swapped at once."""
    volume = node.directory / "config"
    volume.mkdir(exist_ok=True)
    version = volume / f"..{len(list(volume.iterdir()))}"
    version.mkdir()
    (version / "resources.yaml").write_text(text)
    (volume / "..new").symlink_to(version.name)
    (volume / "..new").rename(volume / "..data")
    node.config = volume / "resources.yaml"
    if not node.config.is_symlink():
        node.config.symlink_to("..data/resources.yaml")


def configure(node: World, *resources: str, others: str = "advertise") -> None:
    listed = f"\n{''.join(resources)}" if resources else " []\n"
    write(node, f"resources:{listed}others: {others}\n")


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only PodResources says whether a device is held."""
    monkeypatch.setattr(sysfs_module, "SETTLING", 0.0)


@pytest.fixture
def by_type(node: World) -> World:
    """Two mdevs of the usual type in a pool of the file, and its name in a domain of its own."""
    node.add(1)
    node.add(2)
    configure(node, resource(GPU, types=f"[{fleets.TYPE}]"))
    return node


def published(node: World) -> dict[str, str]:
    """Resources by device."""
    return {device.id: device.resource for device in node.vfionode.status.devices}


def condition(node: World, type_: str = VALID) -> Condition:
    if ("vfionodes", "", NODE) not in node.api.objects:
        return Condition(type_, "")
    return next((c for c in node.vfionode.status.conditions if c.type == type_), Condition(type_, ""))


async def reason(node: World, wanted: str, type_: str = VALID) -> str:
    """Wait for the reason; the message."""
    await eventually(lambda: condition(node, type_).reason == wanted)
    return condition(node, type_).message


@asynccontextmanager
async def held(node: World, resource_: str = GPU) -> AsyncIterator[str]:
    """A pod that holds a device of the resource until the end; its id."""
    node.api.put(PODS, fleets.pod("vm", NODE, resources=(resource_,)))
    await node.kubelet.admit("tenant-a", "virt-launcher-vm-src", CONTAINER, {resource_: 1})
    await node.kubelet.prestart("tenant-a", "virt-launcher-vm-src", CONTAINER)
    (id_,) = node.kubelet.allocated(resource_)
    await eventually(lambda: holder(node, id_))
    yield id_
    node.kubelet.release("tenant-a", "virt-launcher-vm-src")


def holder(node: World, id_: str) -> str:
    (device,) = (d for d in node.vfionode.status.devices if d.id == id_)
    return device.allocated_to.name if device.allocated_to else ""


# --- in force ----------------------------------------------------------------------------------------------


async def test_devices_are_served_as_the_file_says(node: World) -> None:
    node.add(1)
    node.add(2, type_="other")
    node.add_function("pci0000:00/0000:01:00.0", group=7)
    configure(node, resource("gpu", types=f"[{fleets.TYPE}]"), resource(GPU, addresses="['0000:01:00.0']"))
    async with node.running():
        await node.registered("vfio.migcompat.io/gpu", 1)
        await node.registered(GPU, 1)
        await node.registered(OTHER, 1)
        assert published(node) == {
            uuid(1): "vfio.migcompat.io/gpu",
            "0000:01:00.0": GPU,
            uuid(2): OTHER,
        }
        await reason(node, "Valid")
        assert metrics.REGISTRY.get_sample_value("migcompat_agent_configuration_valid") == 1


async def test_what_is_ignored_is_neither_served_nor_published(node: World) -> None:
    node.add(1)
    node.add(2, type_="other")
    configure(node, resource("gpu", types=f"[{fleets.TYPE}]"), others="ignore")
    async with node.running():
        await node.registered("vfio.migcompat.io/gpu", 1)
        assert published(node) == {uuid(1): "vfio.migcompat.io/gpu"}
        assert set(node.kubelet.plugins) == {"vfio.migcompat.io/gpu"}


async def test_without_a_file_names_are_the_default_ones(node: World) -> None:
    node.add(1)
    async with node.running():
        await node.registered(POOL)
        await reason(node, "NoFile")


async def test_the_guard_judges_in_a_pool_of_another_domain(by_type: World) -> None:
    """Webhook and extender know pools by what VFIONodes publish; so does the guard."""
    node = by_type
    pods: list[Pod] = []
    for name in ("vm-a", "vm-b"):
        node.api.put(VMIS, fleets.vmi(name, SOURCE, resources=[GPU]))
        node.api.put(PODS, fleets.pod(name, SOURCE, resources=[GPU]))
        pod = fleets.pod(name, NODE, resources=[GPU], source=SOURCE, suffix="dst", phase="Pending")
        node.api.put(PODS, pod)
        pods.append(pod)
    node.api.put(
        VFIONODES,
        fleets.vfionode(
            SOURCE,
            {"a": fleets.declared("1.0.0"), "b": fleets.declared("2.0.0")},
            resource=GPU,
            allocated={
                "a": ("tenant-a", "virt-launcher-vm-a-src"),
                "b": ("tenant-a", "virt-launcher-vm-b-src"),
            },
        ),
    )
    async with node.running():
        await node.registered(GPU, 2)
        for pod in pods:
            await node.kubelet.admit("tenant-a", pod.metadata.name, CONTAINER, {GPU: 1})
        await node.kubelet.prestart("tenant-a", pods[0].metadata.name, CONTAINER)
        with pytest.raises(PreStartError, match="migcompat guard: "):
            await node.kubelet.prestart("tenant-a", pods[1].metadata.name, CONTAINER)


# --- changed -----------------------------------------------------------------------------------------------


async def test_a_changed_file_is_in_force_without_a_restart(by_type: World) -> None:
    async with by_type.running() as agent:
        await by_type.registered(GPU, 2)
        configure(by_type, resource("renamed", uuids=f"[{uuid(1)}]"))
        await by_type.registered("vfio.migcompat.io/renamed", 1)
        await by_type.registered(POOL, 1)
        assert published(by_type) == {uuid(1): "vfio.migcompat.io/renamed", uuid(2): POOL}
        await eventually(lambda: GPU not in by_type.kubelet.plugins)
        assert by_type.kubelet.messages.count((GPU, {})) == 1, "the kubelet counts no device twice"
        assert agent.state.problem() is None


async def test_a_file_that_is_written_in_place_is_read_again(by_type: World) -> None:
    assert by_type.config is not None
    async with by_type.running():
        await by_type.registered(GPU, 2)
        by_type.config.write_text(by_type.config.read_text().replace(GPU, "example.com/new"))
        await by_type.registered("example.com/new", 2)


@pytest.mark.usefixtures("at_once")
async def test_a_held_device_stays_in_its_pool_until_its_holder_is_gone(by_type: World) -> None:
    node = by_type
    async with node.running():
        await node.registered(GPU, 2)
        async with held(node) as id_:
            (other,) = {uuid(1), uuid(2)} - {id_}
            configure(node, others="ignore")
            await eventually(lambda: published(node) == {id_: GPU})
            assert holder(node, id_) == "virt-launcher-vm-src"
            configure(node, resource("renamed", types=f"[{fleets.TYPE}]"))
            await node.registered("vfio.migcompat.io/renamed", 1)
            assert published(node) == {id_: GPU, other: "vfio.migcompat.io/renamed"}
            assert node.kubelet.resources[GPU] == {id_: True}
        await node.registered("vfio.migcompat.io/renamed", 2)
        await eventually(lambda: GPU not in node.kubelet.plugins)


async def test_where_scans_are_seldom_a_changed_file_and_a_freed_device_bring_one(
    by_type: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = by_type
    monkeypatch.setattr(app, "SWEEP", 10**6)
    monkeypatch.setattr(sysfs_module, "SETTLING", 0.0)
    async with node.running(told=lambda _: True):
        await node.registered(GPU, 2)
        await node.kubelet.admit("ns", "pod", CONTAINER, {GPU: 1})
        await eventually(lambda: any(d.allocated_to for d in node.vfionode.status.devices))
        configure(node, resource(OTHER, types=f"[{fleets.TYPE}]"))
        await eventually(lambda: sorted(published(node).values()) == sorted([GPU, OTHER]))
        node.kubelet.release("ns", "pod")
        await eventually(lambda: set(published(node).values()) == {OTHER})


@pytest.mark.usefixtures("at_once")
async def test_a_held_device_stays_in_its_pool_when_the_file_changes_between_two_agents(
    by_type: World,
) -> None:
    node = by_type
    async with node.running():
        await node.registered(GPU, 2)
        pod = held(node)
        id_ = await pod.__aenter__()
    configure(node, resource("renamed", types=f"[{fleets.TYPE}]"))
    seen = []
    async with node.running():
        await node.registered("vfio.migcompat.io/renamed", 1)
        await node.registered(GPU, 1)
        seen = [devices for name, devices in node.kubelet.messages if name != GPU]
        assert not any(id_ in devices for devices in seen), "never in another pool, not for a moment"
        assert holder(node, id_) == "virt-launcher-vm-src"
        await pod.__aexit__(None, None, None)
        await node.registered("vfio.migcompat.io/renamed", 2)


async def test_a_device_that_is_being_handed_out_does_not_move(
    by_type: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PodResources names its pod only a moment after Allocate."""
    sysfs = Sysfs(by_type.sysfs, ConfigFile(by_type.config))
    await sysfs.scan()
    configure(by_type)
    assert (await sysfs.reread([uuid(1)]))[uuid(1)].resource == GPU
    assert {id_: d.resource for id_, d in (await sysfs.scan()).items()} == {uuid(1): GPU, uuid(2): POOL}
    monkeypatch.setattr(sysfs_module, "SETTLING", 0.0)
    assert (await sysfs.scan())[uuid(1)].resource == POOL


# --- mistaken ----------------------------------------------------------------------------------------------

TYPO = dedent("""\
    resources:
    - name: gpu
      selectors:
      - typs: [T]
""")


async def test_with_a_mistaken_change_the_last_good_file_stays_in_force(
    by_type: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with by_type.running() as agent:
        await by_type.registered(GPU, 2)
        write(by_type, TYPO)
        message = await reason(by_type, "Invalid")
        assert message == (
            f"{by_type.config}:4:5: unknown key 'typs': did you mean 'types'? (chart value"
            " devicePlugin.config); until it is mended, the last good one stays in force"
        )
        assert message in caplog.text
        assert published(by_type) == {uuid(1): GPU, uuid(2): GPU}
        assert agent.state.problem() is None, "the agent does its work"
        by_type.add(3)
        await by_type.registered(GPU, 3)
        await eventually(
            lambda: metrics.REGISTRY.get_sample_value("migcompat_agent_configuration_valid") == 0
        )

        configure(by_type, resource("example.com/mended", types=f"[{fleets.TYPE}]"))
        await by_type.registered("example.com/mended", 3)
        await reason(by_type, "Valid")
        assert f"{by_type.config} is in force: example.com/mended" in caplog.text


@pytest.mark.parametrize("text", [TYPO, None], ids=["typo", "no file"])
async def test_with_a_mistaken_file_from_the_start_nothing_is_served_until_it_is_mended(
    node: World, text: str | None
) -> None:
    node.add(1)
    write(node, text or "")
    assert node.config is not None
    if text is None:
        (node.directory / "config/..data").unlink()
    async with node.running() as agent:
        message = await reason(node, "ConfigurationInvalid", "Ready")
        assert message.startswith(
            f"{node.config}:4:5: " if text else f"{node.config}: cannot be read: No such"
        )
        assert agent.state.problem() == message
        assert await reason(node, "Invalid") == (
            f"{message}; until it is mended, only devices that were published before are served, as they were"
        )
        assert published(node) == {}
        assert not node.kubelet.registrations

        configure(node, resource(GPU, types=f"[{fleets.TYPE}]"))
        await node.registered(GPU, 1)
        await reason(node, "Published", "Ready")


async def test_with_a_mistaken_file_from_the_start_what_was_served_before_is_served(by_type: World) -> None:
    node = by_type
    node.add(3, type_="other")
    async with node.running():
        await node.registered(GPU, 2)
        await node.registered(OTHER, 1)
        pod = held(node)
        id_ = await pod.__aenter__()
    before = published(node)
    write(node, TYPO)
    node.add(4)
    async with node.running():
        await reason(node, "ConfigurationInvalid", "Ready")
        await node.registered(GPU, 2)
        await node.registered(OTHER, 1)
        assert published(node) == before, "the new one is in no pool, the others are where they were"
        assert holder(node, id_) == "virt-launcher-vm-src"

        configure(node, resource(GPU, types=f"[{fleets.TYPE}]"))
        await node.registered(GPU, 3)
        await reason(node, "Published", "Ready")


# --- contradicting -----------------------------------------------------------------------------------------


async def test_a_device_that_two_resources_select_belongs_to_the_first_and_that_is_said(
    by_type: World, caplog: pytest.LogCaptureFixture
) -> None:
    node = by_type
    configure(
        node,
        resource(GPU, uuids=f"[{uuid(2)}]"),
        resource("rest", types=f"[{fleets.TYPE}]"),
    )
    async with node.running() as agent:
        await node.registered(GPU, 1)
        await node.registered("vfio.migcompat.io/rest", 1)
        assert published(node) == {uuid(1): "vfio.migcompat.io/rest", uuid(2): GPU}
        assert await reason(node, "Ambiguous") == (
            "1 device(s) are selected by several resources, of which the first has each:"
            f" {uuid(2)}: {GPU}, vfio.migcompat.io/rest"
        )
        assert f"selected by several resources: {uuid(2)}: {GPU}, vfio.migcompat.io/rest" in caplog.text
        await eventually(lambda: metrics.REGISTRY.get_sample_value("migcompat_agent_ambiguous_devices") == 1)
        assert agent.state.problem() is None

        configure(node, resource(GPU, uuids=f"[{uuid(2)}]"), resource("rest", uuids=f"[{uuid(1)}]"))
        await reason(node, "Valid")


async def test_a_resource_of_mdevs_and_functions_is_said(node: World) -> None:
    node.add(1)
    node.add_function("pci0000:00/0000:01:00.0", group=7)
    configure(node, resource(GPU, kinds="[mdev, function]"))
    async with node.running():
        await node.registered(GPU, 2)
        message = await reason(node, "MixedKinds")
        assert message.endswith(f": {GPU}")


# --- the file ----------------------------------------------------------------------------------------------


def test_an_unchanged_file_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "resources.yaml"
    path.write_text("resources: []\n")
    config = ConfigFile(path)
    first = config.look()
    monkeypatch.setattr(Path, "open", None)
    assert config.look() is first


def test_names_without_a_domain_have_that_of_the_agent(tmp_path: Path) -> None:
    path = tmp_path / "resources.yaml"
    path.write_text("resources: [{name: gpu, selectors: [{kinds: [mdev]}]}]\n")
    configuration = ConfigFile(path, "vfio.example.org").look().configuration
    assert configuration is not None
    assert configuration.domain == "vfio.example.org"
    assert [one.name for one in configuration.resources] == ["vfio.example.org/gpu"]


def test_a_good_file_that_goes_away_stays_in_force(tmp_path: Path) -> None:
    path = tmp_path / "resources.yaml"
    path.write_text("resources: []\nothers: ignore\n")
    config = ConfigFile(path)
    before = config.look()
    os.rename(path, tmp_path / "elsewhere")
    now = config.look()
    assert now.configuration == before.configuration
    assert now.problem.startswith(f"{path}: cannot be read: No such file")
    os.rename(tmp_path / "elsewhere", path)
    assert config.look() == before


def test_an_agent_without_a_file_has_no_yaml_in_memory() -> None:
    code = "import sys, migcompat_deviceplugin.cli; sys.exit('yaml' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
