"""vfio-ap mdevs: cryptographic queues of IBM Z (kernel, Documentation/arch/s390/vfio-ap.rst)."""

from __future__ import annotations

import re

from migcompat.sysfs import mdev
from migcompat.sysfs.found import FoundDevice
from migcompat.sysfs.mdev import Mdev
from migcompat.sysfs.provider import Provider
from migcompat.sysfs.shown import as_set, given

DEVICE_API = "vfio-ap"

_QUEUE = re.compile(r"[0-9a-f]{2}\.[0-9a-f]{4}")
_DOMAIN = re.compile(r"[0-9a-f]{4}")

_FULL = 512
"""So many queues fill the page that an attribute may have: the kernel may have dropped more."""


def _read(device: Mdev) -> FoundDevice:
    return mdev.read(
        device,
        extra=given(
            ap_queues=_members(device, "matrix", _QUEUE),
            ap_control_domains=_members(device, "control_domains", _DOMAIN),
        ),
    )


def _members(device: Mdev, attribute: str, member: re.Pattern[str]) -> str:
    """The lines of *attribute* as a set; empty unless all of them are members, and surely all.

    ``matrix`` has a line ``05.0004`` for each queue, but ``05.`` or ``.0004`` as long as only adapters or
    only domains are assigned (``matrix_show`` in ``drivers/s390/crypto/vfio_ap_ops.c``).
    """
    lines = device.tree.lines(f"{device.path}/{attribute}", [])
    return as_set(lines) if len(lines) < _FULL and all(map(member.fullmatch, lines)) else ""


PROVIDER = Provider(
    mdev.BUS,
    lambda device: device.type.device_api == DEVICE_API,
    _read,
    # Queues come and go by writes to ``assign_adapter`` and the like, of which nobody is told.
    silent=lambda device: True,
)
