"""Figures for Prometheus, in a registry of our own."""

from __future__ import annotations

from collections import Counter as Count
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet

from migcompat.engine.declaration import Kind
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from migcompat_deviceplugin.inventory import Device
from migcompat_deviceplugin.state import State

REGISTRY = CollectorRegistry()

SCAN_SECONDS = Histogram(
    "migcompat_agent_scan_seconds",
    "Duration of a look at all devices",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
    registry=REGISTRY,
)
SCAN_FAILURES = Counter(
    "migcompat_agent_scan_failures", "Looks at sysfs that failed or hung", registry=REGISTRY
)
UEVENTS = Counter(
    "migcompat_agent_uevents", "Events of the kernel heard that may be about VFIO devices", registry=REGISTRY
)
UEVENT_OVERRUNS = Counter(
    "migcompat_agent_uevent_overruns",
    "Times that the kernel had to drop events; each brings a look at all devices",
    registry=REGISTRY,
)
UEVENT_LAG_SECONDS = Histogram(
    "migcompat_agent_uevent_lag_seconds",
    "Time from an event of the kernel to the devices known anew",
    buckets=(0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2.5, 5, 10),
    registry=REGISTRY,
)
PUBLISH_LAG_SECONDS = Histogram(
    "migcompat_agent_publish_lag_seconds",
    "Time from an event of the kernel until the API server has what it changed",
    buckets=(0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2.5, 5, 10, 30),
    registry=REGISTRY,
)
PUBLISHES = Counter("migcompat_agent_publishes", "Writes of the VFIONode that went well", registry=REGISTRY)
PUBLISH_FAILURES = Counter(
    "migcompat_agent_publish_failures",
    "Times that the VFIONode or the Node's labels could not be read or written",
    registry=REGISTRY,
)
PROBES = Counter(
    "migcompat_agent_migration_probes",
    "Devices asked whether they can migrate, by answer or by why there is none",
    ["answer"],
    registry=REGISTRY,
)
POD_RESOURCES_FAILURES = Counter(
    "migcompat_agent_pod_resources_failures",
    "Calls of the kubelet's PodResources that failed",
    registry=REGISTRY,
)
REGISTRATIONS = Counter(
    "migcompat_agent_registrations", "Registrations with the kubelet", ["resource"], registry=REGISTRY
)
REGISTRATION_FAILURES = Counter(
    "migcompat_agent_registration_failures",
    "Registrations that the kubelet did not take",
    ["resource"],
    registry=REGISTRY,
)
STREAMS_ENDED = Counter(
    "migcompat_agent_streams_ended",
    "ListAndWatch streams that ended",
    ["resource"],
    registry=REGISTRY,
)
ALLOCATIONS = Counter(
    "migcompat_agent_allocations",
    "Calls of Allocate, by whether devices were handed out",
    ["resource", "outcome"],
    registry=REGISTRY,
)
STEERING = Counter(
    "migcompat_agent_steering",
    "Migration targets about to start, by whether they have the devices that were preferred for them",
    ["outcome"],
    registry=REGISTRY,
)
GUARD_REFUSALS = Counter(
    "migcompat_agent_guard_refusals", "Containers kept from starting", ["reason"], registry=REGISTRY
)
GUARD_PASSES = Counter(
    "migcompat_agent_guard_passes", "Containers of migration targets that may start", registry=REGISTRY
)


class Figures(Collector):
    """What the ``state`` of this process' agent, None for none, is at the moment that somebody asks."""

    def __init__(self) -> None:
        self.state: State | None = None

    def describe(self) -> list[Metric]:
        """Names and labels, without figures."""
        return list(self._figures(State()))

    def collect(self) -> Iterator[Metric]:
        """The figures of now."""
        return self._figures(State() if self.state is None else self.state)

    @staticmethod
    def _figures(state: State) -> Iterator[Metric]:
        inventory = state.inventory
        pfs = {device.found.physfn for device in inventory.values()}
        kinds = {id_: _kind(device, pfs) for id_, device in inventory.items()}
        found: Count[tuple[str, ...]] = Count(
            (d.resource, kinds[id_], d.health.value) for id_, d in inventory.items()
        )
        yield _gauge("devices", "VFIO devices found on the node", ("resource", "kind", "health"), found)
        held: Count[tuple[str, ...]] = Count(
            (pool, kinds[id_])
            for pool, id_ in state.holders or {}
            if id_ in inventory and inventory[id_].resource == pool
        )
        yield _gauge("allocated_devices", "Devices that pods hold", ("resource", "kind"), held)
        yield _one(
            "scan_problems",
            "Entries in sysfs that could not be taken for a device",
            len(state.unreadable),
        )
        yield _one(
            "configuration_valid",
            "1 if the configuration file is in force as it is, or there is none, else 0",
            not state.loaded.problem,
        )
        yield _one(
            "ambiguous_devices",
            "Devices that several resources of the configuration file select",
            sum(bool(device.claims) for device in inventory.values()),
        )
        yield _one(
            "barred_devices",
            "Devices that nobody may have though nothing is wrong with them: held under an id of another"
            " plugin, or, in observe mode, not offered by a plugin or not to be told apart",
            sum(bool(device.barred) for device in inventory.values()),
        )


def _kind(device: Device, pfs: AbstractSet[str]) -> str:
    """As in the reference. *pfs*: functions that devices are VFs of."""
    if device.found.kind is Kind.MDEV:
        return "mdev"
    if device.found.is_vf:
        return "vf"
    return "pf" if device.id in pfs else "function"


def _gauge(
    name: str, text: str, labels: Sequence[str], figures: Mapping[tuple[str, ...], float]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"migcompat_agent_{name}", text, labels=labels)
    for values, figure in figures.items():
        family.add_metric(values, figure)
    return family


def _one(name: str, text: str, figure: float) -> GaugeMetricFamily:
    return _gauge(name, text, (), {(): float(figure)})


FIGURES = Figures()
REGISTRY.register(FIGURES)
