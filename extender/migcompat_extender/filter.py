"""``POST /filter``: which nodes a target pod may go to (contract, chapter *Scheduler extender*)."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from migcompat.api.cluster import Pod
from migcompat.fleet.fleet import Fleet
from migcompat.fleet.migrant import Mode
from migcompat.fleet.rejection import avoided_now

from migcompat_extender.refusals import Refusals
from migcompat_extender.settings import Settings
from migcompat_extender.table import Tables
from migcompat_extender.targets import must_wait
from migcompat_extender.wire import FilterResult, NodeList, WireError, read_args

NOT_READY = "CachesNotReady"


class Filter:
    """Answers filter calls. ``problem`` says why the fleet cannot be trusted now, or None."""

    def __init__(
        self,
        fleet: Fleet,
        tables: Tables,
        problem: Callable[[], str | None],
        settings: Settings,
        refusals: Refusals | None = None,
    ) -> None:
        self._fleet = fleet
        self._tables = tables
        self._problem = problem
        self._settings = settings
        self._refusals = refusals or Refusals()

    def answer(self, body: bytes) -> tuple[bytes, int, int]:
        """The response to *body*, and how many nodes passed and failed.

        Raises:
            WireError: the call cannot be understood.
        """
        pod, names, items = read_args(body)
        failed = self._failed(pod, names)
        result = FilterResult()
        if items is None:
            result.node_names = [name for name in names if name not in failed] if failed else names
        else:
            pairs = zip(names, items, strict=True)
            result.nodes = NodeList([item for name, item in pairs if name not in failed] if failed else items)
        if self._settings.preemptible_rejections:
            result.failed_nodes = failed
        else:
            result.failed_and_unresolvable_nodes = failed
        return msgspec.json.encode(result), len(names) - len(failed), len(failed)

    def _failed(self, pod: Pod, names: list[str]) -> dict[str, str]:
        if not pod.is_migration_target:
            return {}
        if problem := self._problem():
            if not must_wait(pod, allow_loosening=self._settings.allow_loosening):
                return {}
            return dict.fromkeys(names, f"{NOT_READY}: {problem}")
        migrant = self._fleet.migrant_for_pod(pod)
        if migrant is None or migrant.mode is not Mode.ENFORCE:
            return {}
        table = self._tables.of(migrant)
        failed = {name: text for name in names if (text := table[name])}
        return failed | avoided_now(names, failed, self._refusals.nodes(migrant.uid))


def error_answer(error: WireError | str) -> bytes:
    """The answer to a call that cannot be understood, for status 200: no other shows its text."""
    return msgspec.json.encode(FilterResult(error=f"migcompat: {error}"))
