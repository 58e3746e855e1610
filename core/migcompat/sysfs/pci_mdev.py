"""Mdevs that live on a PCI function, such as vGPUs: what that function is, is shown with them."""

from __future__ import annotations

import re

from migcompat.sysfs import mdev, pci
from migcompat.sysfs.found import FoundDevice
from migcompat.sysfs.mdev import Mdev
from migcompat.sysfs.provider import Provider
from migcompat.sysfs.shown import given

NVIDIA = "10de"
"""Among PCI's vendors."""

_VGPU = re.compile(r"nvidia-(\d{1,9})")
"""NVIDIA's mdev types bear the number of the vGPU type (Virtual GPU Software User Guide, "Creating an NVIDIA
vGPU on a Linux with KVM Hypervisor": ``nvidia-`` and a number that the kernel module gives)."""


def _read(device: Mdev) -> FoundDevice:
    tree = device.tree
    function = pci.function_above(device.path)
    host = tree.once(("identity", function), lambda: pci.identity(tree, function, []))
    physfn = tree.once(("physfn", function), lambda: tree.link(f"{function}/physfn", []))
    vgpu = _VGPU.fullmatch(device.type.id) if host.pci_id.startswith(NVIDIA) else None
    extra = {**given(parent_pci_id=host.pci_id, vgpu_type=vgpu[1] if vgpu else ""), **host.shown()}
    return mdev.read(device, pci_id=host.pci_id, revision=host.revision, physfn=physfn, extra=extra)


PROVIDER = Provider(mdev.BUS, lambda device: bool(pci.function_above(device.path)), _read)
