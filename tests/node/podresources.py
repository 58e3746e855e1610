"""What a real kubelet says of the devices that its pods hold (PodResources API, v1)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import grpc.aio
from migcompat.kubelet.podresources_v1 import podresources_pb2 as pb
from migcompat.kubelet.podresources_v1 import podresources_pb2_grpc as stubs

from tests.cluster.controlplane import ClusterError

_AUTHORITY = [("grpc.default_authority", "localhost")]

T = TypeVar("T")


def held(socket: Path, resource: str) -> dict[str, list[str]]:
    """Device ids of a resource by pod name; pods that hold none are left out. Raises ClusterError."""
    answer = _ask(socket, lambda stub: stub.List(pb.ListPodResourcesRequest(), timeout=10))
    found: dict[str, list[str]] = {}
    for pod in answer.pod_resources:
        for container in pod.containers:
            for devices in container.devices:
                if devices.resource_name == resource:
                    found.setdefault(pod.name, []).extend(devices.device_ids)
    return {name: sorted(ids) for name, ids in found.items()}


def allocatable(socket: Path, resource: str) -> list[str]:
    """Healthy devices of a resource that the kubelet has, held or not. Raises ClusterError."""
    answer = _ask(
        socket, lambda stub: stub.GetAllocatableResources(pb.AllocatableResourcesRequest(), timeout=10)
    )
    return sorted(
        id_ for devices in answer.devices if devices.resource_name == resource for id_ in devices.device_ids
    )


def _ask(socket: Path, call: Callable[[stubs.PodResourcesListerStub], Awaitable[T]]) -> T:
    async def ask() -> T:
        async with grpc.aio.insecure_channel(f"unix://{socket}", options=_AUTHORITY) as channel:
            return await call(stubs.PodResourcesListerStub(channel))

    try:
        return asyncio.run(ask())
    except grpc.RpcError as error:
        raise ClusterError(f"{socket}: {error}") from error
