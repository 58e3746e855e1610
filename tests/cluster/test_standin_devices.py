"""The kubelet stand-in treats device plugins, and pods that ask for devices, as a kubelet 1.36 does."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from migcompat.kubelet.deviceplugin_v1beta1 import deviceplugin_pb2 as dp
from migcompat.kubelet.deviceplugin_v1beta1 import deviceplugin_pb2_grpc as dp_grpc
from migcompat.kubelet.podresources import PodResources

from tests.cluster.cluster import Cluster
from tests.cluster.standin import pod as standin_pod

pytestmark = pytest.mark.cluster

RESOURCE = "example.com/widget"
OPTIONS = dp.DevicePluginOptions(pre_start_required=True, get_preferred_allocation_available=True)


class Plugin(dp_grpc.DevicePluginServicer):
    """A device plugin with two devices that refuses when told to.

    ``calls``: each call's name with the devices that PodResources showed meanwhile.
    """

    def __init__(self, kubelet_dir: Path) -> None:
        self.directory = kubelet_dir / "device-plugins"
        self.refuse_allocate = ""
        self.refuse_start = ""
        self.calls: list[tuple[str, set[str]]] = []
        self._pod_resources = PodResources(kubelet_dir / "pod-resources" / "kubelet.sock")

    async def start(self) -> None:
        self.server = grpc.aio.server()
        dp_grpc.add_DevicePluginServicer_to_server(self, self.server)
        self.server.add_insecure_port(f"unix:{self.directory / 'widget.sock'}")
        await self.server.start()
        options = [("grpc.default_authority", "localhost")]
        async with grpc.aio.insecure_channel(f"unix:{self.directory / 'kubelet.sock'}", options) as channel:
            await dp_grpc.RegistrationStub(channel).Register(
                dp.RegisterRequest(
                    version="v1beta1",
                    endpoint="widget.sock",
                    resource_name=RESOURCE,
                    options=OPTIONS,
                )
            )

    async def stop(self) -> None:
        await self.server.stop(0)

    async def GetDevicePluginOptions(self, request: Any, context: Any) -> dp.DevicePluginOptions:
        return OPTIONS

    async def ListAndWatch(self, request: Any, context: Any) -> Any:
        yield dp.ListAndWatchResponse(devices=[dp.Device(ID=i, health="Healthy") for i in ("a", "b")])
        await asyncio.Event().wait()

    async def GetPreferredAllocation(self, request: Any, context: Any) -> dp.PreferredAllocationResponse:
        await self._note("GetPreferredAllocation")
        (asked,) = request.container_requests
        preferred = asked.available_deviceIDs[-asked.allocation_size :]
        return dp.PreferredAllocationResponse(
            container_responses=[dp.ContainerPreferredAllocationResponse(deviceIDs=preferred)]
        )

    async def Allocate(self, request: Any, context: Any) -> dp.AllocateResponse:
        await self._note("Allocate")
        if self.refuse_allocate:
            await context.abort(grpc.StatusCode.UNKNOWN, self.refuse_allocate)
        return dp.AllocateResponse(
            container_responses=[dp.ContainerAllocateResponse() for _ in request.container_requests]
        )

    async def PreStartContainer(self, request: Any, context: Any) -> dp.PreStartContainerResponse:
        await self._note("PreStartContainer")
        if self.refuse_start:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, self.refuse_start)
        return dp.PreStartContainerResponse()

    async def _note(self, call: str) -> None:
        shown = await self._pod_resources.allocations()
        self.calls.append((call, {device for _, device in shown}))


@pytest.fixture
def plugin(harness: Cluster) -> Iterator[Plugin]:
    plugin = Plugin(harness.nodes["node-1"].devices.kubelet_dir)
    harness.run(plugin.start())
    harness.wait(lambda: allocatable(harness) == "2", "the node offers two")
    yield plugin
    harness.run(plugin.stop())
    harness.wait(lambda: allocatable(harness) == "0", "the node offers none")


def allocatable(harness: Cluster) -> str:
    return str(harness.plane.get("node", "node-1")["status"]["allocatable"].get(RESOURCE, ""))


def make(harness: Cluster, *names: str) -> None:
    container = {"name": "main", "image": "none", "resources": {"limits": {RESOURCE: "1"}}}
    pods = [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"containers": [container], "terminationGracePeriodSeconds": 0},
        }
        for name in names
    ]
    harness.plane.apply(*pods)


def status(harness: Cluster, name: str) -> dict[str, Any]:
    return dict(harness.plane.get("pod", name)["status"])


def test_devices_are_held_from_admission_to_the_end(harness: Cluster, plugin: Plugin) -> None:
    make(harness, "one")
    harness.wait(lambda: status(harness, "one")["phase"] == "Running", "it runs")

    assert plugin.calls == [
        ("GetPreferredAllocation", set()),
        ("Allocate", set()),
        ("PreStartContainer", {"b"}),
    ]
    assert harness.held("node-1", RESOURCE) == {"one": ["b"]}
    harness.plane.kubectl("delete", "pod", "one", "--timeout=20s")
    assert harness.held("node-1", RESOURCE) == {}


def test_pods_that_arrive_together_are_all_admitted_before_pod_resources_shows_any(
    harness: Cluster, plugin: Plugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness.nodes["node-1"].devices, "shown_after", 3.0)
    make(harness, "four", "five")
    for name in ("four", "five"):
        harness.wait(lambda name=name: status(harness, name)["phase"] == "Running", "it runs")  # type: ignore[misc]

    blind: list[tuple[str, set[str]]] = [("GetPreferredAllocation", set()), ("Allocate", set())]
    assert plugin.calls[:4] == [*blind, *blind]
    assert [call for call, _ in plugin.calls[4:]] == ["PreStartContainer", "PreStartContainer"]
    held = harness.held("node-1", RESOURCE)
    assert sorted(held["four"] + held["five"]) == ["a", "b"]
    harness.plane.kubectl("delete", "pod", "four", "five", "--timeout=20s")


def test_a_refused_allocation_fails_the_pod_for_good(harness: Cluster, plugin: Plugin) -> None:
    plugin.refuse_allocate = "widget is gone"
    make(harness, "two")
    harness.wait(lambda: status(harness, "two")["phase"] == "Failed", "it has failed")

    assert status(harness, "two")["reason"] == "UnexpectedAdmissionError"
    assert "widget is gone" in status(harness, "two")["message"]
    assert harness.held("node-1", RESOURCE) == {}
    harness.plane.kubectl("delete", "pod", "two", "--timeout=20s")


def test_a_refused_start_leaves_the_pod_waiting_and_is_asked_again(
    harness: Cluster, plugin: Plugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standin_pod, "PRESTART_RETRY", 0.5)
    plugin.refuse_start = "it does not fit"
    make(harness, "three")

    def waiting() -> dict[str, Any]:
        return dict(status(harness, "three")["containerStatuses"][0]["state"].get("waiting", {}))

    harness.wait(lambda: waiting().get("reason") == "CreateContainerConfigError", "it waits")
    assert "it does not fit" in waiting()["message"]
    assert status(harness, "three")["phase"] == "Pending"
    assert harness.held("node-1", RESOURCE) == {"three": ["b"]}

    plugin.refuse_start = ""
    harness.wait(lambda: status(harness, "three")["phase"] == "Running", "it runs")
    assert [call for call, _ in plugin.calls].count("Allocate") == 1
    harness.plane.kubectl("delete", "pod", "three", "--timeout=20s")


def test_a_restarted_kubelet_forgets_its_plugins_until_they_register(
    harness: Cluster, plugin: Plugin
) -> None:
    harness.restart_kubelet("node-1")
    assert allocatable(harness) == "0"
    assert not (plugin.directory / "widget.sock").exists()

    harness.run(plugin.stop())
    harness.run(plugin.start())

    harness.wait(lambda: allocatable(harness) == "2", "both are back")
