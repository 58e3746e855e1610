"""The catalogue of policies for known drivers: each gives the verdict that its driver's rule gives."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
import pytest
from migcompat.api import names
from migcompat.engine.declaration import Declaration, Kind
from migcompat.engine.policy import DEFAULT_POLICY, check_policy, supply
from migcompat.engine.verdict import decide

from tests.support import fleets
from tests.support.catalogue import (
    CATALOGUE,
    HOLDER,
    POOL,
    answer,
    policy_of,
    published,
    raw,
    showing,
    spec_of,
)

NAMES = sorted(path.stem for path in CATALOGUE.glob("*.yaml"))
PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "catalogue.md").read_text()


def vf(driver: str, pci_id: str, revision: str = "01", subsystem: str = "10280001") -> dict[str, str]:
    """What every VF shows."""
    return {
        "device_api": "vfio-pci",
        "type": f"pci-{pci_id[:4]}-{pci_id[4:]}",
        "pci_id": pci_id,
        "pci_revision": revision,
        "pci_subsystem": subsystem,
        "pci_function": "vf",
        "driver": driver,
    }


BMG = vf("xe-vfio-pci", "8086e211")
SEC = vf("hisi_acc_vfio_pci", "19e5a256", "30")
QAT = {**vf("qat_vfio_pci", "80864943", "40"), "services": "asym+sym"}
CX7 = {
    **vf("mlx5_vfio_pci", "15b3101e", "00", "15b30022"),
    "psid": "MT_0000000834",
    "firmware_version": "28.41.1000",
}
PDS = vf("pds_vfio_pci", "1dd81003", "00", "1dd85001")
VIRTIO = vf("virtio_vfio_pci", "1af41041", "01", "1af41100")
MTTY = {"device_api": "vfio-pci", "type": "mtty-2", "type_name": "Dual port serial", "driver": "mtty"}
AP = {
    "device_api": "vfio-ap",
    "type": "vfio_ap-passthrough",
    "type_name": "VFIO AP Passthrough Device",
    "driver": "vfio_ap_mdev",
    "ap_queues": "05.0004+05.0047",
    "ap_control_domains": "0004",
}
VGPU = {
    "device_api": "vfio-pci",
    "type": "nvidia-222",
    "type_name": "GRID T4-1B",
    "vgpu_type": "222",
    "driver": "nvidia-vgpu-vfio",
    "driver_version": "580.95.05",
    "software_version": "580.95.05",
    "parent_pci_id": "10de1eb8",
    "pci_revision": "a1",
    "pci_subsystem": "10de12a2",
    "ecc_mode": "enabled",
    "vgpu_versions": "7+8+9",
    "vgpu_versions_allowed": "7+8+9",
}
VGPU_VF = {
    **vf("nvidia", "10de2335", "a1", "10de18be"),
    "type": "nvidia-1414",
    "vgpu_type": "1414",
    "driver_version": "580.95.05",
    "software_version": "580.95.05",
    "ecc_mode": "enabled",
    "vgpu_versions": "7+8+9",
    "vgpu_versions_allowed": "7+8+9",
}


class Case(msgspec.Struct, frozen=True):
    """A pair of devices under a policy of the catalogue, and what comes of it.

    ``source`` and ``target`` change what ``base`` shows (None: not shown). ``own``: what the admin's copy of
    the policy supplies in addition.
    """

    policy: str
    base: dict[str, str]
    reason: str
    source: dict[str, str | None] = {}
    target: dict[str, str | None] = {}
    own: dict[str, str] = {}

    def shown(self, changes: Mapping[str, str | None]) -> dict[str, str]:
        return {k: v for k, v in {**self.base, **changes}.items() if v is not None}

    @property
    def kind(self) -> Kind:
        return Kind.PHYSICAL if "pci_id" in self.base else Kind.MDEV

    def __str__(self) -> str:
        changed = " ".join(sorted({*self.source, *self.target}))
        return f"{self.policy}-{changed or 'same'}-{self.reason}"


QUEUES = {"queue_pairs": "256", "queue_isolation": "0"}
QUOTAS = {"vram_quota": "8589934592", "ggtt_quota": "268435456", "guc_version": "70.54.0"}
CAPABLE = {"capabilities": "1"}

Changes = dict[str, str | None]
VGPU_CASES: list[tuple[str, Changes, Changes]] = [
    ("Compatible", {}, {}),
    ("Compatible", {"vgpu_versions": "8+9"}, {}),
    # What the target's administrator has taken away counts; what the source's has, guests keep.
    ("AttributeMismatch", {}, {"vgpu_versions_allowed": "8+9"}),
    ("AttributeMismatch", {"vgpu_versions_allowed": "9"}, {"vgpu_versions_allowed": "8+9"}),
    ("Compatible", {"vgpu_versions_allowed": "9"}, {"vgpu_versions": "6+7+8+9"}),
    ("Unknown", {}, {"vgpu_versions_allowed": None}),
    ("AttributeMismatch", {}, {"ecc_mode": "disabled"}),
    ("AttributeMismatch", {"pci_subsystem": "10de0001"}, {}),
    ("TypeMismatch", {"type": "nvidia-223"}, {}),
    ("VersionMinorOlder", {"software_version": "580.105.08"}, {}),
    ("VersionMinorOlder", {"software_version": "580.65.06"}, {}),
    ("VersionMajorMismatch", {"software_version": "570.172.07"}, {}),
    ("Unknown", {}, {"ecc_mode": None, "vgpu_versions": None, "vgpu_versions_allowed": None}),
    ("Unknown", {"ecc_mode": None, "vgpu_versions": None, "vgpu_versions_allowed": None}, {}),
    ("AttributeMismatch", {"ecc_mode": None, "vgpu_versions": "6+7"}, {}),
    # Only vGPUs have a vGPU type.
    ("Unknown", {"vgpu_type": None}, {"vgpu_type": None}),
    # Without a driver's version it says nothing: a whole GPU on vfio-pci, for instance.
    ("NotMigratable", {"software_version": None}, {}),
]

CASES = [
    # xe: device id and revision of VFs; memory, GGTT and firmware are not shown.
    Case("xe", BMG, "Unknown"),
    Case("xe", BMG, "Compatible", own=QUOTAS),
    Case("xe", BMG, "Compatible", own=QUOTAS, source={"pci_subsystem": "80860000"}),
    Case("xe", BMG, "Compatible", own=QUOTAS, target={"software_version": "9.0"}),
    Case("xe", BMG, "ApiSpecificMismatch", target={"pci_id": "8086e20b", "type": "pci-8086-e20b"}),
    Case("xe", BMG, "AttributeMismatch", target={"pci_revision": "02"}),
    Case("xe", BMG, "Unknown", own=QUOTAS, target={"pci_revision": None}),
    Case("xe", BMG, "Unknown", own=QUOTAS, source={"pci_revision": None}),
    # A PF has the same ids and cannot migrate: not to a VF, not from one, not to another PF.
    Case("xe", BMG, "AttributeMismatch", own=QUOTAS, source={"pci_function": "pf"}),
    Case("xe", BMG, "AttributeMismatch", target={"pci_function": "pf"}),
    Case("xe", {**BMG, "pci_function": "pf"}, "AttributeMismatch", own=QUOTAS),
    Case("xe", {**BMG, "pci_function": "function"}, "AttributeMismatch"),
    # mtty: the number of ports, which is the type's.
    Case("mtty", MTTY, "Compatible"),
    Case("mtty", MTTY, "TypeMismatch", source={"type": "mtty-1"}),
    Case("mtty", MTTY, "Unknown", target={"type": None}),
    # hisi_acc: queue pairs and isolation are not shown.
    Case("hisi-acc", SEC, "Unknown"),
    Case("hisi-acc", SEC, "Compatible", own=QUEUES),
    Case("hisi-acc", SEC, "ApiSpecificMismatch", own=QUEUES, source={"pci_id": "19e5a259"}),
    Case("hisi-acc", SEC, "AttributeMismatch", own=QUEUES, source={"pci_revision": "21"}),
    # QAT: the PF's services are shown, capabilities are not.
    Case("qat", QAT, "Unknown"),
    Case("qat", QAT, "Unknown", own=CAPABLE, target={"services": None}),
    Case("qat", QAT, "Compatible", own=CAPABLE),
    Case("qat", QAT, "AttributeMismatch", source={"services": "dc"}),
    Case("qat", QAT, "AttributeMismatch", own=CAPABLE, source={"pci_revision": "41"}),
    Case("qat", QAT, "ApiSpecificMismatch", own=CAPABLE, source={"pci_id": "80864945"}),
    # mlx5: the same card with the same firmware.
    Case("mlx5", CX7, "Compatible"),
    Case("mlx5", CX7, "AttributeMismatch", target={"psid": "MT_0000000838"}),
    Case("mlx5", CX7, "AttributeMismatch", source={"firmware_version": "28.39.1002"}),
    Case("mlx5", CX7, "AttributeMismatch", target={"pci_subsystem": "15b30023"}),
    Case("mlx5", CX7, "ApiSpecificMismatch", target={"pci_id": "15b3101c"}),
    Case("mlx5", CX7, "AttributeMismatch", target={"pci_revision": "01"}),
    Case("mlx5", CX7, "Unknown", target={"psid": None, "firmware_version": None}),
    Case("mlx5", CX7, "Unknown", source={"psid": None, "firmware_version": None}),
    Case("mlx5", CX7, "AttributeMismatch", source={"psid": None, "firmware_version": "28.39.1002"}),
    # pds: the firmware version is not shown.
    Case("pds", PDS, "Unknown"),
    Case("pds", PDS, "Compatible", own={"firmware_version": "1.80.0"}),
    Case("pds", PDS, "AttributeMismatch", own={"firmware_version": "1.80.0"}, source={"pci_revision": "02"}),
    Case(
        "pds", PDS, "AttributeMismatch", own={"firmware_version": "1.80.0"}, source={"pci_subsystem": "1dd8"}
    ),
    Case(
        "pds", PDS, "ApiSpecificMismatch", own={"firmware_version": "1.80.0"}, target={"pci_id": "1dd81004"}
    ),
    # virtio: features are not shown.
    Case("virtio", VIRTIO, "Unknown"),
    Case("virtio", VIRTIO, "Compatible", own={"features": "0+1+5"}),
    Case("virtio", VIRTIO, "ApiSpecificMismatch", own={"features": "0"}, source={"pci_id": "1af41042"}),
    Case("virtio", VIRTIO, "AttributeMismatch", own={"features": "0"}, source={"pci_revision": "02"}),
    Case("virtio", VIRTIO, "AttributeMismatch", own={"features": "0"}, target={"pci_subsystem": "1af41101"}),
    # vfio-ap: the types of the queues are not shown.
    Case("vfio-ap", AP, "Unknown"),
    Case("vfio-ap", AP, "Compatible", own={"ap_types": "CEX8C"}),
    Case("vfio-ap", AP, "Compatible", own={"ap_types": "CEX8C"}, source={"ap_queues": "05.0047"}),
    Case("vfio-ap", AP, "AttributeMismatch", own={"ap_types": "CEX8C"}, target={"ap_queues": "05.0047"}),
    Case("vfio-ap", AP, "AttributeMismatch", own={"ap_types": "CEX8C"}, source={"ap_control_domains": "1"}),
    # NVIDIA vGPU: all of it is shown where there is NVML.
    *(
        Case("nvidia-vgpu", base, reason, source, target)
        for base in (VGPU, VGPU_VF)
        for reason, source, target in VGPU_CASES
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_verdict_is_that_of_the_drivers_rule(case: Case) -> None:
    loaded = raw(case.policy)
    loaded["spec"].setdefault("self", {}).update(case.own)
    policy = msgspec.convert(loaded["spec"], type(spec_of(case.policy)))
    source, target = case.shown(case.source), case.shown(case.target)
    verdict = decide(
        supply(showing(case.kind, source), policy), supply(showing(case.kind, target), policy), policy
    )
    assert (verdict.reason, verdict.compatible) == (case.reason, case.reason == "Compatible"), verdict.message
    whole = [policy_of(loaded), *(policy_of(raw(name)) for name in NAMES if name != case.policy)]
    found = answer(whole, published("n1", case.kind, source, held=True), published("n2", case.kind, target))
    assert found == (verdict.compatible, case.reason)


def test_every_policy_has_a_yes_a_no_and_an_unknown() -> None:
    reasons: dict[str, set[str]] = {name: set() for name in NAMES}
    for case in CASES:
        reasons[case.policy].add(case.reason)
    for name, found in reasons.items():
        assert {"Compatible", "Unknown"} < found, f"{name}: {found}"


@pytest.mark.parametrize(
    ("policy", "base", "own"),
    [
        ("xe", BMG, {**QUOTAS, "vram_quota": "4294967296"}),
        ("xe", BMG, {**QUOTAS, "ggtt_quota": "134217728"}),
        ("xe", BMG, {**QUOTAS, "guc_version": "70.55.0"}),
        ("hisi-acc", SEC, {**QUEUES, "queue_pairs": "128"}),
        ("hisi-acc", SEC, {**QUEUES, "queue_isolation": "1"}),
        ("qat", QAT, {"capabilities": "1+2"}),
        ("pds", PDS, {"firmware_version": "1.79.0"}),
        ("virtio", VIRTIO, {"features": "0+1+5+40"}),
        ("vfio-ap", AP, {"ap_types": "CEX7C"}),
    ],
)
def test_what_is_supplied_by_hand_for_a_group_of_nodes_is_compared(
    policy: str, base: dict[str, str], own: dict[str, str]
) -> None:
    """As the documentation says: copies of the policy for the nodes of each label, with another ``self``."""
    theirs = next(case.own for case in CASES if case.policy == policy and case.own)
    copies = []
    for group, supplied in (("a", own), ("b", theirs)):
        copy = raw(policy)
        copy["metadata"]["name"] = f"mine-{group}"
        copy["spec"]["self"].update(supplied)
        copy["spec"]["selector"]["nodeLabels"] = {"group": group}
        copies.append(policy_of(copy))
    kind = Kind.PHYSICAL if "pci_id" in base else Kind.MDEV
    whole = [*copies, policy_of(raw(policy))]
    source, target = published("n1", kind, base, held=True), published("n2", kind, base)
    same = {"n1": {"group": "b"}, "n2": {"group": "b"}}
    other = {"n1": {"group": "a"}, "n2": {"group": "b"}}
    assert answer(whole, source, target, same) == (True, "Compatible")
    assert answer(whole, source, target, other) == (False, "AttributeMismatch")
    assert answer(whole, source, target) == (False, "Unknown"), "without labels the catalogue's counts"


@pytest.mark.parametrize(
    ("policy", "base", "less", "more"),
    [
        ("qat", QAT, CAPABLE, {"capabilities": "1+2"}),
        ("virtio", VIRTIO, {"features": "0+1"}, {"features": "0+1+5"}),
        ("vfio-ap", {**AP, "ap_types": "CEX8C"}, {}, {"ap_queues": "05.0004+05.0047+05.0048"}),
        ("vfio-ap", {**AP, "ap_types": "CEX8C"}, {}, {"ap_control_domains": "0004+0005"}),
    ],
)
def test_a_target_that_can_do_more_takes_the_device_and_not_the_other_way(
    policy: str, base: dict[str, str], less: dict[str, str], more: dict[str, str]
) -> None:
    kind = Kind.PHYSICAL if "pci_id" in base else Kind.MDEV
    spec = spec_of(policy)
    small, great = (supply(Declaration(kind, shown={**base, **less, **added}), spec) for added in ({}, more))
    assert decide(small, great, spec).compatible
    assert decide(great, small, spec).reason == "AttributeMismatch"


def attributes(name: str) -> Iterator[str]:
    """The attributes that a policy's entries compare."""
    for entry in spec_of(name).supplied_compatible:
        yield from entry


@pytest.mark.parametrize("name", NAMES)
def test_a_policy_is_understood_and_says_where_its_rule_is_from(name: str) -> None:
    text = (CATALOGUE / f"{name}.yaml").read_text()
    loaded = raw(name)
    assert loaded["metadata"] == {"name": f"{names.CATALOGUE_PREFIX}{name}"}
    check_policy(spec_of(name))
    assert "# Rule: " in text
    assert re.search(r"\.c: \w+|NVML, nvmlGetVgpuCompatibility", text), "no file and function"
    for source in re.findall(r"#\s+((?:drivers|samples)/\S+\.c)", text):
        assert source in PAGE, f"docs/reference/catalogue.md does not name {source}"
    row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{name}` |"))
    for attribute in attributes(name):
        assert f"`{attribute}`" in row, f"the table does not name {attribute} of {name}"


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_shown_is_said(name: str) -> None:
    row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{name}` |"))
    unknown = row.split("|")[-2]
    shown = {attribute for case in CASES if case.policy == name for attribute in case.base}
    hidden = set(attributes(name)) - shown - spec_of(name).supplied_self.keys()
    assert set(re.findall(r"`(\w+)`", unknown)) == hidden


@pytest.mark.parametrize("name", NAMES)
def test_a_policy_changes_nothing_for_devices_that_declare_sets(name: str) -> None:
    """A list given replaces the default: one of the catalogue must hold it."""
    spec = spec_of(name)
    assert set(DEFAULT_POLICY.set_attributes) <= set(spec.set_attributes)
    assert spec.dynamic_attributes == DEFAULT_POLICY.dynamic_attributes
    assert (spec.unknown, spec.cross_type) == (DEFAULT_POLICY.unknown, DEFAULT_POLICY.cross_type)


@pytest.mark.parametrize(
    "entries", [[{"software_version": "1.1.0"}], []], ids=["accepts another version", "accepts nothing"]
)
def test_what_devices_declare_themselves_is_not_for_the_catalogue(entries: list[dict[str, str]]) -> None:
    """It would take what the device, which knows better, refuses; or call unknown what is known."""
    ours = policy_of(raw("nvidia-vgpu"))
    ours.metadata.labels = {names.MANAGED_BY: names.OPERATOR}
    source = fleets.vfionode("n1", {"a": fleets.declared("1.2.0")}, allocated={"a": HOLDER}, resource=POOL)
    target = fleets.vfionode("n2", {"b": fleets.declared("1.2.0", accepts=entries)}, resource=POOL)
    assert answer([ours], source, target) == answer([], source, target)
    assert answer([ours], source, target)[0] is False


def test_no_two_policies_of_the_catalogue_select_the_same_device() -> None:
    selectors = [spec_of(name).selector for name in NAMES]
    assert not any(selector.node_labels for selector in selectors)
    assert len({selector.device for selector in selectors}) == len(selectors)
    for selector in selectors:
        given = msgspec.to_builtins(selector.device)
        assert len(given) == 1, "more keys would make it win over an admin's own policy"


@pytest.mark.parametrize(
    ("name", "device", "governs"),
    [
        ("mine", {"driver": "xe-vfio-pci", "vendor": "8086"}, True),
        ("mine", {"vendor": "8086"}, True),
        ("a-mine", {"vendor": "8086"}, True),
        ("a-mine", {}, False),
    ],
    ids=["two keys", "one key, later name", "one key, earlier name", "no key"],
)
def test_when_an_admins_own_policy_governs_instead(name: str, device: dict[str, str], governs: bool) -> None:
    spec = {"selector": {"device": device}, "unknown": "Allow"}
    ours = policy_of(raw("xe"))
    # As the operator puts it there.
    ours.metadata.labels = {names.MANAGED_BY: names.OPERATOR}
    policies = [ours, policy_of({"metadata": {"name": name}, "spec": spec})]
    other = {**BMG, "pci_revision": "02"}
    found = answer(
        policies, published("n1", Kind.PHYSICAL, BMG, held=True), published("n2", Kind.PHYSICAL, other)
    )
    assert found == ((True, "Unknown") if governs else (False, "AttributeMismatch"))
