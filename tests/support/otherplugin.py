"""A device plugin of somebody else on the kubelet of a test, as far as its ids go.

Like those of KubeVirt (pkg/virt-handler/device-manager) and NVIDIA it does not ask for PreStartContainer.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio
from migcompat.kubelet.deviceplugin_v1beta1 import deviceplugin_pb2 as pb
from migcompat.kubelet.deviceplugin_v1beta1 import deviceplugin_pb2_grpc as pb_grpc
from migcompat.kubelet.registration import register


class OtherPlugin(pb_grpc.DevicePluginServicer):
    """Serves *devices* of *resource*: by id whether each is healthy. ``allocated``: what was asked for."""

    def __init__(self, resource: str, devices: Mapping[str, bool]) -> None:
        self.resource = resource
        self.allocated: list[str] = []
        self._devices = dict(devices)
        self._changed = asyncio.Event()

    def say(self, devices: Mapping[str, bool]) -> None:
        """The devices are others now."""
        self._devices = dict(devices)
        self._changed.set()

    async def GetDevicePluginOptions(
        self, request: pb.Empty, context: grpc.aio.ServicerContext[pb.Empty, pb.DevicePluginOptions]
    ) -> pb.DevicePluginOptions:
        return pb.DevicePluginOptions()

    async def ListAndWatch(
        self, request: pb.Empty, context: grpc.aio.ServicerContext[pb.Empty, pb.ListAndWatchResponse]
    ) -> AsyncIterator[pb.ListAndWatchResponse]:
        while True:
            self._changed.clear()
            yield pb.ListAndWatchResponse(
                devices=[
                    pb.Device(ID=id_, health="Healthy" if healthy else "Unhealthy")
                    for id_, healthy in self._devices.items()
                ]
            )
            await self._changed.wait()

    async def Allocate(
        self,
        request: pb.AllocateRequest,
        context: grpc.aio.ServicerContext[pb.AllocateRequest, pb.AllocateResponse],
    ) -> pb.AllocateResponse:
        for asked in request.container_requests:
            self.allocated += asked.devices_ids
        answers = [pb.ContainerAllocateResponse() for _ in request.container_requests]
        return pb.AllocateResponse(container_responses=answers)


@asynccontextmanager
async def other_plugin(plugin_dir: Path, resource: str, *ids: str) -> AsyncIterator[OtherPlugin]:
    """The plugin, registered; at the end it goes without a word, as plugins do."""
    plugin = OtherPlugin(resource, dict.fromkeys(ids, True))
    socket = plugin_dir / f"{hashlib.sha256(resource.encode()).hexdigest()[:10]}.sock"
    socket.unlink(missing_ok=True)
    server = grpc.aio.server()
    pb_grpc.add_DevicePluginServicer_to_server(plugin, server)
    server.add_insecure_port(f"unix:{socket}")
    await server.start()
    await register(plugin_dir / "kubelet.sock", socket.name, resource, pb.DevicePluginOptions())
    try:
        yield plugin
    finally:
        await server.stop(0)
        socket.unlink(missing_ok=True)
