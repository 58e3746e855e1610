"""Why kube-scheduler is told that a node does not do: the same text wherever it is told."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from migcompat.fleet.fit import Fit


def rejection(fit: Fit) -> str:
    """Why a target pod must not go to a node with this *fit*; empty when it may.

    Free of node and device names: kube-scheduler counts equal texts (facts, kube-scheduler).
    """
    return "" if fit.compatible and fit.free else f"{fit.reason}: {fit.message}"


def avoided_now(
    names: Collection[str], rejected: Collection[str], avoided: Mapping[str, str]
) -> dict[str, str]:
    """Those of *names* that the VM had better avoid, with why, as long as another one of them takes it.

    *rejected*: those that do not take it anyway. *avoided*: node to the text why.
    """
    if not avoided or all(name in rejected or name in avoided for name in names):
        return {}
    return {name: avoided[name] for name in names if name in avoided and name not in rejected}
