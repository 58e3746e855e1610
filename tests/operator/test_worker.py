"""When things are written: urgent at once, counts later, failures again, one bad object alone."""

from __future__ import annotations

import asyncio

import pytest
from migcompat.api.migrationcompatibility import MigrationCompatibility
from migcompat.kube.errors import Unreachable
from migcompat.kube.kinds import COMPATIBILITIES
from migcompat_operator import worker as worker_module
from migcompat_operator.announcement import Announcement
from migcompat_operator.metrics import Metrics
from migcompat_operator.mirror import Dirty, Key, Mirror, Subject
from migcompat_operator.reconcile import Plan, reconcile
from migcompat_operator.retries import Touch
from migcompat_operator.targets import TargetPlan
from migcompat_operator.worker import Worker
from migcompat_operator.writer import Writer

from tests.operator.test_reconcile import fleet_of, stored
from tests.support.fleets import declared, node, vfionode, vmi


class Recorded(Writer):
    """Writes into a list, and tells the mirror as the real one does."""

    def __init__(self, mirror: Mirror) -> None:
        self.mirror = mirror
        self.done: list[tuple[str, str]] = []
        self.broken = False

    async def question(self, key: Key, item: MigrationCompatibility | None, plan: Plan) -> None:
        if self.broken:
            raise Unreachable("no answer", "PATCH", "/apis")
        self.done.append(("urgent" if plan.urgent else "count", key[1]))
        if plan.status is not None:
            held = stored(plan, item)
            held.metadata.resource_version = str(1000 + len(self.done))
            self.mirror.put(COMPATIBILITIES, held)

    async def target(self, pod: object, plan: TargetPlan) -> None:
        self.done.append(("target", plan.stamp[:1]))

    async def touch(self, touch: Touch) -> None:
        self.done.append(("touch", touch.migration[1]))

    async def say(self, announcements: tuple[Announcement, ...]) -> None:
        self.done.extend(("say", one.reason) for one in announcements)


class Bench:
    """A worker over a fleet with vm-a, whose passes a test makes itself."""

    def __init__(self, count_delay: float) -> None:
        wake = asyncio.Event()
        self.fleet = fleet_of({"n2": [declared("1.1.0")]})
        self.mirror = Mirror(self.fleet, Dirty(wake.set))
        self.writer = Recorded(self.mirror)
        self.worker = Worker(self.mirror, self.writer, Metrics(), wake, count_delay=count_delay)

    async def passes(self) -> list[tuple[str, str]]:
        """What one pass over everything writes."""
        self.writer.done.clear()
        self.mirror.dirty.mark_everything()
        await self.worker.pass_once()
        return list(self.writer.done)

    def another_target(self, name: str) -> None:
        self.fleet.put_node(node(name))
        self.fleet.put_vfionode(vfionode(name, {name: declared("1.1.0")}))


async def test_a_verdict_is_written_at_once_a_count_waits_until_a_verdict_comes() -> None:
    bench = Bench(count_delay=60)
    assert await bench.passes() == [("urgent", "vm-a")]
    assert await bench.passes() == []
    bench.another_target("n3")
    assert await bench.passes() == []
    bench.fleet.drop_vfionode("n2")
    bench.fleet.drop_vfionode("n3")
    assert await bench.passes() == [("urgent", "vm-a")]


async def test_a_count_is_written_when_its_time_has_come() -> None:
    bench = Bench(count_delay=0)
    await bench.passes()
    bench.another_target("n3")
    assert await bench.passes() == []
    assert await bench.passes() == [("count", "vm-a")]
    assert await bench.passes() == []


async def test_what_failed_is_tried_again() -> None:
    bench = Bench(count_delay=0)
    bench.writer.broken = True
    assert await bench.passes() == []
    bench.writer.broken = False
    assert await bench.passes() == [("urgent", "vm-a")]


async def test_one_object_that_cannot_be_coped_with_does_not_stop_the_others(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(count_delay=0)
    bench.fleet.put_vmi(vmi("vm-b", "node-1"))

    def fragile(fleet: object, existing: object, item: object, **given: object) -> Plan:
        if getattr(item, "metadata").name == "vm-a":  # noqa: B009 - the type does not matter here
            raise KeyError("a bug")
        return reconcile(fleet, existing, item, **given)  # type: ignore[arg-type]

    monkeypatch.setattr(worker_module, "reconcile", fragile)
    assert await bench.passes() == [("urgent", "vm-b")]
    assert "question tenant-a/vm-a: cannot be reconciled" in caplog.text


async def test_single_marks_touch_only_what_is_marked() -> None:
    bench = Bench(count_delay=0)
    bench.fleet.put_vmi(vmi("vm-b", "node-1"))
    bench.mirror.dirty.mark(Subject.QUESTION, ("tenant-a", "vm-b"))
    await bench.worker.pass_once()
    assert bench.writer.done == [("urgent", "vm-b")]


def test_the_count_delay_is_bounded() -> None:
    with pytest.raises(ValueError, match="between 0 and 60"):
        Worker(Mirror(fleet_of({}), Dirty(lambda: None)), None, Metrics(), asyncio.Event(), count_delay=61)  # type: ignore[arg-type]
