"""VFs of NVIDIA's ConnectX and BlueField: what decides their migration is the firmware of the card.

The vendor demands the same PSID (the card's configuration) and the same firmware version on both sides
(NVIDIA DOCA, "SR-IOV Live Migration"). The PF's RDMA device has both: ``fw_ver_show`` in
``drivers/infiniband/core/sysfs.c``, ``board_id_show`` in ``drivers/infiniband/hw/mlx5/main.c``. That the
board id is the PSID: ``mlx5_query_board_id`` in ``drivers/net/ethernet/mellanox/mlx5/core/fw.c``.

While ports are bonded (LAG), one PF of the card has the RDMA device of all (``mlx5_do_bond`` in
``drivers/net/ethernet/mellanox/mlx5/core/lag/lag.c``); functions of one slot are one card.
"""

from __future__ import annotations

import re
from functools import partial

from migcompat.sysfs import pci
from migcompat.sysfs.found import FoundDevice
from migcompat.sysfs.pci import Function
from migcompat.sysfs.provider import Provider
from migcompat.sysfs.shown import given
from migcompat.sysfs.tree import Tree

DRIVER = "mlx5_vfio_pci"

_FIRMWARE = re.compile(r"\d{1,9}(\.\d{1,9}){2}")
_PSID = re.compile(r"[A-Za-z0-9_]{1,16}")
_MOST = 16
"""RDMA devices of one PF that are looked at; it has one, or none."""
_FUNCTIONS = range(8)
"""Of one slot (PCI Local Bus Specification, 3.2.2.3)."""


def _claims(function: Function) -> bool:
    return function.driver == DRIVER and function.is_vf


def _read(function: Function) -> FoundDevice:
    tree = function.tree
    physfn = tree.link(f"{function.entry}/physfn", [])
    card = tree.once(("mlx5 card", physfn), partial(_card, tree, physfn))
    return pci.read(function, extra=card)


def _card(tree: Tree, physfn: str) -> dict[str, str]:
    """Firmware version and PSID of the card with the PF *physfn*, as far as its RDMA devices agree."""
    if not pci.ADDRESS.fullmatch(physfn):
        return {}
    slot = physfn.rpartition(".")[0]
    others = (f"{slot}.{number}" for number in _FUNCTIONS)
    devices = _rdma_devices(tree, physfn) or [
        device for other in others if other != physfn for device in _rdma_devices(tree, other)
    ]

    def agreed(attribute: str, form: re.Pattern[str]) -> str:
        values = {tree.value(f"{device}/{attribute}", []) for device in devices}
        value = values.pop() if len(values) == 1 else ""
        return value if form.fullmatch(value) else ""

    return given(firmware_version=agreed("fw_ver", _FIRMWARE), psid=agreed("board_id", _PSID))


def _rdma_devices(tree: Tree, pf: str) -> list[str]:
    """The paths of the RDMA devices of *pf*; none where there is no such function, or it is a VF."""
    function = f"{pci.BUS.path}/{pf}"
    if tree.exists(f"{function}/physfn"):
        return []
    try:
        return [f"{function}/infiniband/{name}" for name in tree.names(f"{function}/infiniband")[:_MOST]]
    except OSError:
        return []


PROVIDER = Provider(pci.BUS, _claims, _read)
