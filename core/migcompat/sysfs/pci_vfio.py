"""Functions that VFIO serves: VFs, PFs and plain functions on vfio-pci or one of its variant drivers."""

from __future__ import annotations

from migcompat.sysfs import pci
from migcompat.sysfs.provider import Provider

PROVIDER = Provider(pci.BUS, lambda function: function.of_vfio, pci.read)
