"""The custom resource definitions describe the types of migcompat.api, and refuse what breaks them."""

from __future__ import annotations

import enum
import json
from typing import Any

import msgspec
import pytest
import yaml
from migcompat.api.compatibilitypolicy import (
    CompatibilityPolicy,
    CompatibilityPolicySpec,
    CompatibilityPolicyStatus,
    DeviceSelector,
    Selector,
)
from migcompat.api.meta import Condition
from migcompat.api.migrationcompatibility import (
    DeviceReference,
    Group,
    LiteralSource,
    MigrationCompatibility,
    MigrationCompatibilitySpec,
    MigrationCompatibilityStatus,
    Overrides,
    Source,
    SourceDevice,
    VMIReference,
)
from migcompat.api.vfionode import (
    Device,
    Driver,
    Health,
    Migration,
    MigrationState,
    Mode,
    PodRef,
    VFIONode,
    VFIONodeStatus,
    split,
)
from migcompat.engine.declaration import Acceptance, Declaration, Entry, Kind, Presence, SelfSet
from migcompat.engine.policy import Choice, VersionScheme
from migcompat.kube.errors import ApiError

from tests.chart.support import CRDS, Installed, Object

CONDITION = Condition("Ready", "True", "Fine", "all is well", "2026-01-02T03:04:05Z", 7)
DECLARED = Declaration(
    Kind.MDEV,
    SelfSet(
        Presence.PRESENT,
        {"software_version": "1.2.3", "type": "t", "device_api": "vfio-pci", "aggregator": "4"},
    ),
    Acceptance(
        Presence.PRESENT,
        (Entry({"type": "t", "aggregator": '{n:int:1,2}/{"'}), Entry({}, "garbled")),
        ("aggregator",),
        ("features",),
    ),
)


def crd(plural: str) -> Object:
    loaded: Object = yaml.safe_load((CRDS / f"{plural}.yaml").read_text())
    return loaded


def schema(plural: str) -> Object:
    found: Object = crd(plural)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return found


# --- the schemas describe the types -----------------------------------------------------------------------


def _compare(declared: Object, type_: Any, path: str) -> list[str]:
    """Differences between a schema and the msgspec type it describes."""
    info = msgspec.inspect.type_info(type_) if not isinstance(type_, msgspec.inspect.Type) else type_
    inspect = msgspec.inspect
    if isinstance(info, inspect.UnionType):
        (info,) = (t for t in info.types if not isinstance(t, inspect.NoneType))
    match info:
        case inspect.StructType():
            fields = {f.encode_name: f for f in info.fields}
            properties = declared.get("properties", {})
            found = [f"{path}.{n}: not in the schema" for n in fields.keys() - properties.keys()]
            found += [f"{path}.{n}: not in the type" for n in properties.keys() - fields.keys()]
            required = {n for n, f in fields.items() if f.required}
            if not required <= set(declared.get("required", ())) | {"metadata"}:
                found.append(f"{path}: required differs: {required} and {declared.get('required')}")
            for name in fields.keys() & properties.keys() - {"metadata"}:
                found += _compare(properties[name], fields[name].type, f"{path}.{name}")
            return found
        case inspect.DictType():
            return _compare(declared.get("additionalProperties", {}), info.value_type, f"{path}[*]")
        case inspect.ListType() | inspect.VarTupleType():
            found = [] if declared.get("maxItems") else [f"{path}: unbounded"]
            return found + _compare(declared.get("items", {}), info.item_type, f"{path}[]")
        case inspect.EnumType():
            values = {m.value for m in info.cls}
            return [] if set(declared.get("enum", ())) == values else [f"{path}: enum differs"]
        case inspect.StrType():
            bounded = (
                "maxLength" in declared or "pattern" in declared or "enum" in declared or "format" in declared
            )
            good = declared.get("type") == "string" and (bounded or path.endswith((".kind", ".apiVersion")))
            return [] if good else [f"{path}: not a bounded string"]
        case inspect.IntType():
            return [] if declared.get("type") == "integer" else [f"{path}: not an integer"]
        case inspect.BoolType():
            return [] if declared.get("type") == "boolean" else [f"{path}: not a boolean"]
    return [f"{path}: {info} is not known to this test"]


@pytest.mark.parametrize(
    ("plural", "type_"),
    [("vfionodes", VFIONode), ("migrationcompatibilities", MigrationCompatibility)],
)
def test_a_schema_has_the_fields_of_its_type(plural: str, type_: type) -> None:
    assert _compare(schema(plural), type_, type_.__name__) == []


def test_the_schema_of_policies_has_the_fields_of_their_types() -> None:
    properties = schema("compatibilitypolicies")["properties"]
    assert _compare(properties["spec"], CompatibilityPolicySpec, "spec") == []
    assert _compare(properties["status"], CompatibilityPolicyStatus, "status") == []


@pytest.mark.parametrize("plural", ["vfionodes", "migrationcompatibilities", "compatibilitypolicies"])
def test_every_field_is_explained(plural: str) -> None:
    def walk(node: Object, path: str) -> list[str]:
        silent: list[str] = []
        for name, child in node.get("properties", {}).items():
            if "description" not in child and not path.endswith(
                (".conditions[]", ".allocatedTo", "Instance", ".device")
            ):
                silent.append(f"{path}.{name}")
            silent += walk(child, f"{path}.{name}")
        if "items" in node:
            silent += walk(node["items"], f"{path}[]")
        if isinstance(node.get("additionalProperties"), dict):
            silent += walk(node["additionalProperties"], f"{path}[*]")
        return silent

    root = schema(plural)
    silent = [name for part in ("spec", "status") for name in walk(root["properties"].get(part, {}), part)]
    assert [name for name in silent if name not in ("status.source.node", "status.source.devices")] == []


# --- objects come back as they were written ---------------------------------------------------------------


def full_vfionode() -> VFIONodeStatus:
    profile, content, acceptance, accepts, dynamic = split(DECLARED)
    return VFIONodeStatus(
        boot_id="b4d3c2a1-0000-4000-8000-000000000000",
        agent_version="0.1.0",
        mode=Mode.OBSERVE,
        drivers=[Driver("nvidia", "580.95.05"), Driver("vfio-pci")],
        profiles={profile: content},
        acceptances={acceptance: accepts},
        shown={"0" * 24: {"driver_version": "580.95.05", "pci_revision": "a1"}},
        devices=[
            Device(
                id="0000:41:00.4",
                resource="vfio.migcompat.io/i915-gvtg-v5-4",
                profile=profile,
                acceptance=acceptance,
                kind=Kind.MDEV,
                parent="0000:41:00.0",
                driver="nvidia",
                type="nvidia-592",
                device_api="vfio-pci",
                pci_id="10de2235",
                numa_node=0,
                iommu_group="71",
                migration=Migration(True, (MigrationState.STOP_COPY, MigrationState.PRE_COPY)),
                peer_to_peer=False,
                health=Health.UNHEALTHY,
                problem="it is gone",
                dynamic=dynamic,
                allocated_to=PodRef("vms", "virt-launcher-a"),
                shown="0" * 24,
                count=2,
            ),
            Device("83b8f4f2", "vfio.migcompat.io/x", profile, acceptance, Kind.PHYSICAL),
        ],
        conditions=[CONDITION],
    )


COMPATIBILITY_SPECS = {
    "vmi": MigrationCompatibilitySpec(virtual_machine_instance=VMIReference("vm-a")),
    "device": MigrationCompatibilitySpec(
        device=DeviceReference("node-1", "0000:41:00.4"),
        policy=Overrides(VersionScheme.DOTTED, Choice.DENY, True),
    ),
    "attributes": MigrationCompatibilitySpec(
        attributes=LiteralSource(
            "vfio.migcompat.io/x", {"type": "t", "device_api": "vfio-pci"}, Kind.PHYSICAL
        )
    ),
}
COMPATIBILITY_STATUS = MigrationCompatibilityStatus(
    observed_generation=1,
    source=Source("node-1", [SourceDevice("vfio.migcompat.io/x", "0000:41:00.4", "0" * 24, {"type": "t"})]),
    device_count=1,
    targets="3/12",
    compatible=3,
    free=2,
    total=12,
    accepting=["node-2", "node-3"],
    refusals=[Group("VersionMinorOlder", "software_version: source 1.2, target 1.1", 9, ["node-4"])],
    obligations={"aggregator": "4"},
    conditions=[CONDITION, Condition("Migratable", "False", "Busy", "", "2026-01-02T03:04:05Z")],
)
POLICY = CompatibilityPolicySpec(
    version_scheme=VersionScheme.DOTTED,
    cross_type=Choice.DENY,
    set_attributes=("features",),
    ordered_attributes=("queues",),
    ignored_attributes=("serial",),
    dynamic_attributes=("aggregator",),
    off_values={"pv_mode": ("off", "none")},
    require_return_path=True,
    unknown=Choice.ALLOW,
    supplied_self={"software_version": "1.2"},
    supplied_compatible=({"type": '{t:string:"a","b"}'},),
    selector=Selector(DeviceSelector("nvidia", "nvidia-592", "vfio-pci", "10de"), {"pool": "gpu"}),
)


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _create(installed: Installed, kind: str, name: str, spec: object, namespace: str = "default") -> Object:
    body = {
        "apiVersion": "migcompat.io/v1alpha1",
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace},
        "spec": json.loads(_json(spec)),
    }
    text = installed.plane.kubectl("create", "-f", "-", "-o", "json", stdin=json.dumps(body))
    created: Object = json.loads(text)
    return created


def test_a_vfionode_comes_back_as_it_was_written(installed: Installed) -> None:
    status = full_vfionode()
    installed.publish("round-trip", json.loads(_json(status)))
    text = installed.plane.kubectl("get", "vfionode", "round-trip", "-o", "json")
    assert msgspec.json.decode(text, type=VFIONode).status == status


def test_an_empty_vfionode_comes_back_as_it_was_written(installed: Installed) -> None:
    installed.publish("round-trip-empty", {"bootID": "b"})
    text = installed.plane.kubectl("get", "vfionode", "round-trip-empty", "-o", "json")
    assert msgspec.json.decode(text, type=VFIONode).status == VFIONodeStatus(boot_id="b")


@pytest.mark.parametrize("asked", COMPATIBILITY_SPECS)
def test_a_question_and_its_answer_come_back_as_they_were_written(installed: Installed, asked: str) -> None:
    spec = COMPATIBILITY_SPECS[asked]
    _create(installed, "MigrationCompatibility", f"asks-{asked}", spec)
    for status in (MigrationCompatibilityStatus(targets="0/0"), COMPATIBILITY_STATUS):
        patch = f'{{"status": {_json(status)}}}'
        text = installed.plane.kubectl(
            *("patch", "migrationcompat", f"asks-{asked}", "--subresource=status", "--type=merge"),
            *("-o", "json", "-p", patch),
        )
        back = msgspec.json.decode(text, type=MigrationCompatibility)
        assert back.spec == spec
        assert back.status == status


@pytest.mark.parametrize("spec", [POLICY, CompatibilityPolicySpec()], ids=["full", "empty"])
def test_a_policy_comes_back_as_it_was_written(installed: Installed, spec: CompatibilityPolicySpec) -> None:
    name = "full" if spec is POLICY else "empty"
    created = _create(installed, "CompatibilityPolicy", f"round-trip-{name}", spec, namespace="")
    back = msgspec.json.decode(json.dumps(created), type=CompatibilityPolicy)
    assert msgspec.json.decode(bytes(back.spec), type=CompatibilityPolicySpec) == spec
    status = CompatibilityPolicyStatus(1, 4, 2, [CONDITION])
    text = installed.plane.kubectl(
        *("patch", "compatpolicy", f"round-trip-{name}", "--subresource=status", "--type=merge"),
        *("-o", "json", "-p", f'{{"status": {_json(status)}}}'),
    )
    assert msgspec.json.decode(text, type=CompatibilityPolicy).status == status


def test_an_absent_value_reads_as_the_default_of_its_type(installed: Installed) -> None:
    """What our types leave out when encoding must mean the same to everybody else."""
    profile = "0" * 24
    device = {"id": "d", "resource": "a.b/c", "profile": profile, "acceptance": profile, "kind": "mdev"}
    installed.publish("defaults", {"devices": [device]})
    status = installed.plane.get("vfionode", "defaults")["status"]
    assert status["mode"] == Mode.SERVE
    assert status["devices"][0]["health"] == Health.HEALTHY


# --- what breaks a schema is refused, and the words say what and where -------------------------------------

VMI_SPEC: Object = {"virtualMachineInstance": {"name": "vm"}}
ATTRIBUTES: Object = {"resource": "vfio.migcompat.io/x", "self": {"type": "t"}}

BAD_QUESTIONS: dict[str, tuple[Object, str]] = {
    "nothing asked": ({}, "exactly one of virtualMachineInstance, device and attributes must be given"),
    "two things asked": (
        {**VMI_SPEC, "device": {"node": "n", "id": "d"}},
        "exactly one of virtualMachineInstance, device and attributes must be given",
    ),
    "VMI without name": ({"virtualMachineInstance": {}}, "spec.virtualMachineInstance.name: Required value"),
    "device without id": ({"device": {"node": "n"}}, "spec.device.id: Required value"),
    "resource without domain": (
        {"attributes": {**ATTRIBUTES, "resource": "gpu"}},
        "spec.attributes.resource: Invalid value",
    ),
    "no attributes": ({"attributes": {**ATTRIBUTES, "self": {}}}, "spec.attributes.self"),
    "a template in self": (
        {"attributes": {**ATTRIBUTES, "self": {"type": "{t}"}}},
        "a value must not contain '{'",
    ),
    "a control character": (
        {"attributes": {**ATTRIBUTES, "self": {"type": "a\x07"}}},
        "spec.attributes.self.type: Invalid value",
    ),
    "an unknown kind": ({"attributes": {**ATTRIBUTES, "kind": "vf"}}, 'supported values: "mdev", "physical"'),
    "an unknown scheme": (
        {**VMI_SPEC, "policy": {"versionScheme": "calver"}},
        'supported values: "semver", "exact", "dotted"',
    ),
    "an unknown key": ({**VMI_SPEC, "colour": "red"}, 'unknown field "spec.colour"'),
    "a number for a flag": (
        {**VMI_SPEC, "policy": {"requireReturnPath": 1}},
        "spec.policy.requireReturnPath: Invalid value",
    ),
}


@pytest.mark.parametrize("case", BAD_QUESTIONS)
def test_a_bad_question_is_refused(installed: Installed, case: str) -> None:
    spec, words = BAD_QUESTIONS[case]
    body = {
        "apiVersion": "migcompat.io/v1alpha1",
        "kind": "MigrationCompatibility",
        "metadata": {"name": "bad", "namespace": "default"},
        "spec": spec,
    }
    assert words in installed.refused("create", "-f", "-", stdin=json.dumps(body))


BAD_POLICIES: dict[str, tuple[Object, str]] = {
    "an unquoted off": ({"self": {"pv_mode": False}}, 'spec.self.pv_mode: Invalid value: "boolean"'),
    "an unquoted number": (
        {"compatible": [{"software_version": 1.2}]},
        "spec.compatible[0].software_version",
    ),
    "an empty entry": ({"compatible": [{}]}, "spec.compatible[0]"),
    "an unknown scheme": ({"versionScheme": "semantic"}, 'supported values: "semver", "exact", "dotted"'),
    "an unknown key": ({"setAttribute": ["features"]}, 'unknown field "spec.setAttribute"'),
    "set and ordered": (
        {"setAttributes": ["a"], "orderedAttributes": ["a"]},
        "an attribute cannot be both in setAttributes and in orderedAttributes",
    ),
    "a name twice": ({"ignoredAttributes": ["a", "a"]}, 'spec.ignoredAttributes[1]: Duplicate value: "a"'),
    "a control of the kernel": (
        {"dynamicAttributes": ["driver_override"]},
        'driver_override": not a dynamic attribute',
    ),
    "a BAR": ({"dynamicAttributes": ["resource0"]}, "not a dynamic attribute"),
    "a path": ({"dynamicAttributes": ["../remove"]}, "not a dynamic attribute"),
    "a vendor with 0x": (
        {"selector": {"device": {"vendor": "0x10de"}}},
        "spec.selector.device.vendor: Invalid value",
    ),
    "a template in self": ({"self": {"type": "{a:int:1}"}}, "a value must not contain '{'"),
    "too many entries": ({"compatible": [{"type": "t"}] * 257}, "must have at most 256 items"),
    "too long a value": ({"self": {"type": "x" * 4097}}, "may not be more than 4096"),
}


@pytest.mark.parametrize("case", BAD_POLICIES)
def test_a_bad_policy_is_refused(installed: Installed, case: str) -> None:
    spec, words = BAD_POLICIES[case]
    body = {
        "apiVersion": "migcompat.io/v1alpha1",
        "kind": "CompatibilityPolicy",
        "metadata": {"name": "bad"},
        "spec": spec,
    }
    assert words in installed.refused("create", "-f", "-", stdin=json.dumps(body))


DEVICE: Object = {"id": "d", "resource": "a.b/c", "profile": "0" * 24, "acceptance": "0" * 24, "kind": "mdev"}

BAD_STATUSES: dict[str, tuple[Object, str]] = {
    "an id twice": ({"devices": [DEVICE, DEVICE]}, "status.devices[1]: Duplicate value"),
    "an unknown mode": ({"mode": "watch"}, 'supported values: "serve", "observe"'),
    "no resource": ({"devices": [{"id": "d"}]}, "status.devices[0].resource: Required value"),
    "no digest": ({"devices": [{**DEVICE, "profile": "gpu"}]}, "status.devices[0].profile: Invalid value"),
    "a long id": ({"devices": [{**DEVICE, "id": "d" * 64}]}, "status.devices[0].id: Too long"),
    "half a pod": (
        {"devices": [{**DEVICE, "allocatedTo": {"name": "p"}}]},
        "status.devices[0].allocatedTo.namespace: Required value",
    ),
    "a condition without reason": (
        {"conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-02T03:04:05Z"}]},
        "status.conditions[0].reason: Required value",
    ),
}


@pytest.mark.parametrize("case", BAD_STATUSES)
def test_bad_facts_are_refused(installed: Installed, case: str) -> None:
    status, words = BAD_STATUSES[case]
    with pytest.raises(ApiError) as refused:
        installed.publish("bad-facts", status)
    assert words in str(refused.value)


def test_enums_of_the_types_are_strings() -> None:
    """YAML reads some bare words as booleans; none of ours may be one."""
    for members in (Mode, Health, Kind, Presence, Choice, VersionScheme):
        assert issubclass(members, enum.StrEnum)
        assert yaml.safe_load(json.dumps([m.value for m in members])) == [m.value for m in members]
