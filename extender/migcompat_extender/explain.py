"""``GET /explain``: where one VM could go and why not elsewhere; the same verdicts as ``/filter``."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from migcompat.fleet.explanation import explain
from migcompat.fleet.fleet import Fleet

from migcompat_extender.filter import NOT_READY
from migcompat_extender.refusals import Refusals


class NotExplainable(Exception):
    """There is no answer; ``status`` is the HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Explain:
    """Explains VMIs. ``problem`` says why the fleet cannot be trusted now, or None."""

    def __init__(
        self, fleet: Fleet, problem: Callable[[], str | None], refusals: Refusals | None = None
    ) -> None:
        self._fleet = fleet
        self._problem = problem
        self._refusals = refusals or Refusals()

    def answer(self, namespace: str, name: str, node: str) -> bytes:
        """JSON for the VMI over all candidate nodes, or in detail for one *node*.

        Raises:
            NotExplainable: parameters missing, unknown VMI or node, or caches not ready.
        """
        if not namespace or not name:
            raise NotExplainable(400, "parameters namespace and vmi are needed: /explain?namespace=…&vmi=…")
        if problem := self._problem():
            raise NotExplainable(503, f"{NOT_READY}: {problem}")
        vmi = self._fleet.vmi(namespace, name)
        if vmi is None:
            raise NotExplainable(404, f"no VirtualMachineInstance {namespace}/{name}")
        if node and self._fleet.node(node) is None:
            raise NotExplainable(404, f"no Node {node}")
        avoided = self._refusals.nodes(vmi.metadata.uid)
        return msgspec.json.encode(explain(self._fleet, vmi, node, avoided))
