"""The agent's knowledge as others see it: the status of its VFIONode, the labels of its Node. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec
from migcompat import __version__
from migcompat.api import names
from migcompat.api.conditions import set_condition
from migcompat.api.meta import Condition
from migcompat.api.names import digest
from migcompat.api.vfionode import (
    Device,
    Driver,
    Migration,
    MigrationState,
    Mode,
    VFIONodeStatus,
    split,
)
from migcompat.engine.declaration import Acceptance, Declaration, Kind, Presence, SelfSet
from migcompat.kubelet.podresources import Allocations
from migcompat.resources.selection import Configuration

from migcompat_deviceplugin import flaws
from migcompat_deviceplugin.config import Loaded
from migcompat_deviceplugin.devnodes import MISSING
from migcompat_deviceplugin.folding import folded
from migcompat_deviceplugin.inventory import Device as InventoryDevice
from migcompat_deviceplugin.inventory import Inventory, pools
from migcompat_deviceplugin.observing import NOT_OFFERED
from migcompat_deviceplugin.state import State

CONTENT_LIMIT = 512 * 1024
"""Bytes of all contents: etcd refuses objects above 1.5 MiB, and one refused object would hide all devices.
The rest is for the devices' own fields (1,024 devices take about 0.5 MiB)."""

READY = "Ready"
DEVICES_USABLE = "DevicesUsable"
DECLARATIONS_VALID = "DeclarationsValid"
CONFIGURATION_VALID = "ConfigurationValid"
GUARDED = "Guarded"
IDS_UNDERSTOOD = "IdsUnderstood"
MESSAGE_LIMIT = 1024
PROBLEM_LIMIT = 256
TOLD = 5
"""Devices that the condition names; ``devices`` has the problem of each."""


def ready(state: State) -> Condition:
    """The condition ``Ready``: whether what is published is current and served."""
    for problem in state.problems():
        return Condition(READY, "False", problem.reason, problem.message[:MESSAGE_LIMIT])
    registered = "registered " if state.mode is Mode.SERVE else ""
    message = f"devices are published, {registered}and their holders known"
    return Condition(READY, "True", "Published", message)


def guarded(state: State) -> Condition:
    """The condition ``Guarded``: whether each container is checked that starts with such a device."""
    if state.mode is Mode.SERVE:
        return Condition(
            GUARDED, "True", "ServeMode", "no migration target starts with a device that refuses"
        )
    message = (
        "another plugin gives the devices out: webhook and extender choose nodes, but nothing here keeps a"
        " migration target from starting with a device that refuses its source"
    )
    return Condition(GUARDED, "False", "ObserveMode", message)


def ids_understood(state: State) -> Condition:
    """The condition ``IdsUnderstood`` of mode ``observe``: whether other plugins' ids tell their devices."""
    if state.doubts:
        title = f"{len(state.doubts)} device(s) or resource(s) are in doubt"
        return _wrong(IDS_UNDERSTOOD, "Ambiguous", title, state.doubts)
    resources = {device.resource for device in state.inventory.values()} - {NOT_OFFERED}
    nobodys = sum(device.resource == NOT_OFFERED for device in state.inventory.values())
    if state.inventory and not resources:
        message = (
            f"{nobodys} device(s), and no plugin offers any: does one run here, and is it to serve them?"
        )
        return Condition(IDS_UNDERSTOOD, "False", "NothingOffered", message)
    message = f"{', '.join(sorted(resources)) or 'no device'}; {nobodys} device(s) are offered by no plugin"
    return Condition(IDS_UNDERSTOOD, "True", "AllUnderstood", message[:MESSAGE_LIMIT])


def devices_usable(state: State) -> Condition:
    """The condition ``DevicesUsable``: whether each device found, or held by a pod, may be handed out."""
    wrong = [*_gone(state), *_unreadable(state), *_unhealthy(state)]
    if not wrong:
        return Condition(DEVICES_USABLE, "True", "AllUsable", "")
    message = ". ".join(condition.message for condition in wrong)
    return msgspec.structs.replace(wrong[0], message=message[:MESSAGE_LIMIT])


def _gone(state: State) -> Iterator[Condition]:
    """Devices that pods hold, of resources of ours, and that are not there any more."""
    told = [
        f"{id_} of {resource}, held by {pod.namespace}/{pod.name}"
        for (resource, id_), pod in sorted((state.holders or {}).items())
        if resource in state.served and id_ not in state.inventory
    ]
    if told:
        yield _wrong(
            DEVICES_USABLE, "HeldDeviceGone", f"{len(told)} device(s) went while pods hold them", told
        )


def _unreadable(state: State) -> Iterator[Condition]:
    told = [f"{problem.path}: {problem.message}" for problem in state.unreadable]
    if told:
        title = f"{len(told)} name(s) in sysfs cannot be taken for a device"
        yield _wrong(DEVICES_USABLE, "Unreadable", title, told)


def _unhealthy(state: State) -> Iterator[Condition]:
    bad = {id_: d.found.problem for id_, d in sorted(state.inventory.items()) if d.found.problem}
    if bad:
        without_nodes = any(problem.startswith(MISSING) for problem in bad.values())
        told = [f"{id_}: {problem}" for id_, problem in bad.items()]
        title = f"{len(bad)} of {len(state.inventory)} devices unhealthy"
        reason = "DeviceNodesMissing" if without_nodes else "DevicesUnhealthy"
        yield _wrong(DEVICES_USABLE, reason, title, told)


def declarations_valid(state: State) -> Condition:
    """The condition ``DeclarationsValid``: whether all is understood that devices say about themselves."""
    found = flaws.find(state.inventory)
    if not found.problems:
        return Condition(DECLARATIONS_VALID, "True", "AllValid", "")
    told = [f"{id_}: {problem}" for id_, problem in found.problems.items()]
    title = f"{len(told)} of {len(state.inventory)} devices have a flawed declaration"
    return _wrong(DECLARATIONS_VALID, "Unreadable" if found.unreadable else "Malformed", title, told)


def consequence(loaded: Loaded) -> str:
    """What a configuration file means that cannot be used."""
    if loaded.configuration is None:
        return "until it is mended, only devices that were published before are served, as they were"
    return "until it is mended, the last good one stays in force"


def configuration_valid(state: State) -> Condition:
    """The condition ``ConfigurationValid``: whether resources are as the configuration file has them."""
    loaded = state.loaded
    if loaded.problem:
        # Both ends count: the first mistakes, and what comes of them.
        end = f"; {consequence(loaded)}"
        message = loaded.problem[: MESSAGE_LIMIT - len(end)] + end
        return Condition(CONFIGURATION_VALID, "False", "Invalid", message)
    if state.mode is Mode.OBSERVE and loaded.path is not None and loaded.configuration is not None:
        others = list(_in_other_pools(state.inventory, loaded.configuration))
        if others:
            title = f"{len(others)} device(s) would be in another pool in mode serve"
            return _wrong(CONFIGURATION_VALID, "Differs", title, others)
    told = [f"{id_}: {', '.join(d.claims)}" for id_, d in sorted(state.inventory.items()) if d.claims]
    if told:
        title = f"{len(told)} device(s) are selected by several resources, of which the first has each"
        return _wrong(CONFIGURATION_VALID, "Ambiguous", title, told)
    mixed = [name for name, pool in sorted(pools(state.inventory).items()) if len(_kinds(pool.values())) > 1]
    if mixed:
        title = f"{len(mixed)} resource(s) hold mdevs and PCI functions, which no VM can ask for together"
        return _wrong(CONFIGURATION_VALID, "MixedKinds", title, mixed)
    if loaded.path is None:
        return Condition(CONFIGURATION_VALID, "True", "NoFile", "resources have their default names")
    return Condition(CONFIGURATION_VALID, "True", "Valid", "")


def _in_other_pools(inventory: Inventory, configuration: Configuration) -> Iterator[str]:
    """Devices of other plugins' pools that *configuration* has elsewhere."""
    for id_, device in sorted(inventory.items()):
        wanted = configuration.choose(device.found).resource or "none"
        if device.resource not in (NOT_OFFERED, wanted):
            yield f"{id_}: in {device.resource}, by the file in {wanted}"


def _kinds(devices: Iterable[InventoryDevice]) -> set[Kind]:
    return {device.found.kind for device in devices}


def _wrong(kind: str, reason: str, title: str, told: Sequence[str]) -> Condition:
    more = [f"and {len(told) - TOLD} more"] if len(told) > TOLD else []
    message = f"{title}: {'; '.join([*told[:TOLD], *more])}"
    return Condition(kind, "False", reason, message[:MESSAGE_LIMIT])


def conditions(state: State, before: list[Condition], now: str) -> list[Condition]:
    """*before* with what is true *now* (RFC 3339); nothing is said of devices before the first scan."""
    told = set_condition(before, ready(state), now)
    if state.scanned:
        about = (devices_usable, declarations_valid, configuration_valid, guarded)
        for condition in about:
            told = set_condition(told, condition(state), now)
        if state.mode is Mode.OBSERVE:
            told = set_condition(told, ids_understood(state), now)
        else:
            told = [known for known in told if known.type != IDS_UNDERSTOOD]
    return told


def build(
    inventory: Inventory,
    allocations: Allocations,
    *,
    boot_id: str,
    conditions: list[Condition],
    now: str,
    mode: Mode = Mode.SERVE,
) -> VFIONodeStatus:
    """The status to publish; *now*: RFC 3339."""
    status = contents(inventory, allocations)
    status.devices, listed = folded(status.devices)
    status.boot_id = boot_id
    status.mode = mode
    status.agent_version = __version__
    status.conditions = set_condition(conditions, listed, now)
    return status


def contents(inventory: Inventory, allocations: Allocations) -> VFIONodeStatus:
    """The devices of *inventory* with their contents and holders, and nothing else."""
    status = VFIONodeStatus(
        drivers=_drivers(inventory.values()), profiles={}, acceptances={}, shown={}, devices=[]
    )
    declarations = bounded({id_: device.found.declaration for id_, device in inventory.items()})
    for id_, declaration in sorted(declarations.items()):
        device = inventory[id_]
        found = device.found
        profile_key, profile, acceptance_key, acceptance, dynamic = split(declaration)
        status.profiles[profile_key] = profile
        status.acceptances[acceptance_key] = acceptance
        shown_key = digest(declaration.shown) if declaration.shown else ""
        if declaration.shown:
            status.shown[shown_key] = declaration.shown
        status.devices.append(
            Device(
                id=found.id,
                resource=device.resource,
                profile=profile_key,
                acceptance=acceptance_key,
                kind=found.kind,
                parent=found.parent,
                driver=found.driver,
                type=found.type,
                device_api=found.device_api,
                pci_id=found.pci_id,
                numa_node=found.numa_node,
                iommu_group=found.iommu_group,
                health=device.health,
                problem=device.problem[:PROBLEM_LIMIT],
                dynamic=dynamic,
                allocated_to=allocations.get((device.resource, id_)),
                migration=device.migration,
                peer_to_peer=_peer_to_peer(device.migration),
                shown=shown_key,
            )
        )
    return status


def _peer_to_peer(migration: Migration | None) -> bool | None:
    return None if migration is None else MigrationState.P2P in migration.states


def _drivers(devices: Iterable[InventoryDevice]) -> list[Driver]:
    found = {(d.found.driver, d.found.driver_version) for d in devices if d.found.driver}
    return [Driver(name, version) for name, version in sorted(found)]


def bounded(declarations: Mapping[str, Declaration], limit: int = CONTENT_LIMIT) -> dict[str, Declaration]:
    """*declarations* by device id, the largest replaced until what is left takes at most *limit* bytes.

    Devices that say too much (a driver may say 64 KiB each) so harm only themselves. Contents that devices
    share count once.
    """
    parts: dict[str, tuple[str, ...]] = {}
    own: dict[str, int] = {}
    sizes: dict[str, int] = {}
    for id_, declaration in declarations.items():
        profile_key, profile, acceptance_key, acceptance, dynamic = split(declaration)
        shared = {
            f"p{profile_key}": profile,
            f"a{acceptance_key}": acceptance,
            f"s{digest(declaration.shown)}": declaration.shown,
        }
        parts[id_] = tuple(shared)
        for key, content in shared.items():
            if key not in sizes:
                sizes[key] = len(msgspec.json.encode(content))
        own[id_] = len(msgspec.json.encode(dynamic))
    users = Counter(key for keys in parts.values() for key in keys)
    total = sum(sizes.values()) + sum(own.values())
    weight = {id_: own[id_] + sum(sizes[key] for key in keys) for id_, keys in parts.items()}
    kept = dict(declarations)
    for id_ in sorted(weight, key=lambda i: (-weight[i], i)):
        if total <= limit:
            break
        problem = f"its declaration ({weight[id_]} bytes) is too large to be published with the others"
        kept[id_] = Declaration(
            declarations[id_].kind,
            SelfSet(Presence.MALFORMED, {}, problem),
            Acceptance(Presence.MALFORMED, problem=problem),
        )
        total -= own[id_]
        for key in parts[id_]:
            users[key] -= 1
            total -= 0 if users[key] else sizes[key]
    return kept


def labels(status: VFIONodeStatus) -> dict[str, str]:
    """Our labels of the Node (contract, Labels and annotations): hints for people and selectors."""
    wanted = {names.NODE_MANAGED: "true"}
    for device in status.devices:
        profile = status.profiles[device.profile]
        type_ = profile.self.attributes.get("type") or device.type
        if type_:
            wanted[names.NODE_TYPE_PREFIX + names.label_name(type_)] = "true"
        if profile.self.presence is Presence.PRESENT:
            wanted[names.NODE_OFFERS_PREFIX + device.profile] = "true"
    return wanted


def label_patch(current: Mapping[str, str], wanted: Mapping[str, str]) -> dict[str, str | None]:
    """What to merge into a Node's *current* labels: missing and wrong ones, and None for our stale ones."""
    patch: dict[str, str | None] = {k: v for k, v in wanted.items() if current.get(k) != v}
    for key in current:
        if names.is_node_label(key) and key not in wanted:
            patch[key] = None
    return patch
