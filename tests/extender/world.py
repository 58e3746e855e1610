"""A small cluster in memory, and what kube-scheduler and kube-apiserver send about it."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import yaml
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from migcompat.api.cluster import Pod
from migcompat.fleet.fleet import Fleet
from migcompat_extender.admission import Admission
from migcompat_extender.filter import Filter
from migcompat_extender.refusals import Refusals
from migcompat_extender.settings import Settings
from migcompat_extender.table import Tables

from tests.support.fleets import declared, node, pod, vfionode, vmi

RECORDED = Path(__file__).parent / "data" / "pod-target-pending.yaml"
MIGRATION = "73bd9349-7797-4bb1-a8d8-ef6fa8769818"


def all_well() -> str | None:
    return None


def world(
    targets: Mapping[str, str], *, used: Sequence[str] = (), source: str = "1.1.0", **options: bool
) -> Fleet:
    """VM tenant-a/vm-a on node-1 with a device of version *source*; *targets*: node to its device's version.

    The devices of the nodes in *used* are allocated to other pods.
    """
    fleet = Fleet(**options)
    holder = ("tenant-a", "virt-launcher-vm-a-src")
    fleet.put_node(node("node-1"))
    fleet.put_vfionode(vfionode("node-1", {"src": declared(source)}, allocated={"src": holder}))
    fleet.put_pod(pod("vm-a", "node-1"))
    fleet.put_vmi(vmi("vm-a", "node-1"))
    for name, version in targets.items():
        fleet.put_node(node(name))
        allocated = {f"{name}-0": ("other", "pod")} if name in used else {}
        fleet.put_vfionode(vfionode(name, {f"{name}-0": declared(version)}, allocated=allocated))
    return fleet


def target(**changes: Any) -> Pod:
    """The pending target pod of vm-a."""
    return pod("vm-a", **{"source": "node-1", "suffix": "tgt", "phase": "Pending", **changes})


def built(item: Any) -> Any:
    """*item* as plain JSON data."""
    return json.loads(msgspec.json.encode(item))


def recorded_pod() -> dict[str, Any]:
    """A target pod as a real virt-controller made it."""
    loaded: dict[str, Any] = yaml.safe_load(RECORDED.read_text())
    return loaded


def args(names: Sequence[str] | None, pod_: Any = None, nodes: Any = None) -> bytes:
    """ExtenderArgs."""
    return json.dumps(
        {"Pod": built(target()) if pod_ is None else built(pod_), "Nodes": nodes, "NodeNames": names}
    ).encode()


def review(pod_: Any, **request: Any) -> bytes:
    """An AdmissionReview for the creation of a pod."""
    fields = {
        "uid": "review-1",
        "kind": {"group": "", "version": "v1", "kind": "Pod"},
        "resource": {"group": "", "version": "v1", "resource": "pods"},
        "operation": "CREATE",
        "namespace": "tenant-a",
        "userInfo": {"username": "kubevirt-controller"},
        "object": built(pod_),
        "oldObject": None,
        "dryRun": False,
        "options": None,
        **request,
    }
    return json.dumps(
        {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": fields}
    ).encode()


def filter_of(fleet: Fleet, problem: Any = all_well, **settings: Any) -> Filter:
    return Filter(fleet, Tables(fleet), problem, Settings(**settings))


def filtered(fleet: Fleet, body: bytes, problem: Any = all_well, **settings: Any) -> dict[str, Any]:
    """The answer of /filter."""
    answer: dict[str, Any] = json.loads(filter_of(fleet, problem, **settings).answer(body)[0])
    return answer


def admitted(
    fleet: Fleet,
    body: bytes,
    problem: Any = all_well,
    *,
    refusals: Refusals | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """The response inside the answer of /mutate."""
    raw, _ = Admission(fleet, Tables(fleet), problem, Settings(**settings), refusals).answer(body)
    answer = json.loads(raw)
    assert (answer["apiVersion"], answer["kind"]) == ("admission.k8s.io/v1", "AdmissionReview")
    response: dict[str, Any] = answer["response"]
    assert response["uid"] == "review-1"
    return response


def patched(pod_: Any, response: Mapping[str, Any]) -> dict[str, Any]:
    """The pod after *response*'s patch."""
    assert response["allowed"] is True, response
    if "patch" not in response:
        assert "patchType" not in response
        return patch_of(pod_, [])
    assert response["patchType"] == "JSONPatch"
    return patch_of(pod_, json.loads(base64.b64decode(response["patch"])))


def patch_of(pod_: Any, operations: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The pod with JSON Patch *operations* applied."""
    document: dict[str, Any] = built(pod_)
    for operation in operations:
        _apply(document, operation)
    return document


def _apply(document: Any, operation: Mapping[str, Any]) -> None:
    """RFC 6902 as far as it concerns objects: parents must exist, and so must what is removed."""
    first, *path = operation["path"].split("/")
    assert first == ""
    *parents, last = [part.replace("~1", "/").replace("~0", "~") for part in path]
    for part in parents:
        document = document[part]
    assert isinstance(document, dict)
    if operation["op"] == "remove":
        assert "value" not in operation
        del document[last]
    else:
        assert operation["op"] == "add"
        document[last] = operation["value"]


def required_terms(pod_: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The pod's required node affinity."""
    affinity = pod_["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    terms: list[dict[str, Any]] = affinity["nodeSelectorTerms"]
    return terms


def by_name(operator: str, name: str) -> dict[str, Any]:
    return {"key": "metadata.name", "operator": operator, "values": [name]}


@asynccontextmanager
async def serving(app: web.Application) -> AsyncIterator[TestClient[web.Request, web.Application]]:
    """A client of *app* on loopback."""
    async with TestClient(TestServer(app)) as client:
        yield client
