"""What a container gets for its devices: environment for KubeVirt, device nodes for QEMU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from migcompat.engine.declaration import Kind
from migcompat.kubelet.deviceplugin_v1beta1 import deviceplugin_pb2 as pb
from migcompat.resources.naming import environment_name

from migcompat_deviceplugin.devnodes import DevDir
from migcompat_deviceplugin.inventory import Device

PERMISSIONS = "mrw"


class Refused(Exception):
    """A device cannot be handed out; the text says which and why."""


def env_name(resource: str, kind: Kind) -> str:
    """The variable in which virt-launcher looks for the devices of *resource*."""
    prefix = "MDEV_PCI_RESOURCE" if kind is Kind.MDEV else "PCI_RESOURCE"
    return f"{prefix}_{environment_name(resource)}"


def answer(
    resource: str, ids: Sequence[str], now: Mapping[str, Device], dev: DevDir
) -> pb.ContainerAllocateResponse:
    """The answer for one container; *now* are its devices as just read.

    The container finds the device nodes in its ``/dev``, wherever they lie on the host. Raises Refused for a
    device that is gone, unhealthy, or of another pool by now.
    """
    devices = []
    for id_ in ids:
        device = now.get(id_)
        if device is None:
            raise Refused(f"device {id_} is gone")
        if device.resource != resource:
            raise Refused(f"device {id_} is in the pool {device.resource} by now, not in {resource}")
        if device.found.problem:
            raise Refused(f"device {id_} is unhealthy: {device.found.problem}")
        devices.append(device)
    if not devices:
        raise Refused(f"no device of {resource} was asked for")
    if len({device.found.kind for device in devices}) > 1:
        raise Refused(f"{', '.join(ids)} of {resource} are not of one kind (mdevs, PCI functions)")
    response = pb.ContainerAllocateResponse()
    response.envs[env_name(resource, devices[0].found.kind)] = ",".join(ids)
    for node in dev.nodes([device.found for device in devices]):
        host_path = str(dev.host / node)
        response.devices.add(container_path=f"/dev/{node}", host_path=host_path, permissions=PERMISSIONS)
    return response
