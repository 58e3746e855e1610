"""Where a VM could go and why not elsewhere, down to single attributes, for extender and command line.

Verdicts, rejections and order are those of :class:`migcompat.fleet.fleet.Fleet`, which filter and webhook ask
too; rows come from :mod:`migcompat.engine.trace`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import msgspec

from migcompat.api.cluster import VirtualMachineInstance
from migcompat.engine.policy import Choice, Policy
from migcompat.engine.reasons import Reason
from migcompat.engine.trace import PRESENCE, Finding, Row, Rule, Trace, trace
from migcompat.engine.verdict import Verdict
from migcompat.fleet.fit import Fit, Target, cannot_migrate
from migcompat.fleet.fleet import Fleet, Offer
from migcompat.fleet.judge import Overlay
from migcompat.fleet.migrant import Migrant, MigrantDevice, Mode
from migcompat.fleet.rejection import avoided_now, rejection
from migcompat.fleet.stock import Kind, kind_of

MAX_PAIRINGS = 64
"""Pairings told of a node; equal devices are one."""
MAX_ENTRIES = 16
"""Entries told of a pairing, among them the one that counts."""
MAX_IDS = 8
"""Devices of a pairing, and pods on their way, that are named."""


class DeviceView(msgspec.Struct, omit_defaults=True, rename="camel"):
    """One device: what it is, and for a target what it accepts, entry by entry; both as policies supply them.

    ``policy``: the CompatibilityPolicy that governs it (empty: the defaults), ``tied``: all that are equally
    specific.
    """

    resource: str
    id: str
    profile: str
    attributes: dict[str, str]
    health: str = ""
    allocated_to: str = ""
    accepts: list[dict[str, str]] | None = None
    problem: str = ""
    policy: str = ""
    tied: tuple[str, ...] = ()


class Pairing(msgspec.Struct, omit_defaults=True, rename="camel"):
    """One of the VM's devices with equal devices of a node.

    ``source`` is empty where the VM's devices are not known. ``targets`` names some of them, ``count`` and
    ``free`` say how many there are. ``policy`` governs, ``tied`` are all that are equally specific.
    """

    source: str
    targets: list[str]
    count: int
    free: int
    policy: str
    trace: Trace
    tied: tuple[str, ...] = ()
    entries_left_out: int = 0


class NodeView(msgspec.Struct, omit_defaults=True, rename="camel"):
    """One node's verdict.

    ``rejection`` is the text that ``/filter`` gives when it is asked about all nodes, empty where the node
    passes; ``avoided`` why the VM had better go elsewhere for a while. ``takes_pods`` is false where it is
    cordoned or not ready. ``promised``: devices that other pods on their way there will take, ``promised_to``
    names some of these pods.
    """

    node: str
    compatible: bool
    free: bool
    reason: str
    message: str
    rejection: str
    rank: tuple[int, ...] | None = None
    assignment: dict[str, str] = {}
    obligations: dict[str, str] = {}
    takes_pods: bool = True
    avoided: str = ""
    promised: int = 0
    promised_to: list[str] = []
    devices: list[DeviceView] | None = None
    pairings: list[Pairing] | None = None
    pairings_left_out: int = 0


class Explanation(msgspec.Struct, omit_defaults=True, rename="camel"):
    """The whole answer. ``nodes``: accepting ones first, in the order in which they are preferred.

    ``notes``: what else decides, such as the VM's mode or annotations that are not understood.
    """

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
    require_return_path: bool = False
    cross_type: str = ""
    notes: list[str] = []


def explain(
    fleet: Fleet, vmi: VirtualMachineInstance, node: str = "", avoided: Mapping[str, str] | None = None
) -> Explanation:
    """The VMI over all candidate nodes, or one *node* in detail.

    *avoided*: nodes that have just refused the VM, with the text why.
    """
    migrant = fleet.migrant(vmi)
    survey = fleet.survey(migrant)
    avoided = avoided or {}
    names = list(survey.fits) if not node or node in survey.fits else [*survey.fits, node]
    rejected = rejections(fleet, migrant, names, avoided)
    if node:
        views = [
            _node(fleet, migrant, node, fleet.standing(migrant, node), rejected=rejected, avoided=avoided)
        ]
        _detail(views[0], fleet, migrant)
    else:
        preferred = fleet.preferences(migrant, survey.fits)
        order = (*preferred, *sorted(survey.fits.keys() - preferred.keys()))
        views = [
            _node(fleet, migrant, name, survey.fits[name], rejected=rejected, avoided=avoided)
            for name in order
        ]
    return Explanation(
        namespace=migrant.namespace,
        vmi=migrant.name,
        node=migrant.node,
        mode=migrant.mode,
        asks=migrant.asks,
        devices=_sources(fleet, migrant),
        compatible=survey.compatible,
        free=survey.free,
        total=survey.total,
        nodes=views,
        problem=migrant.problem,
        require_return_path=migrant.require_return_path,
        cross_type="Deny" if migrant.deny_cross_type else "Allow" if migrant.allow_cross_type else "",
        notes=list(_notes(fleet, vmi, migrant, node)),
    )


def _sources(fleet: Fleet, migrant: Migrant) -> list[DeviceView]:
    """The VM's own devices, with the policies that supply what they do not say."""
    selected = {offer.device.id: offer.selected for offer in fleet.offered(migrant.node)}
    return [
        DeviceView(
            device.resource,
            device.id,
            device.profile,
            device.declaration.self.attributes,
            policy=selected[device.id].name,
            tied=selected[device.id].tied,
        )
        for device in migrant.devices
    ]


def rejections(
    fleet: Fleet, migrant: Migrant, names: Collection[str], avoided: Mapping[str, str]
) -> dict[str, str]:
    """What ``/filter`` answers when it is asked about *names*: node to why not, those left out that pass."""
    if migrant.mode is not Mode.ENFORCE or not migrant.asks:
        return {}
    failed = {name: text for name in names if (text := rejection(fleet.fit(migrant, name)))}
    return failed | avoided_now(names, failed, avoided)


def _node(
    fleet: Fleet,
    migrant: Migrant,
    name: str,
    fit: Fit,
    *,
    rejected: Mapping[str, str],
    avoided: Mapping[str, str],
) -> NodeView:
    sources = {index: device.id for index, device in enumerate(migrant.devices)}
    known = fleet.node(name)
    promised = fleet.promised(migrant, name)
    return NodeView(
        node=name,
        compatible=fit.compatible,
        free=fit.free,
        reason=fit.reason,
        message=fit.message,
        rejection=rejected.get(name, ""),
        rank=fit.rank,
        assignment={sources[a.source]: a.id for a in fit.assignment},
        obligations={key: value for a in fit.assignment for key, value in a.obligations.items()},
        takes_pods=known is None or known.takes_pods,
        avoided=avoided.get(name, ""),
        promised=sum(promised.values()),
        promised_to=sorted(f"{namespace}/{pod}" for namespace, pod in promised)[:MAX_IDS],
    )


def _detail(view: NodeView, fleet: Fleet, migrant: Migrant) -> None:
    """Add the node's devices and every pairing, as far as the bounds go."""
    offered = [offer for offer in fleet.offered(view.node) if offer.device.resource in migrant.asks]
    view.devices = []
    for offer in offered:
        device, declared = offer.device, offer.target.declaration
        holder = device.allocated_to
        view.devices.append(
            DeviceView(
                resource=device.resource,
                id=device.id,
                profile=device.profile,
                attributes=declared.self.attributes,
                health=device.health,
                allocated_to=f"{holder.namespace}/{holder.name}" if holder else "",
                accepts=[entry.attributes for entry in declared.accepts.entries],
                problem=device.problem,
                policy=offer.selected.name,
                tied=offer.selected.tied,
            )
        )
    groups = _groups(migrant, offered)
    view.pairings = [_pairing(migrant, source, group) for source, group in groups[:MAX_PAIRINGS]]
    view.pairings_left_out = len(groups) - len(view.pairings)


def _groups(migrant: Migrant, offered: list[Offer]) -> list[tuple[MigrantDevice | None, list[Offer]]]:
    """Each of the VM's devices (None: they are not known) with each kind of device in its pool."""
    groups: dict[tuple[int, Kind], tuple[MigrantDevice | None, list[Offer]]] = {}
    for index, source in enumerate(migrant.devices or (None,)):
        for offer in offered:
            if source is None or source.resource == offer.device.resource:
                key = (index, kind_of(offer.target))
                groups.setdefault(key, (source, []))[1].append(offer)
    return list(groups.values())


def _pairing(migrant: Migrant, source: MigrantDevice | None, offers: list[Offer]) -> Pairing:
    target, selected = offers[0].target, offers[0].selected
    if source is None:
        found = _untold(migrant, target.policy)
    elif verdict := cannot_migrate(source, target):
        found = Trace(verdict, _kernel_says(source, target, verdict))
    else:
        policy = Overlay.of(migrant).apply(target.policy)
        found = trace(source.declaration, target.declaration, policy)
    left_out = max(0, len(found.entries) - MAX_ENTRIES)
    return Pairing(
        source=source.id if source is not None else "",
        targets=[offer.device.id for offer in offers[:MAX_IDS]],
        count=sum(offer.device.count for offer in offers),
        free=sum(offer.device.count for offer in offers if offer.target.free),
        policy=selected.name,
        trace=_bounded(found),
        tied=selected.tied,
        entries_left_out=left_out,
    )


def _bounded(found: Trace) -> Trace:
    """*found* with at most :data:`MAX_ENTRIES` entries each way, among them the one that counts."""
    back = _bounded(found.back) if found.back is not None else None
    entries = found.entries
    if len(entries) > MAX_ENTRIES:
        counts = found.verdict.entry
        kept = entries[:MAX_ENTRIES]
        if counts is not None and counts >= MAX_ENTRIES:
            kept = (*kept[:-1], entries[counts])
        entries = kept
    return msgspec.structs.replace(found, entries=entries, back=back)


def _untold(migrant: Migrant, policy: Policy) -> Trace:
    """The answer where the source is not known: the target's policy alone decides."""
    allowed = policy.unknown is Choice.ALLOW
    finding = Finding.OK if allowed else Finding.REFUSES
    message = migrant.problem or "the devices of the source are not known"
    row = Row(PRESENCE, None, f"unknown: {policy.unknown}", Rule.POLICY, "", finding, "§5 unknown", message)
    return Trace(Verdict(allowed, Reason.UNKNOWN, message), row)


def _kernel_says(source: MigrantDevice, target: Target, verdict: Verdict) -> Row:
    """What no declaration and no policy changes: a driver that cannot migrate its device."""
    told = {True: "can migrate", False: "cannot migrate", None: "not known"}
    shown = told[source.migratable], told[target.migratable]
    return Row(PRESENCE, *shown, Rule.NONE, "", Finding.REFUSES, "§3 stage 1", verdict.message)


def _notes(fleet: Fleet, vmi: VirtualMachineInstance, migrant: Migrant, node: str) -> Iterator[str]:
    if not migrant.asks:
        yield "the VM asks for no device of a pool that an agent publishes: migcompat rejects no node"
    elif migrant.mode is not Mode.ENFORCE:
        yield f"mode {migrant.mode}: no node is rejected, whatever its devices say"
    if node and node == migrant.node:
        yield "the VM runs on this node; KubeVirt never sends it where it is"
    wish = fleet.intent(vmi)
    yield from (f"{warning}; the strict reading counts" for warning in wish.warnings)
    yield from (f"{denied} is not honoured: only the administrator can allow it" for denied in wish.denied)
    yield from (f"{loosened} loosens the rules, as the administrator allows" for loosened in wish.loosened)
