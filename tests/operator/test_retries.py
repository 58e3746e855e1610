"""Which waiting migrations are worth another try."""

from __future__ import annotations

import pytest
from migcompat.api.cluster import MigrationSpec, MigrationStatus, VirtualMachineInstanceMigration
from migcompat.api.meta import ObjectMeta
from migcompat.fleet.survey import Survey
from migcompat_operator.retries import FOLLOW_UPS, Retries

VMI = ("tenant-a", "vm-a")


def survey(free: int) -> Survey:
    nodes = tuple(f"n{i}" for i in range(free))
    return Survey({}, free, free, 3, nodes, (), {})


def migration(phase: str = "Pending", version: str = "1") -> VirtualMachineInstanceMigration:
    meta = ObjectMeta(name="m", namespace="tenant-a", uid="m-uid", resource_version=version)
    return VirtualMachineInstanceMigration(meta, MigrationSpec("vm-a"), MigrationStatus(phase))


def test_touched_once_when_the_first_place_appears() -> None:
    retries = Retries()
    assert not retries.note(VMI, survey(0), before=None, migrations=[migration()], now=0)
    (touch,) = retries.note(VMI, survey(1), before=None, migrations=[migration()], now=1)
    assert touch.migration == ("tenant-a", "m")
    assert len(touch.value) == 12
    assert not retries.note(VMI, survey(2), before=None, migrations=[migration()], now=2)
    retries.note(VMI, survey(0), before=None, migrations=[migration()], now=3)
    (again,) = retries.note(VMI, survey(1), before=None, migrations=[migration(version="9")], now=4)
    assert again.value != touch.value, "only a changed annotation counts"


def test_touched_when_the_vm_need_not_wait_any_more() -> None:
    retries = Retries()
    assert not retries.note(VMI, survey(0), before=None, migrations=[migration()], now=0)
    assert retries.note(VMI, survey(0), lax=True, before=None, migrations=[migration()], now=1)
    assert not retries.note(VMI, survey(1), lax=True, before=None, migrations=[migration()], now=2)
    assert not retries.note(VMI, survey(0), before=None, migrations=[migration()], now=3)


def test_what_was_written_before_a_restart_counts() -> None:
    assert Retries().note(VMI, survey(1), before=False, migrations=[migration()], now=0)
    assert not Retries().note(VMI, survey(1), before=True, migrations=[migration()], now=0)
    assert not Retries().note(VMI, survey(1), before=None, migrations=[migration()], now=0)


def test_finished_and_running_migrations_are_left_alone() -> None:
    for phase in ("Running", "Succeeded", "Failed"):
        assert not Retries().note(VMI, survey(1), before=False, migrations=[migration(phase)], now=0)


@pytest.mark.parametrize("phase", ["", "Pending", "Scheduling"])
def test_every_waiting_phase_is_touched(phase: str) -> None:
    assert Retries().note(VMI, survey(1), before=False, migrations=[migration(phase)], now=0)


def test_a_vm_that_was_gone_starts_anew() -> None:
    retries = Retries()
    retries.note(VMI, survey(0), before=None, migrations=[], now=0)
    retries.forget(VMI)
    assert not retries.note(VMI, survey(1), before=None, migrations=[migration()], now=1)


def test_no_follow_up_when_there_is_nowhere_to_go_any_more() -> None:
    retries = Retries()
    retries.note(VMI, survey(1), before=False, migrations=[migration()], now=0)
    retries.note(VMI, survey(0), before=None, migrations=[migration()], now=1)
    assert not retries.follow_up({("tenant-a", "m"): migration()}, [], now=10)
    assert retries.next_due() is None


def test_followed_up_while_no_target_pod_appears_and_not_for_ever() -> None:
    retries = Retries()
    retries.note(VMI, survey(1), before=False, migrations=[migration()], now=0)
    known = {("tenant-a", "m"): migration()}
    assert retries.next_due() == FOLLOW_UPS[0]
    assert not retries.follow_up(known, [], now=1)
    now, touched = 0.0, 0
    while (due := retries.next_due()) is not None:
        assert due > now
        now = due
        touched += len(retries.follow_up(known, [], now))
    assert touched == len(FOLLOW_UPS)


def test_a_migration_that_waits_though_its_vm_could_go_is_followed_up_once() -> None:
    """The extender denied what the operator, who sees more or sees it sooner, would let pass."""
    retries = Retries()
    known = {("tenant-a", "m"): migration()}
    retries.note(VMI, survey(1), before=None, migrations=[], now=0)
    assert not retries.follow_up(known, [], now=0), "its target pod may be on its way"
    now, touched = 0.0, 0
    while (due := retries.next_due()) is not None:
        now = due
        touched += len(retries.follow_up(known, [], now))
    assert touched == len(FOLLOW_UPS) + 1
    assert not retries.follow_up(known, [], now + 100)
    assert not retries.follow_up({}, [], now + 101)
    retries.follow_up(known, [], now + 102)
    assert retries.next_due() is not None, "another one of that name"


def test_a_migration_of_a_vm_that_cannot_go_or_is_not_known_is_not_followed_up() -> None:
    retries = Retries()
    known = {("tenant-a", "m"): migration()}
    retries.follow_up(known, [], now=0)
    assert retries.next_due() is None
    retries.note(VMI, survey(0), before=None, migrations=[], now=0)
    retries.follow_up(known, [], now=0)
    assert retries.next_due() is None
    retries.note(VMI, survey(1), before=None, migrations=[], now=1)
    retries.follow_up({("tenant-a", "m"): migration("Running")}, [], now=1)
    assert retries.next_due() is None


def test_no_follow_up_once_a_target_pod_is_there_or_the_migration_gone() -> None:
    for known, started in (({("tenant-a", "m"): migration()}, ["m-uid"]), ({}, [])):
        retries = Retries()
        retries.note(VMI, survey(1), before=False, migrations=[migration()], now=0)
        assert not retries.follow_up(known, started, now=10)
        assert retries.next_due() is None
