"""``GET /explain``: where one VM could go and why not elsewhere; the same verdicts as ``/filter``."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from migcompat.api.vfionode import VFIONode, declaration
from migcompat.fleet.fit import Fit
from migcompat.fleet.fleet import Fleet
from migcompat.fleet.migrant import Migrant
from migcompat.fleet.rejection import rejection

from migcompat_extender.filter import NOT_READY


class NotExplainable(Exception):
    """There is no answer; ``status`` is the HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class DeviceView(msgspec.Struct, omit_defaults=True, rename="camel"):
    """One device: what it is, and for a target what it accepts, entry by entry."""

    resource: str
    id: str
    profile: str
    attributes: dict[str, str]
    health: str = ""
    allocated_to: str = ""
    accepts: list[dict[str, str]] | None = None
    problem: str = ""


class NodeView(msgspec.Struct, omit_defaults=True):
    """One node's verdict. ``rejection`` is the text that ``/filter`` gives, empty where the node passes."""

    node: str
    compatible: bool
    free: bool
    reason: str
    message: str
    rejection: str
    rank: tuple[int, ...] | None = None
    assignment: dict[str, str] = {}
    obligations: dict[str, str] = {}
    devices: list[DeviceView] | None = None


class Explanation(msgspec.Struct, omit_defaults=True):
    """The whole answer. ``nodes``: accepting ones first, as admission orders them."""

    namespace: str
    vmi: str
    node: str
    mode: str
    asks: dict[str, int]
    devices: list[DeviceView]
    compatible: int
    free: int
    total: int
    nodes: list[NodeView]
    problem: str = ""


class Explain:
    """Explains VMIs. ``problem`` says why the fleet cannot be trusted now, or None."""

    def __init__(self, fleet: Fleet, problem: Callable[[], str | None]) -> None:
        self._fleet = fleet
        self._problem = problem

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
        migrant = self._fleet.migrant(vmi)
        survey = self._fleet.survey(migrant)
        if node:
            views = [_view(node, self._fleet.fit(migrant, node), migrant, self._fleet.vfionode(node))]
        else:
            refusing = sorted(survey.fits.keys() - set(survey.accepting))
            views = [_view(name, survey.fits[name], migrant) for name in (*survey.accepting, *refusing)]
        return msgspec.json.encode(
            Explanation(
                namespace=namespace,
                vmi=name,
                node=migrant.node,
                mode=migrant.mode,
                asks=migrant.asks,
                devices=[
                    DeviceView(d.resource, d.id, d.profile, d.declaration.self.attributes)
                    for d in migrant.devices
                ],
                compatible=survey.compatible,
                free=survey.free,
                total=survey.total,
                nodes=views,
                problem=migrant.problem,
            )
        )


def _view(node: str, fit: Fit, migrant: Migrant, item: VFIONode | None = None) -> NodeView:
    sources = {index: device.id for index, device in enumerate(migrant.devices)}
    return NodeView(
        node=node,
        compatible=fit.compatible,
        free=fit.free,
        reason=fit.reason,
        message=fit.message,
        rejection=rejection(fit),
        rank=fit.rank,
        assignment={sources[a.source]: a.id for a in fit.assignment},
        obligations={key: value for a in fit.assignment for key, value in a.obligations.items()},
        devices=_devices(item, migrant) if item is not None else None,
    )


def _devices(item: VFIONode, migrant: Migrant) -> list[DeviceView]:
    views = []
    for device in item.status.devices:
        if device.resource not in migrant.asks:
            continue
        declared = declaration(item.status, device)
        holder = device.allocated_to
        views.append(
            DeviceView(
                resource=device.resource,
                id=device.id,
                profile=device.profile,
                attributes=declared.self.attributes if declared else {},
                health=device.health,
                allocated_to=f"{holder.namespace}/{holder.name}" if holder else "",
                accepts=[entry.attributes for entry in declared.accepts.entries] if declared else [],
                problem=device.problem,
            )
        )
    return views
