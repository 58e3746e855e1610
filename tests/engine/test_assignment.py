"""Several devices, one node (semantics §6)."""

from __future__ import annotations

from itertools import permutations

from hypothesis import given, settings
from hypothesis import strategies as st
from migcompat.engine.assignment import assign

Rows = list[dict[int, tuple[int, ...]]]


def test_a_greedy_walk_would_fail() -> None:
    assert assign([{0: (0,), 1: (0,)}, {0: (0,)}]) == [1, 0]
    assert assign([{0: (0,), 1: (5,)}, {0: (1,)}]) == [1, 0]


def test_no_assignment() -> None:
    assert assign([{}]) is None
    assert assign([{0: (0,)}, {0: (0,)}]) is None
    assert assign([{0: (0,)}, {}]) is None
    assert assign([{0: (), 1: ()}, {0: (), 1: ()}, {0: (), 1: ()}, {2: (), 3: ()}]) is None


def test_nothing_to_assign() -> None:
    assert assign([]) == []


def test_better_ranks_are_preferred_and_unknown_ones_are_worst() -> None:
    assert assign([{3: (1, 0), 4: (0, 9), 5: (0, 10), 6: ()}]) == [4]
    assert assign([{6: (), 3: (9, 9)}]) == [3]
    assert assign([{0: (0,), 1: (1,)}, {0: (0,), 1: (2,)}]) == [1, 0]


def test_ties_are_settled_the_same_way_always() -> None:
    assert assign([{9: (0,), 2: (0,)}]) == [2]
    rows: Rows = [{9: (0,), 2: (0,), 5: (0,)}, {5: (0,), 9: (0,), 2: (0,)}]
    assert assign(rows) == assign([dict(reversed(row.items())) for row in rows])


def best(rows: Rows, columns: int) -> int | None:
    """The least cost of a complete assignment, by trying all of them."""
    ranks = sorted({rank for row in rows for rank in row.values()}, key=lambda rank: (not rank, rank))
    costs = [
        sum(ranks.index(row[device]) for row, device in zip(rows, chosen, strict=True))
        for chosen in permutations(range(columns), len(rows))
        if all(device in row for row, device in zip(rows, chosen, strict=True))
    ]
    return min(costs, default=None)


@settings(deadline=None, max_examples=200)
@given(
    st.lists(
        st.dictionaries(st.integers(0, 4), st.lists(st.integers(0, 3), max_size=2).map(tuple), max_size=5),
        max_size=4,
    )
)
def test_as_good_as_trying_everything(rows: Rows) -> None:
    expected = best(rows, 5)
    found = assign(rows)
    if expected is None:
        assert found is None
        return
    assert found is not None
    assert len(set(found)) == len(rows)
    ranks = sorted({rank for row in rows for rank in row.values()}, key=lambda rank: (not rank, rank))
    assert sum(ranks.index(row[device]) for row, device in zip(rows, found, strict=True)) == expected
