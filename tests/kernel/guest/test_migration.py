"""The engine's verdict is what the driver does with a real migration stream."""

from __future__ import annotations

import errno
import itertools

import pytest
from migcompat.engine.declaration import Kind
from migcompat.engine.policy import Policy, parse_policy, supply
from migcompat.engine.verdict import Reason, decide
from migcompat.sysfs.declaration import read_declaration

from tests.kernel.guest import hardware, vfio
from tests.kernel.guest.conftest import Figure

TYPES = ("mtty-1", "mtty-2")
REFUSALS = {("mtty-1", "mtty-2"): errno.EFAULT, ("mtty-2", "mtty-1"): errno.ENOMEM}
"""Another number of ports; a longer stream than it knows (``mtty_resume_write``)."""


def policy(type_id: str) -> Policy:
    """What an admin supplies for a driver that says nothing: mtty wants version and ports equal."""
    own = {"software_version": "0.1.0", "device_api": "vfio-pci", "type": type_id}
    return parse_policy({"self": own, "compatible": [own]})


@pytest.mark.parametrize(("source", "target"), list(itertools.product(TYPES, TYPES)))
def test_mtty_accepts_what_the_verdict_says(source: str, target: str, figure: Figure) -> None:
    devices = hardware.create(source), hardware.create(target)
    ours, theirs = (
        supply(read_declaration(hardware.MDEV / device, Kind.MDEV), policy(type_id))
        for device, type_id in zip(devices, (source, target), strict=True)
    )
    verdict = decide(ours, theirs, policy(target))
    if verdict.compatible:
        figure(f"migration stream of {source}", vfio.migrate(*devices), "bytes")
    else:
        assert verdict.reason is Reason.TYPE_MISMATCH
        with pytest.raises(OSError) as refused:  # noqa: PT011 - the number says it, below
            vfio.migrate(*devices)
        assert refused.value.errno == REFUSALS[source, target]
    assert verdict.compatible == (source == target)
