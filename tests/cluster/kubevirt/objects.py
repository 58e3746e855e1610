"""KubeVirt's objects, of the shapes that a real virt-controller and its webhooks were recorded to make."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.api import Object

_HERE = Path(__file__).parent
CRDS = _HERE / "crds.yaml"

Adapt = Callable[[Object], Object]
"""Changes a launcher pod into one that can run where the test runs."""


def as_recorded(pod: Object) -> Object:
    """The pod as a real virt-controller makes it."""
    return pod


_NOT_COPIED = frozenset(
    {"kubevirt.io/latest-observed-api-version", "kubevirt.io/storage-observed-api-version"}
)
"""Annotations of a VMI that do not reach its pods."""


def vmi(
    name: str,
    namespace: str,
    *,
    gpus: Sequence[str] = (),
    host_devices: Sequence[str] = (),
    annotations: Mapping[str, str] | None = None,
    labels: Mapping[str, str] | None = None,
    node_selector: Mapping[str, str] | None = None,
) -> Object:
    """A VMI as a user makes it. `gpus` and `host_devices`: resource names, one an element."""
    item = _template("vmi.yaml")
    item["metadata"] = {
        "name": name,
        "namespace": namespace,
        "annotations": {
            "kubevirt.io/latest-observed-api-version": "v1",
            "kubevirt.io/storage-observed-api-version": "v1",
            "kubevirt.io/nonroot": "true",
            **(annotations or {}),
        },
        "labels": dict(labels or {}),
    }
    devices = item["spec"]["domain"]["devices"]
    if gpus:
        devices["gpus"] = [{"name": f"gpu{n}", "deviceName": d} for n, d in enumerate(gpus, 1)]
    if host_devices:
        devices["hostDevices"] = [
            {"name": f"hostdev{n}", "deviceName": d} for n, d in enumerate(host_devices, 1)
        ]
    if node_selector:
        item["spec"]["nodeSelector"] = dict(node_selector)
    return item


def migration(vmi_name: str, namespace: str, *, evacuated_node: str = "") -> Object:
    """A migration as a user makes it, or as the evacuation of a node makes it."""
    item = _template("vmim.yaml")
    meta = item["metadata"]
    meta["namespace"] = namespace
    meta["labels"] = {"kubevirt.io/vmi-name": vmi_name}
    item["spec"]["vmiName"] = vmi_name
    if evacuated_node:
        meta["annotations"]["kubevirt.io/evacuationMigration"] = evacuated_node
    else:
        meta["generateName"] = f"{vmi_name}-"
        del item["spec"]["priority"]
    return item


def source_pod(owner: Object) -> Object:
    """The launcher pod of a VMI that starts."""
    return _launcher("pod-source.yaml", owner)


def target_pod(owner: Object, job: Object) -> Object:
    """The target pod of the migration `job` of the VMI `owner`."""
    pod = _launcher("pod-target.yaml", owner)
    meta, spec = pod["metadata"], pod["spec"]
    meta["labels"]["kubevirt.io/migrationJobUID"] = job["metadata"]["uid"]
    meta["annotations"]["kubevirt.io/migrationJobName"] = job["metadata"]["name"]
    apart = {
        "labelSelector": {"matchLabels": {"kubevirt.io/created-by": owner["metadata"]["uid"]}},
        "topologyKey": "kubernetes.io/hostname",
    }
    spec["affinity"].setdefault("podAntiAffinity", {}).setdefault(
        "requiredDuringSchedulingIgnoredDuringExecution", []
    ).append(apart)
    added = job["spec"].get("addedNodeSelector", {})
    spec["nodeSelector"] = {**added, **spec["nodeSelector"]}
    return pod


def is_migratable(item: Object) -> bool:
    """What KubeVirt 1.9 moves: at most one (mediated) GPU and no host device."""
    devices = item["spec"]["domain"]["devices"]
    return len(devices.get("gpus", ())) <= 1 and not devices.get("hostDevices")


def _launcher(template: str, owner: Object) -> Object:
    meta, spec = owner["metadata"], owner["spec"]
    places = {"{name}": meta["name"], "{namespace}": meta["namespace"], "{uid}": meta["uid"]}
    pod: Object = _fill(_template(template), places)
    pod["metadata"]["generateName"] = f"virt-launcher-{meta['name']}-"
    pod["metadata"]["namespace"] = meta["namespace"]
    pod["metadata"]["labels"] |= {
        **(meta.get("labels") or {}),
        "kubevirt.io": "virt-launcher",
        "kubevirt.io/created-by": meta["uid"],
        "vm.kubevirt.io/name": meta["name"],
        "vmi.kubevirt.io/id": meta["name"],
    }
    pod["metadata"]["annotations"] |= {
        "kubevirt.io/domain": meta["name"],
        **{k: v for k, v in (meta.get("annotations") or {}).items() if k not in _NOT_COPIED},
    }
    pod["metadata"]["ownerReferences"] = [
        {
            "apiVersion": owner["apiVersion"],
            "kind": owner["kind"],
            "name": meta["name"],
            "uid": meta["uid"],
            "controller": True,
            "blockOwnerDeletion": True,
        }
    ]
    pod["spec"]["hostname"] = meta["name"]
    pod["spec"]["nodeSelector"] |= spec.get("nodeSelector", {})
    if "schedulerName" in spec:
        pod["spec"]["schedulerName"] = spec["schedulerName"]
    if "tolerations" in spec:
        pod["spec"]["tolerations"] = copy.deepcopy(spec["tolerations"])
    _require(pod["spec"], spec.get("affinity", {}))
    resources = pod["spec"]["containers"][0]["resources"]
    devices = spec["domain"]["devices"]
    for device in (*devices.get("gpus", ()), *devices.get("hostDevices", ())):
        for side in ("limits", "requests"):
            count = int(resources[side].get(device["deviceName"], 0))
            resources[side][device["deviceName"]] = str(count + 1)
    return pod


def _require(spec: Object, wanted: Object) -> None:
    """The VMI's own affinity, with KubeVirt's node requirement added to each of its terms."""
    if not wanted:
        return
    required = "requiredDuringSchedulingIgnoredDuringExecution"
    own = spec["affinity"]["nodeAffinity"][required]["nodeSelectorTerms"][0]["matchExpressions"]
    merged = copy.deepcopy(wanted)
    terms = merged.setdefault("nodeAffinity", {}).setdefault(required, {}).setdefault("nodeSelectorTerms", [])
    for term in terms:
        term.setdefault("matchExpressions", []).extend(own)
    if not terms:
        terms.append({"matchExpressions": own})
    spec["affinity"] = merged


def _fill(value: Any, places: Mapping[str, str]) -> Any:
    """Replaces the placeholders in all strings."""
    if isinstance(value, dict):
        return {k: _fill(v, places) for k, v in value.items()}
    if isinstance(value, list):
        return [_fill(v, places) for v in value]
    if isinstance(value, str):
        for place, text in places.items():
            value = value.replace(place, text)
    return value


@cache
def _text(name: str) -> str:
    return (_HERE / "templates" / name).read_text()


def _template(name: str) -> Object:
    item: Object = yaml.safe_load(_text(name))
    return item
