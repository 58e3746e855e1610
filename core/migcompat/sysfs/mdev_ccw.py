"""vfio-ccw mdevs: channel I/O subchannels of IBM Z (kernel, Documentation/arch/s390/vfio-ccw.rst)."""

from __future__ import annotations

import re
from functools import partial
from posixpath import basename

from migcompat.sysfs import mdev
from migcompat.sysfs.found import FoundDevice
from migcompat.sysfs.mdev import Mdev
from migcompat.sysfs.provider import Provider
from migcompat.sysfs.shown import given
from migcompat.sysfs.tree import ancestors

DEVICE_API = "vfio-ccw"

_SUBCHANNEL = re.compile(r"[0-9a-f]{1,2}\.[0-3]\.[0-9a-f]{4}")
_TYPE = re.compile(r"[0-9a-f]")


def _read(device: Mdev) -> FoundDevice:
    return mdev.read(device, extra=given(subchannel_type=_subchannel_type(device)))


def _subchannel_type(device: Mdev) -> str:
    """``type`` of the subchannel that the mdev lives on, in decimal.

    The kernel writes one hexadecimal digit, of which it knows 0 to 3 (``type_show`` in
    ``drivers/s390/cio/css.c``, ``enum subchannel_type`` in ``arch/s390/include/asm/cio.h``).
    """
    tree = device.tree
    for place in ancestors(device.path):
        if _SUBCHANNEL.fullmatch(basename(place)):
            text = tree.once(("subchannel type", place), partial(tree.value, f"{place}/type", []))
            return str(int(text, 16)) if _TYPE.fullmatch(text) else ""
    return ""


PROVIDER = Provider(mdev.BUS, lambda device: device.type.device_api == DEVICE_API, _read)
