"""Which waiting migrations are worth another try.

virt-controller backs off between tries at a target pod that the webhook denies, up to many minutes; a changed
annotation on the VirtualMachineInstanceMigration brings the next try at once (measured). So a migration is
touched when what the webhook denies becomes what it lets pass: something accepting is free, or the VM need
not wait for that any more (mode ``prefer`` or ``ignore``). Since the extender's own view may lag, or may have
lagged when it denied what is fine by ours, a migration that waits though its VM could go is touched a few
times more while no target pod has its node.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from migcompat.api.cluster import VirtualMachineInstanceMigration
from migcompat.api.names import digest
from migcompat.fleet.survey import Survey

Key = tuple[str, str]

WAITING_PHASES = ("", "Pending", "Scheduling")
FOLLOW_UPS = (2.0, 8.0, 30.0)
"""Seconds from one touch to the next."""


class _Waiting(msgspec.Struct):
    vmi: Key
    touches: int
    due: float


class Touch(msgspec.Struct, frozen=True):
    """The annotation's new value for a migration."""

    migration: Key
    value: str


class Retries:
    """Remembers per VM whether its target pods would pass the webhook, and which migrations were touched."""

    def __init__(self) -> None:
        self._hopeful: dict[Key, bool] = {}
        self._waiting: dict[Key, _Waiting] = {}
        self._followed: set[Key] = set()

    def note(
        self,
        vmi: Key,
        survey: Survey,
        *,
        lax: bool = False,
        before: bool | None,
        migrations: Iterable[VirtualMachineInstanceMigration],
        now: float,
    ) -> list[Touch]:
        """What to touch now that *survey* is the VM's answer. *lax*: its mode is not to enforce it.

        *before*: whether it would have passed according to the status written last (None: no status);
        it counts only while nothing is remembered, that is after a restart. *now*: monotonic seconds.
        """
        hopeful = survey.free > 0 or lax
        was = self._hopeful.get(vmi, before)
        self._hopeful[vmi] = hopeful
        if not hopeful or was is not False:
            return []
        touches = []
        for migration in migrations:
            if migration.status.phase in WAITING_PHASES:
                key = (migration.metadata.namespace, migration.metadata.name)
                self._waiting[key] = _Waiting(vmi, 1, now + FOLLOW_UPS[0])
                self._followed.add(key)
                touches.append(Touch(key, _value(survey, migration, 1)))
        return touches

    def forget(self, vmi: Key) -> None:
        """The VM is gone."""
        self._hopeful.pop(vmi, None)

    def next_due(self) -> float | None:
        """When :meth:`follow_up` has something to look at (monotonic seconds)."""
        return min((w.due for w in self._waiting.values()), default=None)

    def follow_up(
        self,
        migrations: dict[Key, VirtualMachineInstanceMigration],
        started: Iterable[str],
        now: float,
    ) -> list[Touch]:
        """Touch again what is due and still waits for a target pod with a node.

        A migration that is met here for the first time, while its VM could go, is due a while later.
        *started*: UIDs of migrations that have one. *now*: monotonic seconds.
        """
        running = set(started)
        self._followed &= migrations.keys()
        for key, item in migrations.items():
            vmi = (item.metadata.namespace, item.spec.vmi_name)
            waits = item.status.phase in WAITING_PHASES and item.metadata.uid not in running
            if waits and key not in self._followed and self._hopeful.get(vmi, False):
                self._followed.add(key)
                self._waiting[key] = _Waiting(vmi, 0, now + FOLLOW_UPS[0])
        touches = []
        for key, waiting in list(self._waiting.items()):
            migration = migrations.get(key)
            done = (
                migration is None
                or migration.status.phase not in WAITING_PHASES
                or migration.metadata.uid in running
                or not self._hopeful.get(waiting.vmi, False)
            )
            if done or migration is None:
                del self._waiting[key]
            elif waiting.due <= now:
                waiting.touches += 1
                touches.append(Touch(key, _value(None, migration, waiting.touches)))
                if waiting.touches > len(FOLLOW_UPS):
                    del self._waiting[key]
                else:
                    waiting.due = now + FOLLOW_UPS[waiting.touches - 1]
        return touches


def _value(survey: Survey | None, migration: VirtualMachineInstanceMigration, touches: int) -> str:
    """A short digest that differs from the last one, because only a *changed* annotation counts."""
    nodes = survey.accepting[:10] if survey is not None else ()
    return digest([list(nodes), migration.metadata.resource_version, touches])[:12]
