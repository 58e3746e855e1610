"""VFs of Intel QuickAssist: what their rings do, is set for the whole card.

The services are an attribute of the PF, ``qat/cfg_services``, which can be written only while the PF is down
(kernel, Documentation/ABI/testing/sysfs-driver-qat; ``cfg_services_show`` in
``drivers/crypto/intel/qat/qat_common/adf_sysfs.c``). Their order means nothing, says the same text.
"""

from __future__ import annotations

import re
from functools import partial

from migcompat.sysfs import pci
from migcompat.sysfs.found import FoundDevice
from migcompat.sysfs.pci import Function
from migcompat.sysfs.provider import Provider
from migcompat.sysfs.shown import as_set, given
from migcompat.sysfs.tree import Tree

DRIVER = "qat_vfio_pci"

_SERVICES = re.compile(r"[a-z]{1,16}(;[a-z]{1,16}){0,7}")


def _claims(function: Function) -> bool:
    return function.driver == DRIVER and function.is_vf


def _read(function: Function) -> FoundDevice:
    tree = function.tree
    physfn = tree.link(f"{function.entry}/physfn", [])
    services = tree.once(("qat services", physfn), partial(_services, tree, physfn))
    return pci.read(function, extra=given(services=services))


def _services(tree: Tree, physfn: str) -> str:
    """The services of the card with the PF *physfn* as a set, as far as they can be told."""
    if not pci.ADDRESS.fullmatch(physfn):
        return ""
    text = tree.value(f"{pci.BUS.path}/{physfn}/qat/cfg_services", [])
    return as_set(text.split(";")) if _SERVICES.fullmatch(text) else ""


PROVIDER = Provider(pci.BUS, _claims, _read)
