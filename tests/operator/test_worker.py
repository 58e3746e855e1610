"""When things are written: urgent at once, counts later, failures again, one bad object alone."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from migcompat.api import names
from migcompat.api.cluster import MigrationSpec, MigrationStatus, Pod, VirtualMachineInstanceMigration
from migcompat.api.compatibilitypolicy import CompatibilityPolicy, CompatibilityPolicyStatus
from migcompat.api.meta import ObjectMeta
from migcompat.api.migrationcompatibility import MigrationCompatibility
from migcompat.kube.errors import Unreachable
from migcompat.kube.kinds import COMPATIBILITIES, PODS, POLICIES, VMIMS
from migcompat_operator import memory, retries
from migcompat_operator import worker as worker_module
from migcompat_operator.announcement import Announcement
from migcompat_operator.answer import condition
from migcompat_operator.metrics import Metrics
from migcompat_operator.mirror import Dirty, Key, Mirror, Subject
from migcompat_operator.reconcile import Plan, reconcile
from migcompat_operator.retries import Touch
from migcompat_operator.targets import TargetPlan
from migcompat_operator.worker import Worker
from migcompat_operator.writer import Writer

from tests.operator.test_reconcile import fleet_of, question, stored
from tests.support.fleets import declared, node, pod, vfionode, vmi


class Recorded(Writer):
    """Writes into a list, and tells the mirror as the real one does."""

    def __init__(self, mirror: Mirror) -> None:
        self.mirror = mirror
        self.done: list[tuple[str, str]] = []
        self.broken = False
        self.mute = False
        self.version = 1000

    async def question(self, key: Key, item: MigrationCompatibility | None, plan: Plan) -> bool:
        if self.broken:
            raise Unreachable("no answer", "PATCH", "/apis")
        self.done.append(("urgent" if plan.urgent else "count", key[1]))
        if plan.status is not None:
            held = stored(plan, item)
            self.version += 1
            held.metadata.resource_version = str(self.version)
            self.mirror.put(COMPATIBILITIES, held)
        return await self.say(plan.events)

    async def target(self, pod: object, plan: TargetPlan) -> bool:
        self.done.append(("target", plan.stamp[:1]))
        return True

    async def touch(self, touch: Touch) -> None:
        self.done.append(("touch", touch.migration[1]))

    async def wake(self, pod: Pod, touch: Touch) -> None:
        self.done.append(("wake", pod.metadata.name))

    async def policy(self, item: CompatibilityPolicy, status: CompatibilityPolicyStatus) -> None:
        self.done.append(("policy", item.metadata.name))

    async def say(self, announcements: tuple[Announcement, ...]) -> bool:
        if not self.mute:
            self.done.extend(("say", one.reason) for one in announcements)
        return not (self.mute and announcements)


class Bench:
    """A worker over a fleet with vm-a, whose passes a test makes itself."""

    def __init__(self, count_delay: float) -> None:
        wake = asyncio.Event()
        self.fleet = fleet_of({"n2": [declared("1.1.0")]})
        self.mirror = Mirror(self.fleet, Dirty(wake.set))
        self.writer = Recorded(self.mirror)
        self.metrics = Metrics()
        self.worker = Worker(
            self.mirror, self.writer, self.metrics, wake, count_delay=count_delay, debounce=0.01
        )

    async def passes(self) -> list[tuple[str, str]]:
        """What one pass over everything writes."""
        self.writer.done.clear()
        self.mirror.dirty.mark_everything()
        await self.worker.pass_once()
        return list(self.writer.done)

    def another_target(self, name: str) -> None:
        self.fleet.put_node(node(name))
        self.fleet.put_vfionode(vfionode(name, {name: declared("1.1.0")}))

    def no_target(self) -> None:
        self.fleet.put_vfionode(vfionode("n2", {"n2-0": declared("1.0.0")}))

    def source(self, *, published: bool = True) -> None:
        """What node-1's agent says of the VM's device."""
        holder = {"src": ("tenant-a", "virt-launcher-vm-a-src")} if published else {}
        self.fleet.put_vfionode(vfionode("node-1", {"src": declared("1.1.0")}, allocated=holder))

    def answer(self) -> str:
        """MIGRATABLE."""
        found = condition(self.mirror.compatibilities["tenant-a", "vm-a"].status, "Migratable")
        assert found is not None
        return found.status


async def test_a_verdict_is_written_at_once_a_count_waits_until_a_verdict_comes() -> None:
    bench = Bench(count_delay=60)
    assert await bench.passes() == [("urgent", "vm-a")]
    assert await bench.passes() == []
    bench.another_target("n3")
    assert await bench.passes() == []
    bench.fleet.drop_vfionode("n2")
    bench.fleet.drop_vfionode("n3")
    assert await bench.passes() == [("urgent", "vm-a"), ("say", "MigrationImpossible")]


async def test_a_count_is_written_when_its_time_has_come() -> None:
    bench = Bench(count_delay=0)
    await bench.passes()
    bench.another_target("n3")
    assert await bench.passes() == []
    assert await bench.passes() == [("count", "vm-a")]
    assert await bench.passes() == []


async def test_a_hand_over_does_not_change_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(count_delay=0)
    await bench.passes()
    bench.fleet.put_pod(pod("vm-a", "node-1", phase="Succeeded"))
    assert await bench.passes() == [], "the source pod has ended, the VMI names its node still"
    bench.fleet.put_vmi(vmi("vm-a", "n2"))
    bench.fleet.put_pod(pod("vm-a", "n2", source="node-1", suffix="dst"))
    assert await bench.passes() == [], "n2 has not published yet who holds its device"
    holder = {"n2-0": ("tenant-a", "virt-launcher-vm-a-dst")}
    bench.source(published=False)
    bench.fleet.put_vfionode(vfionode("n2", {"n2-0": declared("1.1.0")}, allocated=holder))
    assert await bench.passes() == [("urgent", "vm-a")]
    assert bench.answer() == "True"
    bench.fleet.put_vfionode(vfionode("n2", {"n2-0": declared("1.1.0")}))
    assert await bench.passes() == [], "a new doubt"


async def test_a_lasting_doubt_is_written_and_a_cause_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "HOLD", 0.0)
    bench = Bench(count_delay=0)
    bench.no_target()
    assert await bench.passes() == [("urgent", "vm-a"), ("say", "MigrationImpossible")]
    bench.source(published=False)
    assert await bench.passes() == [("urgent", "vm-a")]
    assert bench.answer() == "Unknown"
    bench.source()
    assert await bench.passes() == [("urgent", "vm-a")], "told before"
    bench.source(published=False)
    await bench.passes()
    bench.source()
    bench.another_target("n3")
    assert await bench.passes() == [("urgent", "vm-a"), ("say", "MigrationPossible")]


async def test_a_doubt_is_looked_at_again_when_its_time_is_over() -> None:
    bench = Bench(count_delay=0)
    await bench.passes()
    bench.source(published=False)
    assert await bench.passes() == []
    held = bench.worker._memory
    held._until = dict.fromkeys(held._until, 0.0)
    assert bench.worker._due, "due, though nothing else happens"
    bench.worker._due = dict.fromkeys(bench.worker._due, 0.0)
    await bench.worker.pass_once()
    assert bench.answer() == "Unknown"


async def test_an_event_that_was_not_said_is_said_later() -> None:
    bench = Bench(count_delay=0)
    bench.no_target()
    bench.writer.mute = True
    assert await bench.passes() == [("urgent", "vm-a")]
    assert await bench.passes() == []
    bench.writer.mute = False
    assert await bench.passes() == [("say", "MigrationImpossible")]
    assert await bench.passes() == []


async def test_a_users_object_of_the_vms_name_does_not_switch_retries_off() -> None:
    bench = Bench(count_delay=0)
    bench.no_target()
    mine = question(attributes={"resource": "vfio.migcompat.io/other", "self": {}})
    mine.metadata = ObjectMeta(
        name="vm-a", namespace="tenant-a", uid="mine", generation=1, resource_version="1"
    )
    bench.mirror.put(COMPATIBILITIES, mine)
    waiting = VirtualMachineInstanceMigration(
        ObjectMeta(name="m", namespace="tenant-a", uid="m-uid"), MigrationSpec("vm-a")
    )
    bench.mirror.put(VMIMS, waiting)
    assert await bench.passes() == [("urgent", "vm-a")], "and nothing is said on the VM"
    bench.another_target("n3")
    assert await bench.passes() == [("touch", "m")]


async def test_what_failed_is_tried_again() -> None:
    bench = Bench(count_delay=0)
    bench.writer.broken = True
    assert await bench.passes() == []
    bench.writer.broken = False
    assert await bench.passes() == [("urgent", "vm-a")]


async def test_what_failed_comes_back_by_itself_and_each_trouble_starts_with_a_short_delay(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(worker_module, "BACKOFF_FIRST", 0.04)
    bench = Bench(count_delay=0)
    for lost in ("n2", "n3"):
        bench.writer.broken = True
        assert await bench.passes() == []
        bench.writer.broken = False
        await asyncio.sleep(0.05)
        await bench.worker.pass_once()
        assert bench.writer.done[0] == ("urgent", "vm-a"), "nothing was marked"
        bench.fleet.drop_vfionode(lost)
    assert (Subject.QUESTION, ("tenant-a", "vm-a")) not in bench.worker._failures


async def test_policies_are_looked_at_when_counts_are() -> None:
    bench = Bench(count_delay=0)
    meta = ObjectMeta(name="p", generation=1, resource_version="1")
    bench.mirror.put(POLICIES, CompatibilityPolicy(meta, msgspec.Raw(b"{}")))
    assert ("policy", "p") not in await bench.passes()
    bench.writer.done.clear()
    await bench.worker.pass_once()
    assert bench.writer.done == [("policy", "p")]


async def test_a_migration_that_still_waits_is_touched_again_with_no_other_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retries, "FOLLOW_UPS", (0.01, 0.01))
    bench = Bench(count_delay=0)
    bench.fleet.drop_vfionode("n2")
    await bench.passes()
    meta = ObjectMeta(name="m", namespace="tenant-a", uid="m-uid", resource_version="1")
    waiting = VirtualMachineInstanceMigration(meta, MigrationSpec("vm-a"), MigrationStatus("Pending"))
    bench.mirror.put(VMIMS, waiting)
    bench.another_target("n2")
    assert ("touch", "m") in await bench.passes()
    bench.writer.done.clear()
    running = asyncio.create_task(bench.worker.run())
    async with asyncio.timeout(10):
        while bench.writer.done.count(("touch", "m")) < 2:
            await asyncio.sleep(0.01)
    running.cancel()


async def test_a_new_migration_is_followed_up_though_nothing_else_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retries, "FOLLOW_UPS", (0.01,))
    bench = Bench(count_delay=0)
    bench.another_target("n2")
    await bench.passes()
    running = asyncio.create_task(bench.worker.run())
    meta = ObjectMeta(name="m", namespace="tenant-a", uid="m-uid", resource_version="1")
    waiting = VirtualMachineInstanceMigration(meta, MigrationSpec("vm-a"), MigrationStatus("Pending"))
    bench.mirror.put(VMIMS, waiting)
    async with asyncio.timeout(10):
        while ("touch", "m") not in bench.writer.done:
            await asyncio.sleep(0.01)
    running.cancel()


async def test_where_a_target_pod_waits_for_its_node_kube_scheduler_is_told_until_it_has_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retries, "FOLLOW_UPS", (0.0,))
    bench = Bench(count_delay=0)
    bench.fleet.drop_vfionode("n2")
    await bench.passes()
    target = pod("vm-a", source="node-1", suffix="dst", phase="Pending")
    target.metadata.resource_version = "1"
    uid = (target.metadata.labels or {})[names.MIGRATION_UID]
    meta = ObjectMeta(name="m", namespace="tenant-a", uid=uid, resource_version="1")
    bench.mirror.put(
        VMIMS, VirtualMachineInstanceMigration(meta, MigrationSpec("vm-a"), MigrationStatus("Scheduling"))
    )
    bench.mirror.put(PODS, target)
    bench.another_target("n2")
    told = [("wake", target.metadata.name)]
    assert [one for one in await bench.passes() if one[0] in ("wake", "touch")] == [*told, *told]
    assert bench.mirror.started_migrations() == set()
    bound = pod("vm-a", "n2", source="node-1", suffix="dst", phase="Pending")
    bound.metadata.resource_version = "2"
    bench.mirror.put(PODS, bound)
    assert bench.mirror.started_migrations() == {uid}


async def test_the_metrics_tell_the_verdicts_that_there_are() -> None:
    bench = Bench(count_delay=0)
    await bench.passes()
    await bench.passes()
    assert verdicts(bench.metrics) == [{"migratable": "True", "reason": "Compatible"}]
    bench.fleet.drop_vfionode("n2")
    await bench.passes()
    await bench.passes()
    assert verdicts(bench.metrics) == [{"migratable": "False", "reason": "NoCandidates"}]


def verdicts(metrics: Metrics) -> list[dict[str, str]]:
    return [sample.labels for family in metrics.verdicts.collect() for sample in family.samples]


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
