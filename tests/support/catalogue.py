"""The catalogue's policies, and devices of today's drivers: they declare nothing, and show something."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import yaml
from migcompat.api.compatibilitypolicy import CompatibilityPolicy, CompatibilityPolicySpec
from migcompat.api.meta import ObjectMeta
from migcompat.api.names import digest
from migcompat.api.vfionode import Device, PodRef, VFIONode, VFIONodeStatus, split
from migcompat.engine.declaration import Declaration, Kind
from migcompat.fleet.fleet import Fleet

from tests.support.fleets import BOOT, node, pod, vmi

CATALOGUE = Path(__file__).parents[2] / "charts" / "migcompat" / "files" / "catalogue"
POOL = "vfio.migcompat.io/pool"
HOLDER = ("tenant-a", "virt-launcher-vm-a-src")


def raw(name: str) -> dict[str, Any]:
    """The file of the catalogue, as YAML reads it."""
    loaded: dict[str, Any] = yaml.safe_load((CATALOGUE / f"{name}.yaml").read_text())
    return loaded


def policy_of(loaded: Mapping[str, Any]) -> CompatibilityPolicy:
    """A whole object, as YAML reads it, as the API gives it."""
    meta = ObjectMeta(name=loaded["metadata"]["name"])
    return CompatibilityPolicy(meta, msgspec.Raw(msgspec.json.encode(loaded["spec"])))


def spec_of(name: str) -> CompatibilityPolicySpec:
    """What a file of the catalogue says."""
    return msgspec.convert(raw(name)["spec"], CompatibilityPolicySpec)


def showing(kind: Kind, shown: Mapping[str, str]) -> Declaration:
    """A device that declares nothing."""
    return Declaration(kind, shown=dict(shown))


def published(name: str, kind: Kind, shown: Mapping[str, str], *, held: bool = False) -> VFIONode:
    """A node with one device that declares nothing and shows *shown*, as its agent publishes it."""
    profile_key, profile, acceptance_key, acceptance, _ = split(showing(kind, shown))
    device = Device(
        id=f"{name}-a",
        resource=POOL,
        profile=profile_key,
        acceptance=acceptance_key,
        kind=kind,
        driver=shown.get("driver", ""),
        type=shown.get("type", "") if kind is Kind.MDEV or "vgpu_type" in shown else "",
        device_api=shown.get("device_api", ""),
        pci_id=shown.get("pci_id", shown.get("parent_pci_id", "")),
        shown=digest(shown),
        allocated_to=PodRef(*HOLDER) if held else None,
    )
    status = VFIONodeStatus(
        boot_id=BOOT,
        profiles={profile_key: profile},
        acceptances={acceptance_key: acceptance},
        shown={digest(shown): dict(shown)},
        devices=[device],
    )
    return VFIONode(ObjectMeta(name=name), status)


def answer(
    policies: list[CompatibilityPolicy],
    source: VFIONode,
    target: VFIONode,
    labels: Mapping[str, Mapping[str, str]] | None = None,
) -> tuple[bool, str]:
    """Whether vm-a, which holds the device of *source*, may go to *target*, and the reason, by the fleet.

    *labels*: of the nodes, by name.
    """
    fleet = Fleet()
    for policy in policies:
        fleet.put_policy(policy)
    for item in (source, target):
        fleet.put_node(node(item.metadata.name, labels=(labels or {}).get(item.metadata.name)))
        fleet.put_vfionode(item)
    fleet.put_pod(pod("vm-a", source.metadata.name, resources=[POOL]))
    fleet.put_vmi(vmi("vm-a", source.metadata.name, resources=[POOL]))
    found = fleet.vmi("tenant-a", "vm-a")
    assert found is not None
    fit = fleet.fit(fleet.migrant(found), target.metadata.name)
    return fit.compatible, fit.reason
