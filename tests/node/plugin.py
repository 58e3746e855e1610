"""The agent's device plugin socket, called as the kubelet calls it."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from typing import Any

import grpc.aio
from migcompat.kubelet.deviceplugin_v1beta1 import deviceplugin_pb2 as pb
from migcompat.kubelet.deviceplugin_v1beta1 import deviceplugin_pb2_grpc as stubs

from tests.cluster.controlplane import ClusterError
from tests.node.node import Node

_AUTHORITY = [("grpc.default_authority", "localhost")]
_DEADLINE = 30.0
_PAUSE = 0.015
"""Seconds between calls: the agent asks PodResources each time, which answers 100 calls a second, no more."""

Call = Callable[[stubs.DevicePluginStub], Any]


def allocate(*devices: str) -> Call:
    """Allocate for one container. It hands out, and keeps nothing in mind."""
    request = pb.AllocateRequest(container_requests=[pb.ContainerAllocateRequest(devices_ids=devices)])
    return lambda stub: stub.Allocate(request, timeout=_DEADLINE)


def pre_start(*devices: str) -> Call:
    """PreStartContainer with the devices of one container."""
    request = pb.PreStartContainerRequest(devices_ids=devices)
    return lambda stub: stub.PreStartContainer(request, timeout=_DEADLINE)


def durations(node: Node, resource: str, call: Call, count: int) -> list[float]:
    """Seconds that each of `count` calls took, one after another.

    Raises:
        ClusterError: the node's agent does not serve the resource, or a call failed.
    """
    digest = hashlib.sha256(resource.encode()).hexdigest()[:10]
    sockets = list((node.root / "kubelet/device-plugins").glob(f"migcompat-{digest}-*.sock"))
    if len(sockets) != 1:
        raise ClusterError(f"{node.name}: {resource} is served on {len(sockets)} sockets, not on one")

    async def measure() -> list[float]:
        taken = []
        async with grpc.aio.insecure_channel(f"unix://{sockets[0]}", options=_AUTHORITY) as channel:
            stub = stubs.DevicePluginStub(channel)
            for _ in range(count):
                begun = time.monotonic()
                await call(stub)
                taken.append(time.monotonic() - begun)
                await asyncio.sleep(_PAUSE)
        return taken

    try:
        return asyncio.run(measure())
    except grpc.RpcError as error:
        raise ClusterError(f"{sockets[0]}: {error}") from error
