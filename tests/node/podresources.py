"""What a real kubelet says of the devices that its pods hold (PodResources API, v1)."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc.aio
from migcompat.kubelet.podresources_v1 import podresources_pb2 as pb
from migcompat.kubelet.podresources_v1 import podresources_pb2_grpc as stubs

_AUTHORITY = [("grpc.default_authority", "localhost")]


def held(socket: Path, resource: str) -> dict[str, list[str]]:
    """Device ids of a resource by pod name; pods that hold none are left out. Raises grpc.RpcError."""
    answer = asyncio.run(_list(socket))
    found: dict[str, list[str]] = {}
    for pod in answer.pod_resources:
        for container in pod.containers:
            for devices in container.devices:
                if devices.resource_name == resource:
                    found.setdefault(pod.name, []).extend(devices.device_ids)
    return {name: sorted(ids) for name, ids in found.items()}


async def _list(socket: Path) -> pb.ListPodResourcesResponse:
    async with grpc.aio.insecure_channel(f"unix://{socket}", options=_AUTHORITY) as channel:
        return await stubs.PodResourcesListerStub(channel).List(pb.ListPodResourcesRequest(), timeout=10)
