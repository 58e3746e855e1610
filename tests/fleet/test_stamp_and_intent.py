"""The stamp on target pods, and annotations that say how strict to be."""

from __future__ import annotations

import msgspec
import pytest
from migcompat.api import names
from migcompat.fleet import stamp
from migcompat.fleet.intent import intent
from migcompat.fleet.migrant import Migrant, MigrantDevice, Mode

from tests.support.fleets import POOL, declared

MIGRANT = Migrant(
    "ns", "vm", "uid", "node-1", {POOL: 1}, (MigrantDevice(POOL, declared(), "id", "p", key="k"),)
)


def test_round_trip_drops_only_the_key() -> None:
    text = stamp.encode(MIGRANT, "m-1")
    found = stamp.decode(text, "m-1")
    assert found.devices[0].key == ""
    assert msgspec.structs.replace(found, devices=()) == msgspec.structs.replace(MIGRANT, devices=())
    assert found.devices[0].declaration == MIGRANT.devices[0].declaration


@pytest.mark.parametrize("migratable", [None, True, False])
def test_whether_the_source_can_migrate_is_in_the_stamp(migratable: bool | None) -> None:
    device = MigrantDevice(POOL, declared(), "id", "p", migratable)
    text = stamp.encode(msgspec.structs.replace(MIGRANT, devices=(device,)), "m-1")
    assert stamp.decode(text, "m-1").devices[0].migratable is migratable
    assert ("migratable" in text) is (migratable is not None)


@pytest.mark.parametrize(
    ("text", "uid", "why"),
    [
        (stamp.encode(MIGRANT, "m-1"), "m-2", "another migration"),
        (stamp.encode(MIGRANT, ""), "", "another migration"),
        ("not json", "m-1", "cannot be read"),
        ("{}", "m-1", "cannot be read"),
        ('{"x":' + "[" * 50_000, "m-1", "cannot be read"),
        (stamp.encode(MIGRANT, "m-1").replace('"version":1', '"version":9'), "m-1", "version 9"),
        ("x" * (stamp.LIMIT + 1), "m-1", "longer"),
    ],
)
def test_unusable_stamps_say_why(text: str, uid: str, why: str) -> None:
    with pytest.raises(stamp.StampError, match=why):
        stamp.decode(text, uid)


def test_too_large_is_not_written() -> None:
    huge = MigrantDevice(POOL, declared(extra={f"a{i}": "x" * 4000 for i in range(20)}))
    assert stamp.encode(msgspec.structs.replace(MIGRANT, devices=(huge,)), "m") == ""


def test_no_room_beside_the_other_annotations() -> None:
    text = stamp.encode(MIGRANT, "m")
    own = {names.SOURCE: "x" * 300_000}
    left = stamp.ALL_ANNOTATIONS - len(names.SOURCE) - len(text) - len("k")
    assert stamp.encode(MIGRANT, "m", {**own, "k": "v" * left}) == text, "the one before is replaced"
    assert stamp.encode(MIGRANT, "m", {**own, "k": "v" * (left + 1)}) == ""


def test_intent_defaults() -> None:
    found = intent(None, allow_loosening=False)
    assert (found.mode, found.require_return_path, found.warnings) == (Mode.ENFORCE, False, ())


@pytest.mark.parametrize("key", [names.MODE, names.REQUIRE_RETURN_PATH, names.CROSS_TYPE])
def test_unknown_values_enforce_and_warn(key: str) -> None:
    found = intent({key: "sometimes"}, allow_loosening=True)
    assert found.mode is Mode.ENFORCE
    assert len(found.warnings) == 1
    assert key in found.warnings[0]
    assert "sometimes" in found.warnings[0]
    if key == names.REQUIRE_RETURN_PATH:
        assert found.require_return_path
    if key == names.CROSS_TYPE:
        assert found.deny_cross_type


@pytest.mark.parametrize("allowed", [True, False])
def test_loosening_is_named_either_way(allowed: bool) -> None:
    found = intent({names.MODE: "prefer", names.CROSS_TYPE: "Allow"}, allow_loosening=allowed)
    assert (found.mode is Mode.PREFER) is allowed
    assert found.allow_cross_type is allowed
    assert len(found.loosened if allowed else found.denied) == 2
