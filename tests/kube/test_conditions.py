"""Conditions keep their time until their status changes."""

from __future__ import annotations

from migcompat.api.conditions import set_condition
from migcompat.api.meta import Condition

READY = Condition("Ready", "True", "Fine", "", "t1")
OTHER = Condition("Other", "False", "No", "", "t0")


def test_a_first_condition_is_stamped() -> None:
    assert set_condition([], Condition("Ready", "True"), "t1") == [
        Condition("Ready", "True", last_transition_time="t1")
    ]


def test_another_message_keeps_the_time_and_the_place() -> None:
    changed = set_condition([READY, OTHER], Condition("Ready", "True", "Fine", "still"), "t9")
    assert changed == [Condition("Ready", "True", "Fine", "still", "t1"), OTHER]


def test_another_status_is_a_transition() -> None:
    changed = set_condition([OTHER, READY], Condition("Ready", "False", "Bad"), "t9")
    assert changed == [OTHER, Condition("Ready", "False", "Bad", "", "t9")]


def test_the_list_given_stays_and_duplicates_go() -> None:
    given = [READY, OTHER, READY]
    assert set_condition(given, Condition("Ready", "True", "Fine"), "t9") == [READY, OTHER]
    assert given == [READY, OTHER, READY]
