"""What kubectl prints of our objects: the first thing people see."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from migcompat.api.compatibilitypolicy import CompatibilityPolicyStatus
from migcompat.api.meta import Condition
from migcompat.api.migrationcompatibility import Group, MigrationCompatibilityStatus, Source, SourceDevice

from tests.chart.support import Installed
from tests.chart.test_schemas import full_vfionode

NAMESPACE = "columns"
STAMP = "2026-01-02T03:04:05Z"
RESOURCE = "vfio.migcompat.io/nvidia-592"

# docs/reference/contract.md, Custom resources
CONTRACT = """\
NAME   SOURCE   DEVICES   TARGETS   FREE   MIGRATABLE   REASON              AGE
vm-a   node-1   1         3/12      2      True         Compatible          5d
vm-b   node-7   1         0/12      0      False        VersionMinorOlder   5d
"""


def vm(source: str, profile: str, compatible: int, free: int, reason: str) -> MigrationCompatibilityStatus:
    """The status of a VM's object as the operator leaves it: defaults are not written."""
    verdict = "True" if compatible else "False"
    return MigrationCompatibilityStatus(
        observed_generation=1,
        source=Source(source, [SourceDevice(RESOURCE, "0000:41:00.4", profile)]),
        device_count=1,
        targets=f"{compatible}/12",
        compatible=compatible,
        free=free,
        total=12,
        refusals=[
            Group("VersionMinorOlder", "software_version: source 1.2, target 1.1", 9, ["node-3", "node-4"]),
            Group("TypeMismatch", "type: source nvidia-592, target nvidia-600", 3, ["node-5"]),
        ],
        conditions=[
            Condition("DevicesCompatible", verdict, reason, "", STAMP),
            Condition("Migratable", verdict, reason, "", STAMP),
            Condition("Available", "True" if free else "False", "TargetFree", "", STAMP),
        ],
    )


@pytest.fixture(scope="module")
def vms(installed: Installed) -> Installed:
    plane = installed.plane
    plane.kubectl("create", "namespace", NAMESPACE)
    for name, status in {
        "vm-a": vm("node-1", "a" * 24, 3, 2, "Compatible"),
        "vm-b": vm("node-7", "b" * 24, 0, 0, "VersionMinorOlder"),
    }.items():
        body = {
            "apiVersion": "migcompat.io/v1alpha1",
            "kind": "MigrationCompatibility",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {"virtualMachineInstance": {"name": name}},
        }
        plane.kubectl("create", "-f", "-", stdin=json.dumps(body))
        patch_status(installed, ("migrationcompat", name, "-n", NAMESPACE), status)
    return installed


def patch_status(installed: Installed, who: tuple[str, ...], status: Any) -> None:
    patch = msgspec.json.encode({"status": status}).decode()
    installed.plane.kubectl("patch", *who, "--subresource=status", "--type=merge", "-p", patch)


def without_age(table: str) -> list[str]:
    """Lines up to the column AGE, which grows while one looks."""
    lines = table.splitlines()
    return [line[: lines[0].index("AGE")] for line in lines]


@pytest.mark.parametrize(
    "name", ["migrationcompat", "migcompat", "migrationcompatibility", "migrationcompatibilities"]
)
def test_the_table_of_the_contract(vms: Installed, name: str) -> None:
    table = vms.plane.kubectl("get", name, "-n", NAMESPACE)
    assert without_age(table) == without_age(CONTRACT)
    assert table.splitlines()[0].endswith("AGE")


def test_wide_adds_resource_and_profile(vms: Installed) -> None:
    lines = vms.plane.kubectl("get", "migrationcompat", "-n", NAMESPACE, "-o", "wide").splitlines()
    narrow = "NAME SOURCE DEVICES TARGETS FREE MIGRATABLE REASON AGE"
    assert lines[0].split() == [*narrow.split(), "RESOURCE", "PROFILE"]
    assert lines[1].split()[-2:] == [RESOURCE, "a" * 24]


def test_describe_explains_every_group_of_refusing_nodes(vms: Installed) -> None:
    text = vms.plane.kubectl("describe", "migrationcompat", "vm-b", "-n", NAMESPACE)
    for sentence in (
        "software_version: source 1.2, target 1.1",
        "type: source nvidia-592, target nvidia-600",
    ):
        assert sentence in text


def test_an_object_without_an_answer_yet_prints_no_answer(vms: Installed) -> None:
    body = {
        "apiVersion": "migcompat.io/v1alpha1",
        "kind": "MigrationCompatibility",
        "metadata": {"name": "new", "namespace": "default"},
        "spec": {"virtualMachineInstance": {"name": "new"}},
    }
    vms.plane.kubectl("create", "-f", "-", stdin=json.dumps(body))
    row = vms.plane.kubectl("get", "migcompat", "new", "--no-headers").split()
    assert row[0] == "new"
    assert len(row) == 2  # and the age


def test_vfionodes(installed: Installed) -> None:
    installed.publish("columns-node", json.loads(msgspec.json.encode(full_vfionode())))
    lines = installed.plane.kubectl("get", "vfionode", "columns-node").splitlines()
    assert lines[0].split() == ["NAME", "MODE", "READY", "REASON", "AGENT", "AGE"]
    assert lines[1].split()[:-1] == ["columns-node", "observe", "True", "Fine", "0.1.0"]


def test_policies(installed: Installed) -> None:
    body = {
        "apiVersion": "migcompat.io/v1alpha1",
        "kind": "CompatibilityPolicy",
        "metadata": {"name": "columns"},
        "spec": {"selector": {"device": {"driver": "nvidia", "type": "nvidia-592"}}, "unknown": "Allow"},
    }
    installed.plane.kubectl("create", "-f", "-", stdin=json.dumps(body))
    conditions = [
        Condition("Accepted", "True", "Accepted", "", STAMP),
        Condition("Unambiguous", "False", "EquallySpecific", "as is other", STAMP),
    ]
    patch_status(installed, ("compatpolicy", "columns"), CompatibilityPolicyStatus(1, 4, 0, conditions))
    lines = installed.plane.kubectl("get", "compatpolicy", "columns").splitlines()
    assert lines[0].split() == [
        "NAME",
        "DRIVER",
        "TYPE",
        "DEVICES",
        "NODES",
        "ACCEPTED",
        "UNAMBIGUOUS",
        "AGE",
    ]
    assert lines[1].split()[:-1] == ["columns", "nvidia", "nvidia-592", "4", "0", "True", "False"]
