"""The whole operator process against a real API server."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec
import pytest
from migcompat.api import names
from migcompat.api.cluster import VirtualMachineInstance
from migcompat.api.meta import Condition
from migcompat.api.migrationcompatibility import MigrationCompatibility
from migcompat.fleet import stamp
from migcompat.kube.client import Client
from migcompat.kube.errors import NotFound
from migcompat.kube.kinds import COMPATIBILITIES, PODS, VFIONODES, VMIMS, VMIS

from tests.operator.conftest import Operator, World, eventually, install_kubevirt
from tests.support.fleets import POOL, declared, vfionode, vmi

if TYPE_CHECKING:
    from tests.cluster.controlplane import ControlPlane

pytestmark = pytest.mark.cluster

NAMESPACE = "tenant-a"


async def populate(world: World, targets: dict[str, str], **annotations: str) -> VirtualMachineInstance:
    """vm-a runs on node-1 with a device of version 1.1.0; other nodes' devices have the versions given."""
    for name, version in targets.items():
        await world.node(name, vfionode(name, {f"{name}-a": declared(version)}))
    holder = {"src": (NAMESPACE, "virt-launcher-vm-a-src")}
    await world.node("node-1", vfionode("node-1", {"src": declared("1.1.0")}, allocated=holder))
    made = await world.vmi(vmi("vm-a", "node-1", annotations=annotations))
    await world.pod(made, "virt-launcher-vm-a-src", "node-1")
    return made


async def get(client: Client, name: str = "vm-a") -> MigrationCompatibility | None:
    try:
        return await client.get(COMPATIBILITIES, name, NAMESPACE)
    except NotFound:
        return None


async def gone(client: Client, name: str = "vm-a") -> None:
    async def check() -> bool:
        return await get(client, name) is None

    await eventually(check, f"MigrationCompatibility {name} gone")


async def test_waits_for_kubevirt_and_answers_as_soon_as_it_is_there(
    plane: ControlPlane, operator: Operator, world: World
) -> None:
    await operator.start()
    assert "virtualmachineinstances.kubevirt.io: its CRD is not installed" in operator.log.read_text()
    install_kubevirt(plane)
    await populate(world, {"n2": "1.1.0"})
    await world.becomes(plane, "vm-a", "node-1", "1", "1/1", "1", "True", "Compatible")
    assert operator.runs
    for kind in ("nodes", "pods", "vmi", "vfionodes", "migcompat"):
        for item in plane.get(kind, "-A")["items"]:
            noted = [*item["metadata"].get("annotations", {}), *item["metadata"].get("finalizers", [])]
            assert not [note for note in noted if "kopf" in note], f"kopf wrote on {kind}"


@pytest.fixture
def kubevirt(plane: ControlPlane) -> None:
    """KubeVirt's kinds are there."""
    install_kubevirt(plane)


@pytest.mark.usefixtures("kubevirt")
async def test_prints_the_columns_of_the_contract_and_explains_each_group(
    plane: ControlPlane, operator: Operator, world: World
) -> None:
    await populate(world, {"n2": "1.0.0", "n3": "1.0.0", "n4": "2.0.0"})
    await operator.start()
    await world.becomes(plane, "vm-a", "node-1", "1", "0/3", "0", "False", "VersionMinorOlder")
    header = plane.kubectl("get", "migrationcompat", "-n", NAMESPACE).splitlines()[0].split()
    assert header == ["NAME", "SOURCE", "DEVICES", "TARGETS", "FREE", "MIGRATABLE", "REASON", "AGE"]
    wide = plane.kubectl("get", "migcompat", "-n", NAMESPACE, "-o", "wide")
    assert wide.splitlines()[0].split()[-2:] == ["RESOURCE", "PROFILE"]
    assert POOL in wide
    event = await world.event("vm-a", "MigrationImpossible")
    assert event.type == "Warning"
    assert "None of 3 nodes accepts its devices: 2 VersionMinorOlder" in event.message
    assert "1 VersionMajorMismatch" in event.message
    described = plane.kubectl("describe", "migcompat", "vm-a", "-n", NAMESPACE)
    assert "1.1.0" in described
    assert "n4" in described


@pytest.mark.usefixtures("kubevirt")
async def test_a_changed_fact_changes_the_answer_and_nothing_is_written_without_one(
    plane: ControlPlane, operator: Operator, world: World, client: Client
) -> None:
    await populate(world, {"n2": "1.0.0", "n3": "1.0.0"})
    await operator.start()
    await world.becomes(plane, "vm-a", "node-1", "1", "0/2", "0", "False", "VersionMinorOlder")
    await world.event("vm-a", "MigrationImpossible")
    await world.publish(vfionode("n2", {"n2-a": declared("1.2.0")}))
    await world.becomes(plane, "vm-a", "node-1", "1", "1/2", "1", "True", "Compatible")
    await world.event("vm-a", "MigrationPossible")
    await world.publish(vfionode("n3", {"n3-a": declared("1.2.0")}))
    await world.becomes(plane, "vm-a", "node-1", "1", "2/2", "2", "True", "Compatible")
    await world.publish(vfionode("n3", {"n3-a": declared("1.2.0")}, allocated={"n3-a": ("x", "y")}))
    await world.becomes(plane, "vm-a", "node-1", "1", "2/2", "1", "True", "Compatible")
    before, writes = await get(client), operator.written()
    assert before is not None
    note = {"metadata": {"annotations": {"note": "nothing that counts"}}}
    await client.patch(VFIONODES, "n2", note)
    await client.patch(VMIS, "vm-a", note, NAMESPACE)
    plane.kubectl("label", "node", "n2", "colour=blue")
    await asyncio.sleep(2)  # more than debounce and count delay together
    after = await get(client)
    assert after is not None
    assert after.metadata.resource_version == before.metadata.resource_version
    assert operator.written() == writes
    assert len(await world.events("vm-a", "MigrationImpossible")) == 1


@pytest.mark.usefixtures("kubevirt")
async def test_a_vm_that_goes_takes_its_object_along(
    plane: ControlPlane, operator: Operator, world: World, client: Client
) -> None:
    await populate(world, {"n2": "1.1.0"})
    await operator.start()
    await world.becomes(plane, "vm-a", "node-1", "1", "1/1", "1", "True", "Compatible")
    await client.delete(VMIS, "vm-a", NAMESPACE)
    await gone(client)
    await world.vmi(vmi("vm-b", "node-1"))
    await world.becomes(plane, "vm-b", "node-1", "1", "0/1", "0", "Unknown", "Unknown")
    no_devices = {"spec": {"domain": {"devices": {"gpus": None}}}}
    await client.patch(VMIS, "vm-b", no_devices, NAMESPACE)
    await gone(client, "vm-b")


@pytest.mark.usefixtures("kubevirt")
async def test_converges_after_being_killed_and_stops_cleanly(
    plane: ControlPlane, operator: Operator, world: World, client: Client
) -> None:
    made = await populate(world, {"n2": "1.0.0"})
    await operator.start()
    await world.becomes(plane, "vm-a", "node-1", "1", "0/1", "0", "False", "VersionMinorOlder")
    await world.event("vm-a", "MigrationImpossible")
    operator.kill()
    await world.migration(made, "migration-1")
    await world.publish(vfionode("n2", {"n2-a": declared("1.1.0")}))
    other = await world.vmi(vmi("vm-b", "node-1"))
    await operator.start()
    await world.becomes(plane, "vm-a", "node-1", "1", "1/1", "1", "True", "Compatible")
    await world.becomes(plane, "vm-b", "node-1", "1", "0/1", "0", "Unknown", "Unknown")
    assert len(await world.events("vm-a", "MigrationImpossible")) == 1

    async def touched() -> bool:
        found = await client.get(VMIMS, "migration-1", NAMESPACE)
        return names.RETRY in (found.metadata.annotations or {})

    await eventually(touched, "the migration that waited meanwhile is touched")
    operator.kill()
    await client.delete(VMIS, other.metadata.name, NAMESPACE)
    await operator.start()
    await gone(client, "vm-b")
    assert operator.stop() == 0, operator.log.read_text()


@pytest.mark.usefixtures("kubevirt")
async def test_kubevirts_own_no(
    plane: ControlPlane, operator: Operator, world: World, client: Client
) -> None:
    await populate(world, {"n2": "1.1.0"})
    await operator.start()
    await world.becomes(plane, "vm-a", "node-1", "1", "1/1", "1", "True", "Compatible")
    no = Condition("LiveMigratable", "False", "HostDeviceNotLiveMigratable", "VMI uses a PCI host device")
    await client.patch(VMIS, "vm-a", {"status": {"conditions": [msgspec.to_builtins(no)]}}, NAMESPACE)
    await world.becomes(plane, "vm-a", "node-1", "1", "1/1", "1", "False", "KubeVirtNotMigratable")
    found = await get(client)
    assert found is not None
    told = {c.type: c for c in found.status.conditions}
    assert told["DevicesCompatible"].status == "True"
    assert "VMI uses a PCI host device" in told["Migratable"].message


@pytest.mark.usefixtures("kubevirt")
async def test_questions_of_users_and_questions_that_break_the_schema(
    plane: ControlPlane, operator: Operator, world: World, client: Client
) -> None:
    await populate(world, {"n2": "1.1.0", "n3": "1.0.0"})
    await operator.start()
    await world.becomes(plane, "vm-a", "node-1", "1", "1/2", "1", "True", "Compatible")
    for spec in ({}, {"device": {"node": "n"}}, {"device": {"node": "n", "id": "d"}, "attributes": {}}):
        body = {"metadata": {"name": "bad"}, "spec": spec}
        with pytest.raises(Exception, match="422"):
            await client.create(COMPATIBILITIES, body, NAMESPACE)
    device = {"metadata": {"name": "device"}, "spec": {"device": {"node": "n3", "id": "n3-a"}}}
    await client.create(COMPATIBILITIES, device, NAMESPACE)
    await world.becomes(plane, "device", "n3", "1", "2/2", "1", "True", "Compatible")
    own = {"software_version": "1.0.0", "device_api": "vfio-pci", "type": "GRID-T4-1Q"}
    literal = {"metadata": {"name": "literal"}, "spec": {"attributes": {"resource": POOL, "self": own}}}
    await client.create(COMPATIBILITIES, literal, NAMESPACE)

    async def answered() -> bool:
        found = await get(client, "literal")
        return found is not None and found.status.targets == "3/3"

    await eventually(answered, "literal attributes are answered")
    mine = {"metadata": {"name": "vm-b"}, "spec": {"virtualMachineInstance": {"name": "vm-b"}}}
    await client.create(COMPATIBILITIES, mine, NAMESPACE)
    await eventually(
        lambda: _reason(client, "vm-b", "VirtualMachineInstanceNotFound"), "a VMI that is not there"
    )
    await world.vmi(vmi("vm-b", "node-1"))
    await eventually(lambda: _reason(client, "vm-b", "Unknown"), "the user's own object is answered")
    found = await get(client, "vm-b")
    assert found is not None
    assert not found.metadata.owner_references
    await client.delete(VMIS, "vm-b", NAMESPACE)
    await eventually(
        lambda: _reason(client, "vm-b", "VirtualMachineInstanceNotFound"), "the user's object stays"
    )


async def _reason(client: Client, name: str, reason: str) -> bool:
    found = await get(client, name)
    return found is not None and any(c.reason == reason for c in found.status.conditions)


@pytest.mark.usefixtures("kubevirt")
async def test_unknown_annotation_values_are_told_and_enforce(
    plane: ControlPlane, operator: Operator, world: World
) -> None:
    await populate(world, {"n2": "1.1.0"}, **{"migcompat.io/mode": "sometimes"})
    await operator.start()
    event = await world.event("vm-a", "UnknownAnnotationValue")
    assert event.type == "Warning"
    assert "sometimes" in event.message
    await world.becomes(plane, "vm-a", "node-1", "1", "1/1", "1", "True", "Compatible")
    assert len(await world.events("vm-a", "UnknownAnnotationValue")) == 1


async def test_an_object_that_does_not_decode_does_not_stop_the_others(
    plane: ControlPlane, operator: Operator, world: World, client: Client
) -> None:
    install_kubevirt(plane, loose=True)
    await populate(world, {"n2": "1.1.0"})
    await operator.start()
    odd = {"domain": {"devices": {"gpus": "many"}}}
    body = {"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "spec": odd}
    plane.apply({**body, "metadata": {"name": "odd", "namespace": NAMESPACE}})
    await world.becomes(plane, "vm-a", "node-1", "1", "1/1", "1", "True", "Compatible")

    async def counted() -> bool:
        return 'undecodable_objects_total{kind="virtualmachineinstances"}' in operator.get("/metrics")

    await eventually(counted, "the object is counted")
    assert "virtualmachineinstances.kubevirt.io tenant-a/odd does not fit" in operator.log.read_text()


@pytest.mark.usefixtures("kubevirt")
async def test_target_pods_are_stamped_told_retried_and_removed_when_the_guard_refuses(
    plane: ControlPlane, operator: Operator, world: World, client: Client
) -> None:
    made = await populate(world, {"n2": "1.0.0", "n3": "1.0.0"})
    await operator.start()
    await world.becomes(plane, "vm-a", "node-1", "1", "0/2", "0", "False", "VersionMinorOlder")
    uid = await world.migration(made, "migration-1")
    await world.pod(made, "virt-launcher-vm-a-dst", migration_uid=uid)

    async def stamped() -> str | None:
        pod = await client.get(PODS, "virt-launcher-vm-a-dst", NAMESPACE)
        return (pod.metadata.annotations or {}).get(names.SOURCE)

    told = stamp.decode(await eventually(stamped, "the target pod is stamped"), uid)
    assert told.devices[0].id == "src"
    event = await world.event("virt-launcher-vm-a-dst", "NoAcceptingNode")
    assert "2 VersionMinorOlder" in event.message
    await client.delete(PODS, "virt-launcher-vm-a-dst", NAMESPACE)

    await world.pod(made, "virt-launcher-vm-a-2", "n2", migration_uid=uid)
    text = "rpc error: code = Unknown desc = migcompat guard: VersionMinorOlder: 1.1.0 is newer than 1.0.0"
    waiting = {"waiting": {"reason": "CreateContainerConfigError", "message": text}}
    status = {
        "name": "compute",
        "image": "",
        "imageID": "",
        "ready": False,
        "restartCount": 0,
        "state": waiting,
    }
    patch = {"status": {"containerStatuses": [status]}}
    await client.patch(PODS, "virt-launcher-vm-a-2", patch, NAMESPACE, subresource="status")

    async def deleted() -> bool:
        try:
            pod = await client.get(PODS, "virt-launcher-vm-a-2", NAMESPACE)
        except NotFound:
            return True
        return pod.metadata.deletion_timestamp is not None

    await eventually(deleted, "the pod whose guard refused is deleted")
    event = await world.event("virt-launcher-vm-a-2", "GuardRefused")
    assert event.message.startswith("migcompat guard: VersionMinorOlder")
    await world.event("vm-a", "GuardRefused")

    assert names.RETRY not in ((await client.get(VMIMS, "migration-1", NAMESPACE)).metadata.annotations or {})
    await world.publish(vfionode("n3", {"n3-a": declared("1.1.0")}))

    async def touched() -> bool:
        found = await client.get(VMIMS, "migration-1", NAMESPACE)
        return names.RETRY in (found.metadata.annotations or {})

    await eventually(touched, "the waiting migration is touched")


@pytest.mark.usefixtures("kubevirt")
async def test_policies_change_answers_and_say_what_they_govern(
    plane: ControlPlane, operator: Operator, world: World
) -> None:
    await populate(world, {"n2": "1.0.0"})
    await operator.start()
    await world.becomes(plane, "vm-a", "node-1", "1", "0/1", "0", "False", "VersionMinorOlder")
    meta = {"apiVersion": "migcompat.io/v1alpha1", "kind": "CompatibilityPolicy", "metadata": {"name": "p"}}
    spec = {"selector": {"device": {"driver": "nvidia"}}, "compatible": [{"software_version": "1.0-1.9"}]}
    plane.apply({**meta, "spec": spec})

    async def governs() -> bool:
        status = plane.get("compatpolicy", "p").get("status", {})
        accepted = [c["status"] for c in status.get("conditions", []) if c["type"] == "Accepted"]
        return (status.get("devices"), status.get("nodes"), accepted) == (2, 2, ["True"])

    await eventually(governs, lambda: plane.kubectl("get", "compatpolicy", "p", "-o", "yaml"))
    await world.becomes(plane, "vm-a", "node-1", "1", "1/1", "1", "True", "Compatible")


@pytest.mark.usefixtures("kubevirt")
async def test_survives_kubevirt_being_removed(
    plane: ControlPlane, operator: Operator, world: World, client: Client
) -> None:
    await populate(world, {"n2": "1.1.0"})
    await operator.start()
    await world.becomes(plane, "vm-a", "node-1", "1", "1/1", "1", "True", "Compatible")
    plane.kubectl("delete", "crd", "virtualmachineinstances.kubevirt.io", "--timeout=60s")
    await gone(client)
    assert operator.runs, operator.log.read_text()
    install_kubevirt(plane)
    reborn = await world.vmi(vmi("vm-a", "node-1"))
    await client.delete(PODS, "virt-launcher-vm-a-src", NAMESPACE)
    assert reborn.metadata.uid
    await world.becomes(plane, "vm-a", "node-1", "1", "0/1", "0", "Unknown", "Unknown")
