"""Which attributes NVML's answers are."""

from __future__ import annotations

import itertools

import pytest
from migcompat.engine.attributes import MAX_VALUE
from migcompat.nvml.calls import Answer
from migcompat.nvml.facts import facts, vgpu_versions


def versions(low: int, high: int) -> set[str]:
    return set(vgpu_versions((low, high)).split("+"))


def test_a_range_is_part_of_another_iff_its_set_is() -> None:
    ends = [major << 16 | minor for major in (23, 24, 25) for minor in (1, 2, 8)]
    ranges = [(low, high) for low, high in itertools.product(ends, ends) if low <= high]
    for one, other in itertools.product(ranges, ranges):
        part = other[0] <= one[0] and one[1] <= other[1]
        assert (versions(*one) <= versions(*other)) == part, (one, other)


def test_one_version() -> None:
    assert vgpu_versions((0x180002, 0x180002)) == "24.2"


def test_what_the_administrator_has_taken_away_may_still_be_in_use() -> None:
    """Guests agree with the host upon a version of the narrower range, but keep one that they have."""

    def told(supported: tuple[int, int], current: tuple[int, int]) -> object:
        return facts([("vgpu_versions",)], [Answer([supported, current])]).common

    wide, narrow = (0x180001, 0x180003), (0x180001, 0x180002)
    assert told(wide, narrow) == {"vgpu_versions": "24.1+24.2+24.3", "vgpu_versions_allowed": "24.1+24.2"}
    assert told(narrow, wide) == {"vgpu_versions": "24.1+24.2", "vgpu_versions_allowed": "24.1+24.2"}
    upper = {"vgpu_versions": "24.1+24.2", "vgpu_versions_allowed": "24.2"}
    assert told(narrow, (0x180002, 0x180002)) == upper
    assert told(narrow, (0x190001, 0x190002)) == {}, "nothing is left: not understood"


@pytest.mark.parametrize(
    ("low", "high"),
    [
        (0x190001, 0x180001),
        (0, 0),
        (7, 25),
        (0x180000, 0x190001),
        (0x180001, 0x190000),
        (0x180001, 0x190009),
        (0x10001, 0xFFFFFFFF),
        (0x10001, 0xFFFF0001),
    ],
)
def test_a_range_that_is_not_understood_is_left_out(low: int, high: int) -> None:
    with pytest.raises(ValueError, match="the range"):
        vgpu_versions((low, high))


def test_the_longest_range_is_a_value() -> None:
    assert len(vgpu_versions((0x10001, 0x550008))) <= MAX_VALUE


def test_answers_of_unknown_meaning_are_problems() -> None:
    asked = [("driver_version",), ("ecc_mode", "0000:41:00.0"), ("type_name", "0000:41:00.0", 7)]
    said = facts(asked, [Answer("\x01"), Answer(2), Answer("Tesla™")])
    assert (said.common, said.gpus, said.type_names) == ({}, {}, {})
    assert len(said.problems) == 3
    assert said.problems[1] == "ecc_mode 0000:41:00.0: the mode 2 is not known"
