"""Where kube-scheduler puts pods with our affinity: where it put them without, and where the VM's devices go.

Nothing here knows what an affinity means: kube-scheduler is asked about each node that accepts the VM with a
pod that only that node can take, because only it has a resource of its own; about all others
together in the same way.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
import pytest

from tests.cluster.api import Api, ApiError, Object
from tests.cluster.binaries.build import Binaries
from tests.cluster.controlplane import ControlPlane
from tests.extender.realm import (
    NAMESPACE,
    PODS,
    Realm,
    eventually,
    launcher_of,
    launcher_pod,
    pod_spec,
    publish,
    put_node,
    run_vm,
)
from tests.support.fleets import POOL, declared, vfionode

pytestmark = pytest.mark.cluster

SEED = 60
CASES = 64
MANY = 500
"""Devices of a node: more than this test's pods, so that only versions count."""

VERSIONS = {
    **{"n00": "1.0.0", "n01": "1.1.0", "n02": "1.2.0", "n03": "1.3.0"},
    **{"n04": "1.0.0", "n05": "1.1.0", "n06": "1.2.0", "n07": "1.3.0"},
    **{"full": "1.3.0", "cordoned": "1.3.0", "rebooted": "1.3.0"},
}
"""Of the devices that a node publishes; it accepts VMs of the same minor version and of older ones."""
NODES = [*VERSIONS, "dark", "bare"]
"""``dark``: its kubelet has devices, but no agent publishes them. ``bare``: it has none."""
VMS = {f"vm-{i}": f"n0{i}" for i in range(4)}
"""VM to its source node."""


def accepts(vm: str, node: str) -> bool:
    """By hand."""
    if node in ("full", "cordoned", "rebooted", "dark", "bare", VMS[vm]):
        return False
    return VERSIONS[node] >= VERSIONS[VMS[vm]]


def places(vm: str) -> list[str]:
    """What is asked about for each of a VM's wishes: the nodes that accept it, and the others together."""
    return [*(node for node in NODES if accepts(vm, node)), f"other-than-for-{vm}"]


def only(place: str) -> str:
    """The resource that only the nodes of *place* have."""
    return f"test.example.org/{place}"


def labels_of(number: int) -> dict[str, str]:
    labels = {"zone": f"z{number % 3}", "size": str(number), "empty": ""}
    if number % 2:
        labels["gpu"] = "yes"
    if number % 5 == 4:
        labels["size"] = "large"
    if number % 4 == 1:
        del labels["zone"]
    return labels


async def populate(api: Api) -> dict[str, str]:
    """The nodes and VMs; the VMs' UIDs."""
    for number, name in enumerate(NODES):
        mine = [name, *(places(vm)[-1] for vm in VMS if not accepts(vm, name))]
        has = {only(place): "10000" for place in mine} | ({} if name == "bare" else {POOL: "10000"})
        await put_node(api, name, labels=labels_of(number), has=has, cordoned=name == "cordoned")
    for name, version in VERSIONS.items():
        held = {vm: (NAMESPACE, launcher_of(vm)) for vm, source in VMS.items() if source == name}
        if name == "full":
            held = {"free": ("tenant-b", "virt-launcher-other")}
        devices = {one: declared(version) for one in (*held, "free")}
        item = vfionode(name, devices, allocated=held)
        *others, last = item.status.devices
        count = 1 if name == "full" else MANY
        item.status.devices = [*others, msgspec.structs.replace(last, count=count)]
        if name == "rebooted":
            item.status.boot_id = "an-earlier-one"
        await publish(api, item)
    return {vm: await run_vm(api, vm, source) for vm, source in VMS.items()}


@pytest.fixture(scope="module")
def realm(binaries: Binaries) -> Iterator[Realm]:
    with ControlPlane(binaries) as plane:
        made = Realm(plane)
        try:
            yield made
        finally:
            made.stop()


# -- random affinities ------------------------------------------------------------------------------------


def requirement(dice: random.Random) -> Object:
    match dice.randrange(6):
        case 0 | 1:
            values = dice.sample(["z0", "z1", "z2", ""], dice.randint(1, 3))
            return {"key": "zone", "operator": dice.choice(["In", "NotIn"]), "values": values}
        case 2:
            return {"key": dice.choice(["gpu", "zone"]), "operator": dice.choice(["Exists", "DoesNotExist"])}
        case 3 | 4:
            value = str(dice.randint(0, len(NODES)))
            return {"key": "size", "operator": dice.choice(["Gt", "Lt"]), "values": [value]}
    return {"key": "empty", "operator": dice.choice(["In", "NotIn"]), "values": [dice.choice(["", "x"])]}


def term(dice: random.Random) -> Object:
    made: Object = {}
    if dice.random() < 0.75:
        made["matchExpressions"] = [requirement(dice) for _ in range(dice.choice([0, 1, 1, 2]))]
    if dice.random() < 0.35:
        operator = dice.choice(["In", "NotIn", "NotIn"])
        field = {"key": "metadata.name", "operator": operator, "values": [dice.choice(NODES)]}
        made["matchFields"] = [field]
    if dice.random() < 0.1:
        made["matchExpressions"] = None
    return made


def wish(dice: random.Random) -> Object:
    """The parts of a pod's spec that say where it wants to go."""
    made: Object = {}
    if dice.random() < 0.25:
        made["nodeSelector"] = dice.choice([{}, {"gpu": "yes"}, {"zone": "z1"}, {"zone": "z0", "gpu": "yes"}])
    shape = dice.randrange(12)
    if shape == 0:
        return made
    if shape == 1:
        return {**made, "affinity": dice.choice([None, {}, {"nodeAffinity": None}, {"nodeAffinity": {}}])}
    own: Object = {}
    if shape > 2:
        terms = [term(dice) for _ in range(dice.choice([1, 1, 2, 3]))]
        own["requiredDuringSchedulingIgnoredDuringExecution"] = {"nodeSelectorTerms": terms}
    if shape in (2, 3, 4):
        preference = {"matchExpressions": [requirement(dice)]}
        weighted = [{"weight": dice.randint(1, 100), "preference": dice.choice([preference, {}])}]
        own["preferredDuringSchedulingIgnoredDuringExecution"] = weighted
    made["affinity"] = {"nodeAffinity": own}
    if dice.random() < 0.3:
        apart = {"labelSelector": {"matchLabels": {"nobody": "has"}}, "topologyKey": "kubernetes.io/hostname"}
        made["affinity"]["podAntiAffinity"] = {"requiredDuringSchedulingIgnoredDuringExecution": [apart]}
    return made


class Probe(NamedTuple):
    """A pod that finds something out: of which case, whether a target, and where it can go (empty: all)."""

    case: int
    target: bool
    place: str


def pod_of(probe: Probe, vm: str, uid: str, wanted: Object) -> Object:
    pod = launcher_pod(vm, uid, VMS[vm], migration=f"migration-{probe.case}")
    if not probe.target:
        del pod["metadata"]["labels"]
    pod["spec"] = {**pod_spec(**({only(probe.place): "1"} if probe.place else {})), **wanted}
    return pod


async def settled(api: Api, uids: dict[str, str]) -> None:
    """Wait until the extender has seen all that `populate` made."""
    for vm, uid in uids.items():
        accepting = {node for node in NODES if accepts(vm, node)}
        others = {*NODES} - accepting - {"bare"}
        shorter = ("In", accepting) if len(accepting) <= len(others) else ("NotIn", others)
        pod = launcher_pod(vm, uid, VMS[vm], migration="m")

        async def steering(pod: Object = pod) -> object:
            try:
                return named(await api.request("POST", PODS, pod, params={"dryRun": "All"}))
            except ApiError as error:
                return error

        await eventually(steering, f"{vm} is steered by {shorter}", until=shorter.__eq__)


async def outcomes(api: Api, made: dict[str, Probe]) -> dict[Probe, tuple[str, str]]:
    """Node, or what kube-scheduler says, of each probe once it has decided about all (pod name to probe)."""

    async def decided() -> dict[Probe, tuple[str, str]] | None:
        found = {}
        for pod in (await api.get(PODS))["items"]:
            probe = made.get(pod["metadata"]["name"])
            said = [c.get("message", "") for c in pod["status"].get("conditions") or () if c.get("reason")]
            if probe is not None and (pod["spec"].get("nodeName") or said):
                found[probe] = (pod["spec"].get("nodeName", ""), " ".join(said))
        return found if len(found) == len(made) else None

    found = await eventually(decided, "kube-scheduler has decided about every pod")
    assert found is not None
    return found


@pytest.mark.timeout(300)
async def test_random_affinities_are_anded_as_kube_scheduler_understands_them(realm: Realm) -> None:
    dice = random.Random(SEED)
    async with Api(realm.plane.kubeconfig) as api:
        uids = await populate(api)
        await settled(api, uids)
        cases = [(dice.choice(list(VMS)), wish(dice)) for _ in range(CASES)]
        probes = [Probe(i, t, p) for i in range(CASES) for t in (False, True) for p in places(cases[i][0])]
        probes += [Probe(i, True, "") for i in range(CASES)]
        gate = asyncio.Semaphore(24)
        stored: dict[Probe, Object] = {}

        async def make(probe: Probe) -> None:
            vm, wanted = cases[probe.case]
            async with gate:
                stored[probe] = await api.create(PODS, pod_of(probe, vm, uids[vm], wanted))

        await asyncio.gather(*map(make, probes))
        found = await outcomes(api, {pod["metadata"]["name"]: probe for probe, pod in stored.items()})
    seen = Counter[str]()
    for number, (vm, wanted) in enumerate(cases):
        case = f"seed {SEED}, case {number}: {vm} with {json.dumps(wanted)}"
        *good, others = places(vm)
        expected = {node for node in good if found[Probe(number, False, node)][0]}
        assert {node for node in good if found[Probe(number, True, node)][0]} == expected, case
        place, text = found[Probe(number, True, others)]
        assert not place, f"{case}: {place!r} does not accept it, but could take it: {text}"
        place, text = found[Probe(number, True, "")]
        assert place in expected if expected else not place, f"{case}: {place!r} {text}"
        if not expected:
            assert "affinity" in text, f"{case}: {text}"
        seen["somewhere" if expected else "nowhere"] += 1
        seen["narrowed" if found[Probe(number, False, others)][0] else "as before"] += 1
        kept, said = stored[Probe(number, False, others)], stored[Probe(number, True, "")]
        assert _unsteered(said) == _unsteered(kept), f"{case}: something else was changed"
        seen[named(said)[0]] += 1
    print(f"seed {SEED}: {CASES} cases, {dict(seen)}")
    for kind in ("somewhere", "nowhere", "narrowed", "In", "NotIn"):
        assert seen[kind] >= 3, f"seed {SEED} tries too little: {dict(seen)}"


def _unsteered(pod: Object) -> Any:
    """Where a stored pod wants to go, without its required node affinity."""
    affinity = json.loads(json.dumps(pod["spec"].get("affinity") or {}))
    own = affinity.pop("nodeAffinity", None) or {}
    own.pop("requiredDuringSchedulingIgnoredDuringExecution", None)
    return pod["spec"].get("nodeSelector") or {}, affinity, own


def named(pod: Object) -> tuple[str, set[str]]:
    """The operator of the list that a target pod got, and its names (of a pod without names of its own)."""
    own = (pod["spec"].get("affinity") or {}).get("nodeAffinity") or {}
    terms = (own.get("requiredDuringSchedulingIgnoredDuringExecution") or {}).get("nodeSelectorTerms") or ()
    fields = [field for term in terms for field in term.get("matchFields") or ()]
    operator = fields[-1]["operator"] if fields else "selects nothing"
    return operator, {name for field in fields for name in field["values"]}
