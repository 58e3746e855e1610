"""Figures for Prometheus, in a registry of our own."""

from __future__ import annotations

from collections import Counter as Count

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from migcompat_deviceplugin.state import State

REGISTRY = CollectorRegistry()

DEVICES = Gauge(
    "migcompat_agent_devices",
    "VFIO devices found on the node",
    ["resource", "kind", "health"],
    registry=REGISTRY,
)
ALLOCATED = Gauge(
    "migcompat_agent_allocated_devices", "Devices that pods hold", ["resource", "kind"], registry=REGISTRY
)
PROBLEMS = Gauge(
    "migcompat_agent_scan_problems",
    "Entries in sysfs that could not be taken for a device",
    registry=REGISTRY,
)
CONFIGURATION_VALID = Gauge(
    "migcompat_agent_configuration_valid",
    "1 if the configuration file is in force as it is, or there is none, else 0",
    registry=REGISTRY,
)
AMBIGUOUS = Gauge(
    "migcompat_agent_ambiguous_devices",
    "Devices that several resources of the configuration file select",
    registry=REGISTRY,
)
BARRED = Gauge(
    "migcompat_agent_barred_devices",
    "Devices that nobody may have though nothing is wrong with them: held under an id of another plugin, or,"
    " in observe mode, not offered by a plugin or not to be told apart",
    registry=REGISTRY,
)
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


def observe(state: State, scan_problems: int) -> None:
    """Take the gauges from *state*."""
    DEVICES.clear()
    found = Count((d.resource, d.found.kind.value, d.health.value) for d in state.inventory.values())
    for labels, count in found.items():
        DEVICES.labels(*labels).set(count)
    ALLOCATED.clear()
    devices = ((pool, state.inventory.get(id_)) for pool, id_ in state.holders or {})
    held = Count((pool, d.found.kind.value) for pool, d in devices if d is not None and d.resource == pool)
    for (resource, kind), count in held.items():
        ALLOCATED.labels(resource, kind).set(count)
    PROBLEMS.set(scan_problems)
    CONFIGURATION_VALID.set(0 if state.loaded.problem else 1)
    BARRED.set(sum(bool(device.barred) for device in state.inventory.values()))
    AMBIGUOUS.set(sum(bool(device.claims) for device in state.inventory.values()))
