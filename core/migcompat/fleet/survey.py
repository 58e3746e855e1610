"""Where a VM could go over all candidate nodes: counts, and refusals grouped by cause."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from migcompat.fleet.fit import Fit


class Refusal(msgspec.Struct, frozen=True):
    """Nodes that refuse for the same reason with the same message, by name."""

    reason: str
    message: str
    nodes: tuple[str, ...]


class Survey(msgspec.Struct, frozen=True):
    """The fits of all candidate nodes, summed up.

    ``accepting``: compatible nodes, free ones first, then the nearest version, then by name.
    ``groups``: largest first. ``obligations``: what must be written on the best accepting node's devices.
    """

    fits: dict[str, Fit]
    compatible: int
    free: int
    total: int
    accepting: tuple[str, ...]
    groups: tuple[Refusal, ...]
    obligations: dict[str, str]


def summarise(fits: Mapping[str, Fit]) -> Survey:
    """Sum up the fits of the candidate nodes."""
    accepting = sorted(
        (node for node, fit in fits.items() if fit.compatible),
        key=lambda node: (not fits[node].free, fits[node].rank is None, fits[node].rank or (), node),
    )
    grouped: dict[tuple[str, str], list[str]] = {}
    for node, fit in fits.items():
        if not fit.compatible:
            grouped.setdefault((fit.reason, fit.message), []).append(node)
    groups = sorted(
        (Refusal(reason, message, tuple(sorted(nodes))) for (reason, message), nodes in grouped.items()),
        key=lambda group: (-len(group.nodes), group.reason, group.message),
    )
    obligations: dict[str, str] = {}
    for assigned in fits[accepting[0]].assignment if accepting else ():
        obligations.update(assigned.obligations)
    return Survey(
        fits=dict(fits),
        compatible=len(accepting),
        free=sum(fits[node].free for node in accepting),
        total=len(fits),
        accepting=tuple(accepting),
        groups=tuple(groups),
        obligations=obligations,
    )
