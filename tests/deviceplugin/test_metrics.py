"""Metrics: what they count, and that the reference lists them all."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
from migcompat.api.vfionode import PodRef
from migcompat.sysfs.scan import ScanProblem
from migcompat_deviceplugin import metrics

from tests.deviceplugin.world import CONTAINER, POOL, World, eventually, uuid
from tests.support.kubelet import AdmissionError

REFERENCE = Path(__file__).parents[2] / "docs/reference/device-plugin.md"


def figure(name: str, **labels: str) -> float:
    return metrics.REGISTRY.get_sample_value(f"migcompat_agent_{name}", labels) or 0.0


def test_the_reference_lists_exactly_what_there_is_with_its_labels() -> None:
    section = REFERENCE.read_text().partition("\n## Metrics\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(migcompat_agent_\w+)` \|([^|]*)\|", section, re.M)
    told = {name: re.findall(r"`([a-z]+)`", re.sub(r"\([^)]*\)", "", labels)) for name, labels in rows}
    there = {
        collector._name: list(collector._labelnames)  # type: ignore[attr-defined]
        for collector in metrics.REGISTRY._collector_to_names
        if collector is not metrics.FIGURES
    }
    there |= {
        family.name: list(family._labelnames)  # type: ignore[attr-defined]
        for family in metrics.FIGURES.describe()
    }
    assert told == there


async def test_devices_and_allocations_are_counted(node: World) -> None:
    handed_out = figure("allocations_total", resource=POOL, outcome="HandedOut")
    refused = figure("allocations_total", resource=POOL, outcome="Refused")
    node.add(1)
    node.add(2)
    (node.add(3) / "driver").unlink()
    async with node.running() as agent:
        await node.registered(count=3)
        await node.kubelet.admit("ns", "pod", CONTAINER, {POOL: 1})
        await eventually(lambda: figure("allocated_devices", resource=POOL, kind="mdev") == 1)
        assert agent.state.allocations == {(POOL, uuid(1)): PodRef("ns", "pod")}
        assert figure("devices", resource=POOL, kind="mdev", health="Healthy") == 2
        assert figure("devices", resource=POOL, kind="mdev", health="Unhealthy") == 1
        assert figure("barred_devices") == 0, "something is wrong with the third"
        (node.device(2) / "mdev_type").unlink()
        with pytest.raises(AdmissionError):
            await node.kubelet.admit("ns", "other", CONTAINER, {POOL: 1})
    assert figure("allocations_total", resource=POOL, outcome="HandedOut") == handed_out + 1
    assert figure("allocations_total", resource=POOL, outcome="Refused") == refused + 1


async def test_kinds_are_told_apart(node: World) -> None:
    pf, vf, plain = "0000:01:00.0", "0000:01:00.1", "0000:02:00.0"
    node.add_function(f"pci0000:00/{pf}", group=1, driver="mlx5_vfio_pci")
    node.add_function(f"pci0000:00/{vf}", group=2, driver="mlx5_vfio_pci", physfn=pf)
    node.add_function(f"pci0000:00/{plain}", group=3)
    node.add(1)
    async with node.running() as agent:
        await eventually(lambda: len(agent.state.inventory) == 4)
        kinds: dict[str, float] = {}
        [devices] = [family for family in metrics.REGISTRY.collect() if family.name.endswith("agent_devices")]
        for sample in devices.samples:
            kinds[sample.labels["kind"]] = kinds.get(sample.labels["kind"], 0) + sample.value
        assert kinds == {"mdev": 1, "vf": 1, "pf": 1, "function": 1}


async def test_gauges_are_those_of_the_moment_and_not_of_the_last_scan(node: World) -> None:
    node.add(1)
    async with node.running(scan_interval=3600) as agent:
        await node.registered(count=1)
        device = agent.state.inventory[uuid(1)]
        assert figure("devices", resource=POOL, kind="mdev", health="Healthy") == 1
        found = msgspec.structs.replace(device.found, problem="broken")
        agent.state.amend({uuid(1): msgspec.structs.replace(device, found=found)})
        agent.state.set_allocations({(POOL, uuid(1)): PodRef("ns", "pod")})
        assert figure("devices", resource=POOL, kind="mdev", health="Healthy") == 0
        assert figure("allocated_devices", resource=POOL, kind="mdev") == 1
        agent.state.set_inventory({}, (ScanProblem("bus/x", "why"),))
        assert figure("scan_problems") == 1
        assert figure("devices", resource=POOL, kind="mdev", health="Unhealthy") == 0


async def test_a_target_with_the_device_that_was_preferred_for_it_is_a_hit(node: World) -> None:
    hits, misses = (figure("steering_total", outcome=outcome) for outcome in ("Hit", "Miss"))
    node.add(1, "2.0.0")
    node.add(2, "1.0.0")
    node.source_vm()
    pod = node.target_pod()
    async with node.running():
        await node.registered(count=2)
        await node.start_target(pod)
        assert figure("steering_total", outcome="Hit") == hits + 1
        await node.kubelet.prestart(pod.metadata.namespace, pod.metadata.name, CONTAINER)
    assert figure("steering_total", outcome="Hit") == hits + 1, "asked again, counted once"
    assert figure("steering_total", outcome="Miss") == misses


async def test_a_target_with_another_device_is_a_miss_and_who_was_not_steered_is_neither(node: World) -> None:
    hits, misses = (figure("steering_total", outcome=outcome) for outcome in ("Hit", "Miss"))
    node.add(1)
    node.add(2)
    node.source_vm()
    pod = node.target_pod()
    async with node.running() as agent:
        await node.registered(count=2)
        preferred = agent._preferred
        (chosen,) = await preferred.choose(POOL, [uuid(1), uuid(2)], [], 1)
        (other,) = {uuid(1), uuid(2)} - {chosen}
        preferred.settle("another pod", POOL, [chosen])
        preferred.settle(pod.metadata.uid, POOL, [other])
    assert figure("steering_total", outcome="Miss") == misses + 1
    assert figure("steering_total", outcome="Hit") == hits


async def test_a_kubelet_that_closes_streams_is_counted_and_gets_a_new_registration(node: World) -> None:
    ended = figure("streams_ended_total", resource=POOL)
    made = figure("registrations_total", resource=POOL)
    node.add(1)
    async with node.running():
        await node.registered()
        await node.kubelet.forget(POOL)
        await eventually(lambda: figure("streams_ended_total", resource=POOL) == ended + 1)
        await eventually(lambda: figure("registrations_total", resource=POOL) == made + 2)
        assert node.kubelet.resources[POOL] == {uuid(1): True}


async def test_a_kubelet_that_takes_no_registration_is_counted(node: World) -> None:
    failures = figure("registration_failures_total", resource=POOL)
    node.add(1)
    await node.kubelet.stop()
    await node.kubelet.start_pod_resources()
    async with node.running():
        await eventually(lambda: figure("registration_failures_total", resource=POOL) > failures)


async def test_an_api_server_that_refuses_is_counted(node: World) -> None:
    failures = figure("publish_failures_total")
    node.add(1)
    node.api.broken.add("vfionodes")
    async with node.running():
        await eventually(lambda: figure("publish_failures_total") > failures)
        node.api.broken.clear()
        await node.registered()
