"""kube-scheduler's pods a second, target pods and others mixed, with and without what we add.

All pods are made while no kube-scheduler runs; then one starts and binds them as fast as it can. So nothing
but it, kube-apiserver, and the extender where it is asked, works while the time runs (first to last binding).
The ways to run it are taken in turns, every second round in the opposite order, and each round is
compared within itself.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from tests.bench.agent import cpu_seconds
from tests.bench.bigcluster import POOL, BigCluster, all_of, say
from tests.bench.figures import BenchError, Row
from tests.cluster.api import Object

FLOOR = 95.0
"""Per cent of the pods a second that kube-scheduler binds without us."""
BINDING_SECONDS = 300.0
MADE_SECONDS = 60.0
SCHEDULER = "kube-scheduler"
OURS = "migcompat-extender"
SETTLE_SECONDS = 1.0
QUICK = {"qps": 5000, "burst": 10000}
"""kube-scheduler's limits of requests, which are not to be measured."""


@dataclass(frozen=True)
class Way:
    """How pods are scheduled in one run."""

    title: str
    extender: bool = False
    webhook: bool = False
    batching: bool = False


PLAIN = Way("no extender, no webhook, batching off")
EXTENDER = Way("our extender configured, batching off", extender=True)
WEBHOOK = Way("webhook's lists of names, batching off", webhook=True)
BATCHING = Way("no extender, no webhook, batching on (kube-scheduler's default)", batching=True)
WAYS = (PLAIN, EXTENDER, WEBHOOK, BATCHING)


class Runs:
    """The runs of all ways on one cluster.

    Args:
        cluster: whose nodes named in `accepting` take the VMs.
        vms: one target pod for each.
        others: how many other pods there are.
        accepting: names of nodes.
        names: how many names the webhook is to have written into each target pod.
    """

    def __init__(
        self, cluster: BigCluster, vms: Sequence[str], others: int, accepting: Collection[str], names: int
    ) -> None:
        self._cluster = cluster
        self._vms = vms
        self._others = others
        self._accepting = accepting
        self._names = names
        self._number = 0
        self.rates: dict[Way, list[float]] = {way: [] for way in WAYS}
        self.cpu: dict[tuple[str, Way], list[float]] = {
            (name, way): [] for name in (SCHEDULER, OURS) for way in WAYS
        }
        """Milliseconds a pod by process, from the first binding to the last."""
        self.creations: dict[bool, list[float]] = {False: [], True: []}
        """Seconds that the creation of a target pod took, without and with webhook."""

    async def round(self) -> None:
        """One run of each way; every second round in the opposite order."""
        turned = self._number % 2 == 1
        self._number += 1
        for way in reversed(WAYS) if turned else WAYS:
            rate = await self._run(way)
            self.rates[way].append(rate)
            say(f"round {self._number}: {rate:.1f} pods/s, {way.title}")

    async def _run(self, way: Way) -> float:
        """Pods a second. Raises BenchError when a pod is not bound, or where it must not be."""
        cluster = self._cluster
        if way.webhook:
            async with cluster.webhook(self._vms[0]):
                targets, everything = await self._make(way)
        else:
            targets, everything = await self._make(way)
        await cluster.placements.known(len(everything), MADE_SECONDS)
        await asyncio.sleep(SETTLE_SECONDS)
        await asyncio.to_thread(
            cluster.plane.start_scheduler,
            extenders=[cluster.ways.extender([POOL])] if way.extender else [],
            settings={
                "clientConnection": {"kubeconfig": str(cluster.plane.kubeconfig), **QUICK},
            },
            flags=[f"--feature-gates=OpportunisticBatching={str(way.batching).lower()}"],
        )
        pids = {SCHEDULER: cluster.plane.pids()[SCHEDULER], OURS: cluster.ways.pid}
        begun = await cluster.placements.begun(everything, BINDING_SECONDS)
        before = {name: cpu_seconds(pid) for name, pid in pids.items()}
        bound = await cluster.placements.bound(everything, BINDING_SECONDS)
        used = {name: cpu_seconds(pid) - before[name] for name, pid in pids.items()}
        await asyncio.to_thread(cluster.plane.stop_scheduler)
        if bound < len(everything):
            raise BenchError(
                f"{way.title}: {bound} of {len(everything)} pods bound after {BINDING_SECONDS:g} s"
            )
        for name, seconds in used.items():
            self.cpu[name, way].append(1000 * seconds / max(1, bound - begun))
        moments = sorted(cluster.placements[name].bound for name in everything)
        if way.extender or way.webhook:
            wrong = [n for n in targets if cluster.placements[n].node not in self._accepting]
            if wrong:
                raise BenchError(f"{way.title}: {len(wrong)} target pods bound to nodes that refuse")
        await cluster.delete_pods()
        return (len(moments) - 1) / (moments[-1] - moments[0])

    async def _make(self, way: Way) -> tuple[list[str], list[str]]:
        """Names of the target pods and of all pods.

        The names' order is random, the same in every run, and the one in which a kube-scheduler that starts
        comes to see the pods. Targets are made one at a time, as virt-controller does.
        """
        wanted: list[str | None] = [*self._vms, *([None] * self._others)]
        random.Random(1).shuffle(wanted)
        pods = {f"p{number:05}": vm for number, vm in enumerate(wanted)}
        targets = {name: vm for name, vm in pods.items() if vm is not None}
        for name, vm in targets.items():
            start = time.perf_counter()
            stored = await self._create(name, self._cluster.target_pod(vm))
            self.creations[way.webhook].append(time.perf_counter() - start)
            listed = names_in(stored)
            if way.webhook and listed != self._names:
                raise BenchError(
                    f"the webhook wrote {listed} names into a target pod where {self._names} fit"
                )
        await all_of(self._create(name, _other()) for name in pods if name not in targets)
        return list(targets), list(pods)

    async def _create(self, name: str, pod: Object) -> Object:
        meta = {key: value for key, value in pod["metadata"].items() if key != "generateName"}
        return await self._cluster.create_pod({**pod, "metadata": {**meta, "name": name}})

    def rows(self) -> list[Row]:
        """Medians of all rounds; ratios are medians of each round's own."""
        many = f"{len(self._vms) + self._others} pods, {len(self._vms)} of them targets"
        rows: list[Row] = []
        for way, rates in self.rates.items():
            ratios = [own / base for own, base in zip(rates, self.rates[PLAIN], strict=True)]
            rows.append(
                Row(
                    name=f"kube-scheduler, {many}, {way.title}"
                    f" (least {min(rates):.1f}, most {max(rates):.1f})",
                    value=statistics.median(rates),
                    unit="1/s",
                    baseline="" if way is PLAIN else PLAIN.title,
                    ratio=None if way is PLAIN else statistics.median(ratios),
                )
            )
            if way in (EXTENDER, WEBHOOK):
                rows.append(
                    Row(
                        name=f"the same in per cent of {PLAIN.title}, median of {len(ratios)} rounds"
                        f" (least {100 * min(ratios):.1f}, most {100 * max(ratios):.1f})",
                        value=100 * statistics.median(ratios),
                        unit="%",
                        floor=FLOOR,
                    )
                )
        for name, way in ((SCHEDULER, PLAIN), (SCHEDULER, EXTENDER), (SCHEDULER, WEBHOOK), (OURS, EXTENDER)):
            value, base = (statistics.median(self.cpu[name, each]) for each in (way, PLAIN))
            compared = name == SCHEDULER and way is not PLAIN and base > 0
            rows.append(
                Row(
                    name=f"CPU time of {name} a pod, {way.title}",
                    value=value,
                    unit="ms",
                    baseline=PLAIN.title if compared else "",
                    ratio=value / base if compared else None,
                )
            )
        plain, webhook = (1000 * statistics.median(self.creations[on]) for on in (False, True))
        rows += [
            Row(name="creation of a target pod, no webhook", value=plain, unit="ms"),
            Row(
                name=f"creation of a target pod, webhook writes {self._names} names",
                value=webhook,
                unit="ms",
                baseline="no webhook",
                ratio=webhook / plain,
            ),
        ]
        return rows


def names_in(pod: Object) -> int:
    """How many nodes the pod's required affinity names."""
    required = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    return sum(len(term.get("matchFields") or ()) for term in required["nodeSelectorTerms"])


def _other() -> Object:
    """A pod that is nothing to us."""
    resources = {"requests": {"cpu": "10m", "memory": "16Mi"}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {},
        "spec": {"containers": [{"name": "main", "image": "localhost/other:x", "resources": resources}]},
    }
