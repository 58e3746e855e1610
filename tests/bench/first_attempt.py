"""Whether a target pod is bound at the first attempt where one node of thousands accepts, in each way.

The node is far outside the sample of nodes that kube-scheduler shows an extender (500 of 5,000).
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from tests.bench.bigcluster import POOL, BigCluster, say
from tests.bench.figures import BenchError, Row, percentile

OWN_SCHEDULER = "migcompat-scheduler"
GOAL_SECONDS = 1.0
PATIENCE = 20.0
"""Seconds that a pod may take."""
FEW = 8
"""Pods for way 2 alone, most of which take all of these seconds."""


async def measure(cluster: BigCluster, vms: Sequence[str], accepting: str) -> list[Row]:
    """Each way with one target pod for each of *vms*, which only the node *accepting* takes."""
    rows: list[Row] = []
    for title, way, spec, demanded in (
        ("way 1 (webhook)", _by_webhook, {}, True),
        ("way 3 (own scheduler)", _by_own_scheduler, {"schedulerName": OWN_SCHEDULER}, True),
        ("way 2 alone (extender)", _by_extender, {}, False),
    ):
        async with way(cluster, vms[0]):
            tried = vms if demanded else vms[:FEW]
            rows += await _try(cluster, title, tried, accepting, spec, demanded=demanded)
            await cluster.delete_pods()
    return rows


@contextlib.asynccontextmanager
async def _scheduler(cluster: BigCluster, name: str, **how: Any) -> AsyncIterator[None]:
    await asyncio.to_thread(cluster.plane.start_scheduler, name=name, **how)
    try:
        yield
    finally:
        await asyncio.to_thread(cluster.plane.stop_scheduler, name)


@contextlib.asynccontextmanager
async def _by_webhook(cluster: BigCluster, vm: str) -> AsyncIterator[None]:
    async with _scheduler(cluster, "kube-scheduler"), cluster.webhook(vm):
        yield


@contextlib.asynccontextmanager
async def _by_own_scheduler(cluster: BigCluster, _: str) -> AsyncIterator[None]:
    """A second stock kube-scheduler, which looks at every node, beside the default one as it comes."""
    profile = {"schedulerName": OWN_SCHEDULER, "percentageOfNodesToScore": 100}
    own = {"extenders": [cluster.ways.extender([POOL])], "settings": {"profiles": [profile]}}
    async with _scheduler(cluster, "kube-scheduler"), _scheduler(cluster, OWN_SCHEDULER, **own):
        yield


@contextlib.asynccontextmanager
async def _by_extender(cluster: BigCluster, _: str) -> AsyncIterator[None]:
    async with _scheduler(cluster, "kube-scheduler", extenders=[cluster.ways.extender([POOL])]):
        yield


async def _try(
    cluster: BigCluster,
    title: str,
    vms: Sequence[str],
    accepting: str,
    spec: Mapping[str, Any],
    *,
    demanded: bool,
) -> list[Row]:
    """One pod after another, each alone: any other pod's binding would make kube-scheduler try again."""
    first = 0
    taken: list[float] = []
    for vm in vms:
        start = time.perf_counter()
        pod = (await cluster.create_pod(cluster.target_pod(vm, **spec)))["metadata"]["name"]
        await cluster.placements.bound([pod], PATIENCE)
        placement = cluster.placements[pod]
        if not placement.node:
            await cluster.delete_pod(pod)
            continue
        if placement.node != accepting:
            raise BenchError(f"{title}: bound to {placement.node}, which refuses")
        taken.append(placement.bound - start)
        first += not placement.failed
    say(f"{title}: {first} of {len(vms)} bound at the first attempt, {len(taken)} in time: {_times(taken)}")
    share = 100.0 / len(vms)
    where = f"{len(cluster.nodes):,} nodes, one accepts, {title}"
    rows = [
        Row(name=f"{where}: bound at the first attempt", value=first * share, unit="%", floor=_all(demanded)),
        Row(name=f"{where}: bound within {PATIENCE:g} s", value=len(taken) * share, unit="%"),
    ]
    if taken:
        rows.append(
            Row(
                name=f"{where}: from creation to bound, median of those bound",
                value=statistics.median(taken),
                unit="s",
                goal=GOAL_SECONDS if demanded else None,
            )
        )
    if len(taken) > 1:
        rows.append(Row(name=f"{where}: the same, p90", value=percentile(taken, 90), unit="s"))
    return rows


def _all(demanded: bool) -> float | None:
    return 100.0 if demanded else None


def _times(taken: Sequence[float]) -> str:
    return f"median {statistics.median(taken):.2f} s, longest {max(taken):.2f} s" if taken else "none"
