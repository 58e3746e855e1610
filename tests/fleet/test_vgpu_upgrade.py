"""docs/vgpu-upgrade.md: its policy gives the verdicts that its tables promise."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml
from migcompat.api.compatibilitypolicy import CompatibilityPolicy
from migcompat.engine.declaration import Kind

from tests.support.catalogue import answer, policy_of, published, raw

PAGE = (Path(__file__).parents[2] / "docs" / "vgpu-upgrade.md").read_text()
(EXAMPLE,) = (yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL))
CATALOGUE = policy_of(raw("nvidia-vgpu"))
(LABEL,) = EXAMPLE["spec"]["selector"]["nodeLabels"].items()
VGPU = {
    "device_api": "vfio-pci",
    "type": "nvidia-1414",
    "pci_id": "10de2335",
    "pci_revision": "a1",
    "pci_subsystem": "10de18be",
    "driver": "nvidia",
    "vgpu_type": "1414",
    "ecc_mode": "enabled",
    "vgpu_versions": "7+8",
    "vgpu_versions_allowed": "7+8",
}


def table(name: str) -> list[tuple[str, str, str]]:
    """The rows (from, to, verdict) of the table behind a mark."""
    rows = re.search(rf"<!-- verdicts: {name} -->\n\n((?:\|.*\n)+)", PAGE)
    assert rows, f"no table {name}"
    cells = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in rows[1].splitlines()[2:]]
    return [(source, target, verdict) for source, target, verdict in cells]


def verdict(
    before: str,
    after: str,
    *policies: CompatibilityPolicy,
    unlabelled: tuple[str, ...] = (),
    changes: Mapping[str, Mapping[str, str]] | None = None,
) -> str:
    """Of the fleet, from a host driver to another; nodes of 580 have the label, but for *unlabelled* ones.

    *changes*: of what the ``source`` or the ``target`` shows.
    """
    labels = {
        node: dict([LABEL])
        for node, version in (("source", before), ("target", after))
        if version.startswith("580.") and node not in unlabelled
    }
    devices = [
        published(
            node,
            Kind.PHYSICAL,
            {**VGPU, "software_version": version, "driver_version": version, **(changes or {}).get(node, {})},
            held=node == "source",
        )
        for node, version in (("source", before), ("target", after))
    ]
    compatible, reason = answer(list(policies), devices[0], devices[1], labels)
    assert compatible is (reason == "Compatible")
    return reason


@pytest.mark.parametrize(("source", "target", "promised"), table("catalogue"))
def test_at_the_start_only_the_same_version_goes(source: str, target: str, promised: str) -> None:
    assert verdict(source, target, CATALOGUE) == promised


@pytest.mark.parametrize(("source", "target", "promised"), table("upgraded"))
def test_meanwhile_vms_go_up_and_not_down(source: str, target: str, promised: str) -> None:
    assert verdict(source, target, CATALOGUE, policy_of(EXAMPLE)) == promised


def test_an_upgraded_node_without_its_label_takes_nothing_old() -> None:
    policies = (CATALOGUE, policy_of(EXAMPLE))
    assert verdict("580.95.05", "580.95.05", *policies, unlabelled=("target",)) == "Compatible"
    assert verdict("570.172.07", "580.95.05", *policies, unlabelled=("target",)) == "VersionMajorMismatch"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"source": {"vgpu_versions": "6+7+8"}}, "AttributeMismatch"),
        ({"source": {"vgpu_versions": "8"}}, "Compatible"),
        ({"source": {"vgpu_versions": "6+7+8", "vgpu_versions_allowed": "7+8"}}, "AttributeMismatch"),
        ({"target": {"vgpu_versions_allowed": "8"}}, "AttributeMismatch"),
        ({"target": {"ecc_mode": "disabled"}}, "AttributeMismatch"),
        ({"target": {"pci_subsystem": "10de18bf"}}, "AttributeMismatch"),
        ({"target": {"type": "nvidia-1415"}}, "TypeMismatch"),
    ],
)
def test_all_but_the_version_counts_as_before(changes: dict[str, dict[str, str]], reason: str) -> None:
    policies = (CATALOGUE, policy_of(EXAMPLE))
    assert verdict("570.172.07", "580.95.05", *policies, changes=changes) == reason


def test_the_example_is_the_catalogues_policy_but_for_the_version_and_the_label() -> None:
    own, catalogue = copy.deepcopy(EXAMPLE["spec"]), raw("nvidia-vgpu")["spec"]
    del own["compatible"][0]["software_version"], catalogue["compatible"][0]["software_version"]
    own["selector"] = {key: value for key, value in own["selector"].items() if key != "nodeLabels"}
    assert own == catalogue


def test_a_node_that_goes_back_with_its_label_on_accepts_nothing() -> None:
    back = {**EXAMPLE, "spec": {**EXAMPLE["spec"], "selector": {"device": {"vendor": "10de"}}}}
    assert verdict("570.172.07", "570.172.07", policy_of(back)) == "NoCompatibleEntry"


BARE = {key: value for key, value in VGPU.items() if key != "ecc_mode" and "versions" not in key}
"""Without NVML."""
VERSION = {"software_version": "570.172.07"}


def between(shows: Mapping[str, str], *policies: CompatibilityPolicy) -> tuple[bool, str]:
    """The answer for two devices that show the same, on nodes with vGPUs."""
    source, target = (published(n, Kind.PHYSICAL, shows, held=n == "source") for n in ("source", "target"))
    labels = {node: {"vgpu": "yes"} for node in ("source", "target")}
    return answer(list(policies), source, target, labels)


def test_without_nvml_nothing_is_known() -> None:
    assert between({**BARE, **VERSION}, CATALOGUE, policy_of(EXAMPLE)) == (False, "Unknown")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (VERSION, "Compatible"),
        (
            {"vgpu_type": "", "type": "pci-10de-2335", "driver": "vfio-pci", "pci_function": "pf"},
            "MalformedSelf",
        ),
        ({"vgpu_type": "", "type": "pci-10de-2335", "driver": "vfio-pci", **VERSION}, "Unknown"),
    ],
    ids=["vGPU", "whole GPU", "whole GPU whose driver has a version"],
)
def test_the_recipe_without_nvml_takes_vgpus_and_no_whole_gpus(
    changes: Mapping[str, str], reason: str
) -> None:
    recipe = copy.deepcopy(raw("nvidia-vgpu"))
    recipe["metadata"]["name"] = "no-nvml"
    recipe["spec"]["selector"]["nodeLabels"] = {"vgpu": "yes"}
    recipe["spec"]["self"] = {"ecc_mode": "enabled"}
    del recipe["spec"]["compatible"][0]["vgpu_versions"]
    shows = {key: value for key, value in {**BARE, **changes}.items() if value}
    assert between(shows, CATALOGUE, policy_of(recipe)) == (reason == "Compatible", reason)
