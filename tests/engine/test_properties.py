"""Properties that hold for all contents and for any bytes (semantics §2, §3)."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from migcompat.engine.attributes import MAX_ENTRIES
from migcompat.engine.declaration import Acceptance, Declaration, Kind, Presence
from migcompat.engine.policy import parse_policy
from migcompat.engine.verdict import Reason, Verdict, decide
from migcompat.sysfs.declaration import read_declaration

from tests.engine import trees
from tests.engine.builders import entry, own

bounded = settings(deadline=None, max_examples=60)

SETS = ["features", "pv_mode", "alg_set"]

names = st.sampled_from(["a", "b", "features", "aggregator", "mode", "chpid_type"])
words = st.sampled_from(["", "1", "2", "0x1", "x+y", "y+x", '"q"', "a b"])
numbers = st.sampled_from(["1", "2", "0x1", "0b10"])
versions = st.sampled_from(["1.2.3", "1.2", "1.3.0", "2.0.0", "v2", "1.0.0-1.2.9,1.3.0-", "1.2.3,2.0.0"])
templates = st.sampled_from(
    [
        "{v:int:1,2}",
        "{v}",
        "{v}/2",
        '{w:string:"x+y","2"}',
        "{w}",
        "x{v}",
        "}",
        "{u:int:}",
        '{w:string:"",""}1',
    ]
)
apis = st.sampled_from(["vfio-pci", "vfio_pci", "vfio-ccw", "vfio-ap"])
kinds = st.sampled_from(["T", "U", "T1"])


def with_numbers(attributes: dict[str, str], number: str) -> dict[str, str]:
    """Give attributes that must be integers an integer."""
    return {name: number if name == "chpid_type" else value for name, value in attributes.items()}


@st.composite
def selves(draw: st.DrawFn) -> dict[str, str]:
    core = {
        "software_version": draw(versions),
        "device_api": draw(apis),
        draw(st.sampled_from(["type", "mdev_type"])): draw(kinds),
        "pci_id": draw(st.sampled_from(["8086591d", "8086:591D", "15b3101e"])),
        "subchannel_type": draw(numbers),
    }
    drawn = draw(st.dictionaries(names, words, max_size=3))
    left = draw(st.sets(st.sampled_from(sorted(core)), max_size=1))
    return {k: v for k, v in core.items() if k not in left} | with_numbers(drawn, draw(numbers))


@st.composite
def entries(draw: st.DrawFn) -> dict[str, str]:
    core = {
        "software_version": draw(versions),
        "device_api": draw(apis),
        "type": draw(st.one_of(kinds, templates)),
        "pci_id": draw(st.sampled_from(["8086591d", "8086:591d", "15b3101e"])),
    }
    drawn = draw(st.dictionaries(names, st.one_of(words, templates), max_size=3))
    left = draw(st.sets(st.sampled_from(sorted(core)), max_size=2))
    return {k: v for k, v in core.items() if k not in left} | with_numbers(drawn, draw(numbers))


contents = st.builds(
    trees.Content,
    st.one_of(st.none(), selves()),
    st.lists(entries(), max_size=4).map(tuple),
    st.booleans(),
)
policies = st.fixed_dictionaries(
    {},
    optional={
        "crossType": st.sampled_from(["Allow", "Deny"]),
        "versionScheme": st.sampled_from(["semver", "exact", "dotted"]),
        "requireReturnPath": st.booleans(),
        "unknown": st.sampled_from(["Allow", "Deny"]),
        "ignoredAttributes": st.lists(names, max_size=2),
        "orderedAttributes": st.lists(names, max_size=2),
        "offValues": st.dictionaries(names, st.lists(words, max_size=2), max_size=1),
    },
)


@contextmanager
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as made:
        yield Path(made)


def without_layout(declared: Declaration) -> Declaration:
    """What layouts must agree in: words about what is wrong may differ, where it was read from does."""
    accepts = declared.accepts
    blank = tuple(
        msgspec.structs.replace(item, problem="x" if item.problem else "") for item in accepts.entries
    )
    return msgspec.structs.replace(
        declared,
        layout="",
        self=msgspec.structs.replace(declared.self, problem=""),
        accepts=msgspec.structs.replace(accepts, entries=blank, problem=""),
    )


@bounded
@given(contents)
def test_layouts_agree(content: trees.Content) -> None:
    with directory() as place:
        found = []
        for layout in trees.LAYOUTS[:6]:
            layout(place / layout.__name__, content)
            found.append(without_layout(read_declaration(place / layout.__name__)))
    assert all(declared == found[0] for declared in found)


@st.composite
def l4_contents(draw: st.DrawFn) -> trees.Content:
    """What L4 can say, with attributes that are sets or dynamic by the default policy too."""
    said = {
        "software_version": draw(st.sampled_from(["1.2.3", "1.2", "2.0.0", "v2"])),
        "device_api": draw(apis),
        "type": "T",
        **{name: draw(st.sampled_from(["x+y", "x", "z,x"])) for name in draw(st.sets(st.sampled_from(SETS)))},
    }
    dynamic = {name: draw(st.sampled_from("12")) for name in draw(st.sets(st.sampled_from(trees.DYNAMIC)))}
    others = draw(st.lists(kinds, max_size=3, unique=True))
    return trees.Content({**said, **dynamic}, tuple({**said, "type": name} for name in ["T", *others]))


@bounded
@given(l4_contents(), contents, policies)
def test_l4_agrees_with_l2(content: trees.Content, ours: trees.Content, policy: dict[str, object]) -> None:
    with directory() as place:
        trees.l4(place / "l4", content)
        trees.l2_headings(place / "l2", content)
        trees.l3(place / "ours", ours)
        l4, l2, other = (read_declaration(place / name) for name in ("l4", "l2", "ours"))
    rules = parse_policy(policy)
    assert decide(l4, l4, rules) == decide(l2, l2, rules) == decide(l4, l2, rules) == decide(l2, l4, rules)
    assert decide(other, l4, rules).compatible == decide(other, l2, rules).compatible


def declare(content: trees.Content, order: list[int]) -> Declaration:
    """*content* as read, its attributes put in another order."""
    kind = Kind.MDEV if content.mdev else Kind.PHYSICAL
    accepts = tuple(entry(shuffled(attributes, order)) for attributes in content.entries if attributes)
    presence = Presence.PRESENT if accepts else Presence.ABSENT
    return Declaration(kind, own(shuffled(content.own or {}, order), kind), Acceptance(presence, accepts))


def shuffled(attributes: dict[str, str], order: list[int]) -> dict[str, str]:
    names = sorted(attributes, key=lambda name: (order[len(name) % len(order)], name))
    return {name: attributes[name] for name in names}


orders = st.lists(st.integers(0, 9), min_size=5, max_size=5)


@bounded
@given(contents, contents, policies, orders)
def test_the_order_of_attributes_does_not_matter(
    ours: trees.Content, theirs: trees.Content, policy: dict[str, object], order: list[int]
) -> None:
    rules = parse_policy(policy)
    plain = [0] * 5
    first = decide(declare(ours, plain), declare(theirs, plain), rules)
    assert decide(declare(ours, order), declare(theirs, order), rules) == first
    check_shape(first, rules.unknown == "Allow")


@bounded
@given(contents, contents, policies, st.randoms(use_true_random=False))
def test_the_order_of_entries_does_not_decide(
    ours: trees.Content, theirs: trees.Content, policy: dict[str, object], random: object
) -> None:
    rules = parse_policy(policy)
    turned = msgspec.structs.replace(theirs, entries=theirs.entries[::-1])
    plain = [0] * 5
    first = decide(declare(ours, plain), declare(theirs, plain), rules)
    assert decide(declare(ours, plain), declare(turned, plain), rules).compatible == first.compatible


@bounded
@given(contents, contents, policies)
def test_entries_are_alternatives(
    ours: trees.Content, theirs: trees.Content, policy: dict[str, object]
) -> None:
    """What all entries accept together is what some entry accepts alone (nothing is shared by entries)."""
    rules = msgspec.structs.replace(parse_policy(policy), require_return_path=False)
    plain = [0] * 5
    source, target = declare(ours, plain), declare(theirs, plain)
    if source.self.presence is not Presence.PRESENT or not target.accepts.entries:
        return
    alone = [
        decide(source, msgspec.structs.replace(target, accepts=Acceptance(Presence.PRESENT, (item,))), rules)
        for item in target.accepts.entries
    ]
    together = decide(source, target, rules)
    assert together.compatible == any(verdict.compatible for verdict in alone)
    if together.entry is not None:
        assert msgspec.structs.replace(together, entry=0) == alone[together.entry]


def check_shape(verdict: Verdict, allow: bool) -> None:
    """What holds for every verdict (semantics §4)."""
    if verdict.compatible:
        assert verdict.reason is Reason.COMPATIBLE or (allow and verdict.reason is Reason.UNKNOWN)
    else:
        assert verdict.reason is not Reason.COMPATIBLE
        assert verdict.bindings == {}
        assert verdict.obligations == {}
    assert "\n" not in verdict.message


pieces = st.one_of(
    st.binary(max_size=40),
    st.sampled_from(
        [
            b"SELF:\n",
            b"COMPATIBLE:\n",
            b"\n",
            b"software_version=1.0.0\n",
            b"device_api=vfio-pci\n",
            b"type=T\n",
            b"type=T{v:int:1,2}\n",
            b"x={v:int:" + b",".join(b"%d" % number for number in range(900)) + b"}{w:int:1,2,3,4,5,6}\n",
            b"y={a:int:1,2}{b:int:1,2}{c:int:1,2}{d:int:1,2}{e:int:1,2}{f:int:1,2}{g:int:1,2}{h:int:1,2}\n",
            b'type="',
            b"=\n",
            b"\xef\xbb\xbf",
            b"\x00",
            b"\n\n" * 300,
            b"x" * 5000,
            b"y=1\n" * 20000,
        ]
    ),
)
documents = st.lists(pieces, max_size=12).map(b"".join)
file_names = st.one_of(
    st.sampled_from(["software_version", "device_api", "type", "pci_id", "uevent", "1", "compatible_x"]),
    st.binary(min_size=1, max_size=12)
    .filter(lambda name: b"/" not in name and b"\x00" not in name and name not in (b".", b".."))
    .map(os.fsdecode),
)
sets = st.dictionaries(
    file_names, st.one_of(pieces, st.sampled_from([b"1.0.0\n", b"vfio-pci", b"T"])), max_size=5
)


def usable(place: Path) -> None:
    """Whatever is there: it reads within the bounds, and gives a verdict."""
    declared = read_declaration(place)
    assert len(declared.accepts.entries) <= MAX_ENTRIES
    sound = Declaration(
        Kind.MDEV,
        own({"software_version": "1.0.0", "device_api": "vfio-pci", "type": "T"}),
        Acceptance(Presence.PRESENT, (entry({"software_version": "1.0.0", "device_api": "vfio-pci"}),)),
    )
    for source, target in ((declared, declared), (declared, sound), (sound, declared)):
        verdict = decide(source, target)
        check_shape(verdict, False)
        assert msgspec.json.decode(msgspec.json.encode(verdict), type=Verdict) == verdict
    assert msgspec.json.decode(msgspec.json.encode(declared), type=Declaration) == declared


def lay(place: Path, name: str, content: bytes | dict[str, bytes]) -> None:
    if isinstance(content, bytes):
        place.joinpath(name).write_bytes(content)
        return
    place.joinpath(name).mkdir()
    for inner, raw in content.items():
        place.joinpath(name, inner).write_bytes(raw)


@settings(deadline=None, max_examples=150)
@given(
    st.dictionaries(
        st.sampled_from(["self", "compatible", "compatible1", "compatible_2", "compatible0"]),
        st.one_of(documents, sets),
        max_size=4,
    ),
    st.one_of(st.none(), documents),
    st.one_of(st.none(), sets),
)
def test_any_bytes(
    migration: dict[str, bytes | dict[str, bytes]], sections: bytes | None, types: dict[str, bytes] | None
) -> None:
    with directory() as made:
        place = made / "device"
        place.mkdir()
        if migration:
            (place / "migration").mkdir()
            for name, content in migration.items():
                lay(place / "migration", name, content)
        if sections is not None:
            (place / "migration_compatible").write_bytes(sections)
        if types is not None:
            lay(made, "T", types)
            (place / "mdev_type").symlink_to("../T")
        usable(place)


@settings(deadline=None, max_examples=60)
@given(documents, st.sampled_from(["fifo", "zero", "outside", "loop", "nowhere", "inside"]), st.booleans())
def test_any_bytes_among_special_files(document: bytes, special: str, deep: bool) -> None:
    """Nothing blocks, and nothing outside the device directory is ever in a declaration."""
    with directory() as made:
        place = made / "device"
        (place / "migration/self").mkdir(parents=True)
        (place / "migration/self/type").write_bytes(document)
        (made / "secret").write_text("outside-text")
        odd = place / "migration/self/odd" if deep else place / "migration/compatible"
        if special == "fifo":
            os.mkfifo(odd)
        else:
            link = {
                "zero": "/dev/zero",
                "outside": str(made / "secret"),
                "loop": odd.name,
                "nowhere": "gone",
                "inside": "../self/type" if deep else "self/type",
            }[special]
            odd.symlink_to(link)
        assert b"outside-text" not in msgspec.json.encode(read_declaration(place))
        usable(place)
