"""Several devices, one node (semantics §6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf


def assign(accepting: Sequence[Mapping[int, tuple[int, ...]]]) -> list[int] | None:
    """A one-to-one assignment of a VM's devices to distinct devices of a node, or None.

    ``accepting[i]`` maps the indices of the node's devices that accept the VM's device *i* to their rank
    (smaller is better; the empty tuple, a rank that is not known, is worst). A maximum bipartite matching,
    not a greedy walk; among the complete assignments one with the least sum of places in the order of all
    ranks is chosen, for equal sums always the same one.
    """
    if len(accepting) == 1:
        row = accepting[0]
        return [min(row, key=lambda device: (_order(row[device]), device))] if row else None
    places = {
        rank: place
        for place, rank in enumerate(sorted({rank for row in accepting for rank in row.values()}, key=_order))
    }
    columns = sorted({device for row in accepting for device in row})
    if len(columns) < len(accepting):
        return None
    refused = len(places) * len(accepting) + 1
    costs = [[places[row[device]] if device in row else refused for device in columns] for row in accepting]
    chosen = [columns[column] for column in _cheapest(costs)]
    return chosen if all(device in row for device, row in zip(chosen, accepting, strict=True)) else None


def _order(rank: tuple[int, ...]) -> tuple[bool, tuple[int, ...]]:
    return (not rank, rank)


def _cheapest(costs: list[list[int]]) -> list[int]:
    """The column of each row in an assignment of least total cost (the Hungarian method, with potentials).

    At least as many columns as rows. Rows enter one at a time; each finds the cheapest augmenting path
    through the columns already taken, so *n* rows and *m* columns take O(n² m) steps.
    """
    height, width = len(costs), len(costs[0]) if costs else 0
    row_potential = [0.0] * (height + 1)
    column_potential = [0.0] * (width + 1)
    holder = [0] * (width + 1)  # the row, from 1, that holds each column; column 0 is where a row enters
    for entering in range(1, height + 1):
        holder[0], column = entering, 0
        slack = [inf] * (width + 1)
        came_from = [0] * (width + 1)
        visited = [False] * (width + 1)
        while holder[column]:
            visited[column] = True
            row, step, nearest = holder[column], inf, 0
            for other in range(1, width + 1):
                if visited[other]:
                    continue
                reduced = costs[row - 1][other - 1] - row_potential[row] - column_potential[other]
                if reduced < slack[other]:
                    slack[other], came_from[other] = reduced, column
                if slack[other] < step:
                    step, nearest = slack[other], other
            for other in range(width + 1):
                if visited[other]:
                    row_potential[holder[other]] += step
                    column_potential[other] -= step
                else:
                    slack[other] -= step
            column = nearest
        while column:
            holder[column], column = holder[came_from[column]], came_from[column]
    found = {row: column - 1 for column, row in enumerate(holder) if column and row}
    return [found[row] for row in range(1, height + 1)]
