"""The webhook as the chart registers it, and the operator beside it, on a real control plane."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import NamedTuple

import pytest
from migcompat.api import names

from tests.cluster.api import Api, ApiError, Cache, Object
from tests.cluster.binaries.build import Binaries
from tests.cluster.controlplane import ControlPlane
from tests.cluster.processes import Process
from tests.extender.realm import (
    MIGRATIONS,
    NAMESPACE,
    PODS,
    VFIONODES,
    VMIS,
    Realm,
    eventually,
    launcher_of,
    launcher_pod,
    pod_spec,
    publish,
    put_node,
    refusal,
    run_vm,
)
from tests.support.fleets import POOL, declared, vfionode

pytestmark = pytest.mark.cluster

HAS = {POOL: "10"}
SOURCE = {"src": (NAMESPACE, launcher_of("vm-a"))}
OTHERS = {"d": ("tenant-b", "virt-launcher-other")}
COMPATIBILITY = f"/apis/migcompat.io/v1alpha1/namespaces/{NAMESPACE}/migrationcompatibilities/vm-a"
POLICIES = "/apis/migcompat.io/v1alpha1/compatibilitypolicies"


class Site(NamedTuple):
    """VM vm-a on node-1; n2 accepts it, but its device is in use; n3 is a version behind."""

    realm: Realm
    uid: str
    operator: Process

    def target(self, migration: str = "m") -> Object:
        """A target pod of the VM."""
        return launcher_pod("vm-a", self.uid, "node-1", migration=migration)


async def populate(realm: Realm) -> str:
    async with Api(realm.plane.kubeconfig) as api:
        for name, version, held in (
            ("node-1", "1.1.0", SOURCE),
            ("n2", "1.1.0", OTHERS),
            ("n3", "1.0.0", {}),
        ):
            await put_node(api, name, has=HAS)
            await publish(api, vfionode(name, {next(iter(held), "d"): declared(version)}, allocated=held))
        return await run_vm(api, "vm-a", "node-1")


@pytest.fixture(scope="module")
def site(binaries: Binaries) -> Iterator[Site]:
    with ControlPlane(binaries) as plane, contextlib.ExitStack() as stack:
        realm = Realm(plane, "--allow-loosening")
        stack.callback(realm.stop)
        uid = asyncio.run(populate(realm))
        address = plane.addresses.control_plane
        health = f"{address}:{plane.addresses.free_port(address)}"
        operator = realm.process(
            "operator", f"--health-bind={health}", "--allow-loosening", "--count-delay=0.5"
        )
        stack.callback(operator.stop)
        realm.await_page(f"http://{health}/readyz")
        yield Site(realm, uid, operator)


@pytest.fixture
async def api(site: Site) -> AsyncIterator[Api]:
    """The API server, once webhook and operator both know that vm-a has nowhere to go."""
    async with Api(site.realm.plane.kubeconfig) as made:

        async def denied() -> bool:
            answer = await made.find(COMPATIBILITY)
            counted = (answer or {}).get("status", {})
            return (counted.get("targets"), counted.get("free")) == ("1/2", 0) and bool(
                await refusal(made, site.target())
            )

        await eventually(denied, "vm-a has nowhere to go")
        yield made


async def bound(api: Api, pod: Object) -> str:
    """Where kube-scheduler puts a stored pod."""

    async def place() -> str:
        now = await api.get(f"{PODS}/{pod['metadata']['name']}")
        return str(now["spec"].get("nodeName", ""))

    return await eventually(place, f"{pod['metadata']['name']} is bound")


async def gone(api: Api, pod: Object) -> None:
    """Remove a pod at once."""
    await api.delete(f"{PODS}/{pod['metadata']['name']}", grace=0)


# -- who is sent -----------------------------------------------------------------------------------------


def plain(name: str, **labels: str) -> Object:
    meta = {"name": name, "labels": {key.replace("__", "/"): value for key, value in labels.items()}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": pod_spec()}


async def test_nothing_but_new_target_pods_is_ever_sent(site: Site, api: Api) -> None:
    plane = site.realm.plane
    await publish(api, vfionode("n2", {"d": declared("1.1.0")}))

    async def admitted() -> bool:
        return not await refusal(api, site.target())

    await eventually(admitted, "n2 is free")
    target = await api.create(PODS, site.target())
    await bound(api, target)
    before = site.realm.reviews()
    assert before[0] == before[2] > 0, "kube-apiserver and extender count alike"
    assert before[1]["steered"] == 1

    migration = {names.MIGRATION_UID: "m"}
    launcher = {names.LAUNCHER_LABEL: names.LAUNCHER_VALUE}
    assorted = [plain("web"), plain("other-launcher"), plain("first-start"), plain("no-launcher")]
    assorted[1]["metadata"]["labels"] = {names.LAUNCHER_LABEL: "virt-handler", **migration}
    assorted[2]["metadata"]["labels"] = {**launcher, names.CREATED_BY: site.uid}
    assorted[3]["metadata"]["labels"] = {**migration, names.CREATED_BY: site.uid}
    for pod in assorted:
        await api.create(PODS, pod)
        await api.request(
            "POST", PODS, {**pod, "metadata": {**pod["metadata"], "name": "dry"}}, params={"dryRun": "All"}
        )
    template = {"metadata": {"labels": {"app": "web"}}, "spec": plain("x")["spec"]}
    del template["spec"]["terminationGracePeriodSeconds"]
    spec = {"replicas": 3, "selector": {"matchLabels": {"app": "web"}}, "template": template}
    head = {"apiVersion": "apps/v1", "metadata": {"name": "web", "namespace": NAMESPACE}}
    plane.apply({**head, "kind": "Deployment", "spec": spec})

    async def replicas() -> bool:
        found = await api.request("GET", PODS, params={"labelSelector": "app=web"})
        return len(found["items"]) == 3

    await eventually(replicas, "the Deployment has its pods")
    path = f"{PODS}/{target['metadata']['name']}"
    await api.patch(f"{PODS}/first-start", {"metadata": {"labels": migration}})
    await api.patch(path, {"metadata": {"annotations": {"any": "thing"}}})
    await api.patch(f"{path}/status", {"status": {"message": "x"}})
    with pytest.raises(ApiError, match="ephemeral"):
        await api.patch(f"{path}/ephemeralcontainers", {"spec": {"ephemeralContainers": [{"name": "e"}]}})
    with pytest.raises(ApiError, match="already assigned"):
        binding = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": target["metadata"]["name"]}}
        await api.create(f"{path}/binding", {**binding, "target": {"kind": "Node", "name": "n3"}})
    with pytest.raises(ApiError):
        await api.request(
            "POST", f"{path}/exec", params={"command": "sh", "container": "compute", "stdout": "1"}
        )
    eviction = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": target["metadata"]["name"]},
    }
    await api.create(f"{path}/eviction", eviction)
    await gone(api, target)
    await api.create(MIGRATIONS, migration_of("vm-a", "unrelated"))
    await api.delete(f"{MIGRATIONS}/unrelated")
    assert site.realm.reviews() == before, "not one of all these was sent"

    await refusal(api, site.target())
    sent, outcomes, answered = site.realm.reviews()
    assert (sent, answered) == (before[0] + 1, before[2] + 1), "a target is, a dry run too"
    assert outcomes == before[1], "which is not counted as an admission"
    for pod in assorted:
        await gone(api, pod)
    plane.kubectl("delete", "deployment", "-n", NAMESPACE, "web", "--cascade=foreground", "--wait=false")
    await publish(api, vfionode("n2", {"d": declared("1.1.0")}, allocated=OTHERS))


# -- a node that goes ------------------------------------------------------------------------------------


async def test_a_node_that_goes_after_it_was_named(site: Site, api: Api) -> None:
    plane = site.realm.plane
    plane.stop_scheduler()
    await publish(api, vfionode("n2", {"d": declared("1.1.0")}))

    async def made() -> Object | None:
        with contextlib.suppress(ApiError):
            return await api.create(PODS, site.target())
        return None

    pod = await eventually(made, "a target is let pass")
    assert pod is not None
    await api.delete("/api/v1/nodes/n2")
    plane.start_scheduler()

    async def unschedulable() -> str:
        now = await api.get(f"{PODS}/{pod['metadata']['name']}")
        return " ".join(c.get("message", "") for c in now["status"].get("conditions") or ())

    assert "NodeAffinity" in await eventually(unschedulable, "kube-scheduler says why")
    text = await eventually(lambda: refusal(api, site.target()), "the next target is denied")
    assert "0 of 1 nodes accept its device(s): 1 VersionMinorOlder" in text
    other = await api.create(PODS, plain("unconcerned"))
    assert await bound(api, other)
    await gone(api, other)
    await gone(api, pod)
    await publish(api, vfionode("n2", {"d": declared("1.1.0")}, allocated=OTHERS))
    await put_node(api, "n2", has=HAS)


# -- a VMI that nobody needs -------------------------------------------------------------------------------


async def test_a_vmi_nested_as_deeply_as_kube_apiserver_lets_it_be_harms_only_itself(
    site: Site, api: Api
) -> None:
    depth = 9_900
    head = '{"apiVersion":"kubevirt.io/v1","kind":"VirtualMachineInstance","metadata":{"name":"deep",'
    notes = '"annotations":{"migcompat.io/mode":"\\u0436","x":"' + "\\u00e9" * 100_000 + '"}}'
    spec = ',"spec":{"domain":{"devices":{},"x":' + "[" * depth + "]" * depth + "}}}"
    site.realm.plane.kubectl("create", "--raw", VMIS, "-f", "-", stdin=head + notes + spec)
    await device_is_free(site, api)

    async def admitted() -> bool:
        return not await refusal(api, site.target())

    async def counted() -> bool:
        return bool((await api.get(COMPATIBILITY))["status"]["free"] == 1)

    try:
        await eventually(admitted, "the extender goes on")
        await eventually(counted, "the operator goes on")
        assert site.realm.extender.exit_code() is site.operator.exit_code() is None
    finally:
        site.realm.plane.kubectl("delete", "vmi", "-n", NAMESPACE, "deep", "--wait=false")
        await device_is_in_use(site, api)


# -- another try as soon as there is reason for one ------------------------------------------------------


def migration_of(vm: str, name: str) -> Object:
    meta = {"name": name, "labels": {"kubevirt.io/vmi-name": vm}}
    head = {"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstanceMigration"}
    return {**head, "metadata": meta, "spec": {"vmiName": vm}}


@contextlib.asynccontextmanager
async def waiting(api: Api, name: str) -> AsyncIterator[tuple[str, list[str]]]:
    """A migration of vm-a that waits; its UID, and the touches it has got as they come."""
    touches: list[str] = []

    def see(_: str, item: Object) -> None:
        touch = item["metadata"].get("annotations", {}).get(names.RETRY)
        if item["metadata"]["name"] == name and touch and touch not in touches[-1:]:
            touches.append(touch)

    cache = Cache(api, MIGRATIONS, see)
    watching = asyncio.create_task(cache.run())
    made = await api.create(MIGRATIONS, migration_of("vm-a", name))
    try:
        await api.patch(f"{MIGRATIONS}/{name}/status", {"status": {"phase": "Pending"}})
        await cache.synced.wait()
        yield made["metadata"]["uid"], touches
    finally:
        watching.cancel()
        await api.delete(f"{MIGRATIONS}/{name}")


Step = Callable[[Site, Api], Awaitable[object]]


def policy(name: str, driver: str) -> Object:
    """Devices of *driver* accept whatever is of their major version."""
    spec = {"selector": {"device": {"driver": driver}}, "compatible": [{"software_version": "1.0-1.9"}]}
    head = {"apiVersion": "migcompat.io/v1alpha1", "kind": "CompatibilityPolicy"}
    return {**head, "metadata": {"name": name}, "spec": spec}


async def nothing(site: Site, api: Api) -> None:
    pass


async def device_is_free(site: Site, api: Api) -> None:
    await publish(api, vfionode("n2", {"d": declared("1.1.0")}))


async def device_is_in_use(site: Site, api: Api) -> None:
    await publish(api, vfionode("n2", {"d": declared("1.1.0")}, allocated=OTHERS))


async def policy_is_made(site: Site, api: Api) -> None:
    await api.create(POLICIES, policy("p", "nvidia"))


async def policy_goes(site: Site, api: Api) -> None:
    await api.delete(f"{POLICIES}/p")


async def node_is_published(site: Site, api: Api) -> None:
    await publish(api, vfionode("n4", {"d": declared("1.1.0")}))


async def node_comes(site: Site, api: Api) -> None:
    await put_node(api, "n4", has=HAS)


async def node_goes(site: Site, api: Api) -> None:
    await api.delete("/api/v1/nodes/n4")
    await api.delete(f"{VFIONODES}/n4")


async def cordon(site: Site, api: Api) -> None:
    await api.patch("/api/v1/nodes/n2", {"spec": {"unschedulable": True}})
    await device_is_free(site, api)


async def uncordon(site: Site, api: Api) -> None:
    await api.patch("/api/v1/nodes/n2", {"spec": {"unschedulable": None}})


async def device_is_promised(site: Site, api: Api) -> None:
    """A launcher pod is bound to n2, and holds no device yet."""
    pod = launcher_pod("vm-z", "another-vm", "")
    pod["metadata"]["name"] = "virt-launcher-vm-z"
    pod["spec"]["nodeName"] = "n2"
    await api.create(PODS, pod)
    await device_is_free(site, api)


async def promise_ends(site: Site, api: Api) -> None:
    await api.delete(f"{PODS}/virt-launcher-vm-z", grace=0)


async def vm_may_go_anywhere(site: Site, api: Api) -> None:
    await api.patch(f"{VMIS}/vm-a", {"metadata": {"annotations": {names.MODE: "ignore"}}})


async def vm_is_strict(site: Site, api: Api) -> None:
    await api.patch(f"{VMIS}/vm-a", {"metadata": {"annotations": {names.MODE: None}}})


@pytest.mark.parametrize(
    ("before", "cause", "undo"),
    [
        pytest.param(nothing, device_is_free, device_is_in_use, id="a device becomes free"),
        pytest.param(nothing, policy_is_made, policy_goes, id="a policy changes"),
        pytest.param(node_is_published, node_comes, node_goes, id="a node appears"),
        pytest.param(cordon, uncordon, device_is_in_use, id="a node is uncordoned"),
        pytest.param(device_is_promised, promise_ends, device_is_in_use, id="a promised device stays free"),
        pytest.param(nothing, vm_may_go_anywhere, vm_is_strict, id="the VM need not wait any more"),
    ],
)
async def test_a_waiting_migration_is_touched_when_the_webhook_would_let_it_pass(
    site: Site, api: Api, before: Step, cause: Step, undo: Step
) -> None:
    async with waiting(api, f"migration-{cause.__name__.replace('_', '-')}") as (uid, touches):
        await before(site, api)
        await asyncio.sleep(1)  # five times the operator's debounce
        assert "cannot migrate now" in await refusal(api, site.target(uid))
        assert not touches
        began = time.monotonic()
        await cause(site, api)
        try:

            async def touched() -> bool:
                return bool(touches)

            await eventually(touched, f"touched; the operator's log: {site.operator.log.read_text()[-3000:]}")
            print(f"{cause.__name__}: touched after {time.monotonic() - began:.1f} s")
            pod = await api.create(PODS, site.target(uid))
            assert await bound(api, pod)
            await gone(api, pod)
        finally:
            await undo(site, api)


async def test_a_waiting_migration_is_not_touched_for_what_does_not_concern_it(site: Site, api: Api) -> None:
    async with waiting(api, "left-alone") as (uid, touches):
        note = {"metadata": {"annotations": {"any": "thing"}, "labels": {"any": "label"}}}
        for path in ("/api/v1/nodes/n3", f"{VFIONODES}/n3", f"{VMIS}/vm-a", f"{MIGRATIONS}/left-alone"):
            await api.patch(path, note)
        await publish(api, vfionode("n3", {"d": declared("1.0.9")}))
        await api.create(POLICIES, policy("another", "another"))
        await api.create(PODS, plain("unrelated"))
        await run_vm(api, "vm-b", "n3")
        await publish(api, vfionode("n5", {"d": declared("1.0.0")}))
        await put_node(api, "n5", has=HAS)

        async def counted() -> bool:
            return bool((await api.get(COMPATIBILITY))["status"]["targets"] == "1/3")

        await eventually(counted, "the operator has seen the new node, which came last")
        await asyncio.sleep(1)  # five times its debounce
        assert "0 of 3" not in (text := await refusal(api, site.target(uid)))
        assert "1 of 3 nodes accept its device(s), none of them has them free" in text
        assert not touches
    await api.delete(f"{POLICIES}/another")
    await api.delete("/api/v1/nodes/n5")
    await api.delete(f"{VFIONODES}/n5")
    await api.delete(f"{VMIS}/vm-b")
    for pod in ("unrelated", launcher_of("vm-b")):
        await api.delete(f"{PODS}/{pod}", grace=0)
