"""The kubelet's APIs: generated code, client side, and the kubelet that the tests use."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc.aio
import pytest
from migcompat.api.vfionode import PodRef
from migcompat.kubelet import connection, registration
from migcompat.kubelet.connection import Kept, KubeletError
from migcompat.kubelet.deviceplugin_v1beta1 import deviceplugin_pb2 as pb
from migcompat.kubelet.deviceplugin_v1beta1 import deviceplugin_pb2_grpc as pb_grpc
from migcompat.kubelet.podresources import PodResources
from migcompat.kubelet.podresources_v1 import podresources_pb2, podresources_pb2_grpc
from migcompat.kubelet.registration import register

from tests.support.kubelet import DeviceManager, PreStartError, running_device_manager
from tests.tools.generate_protos import CORE, generate

RESOURCE = "vfio.example.org/thing"


class Plugin(pb_grpc.DevicePluginServicer):
    tells_options = True

    async def GetDevicePluginOptions(
        self, request: pb.Empty, context: grpc.aio.ServicerContext[pb.Empty, pb.DevicePluginOptions]
    ) -> pb.DevicePluginOptions:
        if not self.tells_options:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
        return pb.DevicePluginOptions(pre_start_required=True)

    async def ListAndWatch(
        self, request: pb.Empty, context: grpc.aio.ServicerContext[pb.Empty, pb.ListAndWatchResponse]
    ) -> AsyncIterator[pb.ListAndWatchResponse]:
        yield pb.ListAndWatchResponse(
            devices=[pb.Device(ID="a", health="Healthy"), pb.Device(ID="b", health="Unhealthy")]
        )
        await asyncio.Event().wait()

    async def Allocate(
        self,
        request: pb.AllocateRequest,
        context: grpc.aio.ServicerContext[pb.AllocateRequest, pb.AllocateResponse],
    ) -> pb.AllocateResponse:
        (asked,) = request.container_requests
        answer = pb.ContainerAllocateResponse(envs={"IDS": ",".join(asked.devices_ids)})
        return pb.AllocateResponse(container_responses=[answer])

    async def PreStartContainer(
        self,
        request: pb.PreStartContainerRequest,
        context: grpc.aio.ServicerContext[pb.PreStartContainerRequest, pb.PreStartContainerResponse],
    ) -> pb.PreStartContainerResponse:
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not today")


@pytest.fixture
async def kubelet(tmp_path: Path) -> AsyncIterator[DeviceManager]:
    async with running_device_manager(tmp_path) as manager:
        yield manager


@pytest.fixture
async def plugin(kubelet: DeviceManager) -> AsyncIterator[str]:
    server = grpc.aio.server()
    pb_grpc.add_DevicePluginServicer_to_server(Plugin(), server)
    server.add_insecure_port(f"unix:{kubelet.plugin_dir / 'thing.sock'}")
    await server.start()
    yield "thing.sock"
    await server.stop(0)


def test_generated_code_is_up_to_date(tmp_path: Path) -> None:
    for path in generate(tmp_path):
        committed = CORE / path.relative_to(tmp_path)
        assert committed.read_text() == path.read_text(), f"{committed}: run `make generate`"


def test_protos_do_not_clash_with_other_files_named_api_proto() -> None:
    assert pb.DESCRIPTOR.name == "migcompat/kubelet/deviceplugin_v1beta1/deviceplugin.proto"
    assert pb.DESCRIPTOR.package == "v1beta1"
    assert podresources_pb2.DESCRIPTOR.name == "migcompat/kubelet/podresources_v1/podresources.proto"
    assert podresources_pb2.DESCRIPTOR.package == "v1"


async def test_registered_devices_are_allocated_and_named_in_pod_resources_before_the_start(
    kubelet: DeviceManager, plugin: str
) -> None:
    """The options of Register are empty: those of GetDevicePluginOptions count."""
    kubelet.shown_after = 1.0
    await register(kubelet.plugin_dir / "kubelet.sock", plugin, RESOURCE, pb.DevicePluginOptions())
    await kubelet.wait_for(lambda: RESOURCE in kubelet.resources)
    pod_resources = PodResources(kubelet.kubelet_dir / "pod-resources/kubelet.sock")

    answers = await kubelet.admit("ns", "pod", "compute", {RESOURCE: 1})

    assert answers[RESOURCE].envs["IDS"] == "a"
    assert kubelet.free(RESOURCE) == []
    assert await pod_resources.allocations() == {}
    with pytest.raises(PreStartError, match="not today"):
        await kubelet.prestart("ns", "pod", "compute")
    assert await pod_resources.allocations() == {(RESOURCE, "a"): PodRef("ns", "pod")}


async def test_plugin_that_does_not_tell_its_options_is_not_registered(
    kubelet: DeviceManager, plugin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Plugin, "tells_options", False)
    with pytest.raises(KubeletError, match="failed to get device plugin options"):
        await register(kubelet.plugin_dir / "kubelet.sock", plugin, RESOURCE, pb.DevicePluginOptions())
    assert not kubelet.plugins


async def test_refused_registration_says_why(kubelet: DeviceManager, plugin: str) -> None:
    with pytest.raises(KubeletError, match="is invalid"):
        await register(kubelet.plugin_dir / "kubelet.sock", plugin, "no-slash", pb.DevicePluginOptions())


async def test_a_kubelet_that_takes_no_registration_is_not_waited_for(
    kubelet: DeviceManager, plugin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registration, "DEADLINE", 0.1)
    kubelet.takes_registrations.clear()
    with pytest.raises(KubeletError, match="DEADLINE_EXCEEDED"):
        await register(kubelet.plugin_dir / "kubelet.sock", plugin, RESOURCE, pb.DevicePluginOptions())
    kubelet.takes_registrations.set()


async def test_absent_kubelet_is_an_error_with_its_socket(tmp_path: Path) -> None:
    with pytest.raises(KubeletError, match=r"kubelet\.sock"):
        await PodResources(tmp_path / "kubelet.sock").allocations()


async def test_a_kubelet_that_is_back_is_heard_at_once(kubelet: DeviceManager) -> None:
    """A call must not inherit the backoff of an earlier one: the guard asks only for so long."""
    socket = kubelet.kubelet_dir / "pod-resources/kubelet.sock"
    client = PodResources(socket)
    await kubelet.stop_pod_resources()
    socket.touch()
    for _ in range(5):
        with pytest.raises(KubeletError, match="UNAVAILABLE"):
            await client.allocations()
    await kubelet.start_pod_resources()
    assert await client.allocations() == {}


class Answers(podresources_pb2_grpc.PodResourcesListerServicer):
    """A kubelet that puts several devices into one entry; ``ready``: it answers at all."""

    def __init__(self) -> None:
        self.ready = asyncio.Event()

    async def List(
        self,
        request: podresources_pb2.ListPodResourcesRequest,
        context: grpc.aio.ServicerContext[
            podresources_pb2.ListPodResourcesRequest, podresources_pb2.ListPodResourcesResponse
        ],
    ) -> podresources_pb2.ListPodResourcesResponse:
        await self.ready.wait()
        containers = [
            podresources_pb2.ContainerResources(name=name, devices=[entry(*ids)])
            for name, ids in (("compute", "ab"), ("sidecar", "c"))
        ]
        pod = podresources_pb2.PodResources(namespace="ns", name="pod", containers=containers)
        return podresources_pb2.ListPodResourcesResponse(pod_resources=[pod])

    async def GetAllocatableResources(
        self,
        request: podresources_pb2.AllocatableResourcesRequest,
        context: grpc.aio.ServicerContext[
            podresources_pb2.AllocatableResourcesRequest, podresources_pb2.AllocatableResourcesResponse
        ],
    ) -> podresources_pb2.AllocatableResourcesResponse:
        await self.ready.wait()
        devices = [entry("a", "b"), entry("c"), entry("d", resource="example.org/other")]
        return podresources_pb2.AllocatableResourcesResponse(devices=devices)


def entry(*ids: str, resource: str = RESOURCE) -> podresources_pb2.ContainerDevices:
    return podresources_pb2.ContainerDevices(resource_name=resource, device_ids=ids)


@pytest.fixture
async def answers(tmp_path: Path) -> AsyncIterator[Answers]:
    made = Answers()
    server = grpc.aio.server()
    podresources_pb2_grpc.add_PodResourcesListerServicer_to_server(made, server)
    server.add_insecure_port(f"unix:{tmp_path / 'answers.sock'}")
    await server.start()
    yield made
    await server.stop(0)


async def test_entries_of_one_device_or_of_several_are_read(tmp_path: Path, answers: Answers) -> None:
    answers.ready.set()
    asked = PodResources(tmp_path / "answers.sock")
    assert await asked.allocations() == dict.fromkeys(((RESOURCE, id_) for id_ in "abc"), PodRef("ns", "pod"))
    assert await asked.offers() == {RESOURCE: frozenset("abc"), "example.org/other": frozenset("d")}
    await asked.close()


async def test_a_kubelet_that_does_not_answer_is_not_waited_for(tmp_path: Path, answers: Answers) -> None:
    asked = PodResources(tmp_path / "answers.sock", deadline=0.1)
    for call in (asked.allocations, asked.offers):
        with pytest.raises(KubeletError, match="DEADLINE_EXCEEDED"):
            await call()
    answers.ready.set()
    await asked.close()


async def test_one_connection_serves_call_after_call(
    kubelet: DeviceManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    dialled: list[Path] = []
    dial = connection._dial

    def counted(socket: Path) -> connection._Line:
        dialled.append(socket)
        return dial(socket)

    monkeypatch.setattr(connection, "_dial", counted)
    asked = PodResources(kubelet.kubelet_dir / "pod-resources/kubelet.sock")
    for _ in range(3):
        assert await asked.allocations() == {}
    assert len(dialled) == 1
    await kubelet.restart()
    assert await asked.allocations() == {}
    assert len(dialled) == 2, "the socket is another file"
    await kubelet.stop_pod_resources()
    with pytest.raises(KubeletError):
        await asked.allocations()
    await asked.close()


async def test_a_call_that_fails_harms_no_other_on_the_same_connection(kubelet: DeviceManager) -> None:
    """Closing a channel cancels its calls, and with them whoever waits for one."""
    line = Kept(kubelet.kubelet_dir / "pod-resources/kubelet.sock")
    leave = asyncio.Event()

    async def fail() -> None:
        async with line.channel() as channel:
            await podresources_pb2_grpc.PodResourcesListerStub(channel).Get(
                podresources_pb2.GetPodResourcesRequest(pod_name="none", pod_namespace="of-this-name")
            )

    async def slow() -> int:
        async with line.channel() as channel:
            stub = podresources_pb2_grpc.PodResourcesListerStub(channel)
            await stub.List(podresources_pb2.ListPodResourcesRequest())
            await leave.wait()
            return len((await stub.List(podresources_pb2.ListPodResourcesRequest())).pod_resources)

    under_way = asyncio.create_task(slow())
    await asyncio.sleep(0)
    with pytest.raises(KubeletError, match="not found"):
        await fail()
    leave.set()
    assert await under_way == 0
    await line.close()
