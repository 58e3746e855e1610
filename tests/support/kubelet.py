"""The device-facing half of a kubelet, in this process: device manager and PodResources over real sockets.

Behaves as measured on a kubelet 1.36: a start deletes every socket in ``device-plugins``; Register dials the
plugin back and asks for its options before it answers; every ListAndWatch message replaces the whole set of a
resource's devices; a plugin that goes away leaves its devices unhealthy. Pods that arrive together are
admitted one right after the other (GetPreferredAllocation, whose answer is followed, then Allocate): a device
is reserved at once, but PodResources shows it only ``SHOWN_AFTER`` later, so the plugin serves them all
without knowing any of them. By the time of PreStartContainer PodResources names the pod, one entry a device.
Allocations survive a restart (the checkpoint).
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import grpc.aio
from migcompat.kubelet.deviceplugin_v1beta1 import deviceplugin_pb2 as dp
from migcompat.kubelet.deviceplugin_v1beta1 import deviceplugin_pb2_grpc as dp_grpc
from migcompat.kubelet.podresources_v1 import podresources_pb2 as pr
from migcompat.kubelet.podresources_v1 import podresources_pb2_grpc as pr_grpc

OPTIONS = (("grpc.default_authority", "localhost"),)
DIAL_TIMEOUT = 10.0
PRESTART_TIMEOUT = 30.0
ALLOCATE_TIMEOUT = 60.0
SHOWN_AFTER = 0.3
"""Seconds from a pod's admission until PodResources shows its devices.

Measured on a kubelet 1.36, two pods together: empty while both were admitted, within 20 ms; half a second
later, at PreStartContainer, the pod was named. This is about the middle."""

PodKey = tuple[str, str]


class AdmissionError(Exception):
    """The pod cannot have its devices; a kubelet fails it with ``UnexpectedAdmissionError``."""


class PreStartError(Exception):
    """A plugin refused the container; a kubelet reports ``CreateContainerConfigError`` and asks again."""


@dataclass
class Plugin:
    """One registered endpoint. ``options``: what GetDevicePluginOptions answered.

    Those count: a kubelet 1.36 does not look at the ones in Register (``ManagerImpl.PluginConnected`` in
    pkg/kubelet/cm/devicemanager/manager.go).
    """

    resource: str
    endpoint: str
    options: dp.DevicePluginOptions
    channel: grpc.aio.Channel
    watch: asyncio.Task[None] | None = None

    @property
    def stub(self) -> dp_grpc.DevicePluginStub:
        return dp_grpc.DevicePluginStub(self.channel)


def _set() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event


@dataclass
class DeviceManager:
    """The device manager of the kubelet whose directory is *kubelet_dir* (``/var/lib/kubelet``).

    ``resources``: per resource name the devices and whether each is healthy. ``messages``: every
    ListAndWatch message received, in order. ``topology``: NUMA nodes of each device. ``pods``: what each
    container of each pod holds, or is being given. ``registrations``: every Register call that was accepted.
    ``shown_after``: seconds until PodResources shows an admitted pod. ``knows_pod_resources``: whether it is
    new enough to serve that at its next start, ``tells_offers`` whether that has GetAllocatableResources.
    ``takes_registrations``: what Register waits for.
    """

    kubelet_dir: Path
    resources: dict[str, dict[str, bool]] = field(default_factory=dict)
    messages: list[tuple[str, dict[str, bool]]] = field(default_factory=list)
    topology: dict[str, list[int]] = field(default_factory=dict)
    pods: dict[PodKey, dict[str, dict[str, list[str]]]] = field(default_factory=dict)
    registrations: list[dp.RegisterRequest] = field(default_factory=list)
    shown_after: float = SHOWN_AFTER
    knows_pod_resources: bool = True
    tells_offers: bool = True
    takes_registrations: asyncio.Event = field(default_factory=_set)
    _shown_at: dict[PodKey, float] = field(default_factory=dict)
    _plugins: dict[str, Plugin] = field(default_factory=dict)
    _server: grpc.aio.Server | None = None
    _pod_resources: grpc.aio.Server | None = None
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    @property
    def plugin_dir(self) -> Path:
        return self.kubelet_dir / "device-plugins"

    @property
    def plugins(self) -> Mapping[str, Plugin]:
        """The endpoints whose ListAndWatch streams are open, by resource."""
        return self._plugins

    async def start(self) -> None:
        """Delete every socket, then serve Registration and PodResources."""
        self.plugin_dir.mkdir(parents=True, exist_ok=True)
        for path in self.plugin_dir.iterdir():
            if path.is_socket():
                path.unlink()
        self._server = grpc.aio.server()
        dp_grpc.add_RegistrationServicer_to_server(_Registration(self), self._server)
        self._server.add_insecure_port(f"unix:{self.plugin_dir / 'kubelet.sock'}")
        await self._server.start()
        await self.start_pod_resources()

    async def start_pod_resources(self) -> None:
        """Serve PodResources (a kubelet does so some time after Registration)."""
        directory = self.kubelet_dir / "pod-resources"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "kubelet.sock").unlink(missing_ok=True)
        self._pod_resources = grpc.aio.server()
        if self.knows_pod_resources:
            pr_grpc.add_PodResourcesListerServicer_to_server(_PodResources(self), self._pod_resources)
        self._pod_resources.add_insecure_port(f"unix:{directory / 'kubelet.sock'}")
        await self._pod_resources.start()

    async def stop_pod_resources(self) -> None:
        """Stop serving PodResources only."""
        if self._pod_resources is not None:
            await self._pod_resources.stop(0)
            self._pod_resources = None

    async def stop(self) -> None:
        """End: all streams and servers; capacities are 0 from here on, allocations stay."""
        for plugin in list(self._plugins.values()):
            await self._drop(plugin)
        if self._server is not None:
            await self._server.stop(0)
            self._server = None
        await self.stop_pod_resources()
        for name in self.resources:
            self.resources[name] = {}

    async def restart(self) -> None:
        """What a restarted kubelet does to its plugins."""
        await self.stop()
        await self.start()

    async def wait_for(self, condition: Callable[[], bool], within: float = 20.0) -> None:
        """Wait until *condition* holds after some message or registration (TimeoutError says the state)."""
        try:
            async with asyncio.timeout(within), self._changed:
                await self._changed.wait_for(condition)
        except TimeoutError:
            raise TimeoutError(f"resources are {self.resources}") from None

    async def forget(self, resource: str) -> None:
        """Close the connection to a plugin, as after an error: nothing else tells it."""
        await self._drop(self._plugins[resource])

    def allocated(self, resource: str) -> set[str]:
        """Devices of *resource* that some pod holds, whether PodResources shows it yet or not."""
        return {
            device
            for containers in self.pods.values()
            for held in containers.values()
            for device in held.get(resource, ())
        }

    def free(self, resource: str) -> list[str]:
        """Healthy devices of *resource* that no pod holds, sorted."""
        devices = self.resources.get(resource, {})
        taken = self.allocated(resource)
        return sorted(d for d, healthy in devices.items() if healthy and d not in taken)

    def shown(self) -> list[PodKey]:
        """The pods that PodResources shows by now."""
        now = time.monotonic()
        return [key for key in self.pods if self._shown_at.get(key, math.inf) <= now]

    async def admit(
        self, pod_namespace: str, pod_name: str, container: str, wanted: Mapping[str, int]
    ) -> dict[str, dp.ContainerAllocateResponse]:
        """Give a container its devices: GetPreferredAllocation where offered, then Allocate.

        Call it for one pod after another. Raises AdmissionError with the kubelet's or the plugin's words.
        """
        answers: dict[str, dp.ContainerAllocateResponse] = {}
        key = (pod_namespace, pod_name)
        held = self.pods.setdefault(key, {}).setdefault(container, {})
        for resource, count in wanted.items():
            if len(held.get(resource, ())) >= count:
                continue
            self._shown_at.pop(key, None)
            try:
                chosen = await self._choose(resource, count)
                plugin = self._plugins[resource]
                held[resource] = chosen
                request = dp.ContainerAllocateRequest(devices_ids=chosen)
                response = await plugin.stub.Allocate(
                    dp.AllocateRequest(container_requests=[request]), timeout=ALLOCATE_TIMEOUT
                )
            except AdmissionError:
                self.release(pod_namespace, pod_name)
                raise
            except grpc.aio.AioRpcError as error:
                self.release(pod_namespace, pod_name)
                raise AdmissionError(
                    f"Allocate failed due to rpc error: code = {error.code().name} desc = {error.details()}"
                ) from error
            answers[resource] = response.container_responses[0]
            self._write_checkpoint()
        self._shown_at.setdefault(key, time.monotonic() + self.shown_after)
        return answers

    async def prestart(self, pod_namespace: str, pod_name: str, container: str) -> None:
        """Ask the plugins that want it before the container starts; raises PreStartError with their words.

        Waits until PodResources shows the pod, as it has always done by the time of this call.
        """
        key = (pod_namespace, pod_name)
        await asyncio.sleep(self._shown_at.get(key, 0.0) - time.monotonic())
        for resource, devices in self.pods.get(key, {}).get(container, {}).items():
            plugin = self._plugins.get(resource)
            if plugin is None:
                raise PreStartError(f"endpoint not found in cache for a registered resource: {resource}")
            if not plugin.options.pre_start_required:
                continue
            request = dp.PreStartContainerRequest(devices_ids=devices)
            try:
                await plugin.stub.PreStartContainer(request, timeout=PRESTART_TIMEOUT)
            except grpc.aio.AioRpcError as error:
                raise PreStartError(
                    f"rpc error: code = {error.code().name} desc = {error.details()}"
                ) from error

    def release(self, pod_namespace: str, pod_name: str) -> None:
        """The pod is over: its devices are free (plugins are not told; there is no Deallocate)."""
        self.pods.pop((pod_namespace, pod_name), None)
        self._shown_at.pop((pod_namespace, pod_name), None)

    async def _choose(self, resource: str, count: int) -> list[str]:
        available = self.free(resource)
        plugin = self._plugins.get(resource)
        if plugin is None or len(available) < count:
            raise AdmissionError(
                f"Allocate failed due to requested number of devices unavailable for {resource}. "
                f"Requested: {count}, Available: {len(available)}"
            )
        if not plugin.options.get_preferred_allocation_available:
            return available[:count]
        request = dp.ContainerPreferredAllocationRequest(available_deviceIDs=available, allocation_size=count)
        answer = await plugin.stub.GetPreferredAllocation(
            dp.PreferredAllocationRequest(container_requests=[request]), timeout=ALLOCATE_TIMEOUT
        )
        preferred = answer.container_responses[0].deviceIDs if answer.container_responses else ()
        usable = [device for device in dict.fromkeys(preferred) if device in available]
        return (usable + [device for device in available if device not in usable])[:count]

    async def _register(self, request: dp.RegisterRequest) -> None:
        """Dial back, ask for the options, then watch; replaces an earlier endpoint of the same resource.

        Raises TimeoutError when nothing serves the endpoint, AioRpcError when it does not tell its options.
        """
        channel = grpc.aio.insecure_channel(f"unix:{self.plugin_dir / request.endpoint}", options=OPTIONS)
        try:
            await asyncio.wait_for(channel.channel_ready(), DIAL_TIMEOUT)
            asked = dp_grpc.DevicePluginStub(channel).GetDevicePluginOptions(dp.Empty(), timeout=DIAL_TIMEOUT)
            options = await asked
        except (TimeoutError, grpc.aio.AioRpcError):
            await channel.close(None)
            raise
        former = self._plugins.get(request.resource_name)
        if former is not None:
            await self._drop(former)
        plugin = Plugin(request.resource_name, request.endpoint, options, channel)
        self._plugins[request.resource_name] = plugin
        self.registrations.append(request)
        plugin.watch = asyncio.create_task(self._watch(plugin))
        await self._notify()

    async def _watch(self, plugin: Plugin) -> None:
        """Take the devices from each message; the stream's end leaves them unhealthy."""
        try:
            async for message in plugin.stub.ListAndWatch(dp.Empty()):
                devices = {device.ID: device.health == "Healthy" for device in message.devices}
                for device in message.devices:
                    self.topology[device.ID] = [node.ID for node in device.topology.nodes]
                self.resources[plugin.resource] = devices
                self.messages.append((plugin.resource, devices))
                self._write_checkpoint()
                await self._notify()
        except grpc.aio.AioRpcError:
            pass  # the plugin went away; what that means is the same as for an orderly end
        if self._plugins.get(plugin.resource) is plugin:
            del self._plugins[plugin.resource]
            self.resources[plugin.resource] = dict.fromkeys(self.resources.get(plugin.resource, {}), False)
            await self._notify()
        await plugin.channel.close(None)

    async def _drop(self, plugin: Plugin) -> None:
        if self._plugins.get(plugin.resource) is plugin:
            del self._plugins[plugin.resource]
        if plugin.watch is not None:
            plugin.watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await plugin.watch
        await plugin.channel.close(None)

    def _write_checkpoint(self) -> None:
        """Replace the checkpoint by another file, as after each list of devices and each allocation."""
        news = self.plugin_dir / ".checkpoint"
        news.write_text("{}")
        news.rename(self.plugin_dir / "kubelet_internal_checkpoint")

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()


class _Registration(dp_grpc.RegistrationServicer):
    def __init__(self, manager: DeviceManager) -> None:
        self._manager = manager

    async def Register(
        self,
        request: dp.RegisterRequest,
        context: grpc.aio.ServicerContext[dp.RegisterRequest, dp.Empty],
    ) -> dp.Empty:
        name = request.resource_name.partition("/")[2]
        if request.version != "v1beta1":
            await context.abort(grpc.StatusCode.UNKNOWN, "requested API version is not supported by kubelet")
        if not name or len(name) > 63 or "kubernetes.io/" in request.resource_name:
            await context.abort(
                grpc.StatusCode.UNKNOWN, f"the ResourceName {request.resource_name!r} is invalid"
            )
        await self._manager.takes_registrations.wait()
        try:
            await self._manager._register(request)
        except TimeoutError:
            await context.abort(grpc.StatusCode.UNKNOWN, f"failed to dial device plugin {request.endpoint}")
        except grpc.aio.AioRpcError as error:
            text = f"rpc error: code = {error.code().name} desc = {error.details()}"
            await context.abort(grpc.StatusCode.UNKNOWN, f"failed to get device plugin options: {text}")
        return dp.Empty()


class _PodResources(pr_grpc.PodResourcesListerServicer):
    def __init__(self, manager: DeviceManager) -> None:
        self._manager = manager

    def _pod(self, key: PodKey) -> pr.PodResources:
        containers = [
            pr.ContainerResources(
                name=name,
                devices=[
                    pr.ContainerDevices(
                        resource_name=resource,
                        device_ids=[device],
                        topology=pr.TopologyInfo(
                            nodes=[pr.NUMANode(ID=n) for n in self._manager.topology.get(device, ())]
                        ),
                    )
                    for resource, devices in held.items()
                    for device in devices
                ],
            )
            for name, held in self._manager.pods[key].items()
        ]
        return pr.PodResources(namespace=key[0], name=key[1], containers=containers)

    async def List(
        self,
        request: pr.ListPodResourcesRequest,
        context: grpc.aio.ServicerContext[pr.ListPodResourcesRequest, pr.ListPodResourcesResponse],
    ) -> pr.ListPodResourcesResponse:
        return pr.ListPodResourcesResponse(pod_resources=[self._pod(key) for key in self._manager.shown()])

    async def GetAllocatableResources(
        self,
        request: pr.AllocatableResourcesRequest,
        context: grpc.aio.ServicerContext[pr.AllocatableResourcesRequest, pr.AllocatableResourcesResponse],
    ) -> pr.AllocatableResourcesResponse:
        if not self._manager.tells_offers:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "unknown method GetAllocatableResources")
        devices = [
            pr.ContainerDevices(resource_name=resource, device_ids=[device])
            for resource, known in self._manager.resources.items()
            for device, healthy in known.items()
            if healthy
        ]
        return pr.AllocatableResourcesResponse(devices=devices)

    async def Get(
        self,
        request: pr.GetPodResourcesRequest,
        context: grpc.aio.ServicerContext[pr.GetPodResourcesRequest, pr.GetPodResourcesResponse],
    ) -> pr.GetPodResourcesResponse:
        key = (request.pod_namespace, request.pod_name)
        if key not in self._manager.shown():
            await context.abort(grpc.StatusCode.UNKNOWN, f"pod {key[1]} in namespace {key[0]} not found")
        return pr.GetPodResourcesResponse(pod_resources=self._pod(key))


@contextlib.asynccontextmanager
async def running_device_manager(kubelet_dir: Path) -> AsyncIterator[DeviceManager]:
    """A started DeviceManager, stopped at the end."""
    manager = DeviceManager(kubelet_dir)
    await manager.start()
    try:
        yield manager
    finally:
        await manager.stop()
