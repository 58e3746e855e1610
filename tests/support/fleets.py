"""Objects for tests, made short: VFIONodes, Nodes, VMIs, launcher pods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from migcompat.api import cluster, names
from migcompat.api.meta import Condition, ObjectMeta
from migcompat.api.vfionode import Device, Health, PodRef, VFIONode, VFIONodeStatus, split
from migcompat.engine.declaration import Acceptance, Declaration, Entry, Kind, Presence, SelfSet

POOL = f"{names.RESOURCE_DOMAIN}/grid-t4-1q"
TYPE = "GRID-T4-1Q"
BOOT = "b0070001-0000-4000-8000-000000000000"


def declared(
    version: str = "1.0.0",
    *,
    type_: str = TYPE,
    accepts: Sequence[Mapping[str, str]] | None = None,
    extra: Mapping[str, str] | None = None,
) -> Declaration:
    """An mdev's declaration; by default it accepts its own type at its own version."""
    own = {"software_version": version, "device_api": "vfio-pci", "type": type_, **(extra or {})}
    entries = [{k: own[k] for k in own}] if accepts is None else accepts
    presence = Presence.PRESENT if entries else Presence.ABSENT
    return Declaration(
        Kind.MDEV,
        SelfSet(Presence.PRESENT, own),
        Acceptance(presence, tuple(Entry(dict(e)) for e in entries)),
    )


def vfionode(
    name: str,
    devices: Sequence[tuple[str, Declaration]] | Mapping[str, Declaration],
    *,
    allocated: Mapping[str, tuple[str, str]] | None = None,
    unhealthy: Sequence[str] = (),
    resource: str = POOL,
    boot_id: str = BOOT,
) -> VFIONode:
    """A VFIONode with devices given as (id, declaration); *allocated*: id -> (namespace, pod)."""
    status = VFIONodeStatus(boot_id=boot_id, agent_version="test", profiles={}, acceptances={}, devices=[])
    pairs = devices.items() if isinstance(devices, Mapping) else devices
    for device_id, declaration in pairs:
        profile_key, profile, acceptance_key, acceptance, dynamic = split(declaration)
        status.profiles[profile_key] = profile
        status.acceptances[acceptance_key] = acceptance
        holder = (allocated or {}).get(device_id)
        status.devices.append(
            Device(
                id=device_id,
                resource=resource,
                profile=profile_key,
                acceptance=acceptance_key,
                kind=declaration.kind,
                driver="nvidia",
                type=declaration.self.attributes.get("type", ""),
                device_api="vfio-pci",
                pci_id="10de1eb8",
                health=Health.UNHEALTHY if device_id in unhealthy else Health.HEALTHY,
                dynamic=dynamic,
                allocated_to=PodRef(*holder) if holder else None,
            )
        )
    return VFIONode(ObjectMeta(name=name), status)


def node(
    name: str,
    *,
    boot_id: str = BOOT,
    labels: Mapping[str, str] | None = None,
    cordoned: bool = False,
    ready: bool = True,
) -> cluster.Node:
    """A Node."""
    meta = ObjectMeta(name=name, labels={"kubernetes.io/hostname": name, **(labels or {})})
    conditions = [cluster.NodeCondition("Ready", str(ready))]
    status = cluster.NodeStatus(cluster.NodeSystemInfo(boot_id), conditions)
    return cluster.Node(meta, cluster.NodeSpec(cordoned), status)


def vmi(
    name: str,
    node_name: str,
    *,
    resources: Sequence[str] = (POOL,),
    annotations: Mapping[str, str] | None = None,
    namespace: str = "tenant-a",
    migratable: bool = True,
) -> cluster.VirtualMachineInstance:
    """A running VMI; its uid is ``uid-<name>``."""
    gpus = [cluster.HostDevice(f"gpu{i}", resource) for i, resource in enumerate(resources)]
    return cluster.VirtualMachineInstance(
        ObjectMeta(name=name, namespace=namespace, uid=f"uid-{name}", annotations=dict(annotations or {})),
        cluster.VMISpec(cluster.Domain(cluster.Devices(gpus=gpus))),
        cluster.VMIStatus(
            "Running", node_name, [Condition("LiveMigratable", "True" if migratable else "False")]
        ),
    )


def pod(
    vmi_name: str,
    node_name: str = "",
    *,
    source: str = "",
    suffix: str = "src",
    resources: Sequence[str] = (POOL,),
    annotations: Mapping[str, str] | None = None,
    namespace: str = "tenant-a",
    phase: str = "Running",
) -> cluster.Pod:
    """A launcher pod of a VMI named ``virt-launcher-<vmi>-<suffix>``.

    A migration target when *source* is given.
    """
    labels = {names.LAUNCHER_LABEL: names.LAUNCHER_VALUE, names.CREATED_BY: f"uid-{vmi_name}"}
    labels[names.NODE_NAME] = source or node_name
    if source:
        labels[names.MIGRATION_UID] = f"migration-{vmi_name}"
    limits: dict[str, str | int] = {}
    for resource in resources:
        limits[resource] = str(int(limits.get(resource, 0)) + 1)
    return cluster.Pod(
        ObjectMeta(
            name=f"virt-launcher-{vmi_name}-{suffix}",
            namespace=namespace,
            uid=f"pod-{vmi_name}-{suffix}",
            labels=labels,
            annotations={names.VMI_NAME: vmi_name, **(annotations or {})},
        ),
        cluster.PodSpec(node_name, [cluster.Container("compute", cluster.Resources(limits))]),
        cluster.PodStatus(phase),
    )


def refused(
    vmi_name: str, node_name: str, text: str = "migcompat guard: VersionMinorOlder: no"
) -> cluster.Pod:
    """The target pod of a VMI from node-1 on a node whose guard keeps it from starting, in these words."""
    target = pod(vmi_name, node_name, source="node-1", suffix="tgt", phase="Pending")
    waiting = cluster.Waiting("CreateContainerConfigError", f"failed to prestart container: {text}")
    status = cluster.ContainerStatus("compute", cluster.ContainerState(waiting))
    target.status = cluster.PodStatus("Pending", container_statuses=[status])
    return target
