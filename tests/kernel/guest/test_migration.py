"""What the catalogue says of devices as they show themselves is what their driver does with a real stream."""

from __future__ import annotations

import errno
import itertools

import pytest
from migcompat.api.vfionode import VFIONode
from migcompat.engine.verdict import Reason
from migcompat.sysfs.scan import FoundDevice, scan

from tests.kernel.guest import hardware, vfio
from tests.kernel.guest.conftest import Figure
from tests.support.catalogue import CATALOGUE, answer, policy_of, published, raw

TYPES = ("mtty-1", "mtty-2")
REFUSALS = {("mtty-1", "mtty-2"): errno.EFAULT, ("mtty-2", "mtty-1"): errno.ENOMEM}
"""Another number of ports; a longer stream than it knows (``mtty_resume_write``)."""


def verdict(source: str, target: str) -> tuple[bool, str]:
    """Of the fleet with the whole catalogue, for two mdevs as a scan finds them."""
    found = {device.id: device for device in scan(hardware.SYS).devices}
    policies = [policy_of(raw(path.stem)) for path in sorted(CATALOGUE.glob("*.yaml"))]
    return answer(policies, _published("n1", found[source], held=True), _published("n2", found[target]))


def _published(node: str, device: FoundDevice, *, held: bool = False) -> VFIONode:
    assert device.problem == ""
    assert device.declaration.layout == "", "no kernel declares anything"
    return published(node, device.kind, device.declaration.shown, held=held)


@pytest.mark.parametrize(("source", "target"), list(itertools.product(TYPES, TYPES)))
def test_mtty_accepts_what_the_verdict_says(source: str, target: str, figure: Figure) -> None:
    devices = hardware.create(source), hardware.create(target)
    compatible, reason = verdict(*devices)
    if compatible:
        figure(f"migration stream of {source}", vfio.migrate(*devices), "bytes")
    else:
        assert reason == Reason.TYPE_MISMATCH
        with pytest.raises(OSError) as refused:  # noqa: PT011 - the number says it, below
            vfio.migrate(*devices)
        assert refused.value.errno == REFUSALS[source, target]
    assert compatible == (source == target)


def test_a_driver_without_migration_is_refused_before_it_refuses() -> None:
    devices = hardware.create("mdpy-vga"), hardware.create("mdpy-vga")
    assert verdict(*devices) == (False, "NotMigratable")
    with pytest.raises(OSError) as refused:  # noqa: PT011 - the number says it, below
        vfio.migrate(*devices)
    assert refused.value.errno == errno.ENOTTY
