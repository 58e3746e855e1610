"""Several devices, one node (semantics §6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def assign(accepting: Sequence[Mapping[int, tuple[int, ...]]]) -> list[int] | None:
    """A one-to-one assignment of a VM's devices to distinct devices of a node, or None.

    ``accepting[i]`` maps the indices of the node's devices that accept the VM's device *i* to their rank
    (smaller is better). A maximum bipartite matching, not a greedy walk; among the complete
    assignments, better ranks are preferred.
    """
    raise NotImplementedError
