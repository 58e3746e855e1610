"""Said once, but said."""

from __future__ import annotations

from migcompat.api.event import ObjectReference
from migcompat_operator.announcement import Announcement
from migcompat_operator.metrics import Metrics
from migcompat_operator.mirror import Dirty, Mirror
from migcompat_operator.writer import Writer

from tests.operator.test_reconcile import fleet_of

VMI = ObjectReference("kubevirt.io/v1", "VirtualMachineInstance", "vm-a", "tenant-a", "uid-vm-a")


class Recorder:
    """Takes events, or drops them."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.drops = False

    async def record(self, involved: ObjectReference, type: str, reason: str, message: str) -> bool:
        """As the real one."""
        if not self.drops:
            self.told.append(message)
        return not self.drops


async def test_a_cause_is_said_once_but_again_when_it_was_dropped() -> None:
    writer = Writer(None, Mirror(fleet_of({}), Dirty(lambda: None)), Metrics())  # type: ignore[arg-type]
    recorder = Recorder()
    writer._recorder = recorder  # type: ignore[assignment]
    one = Announcement(VMI, "Warning", "NoAcceptingNode", "0 of 3 nodes", "a cause")
    recorder.drops = True
    assert not await writer.say((one,))
    recorder.drops = False
    assert await writer.say((one,))
    assert await writer.say((one,))
    assert recorder.told == ["0 of 3 nodes"]
    assert await writer.say((Announcement(VMI, "Warning", "NoAcceptingNode", "other", "another"),))
    assert recorder.told == ["0 of 3 nodes", "other"]
