"""What choosing the node costs and gives on 5,000 nodes, with the real kube-apiserver and kube-scheduler."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from tests.bench import first_attempt
from tests.bench.bigcluster import NodePlan, big_cluster
from tests.bench.figures import Row
from tests.bench.throughput import Runs
from tests.support.fleets import declared

RARE, COMMON, OLD = "3.0.0", "1.1.0", "1.0.0"
"""Versions: `RARE` is accepted by one node, `COMMON` by a tenth of them, `OLD` by the rest."""


@dataclass(frozen=True)
class Size:
    """How large the cluster and the runs are."""

    nodes: int = 5000
    position: int = 4321
    """Of the one accepting node."""
    single: int = 24
    """Target pods that only that node takes."""
    targets: int = 100
    others: int = 900
    names: int = 100
    """That the webhook writes (``--max-names``)."""
    rounds: int = 7


DEVICES = 4
"""Of each node."""


def plans(size: Size) -> list[NodePlan]:
    """The nodes; the last ones hold the VMs that are to move."""
    holders = -(-size.targets // DEVICES)
    rare = tuple(f"rare-{number:02}" for number in range(size.single))
    common = [f"common-{number:03}" for number in range(size.targets)]
    made = []
    for number in range(size.nodes - holders - 1):
        version = COMMON if number % 10 == 0 else OLD
        one = number == size.position
        made.append(
            NodePlan(f"node-{number:04}", size.single if one else DEVICES, declared(RARE if one else version))
        )
    made.append(NodePlan("source-rare", size.single, declared(RARE), rare))
    batches = [tuple(common[first : first + DEVICES]) for first in range(0, len(common), DEVICES)]
    made += [
        NodePlan(f"source-{number:03}", len(vms), declared(COMMON), vms) for number, vms in enumerate(batches)
    ]
    return made


def measure() -> list[Row]:
    """First attempts in each way, then pods a second. Raises BenchError."""
    return asyncio.run(run(Size()))


async def run(size: Size) -> list[Row]:
    """The same for a cluster of any size."""
    nodes = plans(size)
    rare = next(plan for plan in nodes if plan.name == "source-rare")
    accepting = next(plan for plan in nodes if plan.name == f"node-{size.position:04}")
    alike = [plan for plan in nodes if plan.declaration == declared(COMMON)]
    vms = [vm for plan in alike for vm in plan.vms]
    common = {plan.name for plan in alike if not plan.vms}
    async with big_cluster(nodes) as cluster:
        rows = await first_attempt.measure(cluster, rare.vms, accepting.name)
        runs = Runs(cluster, vms, size.others, common, min(size.names, len(common)))
        for _ in range(size.rounds):
            await runs.round()
    return [*rows, *runs.rows()]
