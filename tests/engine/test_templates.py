"""Rule T (semantics §3)."""

from __future__ import annotations

from itertools import permutations

import pytest
from migcompat.engine.templates import TemplateError, understand

from tests.engine.builders import ENTRY, SELF, accepts_text, source, target, verdict


def check(pattern: str, value: str) -> str:
    return accepts_text({"x": pattern}, {"x": value})


@pytest.mark.parametrize(
    ("pattern", "value", "expected"),
    [
        ("{v:int:1,2}", "2", "Compatible"),
        ("{v:int:1,2}", "02", "AttributeMismatch"),
        ("{v:int:1,2}", "3", "AttributeMismatch"),
        ("{v:int:-3,0}", "-3", "Compatible"),
        ("a{v:int:1,2}b{v}c", "a1b1c", "Compatible"),
        ("a{v:int:1,2}b{v}c", "a1b2c", "AttributeMismatch"),
        ("{v}{v:int:1,11}", "1111", "Compatible"),
        ("{v}{v:int:1,11}", "111", "AttributeMismatch"),
        ('{v:string:"a","ab"}{w:string:"c","bc"}', "abc", "Compatible"),
        ('{v:string:"x,y","}","{"}', "x,y", "Compatible"),
        ('{v:string:"x,y","}","{q"}', "}", "Compatible"),
        ('{v:string:"A"}', "a", "AttributeMismatch"),
        ("[{v:int:1}].*", "[1].*", "Compatible"),
        ("{v:int:1,1}", "1", "Compatible"),
        ("x{v:int:4}/2", "x4/2", "Compatible"),
        ("{v:int:4}/2", "4/2", "Compatible"),
    ],
)
def test_matching(pattern: str, value: str, expected: str) -> None:
    assert check(pattern, value) == expected


@pytest.mark.parametrize(
    "pattern",
    [
        "{v}",
        "{v:int:}",
        "{v:string:}",
        "{v:int:1,}",
        "{v:int:1,,2}",
        "{v:int:a}",
        "{v:int:04}",
        "{v:int:-0}",
        "{v:int:+1}",
        "{v:int: 1}",
        "{v:int}",
        "{v:float:1}",
        "{v:INT:1}",
        "{v:string:a}",
        '{v:string:"a",b}',
        '{v:string:"a}',
        "{:int:1}",
        "{}",
        "{",
        "}",
        "a}b",
        "{v:int:1",
        "{v:int:1}}",
        "{{v:int:1}}",
        "{v:int:1}{v:int:1}",
        "{v:int:1}{v:int:2}",
        "{v:int:1}{w}",
    ],
)
def test_malformed(pattern: str) -> None:
    assert check(pattern, "1") == "NoCompatibleEntry"
    both = target({**ENTRY, "x": pattern}, {**ENTRY, "x": "1"})
    assert verdict(source(x="1"), both).entry == 1


@pytest.mark.parametrize(
    ("declaring", "declared", "dividing", "ours", "expected"),
    [
        ("{v:int:1,2,4,8}", "4", "{v}/2", "2", "Compatible"),
        ("{v:int:0}", "0", "{v}/7", "0", "Compatible"),
        ("{v:int:-4}", "-4", "{v}/2", "-2", "Compatible"),
        ("{v:int:1,3}", "1", "{v}/2", "1", "NoCompatibleEntry"),
        ("{v:int:4}", "4", "{v}/0", "1", "NoCompatibleEntry"),
        ("{v:int:4}", "4", "{v}/02", "2", "NoCompatibleEntry"),
        ('{v:string:"4"}', "4", "{v}/2", "2", "NoCompatibleEntry"),
        ("{v:int:4}", "4", "{v}/x", "4/x", "Compatible"),
        ("{v:int:4}", "4", "{v}/2 ", "4/2 ", "Compatible"),
        ("{v:int:4}", "4", " {v}/2", " 4/2", "Compatible"),
        ("{v:int:4}", "4", "{w}/2", "2", "NoCompatibleEntry"),
        ("{v:int:" + "6" * 3000 + "}", "6" * 3000, "{v}/2", "3" * 3000, "Compatible"),
    ],
)
def test_division(declaring: str, declared: str, dividing: str, ours: str, expected: str) -> None:
    for first, second in (("x", "y"), ("y", "x")):
        pattern = {first: declaring, second: dividing}
        assert accepts_text(pattern, {first: declared, second: ours}) == expected


def test_one_binding_for_the_whole_entry_and_divisions_of_one_variable_are_joint() -> None:
    pattern = {"a": "{v:int:1,2,3,4,6,12}", "b": "{v}/2", "c": "{v}/3"}
    assert accepts_text(pattern, {"a": "12", "b": "6", "c": "4"}) == "Compatible"
    assert accepts_text(pattern, {"a": "6", "b": "3", "c": "2"}) == "Compatible"
    assert accepts_text(pattern, {"a": "4", "b": "2", "c": "1"}) == "AttributeMismatch"


def test_bindings_are_told_numbers_as_numbers() -> None:
    theirs = target({**ENTRY, "type": '{k:string:"S","T"}', "x": "{n:int:1,2}", "y": "{n}"})
    found = verdict(source(x="2", y="2"), theirs)
    assert found.bindings == {"k": "T", "n": 2}


def test_the_first_binding_wins_whatever_the_order_of_attributes() -> None:
    attributes = {
        **ENTRY,
        "pv_mode": '{b:string:"q+r","r+q"}',
        "features": '{a:string:"s+t","t+s"}',
        "z": "{c:int:1,2}",
    }
    for order in permutations(attributes):
        theirs = target({name: attributes[name] for name in order})
        found = verdict(source(pv_mode="q", features="s", z="2"), theirs)
        assert found.bindings == {"a": "s+t", "b": "q+r", "c": 2}


def test_of_several_bindings_the_furthest_counts() -> None:
    entry = {**ENTRY, "type": '{k:string:"S","T"}', "x": "{k}"}
    found = verdict(source(x="S"), target(entry))
    assert (found.reason, found.message) == (
        "AttributeMismatch",
        'x: source has "S", target accepts "T"',
    )
    assert found.bindings == {}


def test_the_message_shows_the_pattern_when_several_values_were_possible() -> None:
    found = verdict(source(), target({**ENTRY, "type": "U{n:int:1,2}"}))
    assert found.message == 'type: source has "T", target accepts "U{n:int:1,2}"'


def test_canonical_forms_count_after_rendering() -> None:
    assert (
        accepts_text({"pci_id": '{v:string:"8086:591D","15b3:101e"}'}, {"pci_id": "0x8086591d"})
        == "Compatible"
    )
    assert accepts_text({"pci_id": '8086{v:string:"591D","5931"}'}, {}) == "Compatible"
    assert accepts_text({"pci_id": '8086{v:string:"591","59312"}'}, {}) == "ApiSpecificMismatch"
    assert accepts_text({"chpid_type": '{v:string:"0x1a"}'}, {"chpid_type": "26"}) == "Compatible"
    assert accepts_text({"device_api": '{a_b:string:"vfio_ap","vfio_pci"}'}, {}) == "Compatible"


def many(variables: int, alternatives: int) -> str:
    listed = ",".join(map(str, range(alternatives)))
    return "".join(f"{{v{index}:int:{listed}}}" for index in range(variables))


def test_more_than_4096_bindings_are_malformed() -> None:
    assert check(many(12, 2), "0" * 12) == "Compatible"
    assert check(many(13, 2), "0" * 13) == "NoCompatibleEntry"
    assert check(many(2, 64), "00") == "Compatible"


def test_too_many_bindings_are_found_out_without_listing_them() -> None:
    with pytest.raises(TemplateError, match="4096"):
        understand({"x": many(200, 10), "y": many(0, 1)})


def test_declared_alternatives_count_before_any_is_dropped() -> None:
    doubled = "{v:int:" + ",".join(["1"] * 2000) + "}{w:int:1,1,1}"
    assert check(doubled, "11") == "NoCompatibleEntry"


def test_more_than_65536_bindings_of_a_device_make_all_its_entries_malformed() -> None:
    full = {**ENTRY, "x": many(12, 2)}
    ours = source(x="0" * 12)
    assert verdict(ours, target(*[full] * 16)).compatible
    assert verdict(ours, target(ENTRY, *[full] * 16)).compatible
    for entries in (
        [full] * 17,
        [{**ENTRY, "x": "0" * 12}, *[full] * 17],
        [*[full] * 16, {**ENTRY, "x": "{v:int:1}"}],
    ):
        assert verdict(ours, target(*entries)).reason == "NoCompatibleEntry"


def test_an_entry_that_is_malformed_itself_does_not_count_among_the_65536() -> None:
    bomb = {**ENTRY, "x": many(40, 3)}
    found = verdict(source(), target(*[bomb] * 30, ENTRY))
    assert (found.compatible, found.entry) == (True, 30)


def test_long_chains_of_references_do_not_recurse() -> None:
    pattern = "{v:int:1}" + "{v}" * 1300
    assert check(pattern, "1" * 1301) == "Compatible"
    assert check(pattern, "1" * 1302) == "AttributeMismatch"


def test_templates_that_render_to_too_much_are_malformed() -> None:
    """So that a verdict on a hostile entry, within the 4096 bindings, stays a matter of milliseconds."""
    references = "".join(f"{{v{index % 12}}}" for index in range(700))
    assert check(many(12, 2) + "{v0}" * 90, "0" * 102) == "Compatible"
    assert check(many(12, 2) + references, "0" * 712) == "NoCompatibleEntry"
    assert check("{v:int:1,2}" + "{v}" * 1300, "2" * 1301) == "Compatible"


def test_braces_in_a_self_value_make_it_malformed() -> None:
    assert verdict(source(x="{v:int:1}"), target(ENTRY)).reason == "MalformedSelf"
    assert verdict(source(x="a{"), target(ENTRY)).reason == "MalformedSelf"
    assert SELF["type"] == "T"
