"""Cases taken sentence by sentence from the semantics, written as a driver would write them.

Each has the source's self, the target's self and entries as L2 text, and what is expected; each is read in
L2 and in L3.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from migcompat.engine.declaration import Kind
from migcompat.engine.policy import parse_policy, supply
from migcompat.engine.verdict import decide
from migcompat.sysfs.declaration import read_declaration

PLAIN = "software_version=1.2.3\ndevice_api=vfio-pci\ntype=i915-GVTg_V5_4\n"
ENTRY = PLAIN
CCW = "software_version=1.2.3\ndevice_api=vfio-ccw\ntype=vfio_ccw-io\nsubchannel_type=0\n"


class Case(msgspec.Struct, frozen=True):
    source: str
    entries: str
    reason: str
    target: str = PLAIN
    kind: Kind = Kind.MDEV
    policy: dict[str, Any] = {}
    more: dict[str, Any] = {}


CASES = {
    "§2 aliases stand in entries and selves alike": Case(
        "interface_version=1.2.3\ndevice_type=vfio_pci\nmdev_type=i915-GVTg_V5_4\n",
        "interface_version=1.2.3\ndevice_type=vfio-pci\nmdev_type=i915-GVTg_V5_{n:int:1,2,4,8}\n",
        "Compatible",
        more={"bindings": {"n": 4}},
    ),
    "§2 an alias and its name with different values spoil that entry alone": Case(
        PLAIN,
        f"{ENTRY}device_id=8086591d\npci_id=8086591e\n\n{ENTRY}",
        "Compatible",
        more={"entry": 1},
    ),
    "§2 a quoted value is the value": Case(
        PLAIN.replace("1.2.3", '"1.2.3"'), ENTRY.replace("vfio-pci", ' "vfio-pci" '), "Compatible"
    ),
    "§2 only one pair of quotes goes": Case(f"{PLAIN}x=7\n", f'{ENTRY}x=""7""\n', "AttributeMismatch"),
    "§2 quotes inside a template are the template's": Case(
        f"{PLAIN}x=a\n", f'{ENTRY}x="{{v:string:"a","b"}}"\n', "Compatible", more={"bindings": {"v": "a"}}
    ),
    "§2 a closing brace is nothing special in a self": Case(
        f"{PLAIN}pci_id=8086591}}\n", ENTRY, "MalformedSelf"
    ),
    "§2 the bound of a value does not count its quotes": Case(
        f"{PLAIN}x={'y' * 4096}\n", f'{ENTRY}x="{"y" * 4096}"\n', "Compatible"
    ),
    "§2 one byte more is too much": Case(f'{PLAIN}x="{"y" * 4097}"\n', ENTRY, "MalformedSelf"),
    "§2 no comments": Case(f"# what I am\n{PLAIN}", ENTRY, "MalformedSelf"),
    "§2 a comment line spoils only the entry it stands in": Case(
        PLAIN, f"# first\n\n{ENTRY}", "Compatible", more={"entry": 1}
    ),
    "§2 an empty must attribute is there, and then fails at its stage": Case(
        PLAIN.replace("1.2.3", ""), ENTRY, "VersionMalformed"
    ),
    "§2 keys are case-sensitive": Case(PLAIN.replace("type", "Type"), ENTRY, "MalformedSelf"),
    "§3 a ccw self without subchannel_type": Case(
        CCW.replace("subchannel_type=0\n", ""), CCW, "MalformedSelf", CCW
    ),
    "§3 ccw: numbers in different bases": Case(
        f"{CCW}chpid_type=26\n", CCW.replace("type=0", "type=0x0") + "chpid_type=0b11010\n", "Compatible", CCW
    ),
    "§3 ccw: the type is an mdev's, the subchannel comes first": Case(
        CCW.replace("type=0", "type=1").replace("ccw-io", "other"), CCW, "ApiSpecificMismatch", CCW
    ),
    "§3 the target's own pci_id is not needed where the entry has one": Case(
        f"{PLAIN}pci_id=8086591d\n",
        f"{ENTRY}pciid=0x8086591D\n",
        "Compatible",
        f"{PLAIN}pci_id=15b3101e\n",
        Kind.PHYSICAL,
    ),
    "§3 a physical target without its own pci_id": Case(
        f"{PLAIN}pci_id=8086591d\n", ENTRY, "MalformedSelf", PLAIN, Kind.PHYSICAL
    ),
    "§5 which a policy may supply": Case(
        f"{PLAIN}pci_id=8086591d\n",
        ENTRY,
        "Compatible",
        PLAIN,
        Kind.PHYSICAL,
        {"self": {"device_id": "8086:591d"}},
    ),
    "§3 the relation is not reflexive": Case(PLAIN, ENTRY.replace("V5_4", "V5_8"), "TypeMismatch"),
    "rule V a range must be met by bugfix": Case(
        PLAIN, ENTRY.replace("1.2.3", "1.2.4-1.3.0"), "VersionMinorOlder"
    ),
    "rule V templates and lists together": Case(
        PLAIN,
        ENTRY.replace("1.2.3", "{m:int:0,1}.2.0-{m}.2.5, 7.0"),
        "Compatible",
        more={"bindings": {"m": 1}},
    ),
    "rule T a declaration may stand in an attribute that comes later": Case(
        f"{PLAIN}aggregator=2\n",
        "software_version=1.2.3\ndevice_api=vfio-pci\n"
        "aggregator={n}/2\ntype=i915-GVTg_V5_{n}\nz_slots={n:int:2,4,8}\n",
        "AttributeMissingOnSource",
    ),
    "rule T an exact division by another variable's name is not declared": Case(
        f"{PLAIN}aggregator=2\n", f"{ENTRY}aggregator={{m}}/2\nslots={{n:int:4}}\n", "NoCompatibleEntry"
    ),
    "rule T all bindings dropped": Case(
        f"{PLAIN}aggregator=1\nslots=3\n",
        f"{ENTRY}aggregator={{n}}/2\nslots={{n:int:1,3}}\n",
        "NoCompatibleEntry",
    ),
    "missing: a dynamic attribute that the source lacks and the entry names": Case(
        PLAIN, f"{ENTRY}remote_url=u\n", "AttributeMissingOnSource"
    ),
    "missing: an empty list of dynamic attributes": Case(
        f"{PLAIN}aggregator=1\n", ENTRY, "AttributeMissingOnTarget", policy={"dynamicAttributes": []}
    ),
    "missing: what is off is no obligation unless dynamic": Case(
        f"{PLAIN}pv_mode=off\naggregator=1\n",
        ENTRY,
        "Compatible",
        policy={"offValues": {"pv_mode": ["off"]}},
        more={"obligations": {"aggregator": "1"}},
    ),
    "dynamic: a name that is never written, though the policy asks": Case(
        f"{PLAIN}driver_override=vfio-pci\n",
        ENTRY,
        "AttributeMissingOnTarget",
        policy={"dynamicAttributes": ["driver_override"]},
    ),
    "sets: both separators, repeats": Case(
        f"{PLAIN}alg_set=b,a+a\n", f"{ENTRY}alg_set=c+b+a\n", "Compatible"
    ),
    "ordered: numbers, not text": Case(
        f"{PLAIN}queues=9\n", f"{ENTRY}queues=16\n", "Compatible", policy={"orderedAttributes": ["queues"]}
    ),
    "§4 equally far entries: the first": Case(
        PLAIN,
        f"{ENTRY.replace('1.2.3', '9.0.0')}\n{ENTRY.replace('1.2.3', '1.1.0')}",
        "VersionMajorMismatch",
        more={"entry": 0},
    ),
    "§5 the way back": Case(
        f"{PLAIN}x=\n", f"{ENTRY}x=\n", "ReturnPath", policy={"requireReturnPath": True}, more={"entry": 0}
    ),
    "§5 appended entries are counted after the device's own": Case(
        PLAIN,
        ENTRY.replace("V5_4", "V5_8"),
        "Compatible",
        policy={
            "compatible": [{"software_version": "1.2.3", "device_api": "vfio-pci", "type": "i915-GVTg_V5_4"}]
        },
        more={"entry": 1},
    ),
}


@pytest.mark.parametrize("layout", ["L2", "L3"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_case(case: Case, layout: str, tmp_path: Path) -> None:
    source = write(tmp_path / "source", case.source, "", layout)
    target = write(tmp_path / "target", case.target, case.entries, layout)
    policy = parse_policy(case.policy)
    verdict = decide(
        supply(read_declaration(source, Kind.MDEV), msgspec.structs.replace(policy, supplied_compatible=())),
        supply(read_declaration(target, case.kind), policy),
        policy,
    )
    plain = msgspec.to_builtins(verdict)
    assert plain["reason"] == case.reason, plain
    assert {key: plain[key] for key in case.more} == case.more
    assert str(tmp_path) not in plain["message"]


def write(place: Path, own: str, entries: str, layout: str) -> Path:
    place.mkdir()
    if layout == "L2":
        (place / "migration").mkdir()
        (place / "migration/self").write_text(own)
        (place / "migration/compatible").write_text(entries)
    else:
        sections = "".join(f"COMPATIBLE:\n{text}\n" for text in entries.split("\n\n") if text)
        (place / "migration_compatible").write_text(f"SELF:\n{own}{sections}")
    return place
