"""Which pod holds which device, as the kubelet knows it."""

from __future__ import annotations

from pathlib import Path

from migcompat.api.vfionode import PodRef
from migcompat.kubelet.connection import Identity, Kept, identity
from migcompat.kubelet.podresources_v1 import podresources_pb2 as pb
from migcompat.kubelet.podresources_v1 import podresources_pb2_grpc as pb_grpc

DEADLINE = 5.0

Allocations = dict[tuple[str, str], PodRef]
Offers = dict[str, frozenset[str]]


class PodResources:
    """The PodResources API at *socket* (``<kubelet>/pod-resources/kubelet.sock``).

    The kubelet answers 100 calls a second from all its clients together; call it every few seconds and when
    something has just been allocated.
    """

    def __init__(self, socket: Path, deadline: float = DEADLINE) -> None:
        self._socket = socket
        self._deadline = deadline
        self._line = Kept(socket)

    async def close(self) -> None:
        """Call no more."""
        await self._line.close()

    def server(self) -> Identity | None:
        """Which kubelet answers: another one after its restart."""
        return identity(self._socket)

    async def allocations(self) -> Allocations:
        """``{(resource, device id): pod}`` of all pods of the node. Raises KubeletError.

        The kubelet sends one entry a device, or one of several; both are read.
        """
        async with self._line.channel() as channel:
            answer = await pb_grpc.PodResourcesListerStub(channel).List(
                pb.ListPodResourcesRequest(), timeout=self._deadline
            )
        return {
            (devices.resource_name, device): PodRef(pod.namespace, pod.name)
            for pod in answer.pod_resources
            for container in pod.containers
            for devices in container.devices
            for device in devices.device_ids
        }

    async def offers(self) -> Offers:
        """``{resource: device ids}`` that plugins of the node offer as healthy, held or not.

        Raises KubeletError. A plugin that is gone, or that has not registered since the kubelet's start,
        offers nothing (``GetAllocatableDevices``, pkg/kubelet/cm/devicemanager/manager.go).
        """
        async with self._line.channel() as channel:
            answer = await pb_grpc.PodResourcesListerStub(channel).GetAllocatableResources(
                pb.AllocatableResourcesRequest(), timeout=self._deadline
            )
        found: dict[str, set[str]] = {}
        for devices in answer.devices:
            found.setdefault(devices.resource_name, set()).update(devices.device_ids)
        return {resource: frozenset(ids) for resource, ids in found.items()}
