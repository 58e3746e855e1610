"""VFs of NVIDIA's ConnectX and BlueField: what decides their migration is the firmware of the card.

The vendor demands the same PSID (the card's configuration) and the same firmware version on both sides
(NVIDIA DOCA, "SR-IOV Live Migration"). The PF's RDMA device has both: ``fw_ver_show`` in
``drivers/infiniband/core/sysfs.c``, ``board_id_show`` in ``drivers/infiniband/hw/mlx5/main.c``. That the
board id is the PSID: ``mlx5_query_board_id`` in ``drivers/net/ethernet/mellanox/mlx5/core/fw.c``.
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
"""RDMA devices of one PF that are looked at; it has one."""


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
    place = f"{pci.BUS.path}/{physfn}/infiniband"
    try:
        devices = tree.names(place)[:_MOST]
    except OSError:
        return {}

    def agreed(attribute: str, form: re.Pattern[str]) -> str:
        values = {tree.value(f"{place}/{device}/{attribute}", []) for device in devices}
        value = values.pop() if len(values) == 1 else ""
        return value if form.fullmatch(value) else ""

    return given(firmware_version=agreed("fw_ver", _FIRMWARE), psid=agreed("board_id", _PSID))


PROVIDER = Provider(pci.BUS, _claims, _read)
