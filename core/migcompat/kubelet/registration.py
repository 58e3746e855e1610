"""Telling the kubelet that a plugin serves a resource."""

from __future__ import annotations

from pathlib import Path

from migcompat.kubelet.connection import connected
from migcompat.kubelet.deviceplugin_v1beta1 import deviceplugin_pb2 as pb
from migcompat.kubelet.deviceplugin_v1beta1 import deviceplugin_pb2_grpc as pb_grpc

API_VERSION = "v1beta1"
HEALTHY = "Healthy"
UNHEALTHY = "Unhealthy"

# The kubelet dials back for up to 10 s from within Register.
DEADLINE = 15.0


async def register(
    kubelet_socket: Path, endpoint: str, resource: str, options: pb.DevicePluginOptions
) -> None:
    """Register *resource*, served on the socket *endpoint* beside *kubelet_socket*.

    Serve first: the kubelet dials back before it answers. Raises KubeletError.
    """
    request = pb.RegisterRequest(
        version=API_VERSION, endpoint=endpoint, resource_name=resource, options=options
    )
    async with connected(kubelet_socket) as channel:
        await pb_grpc.RegistrationStub(channel).Register(request, timeout=DEADLINE)
