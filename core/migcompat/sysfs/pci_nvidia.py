"""NVIDIA's SR-IOV vGPUs without mdev: VFs that stay on the driver ``nvidia`` and have a vGPU type.

NVIDIA calls this its vendor-specific VFIO framework (Virtual GPU Software User Guide, "Creating an NVIDIA
vGPU on a Linux with KVM Hypervisor that Uses a Vendor-Specific VFIO Framework"; Ubuntu 24.04 and other
kernels from 6.8). Writing a type's number to a VF's ``nvidia/current_vgpu_type`` makes it a vGPU, writing 0
unmakes it. KubeVirt 1.9 takes the same VFs, as PCI devices (``pkg/virt-handler/device-manager/nvidia.go``,
``HasVGPUProfile``; kubevirt/kubevirt#16890). A VF without a type is no device, whatever VFIO says of it.
"""

from __future__ import annotations

import re

from migcompat.sysfs import pci
from migcompat.sysfs.found import FoundDevice
from migcompat.sysfs.pci import Function
from migcompat.sysfs.provider import Provider
from migcompat.sysfs.shown import given

DRIVER = "nvidia"

_TYPE = "nvidia/current_vgpu_type"
_NUMBER = re.compile(r"\d{1,9}")
_LISTED = re.compile(r"(\d{1,9})\s*:\s*(\S.*)")


def _claims(function: Function) -> bool:
    return function.driver == DRIVER and function.is_vf


def _read(function: Function) -> FoundDevice | None:
    notes: list[str] = []
    number = function.tree.value(f"{function.entry}/{_TYPE}", notes)
    if notes:
        raise ValueError("; ".join(notes))
    if number in ("", "0"):
        return None
    if not _NUMBER.fullmatch(number):
        raise ValueError(f"current_vgpu_type reads '{number[:16]}', not a number")
    return pci.read(
        function,
        type_id=f"nvidia-{number}",
        type_name=_name(function, number),
        extra=given(vgpu_type=number),
    )


def _name(function: Function, number: str) -> str:
    """The name of the type, if the VF still lists it.

    ``creatable_vgpu_types`` has lines ``1414 : NVIDIA H200X-1-18C`` below a heading, only of types for which
    the GPU has room. The name comes and goes with that, so it is for people and no shown attribute.
    """
    for line in function.tree.lines(f"{function.entry}/nvidia/creatable_vgpu_types", []):
        match = _LISTED.fullmatch(line)
        if match and match[1] == number:
            return match[2]
    return ""


def _silent(function: Function) -> bool:
    """Whether it can be given a type: a write to an attribute, of which nobody is told."""
    return function.tree.exists(f"{function.entry}/{_TYPE}")


PROVIDER = Provider(pci.BUS, _claims, _read, _silent)
