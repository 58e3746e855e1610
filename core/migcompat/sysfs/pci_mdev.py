"""Mdevs that live on a PCI function, such as vGPUs: what that function is, is shown with them."""

from __future__ import annotations

from migcompat.sysfs import mdev, pci
from migcompat.sysfs.found import FoundDevice
from migcompat.sysfs.mdev import Mdev
from migcompat.sysfs.provider import Provider
from migcompat.sysfs.shown import given


def _read(device: Mdev) -> FoundDevice:
    tree = device.tree
    function = pci.function_above(device.path)
    host = tree.once(("identity", function), lambda: pci.identity(tree, function, []))
    physfn = tree.once(("physfn", function), lambda: tree.link(f"{function}/physfn", []))
    extra = {**given(parent_pci_id=host.pci_id), **host.shown()}
    return mdev.read(device, pci_id=host.pci_id, revision=host.revision, physfn=physfn, extra=extra)


PROVIDER = Provider(mdev.BUS, lambda device: bool(pci.function_above(device.path)), _read)
