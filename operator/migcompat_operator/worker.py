"""When things are done: changes are collected for a moment, urgent answers go first, counts may wait.

One task, one pass at a time. A pass plans everything that a change may have affected (pure), then writes:
changes of MIGRATABLE, REASON or the source, target pods and retries at once, mere counts when
``count_delay`` has passed since they first differed (contract: at most 60 s).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import Counter
from collections.abc import Awaitable
from datetime import UTC, datetime

from migcompat.api.cluster import VirtualMachineInstance
from migcompat.api.migrationcompatibility import MigrationCompatibility
from migcompat.fleet.migrant import Mode
from migcompat.fleet.survey import Survey
from migcompat.kube.errors import ApiError

from migcompat_operator.answer import MIGRATABLE, condition
from migcompat_operator.memory import Memory
from migcompat_operator.metrics import Metrics
from migcompat_operator.mirror import Key, Mirror, Subject
from migcompat_operator.policies import governed, policy_status
from migcompat_operator.reconcile import Plan, asks_about, reconcile, told_before
from migcompat_operator.retries import Retries, Touch
from migcompat_operator.targets import reconcile_target
from migcompat_operator.writer import Writer

log = logging.getLogger(__name__)

DEBOUNCE = 0.2
COUNT_DELAY = 5.0
COUNT_DELAY_LIMIT = 60.0
COUNTS_AT_A_TIME = 20
"""Counts that a pass writes although something new has come; the write limiter makes that a second."""
BACKOFF_FIRST = 1.0
BACKOFF_LIMIT = 60.0
IDLE = 30.0
"""Seconds after which an idle worker shows that it lives."""
STUCK = 300.0
"""Seconds without a sign of life after which ``/healthz`` fails; every request has a deadline far shorter."""


Item = tuple[Subject, Key]

POLICIES: Item = (Subject.POLICY, ("", ""))
"""Stands for all policies: what they govern is found out for all of them at once."""


class Worker:
    """The one task that reconciles.

    Raises ValueError when *count_delay* is not between 0 and 60 seconds.
    """

    def __init__(
        self,
        mirror: Mirror,
        writer: Writer,
        metrics: Metrics,
        wake: asyncio.Event,
        *,
        allow_loosening: bool = False,
        count_delay: float = COUNT_DELAY,
        debounce: float = DEBOUNCE,
    ) -> None:
        if not 0 <= count_delay <= COUNT_DELAY_LIMIT:
            raise ValueError(f"count delay {count_delay} is not between 0 and {COUNT_DELAY_LIMIT:g} seconds")
        self._mirror = mirror
        self._writer = writer
        self._metrics = metrics
        self._wake = wake
        self._allow_loosening = allow_loosening
        self._count_delay = count_delay
        self._debounce = debounce
        self._retries = Retries()
        self._memory = Memory()
        self._due: dict[Item, float] = {}
        self._failures: dict[Item, int] = {}
        self._alive = time.monotonic()

    def silence(self) -> float:
        """Seconds since the last sign of life."""
        return time.monotonic() - self._alive

    async def run(self) -> None:
        """Reconcile for ever."""
        while True:
            await self._wait()
            await asyncio.sleep(self._debounce)
            with self._metrics.cycle.time():
                await self.pass_once()

    async def pass_once(self) -> None:
        """Look at everything that is marked or due."""
        self._wake.clear()
        ripe = self._ripe()
        everything, marked = self._mirror.dirty.take()
        plans: list[tuple[Item, Plan]] = []
        for item in dict.fromkeys([*marked, *ripe, *(self._everything() if everything else ())]):
            self._alive = time.monotonic()
            try:
                plan = await self._look_at(item)
            except Exception:  # one object that we cannot cope with must not stop the others
                log.exception("%s: cannot be reconciled", _name(item))
                self._failed(item)
                continue
            if plan is not None and not plan.is_empty:
                plans.append((item, plan))
            await asyncio.sleep(0)
        await self._write(plans, ripe)
        for touch in self._retries.follow_up(
            self._mirror.migrations, self._mirror.started_migrations(), time.monotonic()
        ):
            await self._touch(touch.migration, touch)
        if POLICIES in ripe:
            await self._policies()
        self._count_verdicts()

    async def _look_at(self, item: Item) -> Plan | None:
        """The plan for a question; what else there is, is done at once."""
        subject, key = item
        if subject is Subject.QUESTION:
            return await self._question(key)
        if subject is Subject.TARGET:
            await self._target(key)
        elif item != POLICIES:
            self._due.setdefault(POLICIES, time.monotonic() + self._count_delay)
        return None

    async def _write(self, plans: list[tuple[Item, Plan]], ripe: set[Item]) -> None:
        """Urgent plans first; mere counts make room when something new may be urgent."""
        for item, plan in plans:
            if not plan.is_patient:
                await self._carry_out(item, plan)
        written = 0
        for item, plan in plans:
            if not plan.is_patient:
                continue
            if plan.events and await self._attempt(item, self._writer.say(plan.events)):
                self._memory.tell(item[1], plan.tells)
                plan.events = ()
            if plan.status is None:
                continue
            if item not in ripe:
                self._due.setdefault(item, time.monotonic() + self._count_delay)
            elif written >= COUNTS_AT_A_TIME and self._wake.is_set():
                self._due[item] = time.monotonic()
            else:
                written += 1
                await self._carry_out(item, plan)

    async def _wait(self) -> None:
        """Until something is marked or due, or for a moment, to show that the worker lives."""
        times = [at for at in (*self._due.values(), self._retries.next_due()) if at is not None]
        left = min(times, default=math.inf) - time.monotonic()
        self._alive = time.monotonic()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, min(left, IDLE))):
                await self._wake.wait()

    def _ripe(self) -> set[Item]:
        now = time.monotonic()
        ripe = {item for item, at in self._due.items() if at <= now}
        for item in ripe:
            del self._due[item]
        return ripe

    def _everything(self) -> list[Item]:
        questions = dict.fromkeys(self._mirror.compatibilities)
        for vmi in self._mirror.fleet.vmis():
            questions[vmi.metadata.namespace, vmi.metadata.name] = None
        self._memory.keep(questions)
        return [
            *((Subject.TARGET, key) for key in self._mirror.targets),
            *((Subject.QUESTION, key) for key in questions),
            *((Subject.POLICY, key) for key in self._mirror.policies),
        ]

    async def _question(self, key: Key) -> Plan:
        """Plan for one name; migrations that may go now are touched before anything is written."""
        mirror = self._mirror
        existing, vmi = mirror.compatibilities.get(key), mirror.fleet.vmi(*key)
        now = time.monotonic()
        uid = vmi.metadata.uid if vmi is not None else ""
        plan = reconcile(
            mirror.fleet,
            existing,
            vmi,
            now=_now(),
            allow_loosening=self._allow_loosening,
            told=self._memory.told(key, uid, told_before(existing, vmi)),
            hold=self._memory.may_hold(key, now),
        )
        self._metrics.reconciled.labels(Subject.QUESTION.value).inc()
        self._remember(key, plan, now)
        if vmi is None:
            self._retries.forget(key)
        elif not plan.held:
            await self._retry(key, existing, vmi, plan.survey)
        return plan

    def _remember(self, key: Key, plan: Plan, now: float) -> None:
        item = (Subject.QUESTION, key)
        if plan.held:
            until = self._memory.hold(key, now)
            self._due[item] = min(self._due.get(item, until), until)
        elif plan.is_definite:
            self._memory.settle(key)
        if not plan.events:
            self._memory.tell(key, plan.tells)
        if plan.is_empty:
            self._failures.pop(item, None)

    async def _retry(
        self,
        key: Key,
        existing: MigrationCompatibility | None,
        vmi: VirtualMachineInstance,
        survey: Survey | None,
    ) -> None:
        """*survey* is the VM's own, whatever a user's object of its name asks; so is what it said before."""
        mirror, before = self._mirror, None
        migrant = mirror.fleet.migrant(vmi)
        if existing is not None and existing.status.conditions and asks_about(existing, vmi.metadata.name):
            before = existing.status.free > 0
        for touch in self._retries.note(
            key,
            survey or mirror.fleet.survey(migrant),
            lax=migrant.mode is not Mode.ENFORCE,
            before=before,
            migrations=[mirror.migrations[one] for one in sorted(mirror.migrations_of.get(key, ()))],
            now=time.monotonic(),
        ):
            await self._touch(key, touch)

    async def _touch(self, key: Key, touch: Touch) -> None:
        """Tell who waits: kube-scheduler where there is a target pod without a node, else virt-controller."""
        migration = self._mirror.migrations.get(touch.migration)
        pods = self._mirror.unbound_targets(migration.metadata.uid) if migration is not None else []
        for pod in pods:
            await self._attempt((Subject.QUESTION, key), self._writer.wake(pod, touch))
        if not pods:
            await self._attempt((Subject.QUESTION, key), self._writer.touch(touch))

    async def _carry_out(self, item: Item, plan: Plan) -> None:
        self._alive = time.monotonic()
        existing = self._mirror.compatibilities.get(item[1])
        if await self._attempt(item, self._writer.question(item[1], existing, plan)):
            self._memory.tell(item[1], plan.tells)
            self._due.pop(item, None)

    async def _target(self, key: Key) -> None:
        pod = self._mirror.targets.get(key)
        if pod is None:
            return
        self._metrics.reconciled.labels(Subject.TARGET.value).inc()
        plan = reconcile_target(self._mirror.fleet, pod)
        if plan.stamp or plan.unstamp or plan.delete or plan.events:
            await self._attempt((Subject.TARGET, key), self._writer.target(pod, plan))

    async def _policies(self) -> None:
        """What policies govern are counts: all of them together, when their time has come."""
        fleet, now = self._mirror.fleet, _now()
        found = governed(fleet)
        for key, item in list(self._mirror.policies.items()):
            self._metrics.reconciled.labels(Subject.POLICY.value).inc()
            status = policy_status(fleet, item, found.get(item.metadata.name), now=now)
            if status is not None:
                await self._attempt((Subject.POLICY, key), self._writer.policy(item, status))

    async def _attempt(self, item: Item, action: Awaitable[bool | None]) -> bool:
        """Do it; when the API server refuses, cannot be reached or takes not every event (the action returns
        False then, and the log says why), look at *item* again after a while."""
        try:
            done = await action
        except ApiError as problem:
            delay = self._failed(item)
            log.warning("%s: trying again in %.0f s: %s", _name(item), delay, problem)
            return False
        if done is False:
            self._failed(item)
            return False
        self._failures.pop(item, None)
        return True

    def _failed(self, item: Item) -> float:
        """Look at *item* again after the seconds returned, each time twice as many."""
        times = self._failures[item] = self._failures.get(item, 0) + 1
        delay = min(BACKOFF_FIRST * 2.0 ** (times - 1), BACKOFF_LIMIT)
        self._due[item] = time.monotonic() + delay
        self._metrics.errors.labels(item[0].value).inc()
        return delay

    def _count_verdicts(self) -> None:
        found = Counter(
            (verdict.status, verdict.reason)
            for item in self._mirror.compatibilities.values()
            if (verdict := condition(item.status, MIGRATABLE)) is not None
        )
        self._metrics.verdicts.clear()
        for (status, reason), count in found.items():
            self._metrics.verdicts.labels(status, reason).set(count)


def _name(item: Item) -> str:
    subject, key = item
    return f"{subject.value} {'/'.join(filter(None, key))}"


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
