"""``/prioritize``: nearest version first."""

from __future__ import annotations

import json

import pytest
from migcompat.fleet.fit import Fit
from migcompat_extender.prioritize import Prioritize, scores

from tests.extender.world import all_well, args, target, world


def test_scores_fall_by_rank_and_stay_above_refusals() -> None:
    ranks = [(0, 0, 1), (0, 0, 0), (1, 0, 0), (0, 0, 1), None]
    fits = [Fit(True, True, "Compatible", "", rank) for rank in ranks]
    fits += [Fit(True, False, "NoneFree", "", (0, 0, 0)), Fit(False, False, "TypeMismatch", "")]
    assert scores(fits) == [9, 10, 8, 9, 7, 0, 0]
    many = [Fit(True, True, "Compatible", "", (0, 0, n)) for n in range(30)]
    assert scores(many) == [*range(10, 0, -1), *[1] * 20]
    assert scores([]) == []


def test_wire_names_and_order() -> None:
    asked = Prioritize(world({"n2": "1.2.0", "n3": "1.1.0", "n4": "1.0.0"}), all_well)
    assert json.loads(asked.answer(args(["n2", "n3", "n4"]))) == [
        {"Host": "n2", "Score": 9},
        {"Host": "n3", "Score": 10},
        {"Host": "n4", "Score": 0},
    ]


@pytest.mark.parametrize("problem", [None, "not listed yet: nodes"])
def test_all_nodes_alike_where_there_is_nothing_to_say(problem: str | None) -> None:
    asked = Prioritize(world({"n2": "1.1.0"}), lambda: problem)
    pod = target(resources=()) if problem is None else target()
    assert {h["Score"] for h in json.loads(asked.answer(args(["n2", "n3"], pod)))} == {0}
