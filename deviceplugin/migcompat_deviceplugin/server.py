"""The device plugin service of one resource, as the kubelet calls it (v1beta1)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import grpc
import grpc.aio
from migcompat.api.vfionode import Health
from migcompat.kubelet.deviceplugin_v1beta1 import deviceplugin_pb2 as pb
from migcompat.kubelet.deviceplugin_v1beta1 import deviceplugin_pb2_grpc as pb_grpc
from migcompat.kubelet.registration import HEALTHY, UNHEALTHY

from migcompat_deviceplugin import metrics
from migcompat_deviceplugin.allocate import Refused, answer
from migcompat_deviceplugin.devnodes import DevDir
from migcompat_deviceplugin.inventory import Device
from migcompat_deviceplugin.sysfs import Sysfs, SysfsError

log = logging.getLogger(__name__)

OPTIONS = pb.DevicePluginOptions(pre_start_required=True, get_preferred_allocation_available=True)
"""Said in Register and in GetDevicePluginOptions alike: the kubelet asks in both places."""

LEAVE_DEADLINE = 2.0
"""Seconds for the last word to a kubelet."""


class GuardRefusedError(Exception):
    """A container must not start with its devices; the text is for the pod's status."""


class Guarding(Protocol):
    """What decides before a container starts."""

    async def check(self, resource: str, ids: Sequence[str]) -> None:
        """Returns when the container may start with the devices *ids*; raises GuardRefusedError."""


class Asking(Protocol):
    """What may have a device open for a moment."""

    async def let_go(self, ids: Sequence[str]) -> None:
        """Returns when the devices *ids* are open nowhere here, and will not be opened any more.

        Raises Refused when one of them stays open.
        """


class Preferring(Protocol):
    """What says which devices to hand out."""

    async def choose(
        self, resource: str, available: Sequence[str], must_include: Sequence[str], size: int
    ) -> list[str]:
        """*size* of the *available* ids with all of *must_include*. Never raises."""


class ResourceServer(pb_grpc.DevicePluginServicer):
    """One resource on one socket. ``streams``: how many ListAndWatch calls are open.

    *allocated* is called when the kubelet has been given devices, *ended* when a stream has ended.
    """

    def __init__(
        self,
        resource: str,
        socket: Path,
        *,
        sysfs: Sysfs,
        dev: DevDir,
        probes: Asking,
        preferred: Preferring,
        guard: Guarding,
        allocated: Callable[[], None],
        ended: Callable[[], None],
    ) -> None:
        self.resource = resource
        self.socket = socket
        self.streams = 0
        self._sysfs = sysfs
        self._dev = dev
        self._probes = probes
        self._preferred = preferred
        self._guard = guard
        self._allocated = allocated
        self._ended = ended
        self._devices: list[pb.Device] = []
        self._barred: dict[str, str] = {}
        self._leaving = False
        self._changed = asyncio.Condition()
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        """Serve. Raises OSError when the socket cannot be made."""
        self.socket.unlink(missing_ok=True)
        self._server = grpc.aio.server()
        pb_grpc.add_DevicePluginServicer_to_server(self, self._server)
        try:
            self._server.add_insecure_port(f"unix:{self.socket}")
        except RuntimeError as error:
            raise OSError(f"{self.socket}: cannot be served: {error}") from error
        await self._server.start()

    async def stop(self, grace: float = 0.0) -> None:
        """End; calls under way are cut off after *grace* seconds, the kubelet sees its stream end."""
        if self._server is not None:
            await self._server.stop(grace)
            self._server = None
        self.socket.unlink(missing_ok=True)

    async def leave_for_good(self) -> None:
        """Tell the kubelet for the last time that there are no devices, and end once it has heard that.

        Takes no longer than :data:`LEAVE_DEADLINE`.
        """
        self._leaving = True
        async with self._changed:
            self._devices = []
            self._changed.notify_all()
        await self.stop(LEAVE_DEADLINE)

    async def update(self, devices: Mapping[str, Device]) -> None:
        """The resource's devices are now *devices*; open streams are told if that is news."""
        self._barred = {id_: device.barred for id_, device in devices.items() if device.barred}
        listed = [_listed(device) for _, device in sorted(devices.items())]
        if listed != self._devices and not self._leaving:
            async with self._changed:
                self._devices = listed
                self._changed.notify_all()

    async def GetDevicePluginOptions(
        self, request: pb.Empty, context: grpc.aio.ServicerContext[pb.Empty, pb.DevicePluginOptions]
    ) -> pb.DevicePluginOptions:
        """What we want to be asked."""
        return OPTIONS

    async def ListAndWatch(
        self, request: pb.Empty, context: grpc.aio.ServicerContext[pb.Empty, pb.ListAndWatchResponse]
    ) -> AsyncIterator[pb.ListAndWatchResponse]:
        """The devices, and again whenever they change: the kubelet writes a checkpoint for every message."""
        self.streams += 1
        sent: list[pb.Device] | None = None
        try:
            while True:
                async with self._changed:
                    while sent == self._devices and not self._leaving:
                        await self._changed.wait()
                    news, sent, last = sent != self._devices, self._devices, self._leaving
                if news:
                    yield pb.ListAndWatchResponse(devices=sent)
                if last:
                    return
        finally:
            self.streams -= 1
            metrics.STREAMS_ENDED.labels(self.resource).inc()
            self._ended()

    async def GetPreferredAllocation(
        self,
        request: pb.PreferredAllocationRequest,
        context: grpc.aio.ServicerContext[pb.PreferredAllocationRequest, pb.PreferredAllocationResponse],
    ) -> pb.PreferredAllocationResponse:
        """Best effort: an error here would fail the pod."""
        response = pb.PreferredAllocationResponse()
        for asked in request.container_requests:
            chosen = await self._preferred.choose(
                self.resource, asked.available_deviceIDs, asked.must_include_deviceIDs, asked.allocation_size
            )
            response.container_responses.add(deviceIDs=chosen)
        return response

    async def Allocate(
        self,
        request: pb.AllocateRequest,
        context: grpc.aio.ServicerContext[pb.AllocateRequest, pb.AllocateResponse],
    ) -> pb.AllocateResponse:
        """Hand the devices out as they are now. An error fails the pod for good."""
        response = pb.AllocateResponse()
        try:
            wanted = [id_ for asked in request.container_requests for id_ in asked.devices_ids]
            for id_ in wanted:
                if id_ in self._barred:
                    raise Refused(f"device {id_} is not to be had: {self._barred[id_]}")
            await self._probes.let_go(wanted)
            now = await self._sysfs.reread(wanted)
            for asked in request.container_requests:
                ids = list(asked.devices_ids)
                response.container_responses.append(answer(self.resource, ids, now, self._dev))
        except (Refused, SysfsError) as error:
            metrics.ALLOCATIONS.labels(self.resource, "Refused").inc()
            log.warning("%s: Allocate refused: %s", self.resource, error)
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"migcompat: {error}")
        metrics.ALLOCATIONS.labels(self.resource, "HandedOut").inc()
        self._allocated()
        return response

    async def PreStartContainer(
        self,
        request: pb.PreStartContainerRequest,
        context: grpc.aio.ServicerContext[pb.PreStartContainerRequest, pb.PreStartContainerResponse],
    ) -> pb.PreStartContainerResponse:
        """The guard. An error keeps the container from starting; the kubelet shows it and asks again."""
        try:
            await self._guard.check(self.resource, list(request.devices_ids))
        except GuardRefusedError as error:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        return pb.PreStartContainerResponse()


def _listed(device: Device) -> pb.Device:
    listed = pb.Device(ID=device.id, health=HEALTHY if device.health is Health.HEALTHY else UNHEALTHY)
    if device.found.numa_node is not None:
        listed.topology.nodes.add(ID=device.found.numa_node)
    return listed
