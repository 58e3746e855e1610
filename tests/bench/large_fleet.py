"""5,000 nodes in memory, of which 500 take the VM, and the call kube-scheduler makes about it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import yaml
from migcompat.api import cluster, names
from migcompat.api.meta import ObjectMeta
from migcompat.engine.declaration import Declaration
from migcompat.fleet.fleet import Fleet

from tests.support import fleets

NODES = tuple(f"node-{number:04}" for number in range(5000))
ACCEPTING = frozenset(name for name in NODES if name.endswith("0"))
"""The null extender (nullextender/main.go) lets the same names pass."""
TARGET_POD = Path(__file__).parents[1] / "extender/data/pod-target-pending.yaml"
"""As a real virt-controller made it: its size is what an extender has to read."""
TYPE = "i915-GVTg_V5_4"
POOL = f"{names.RESOURCE_DOMAIN}/i915-gvtg-v5-4"


def declared(version: str, type_: str = TYPE) -> Declaration:
    """A device that accepts its own type and version."""
    return fleets.declared(version, type_=type_)


def target_pod() -> dict[str, Any]:
    """The pod that is to be scheduled."""
    pod: dict[str, Any] = yaml.safe_load(TARGET_POD.read_text())
    return pod


def filter_call() -> bytes:
    """ExtenderArgs with the target pod and all node names."""
    return json.dumps({"Pod": target_pod(), "Nodes": None, "NodeNames": NODES}).encode()


def fleet() -> Fleet:
    """The VM of the target pod on its source node, and beside it the 5,000.

    The nodes that refuse do so for three reasons: minor version too old, another major version, another type.
    """
    made = Fleet()
    target = msgspec.convert(target_pod(), cluster.Pod)
    labels, annotations = target.metadata.labels or {}, target.metadata.annotations or {}
    vm, source = annotations[names.VMI_NAME], labels[names.NODE_NAME]
    namespace, holder = target.metadata.namespace, f"virt-launcher-{vm}-source"
    devices = cluster.Devices(gpus=[cluster.HostDevice("gpu", POOL)])
    made.put_vmi(
        cluster.VirtualMachineInstance(
            ObjectMeta(name=vm, namespace=namespace, uid=labels[names.CREATED_BY]),
            cluster.VMISpec(cluster.Domain(devices)),
            cluster.VMIStatus("Running", source),
        )
    )
    source_labels = {key: value for key, value in labels.items() if key != names.MIGRATION_UID}
    made.put_pod(
        cluster.Pod(
            ObjectMeta(name=holder, namespace=namespace, labels=source_labels, annotations=annotations),
            cluster.PodSpec(source, target.spec.containers),
            cluster.PodStatus("Running"),
        )
    )
    _add(made, source, declared("1.1.0"), holder=(namespace, holder))
    refusing = (declared("1.0.0"), declared("2.1.0"), declared("1.1.0", "i915-GVTg_V5_8"))
    for number, name in enumerate(NODES):
        _add(made, name, declared("1.1.0") if name in ACCEPTING else refusing[number % 3])
    return made


def _add(made: Fleet, name: str, device: Declaration, holder: tuple[str, str] | None = None) -> None:
    made.put_node(fleets.node(name))
    allocated = {f"{name}-0": holder} if holder else {}
    made.put_vfionode(fleets.vfionode(name, {f"{name}-0": device}, allocated=allocated, resource=POOL))
