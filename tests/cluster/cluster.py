"""A whole test cluster: control plane, simulated nodes, the chart's pods as processes, KubeVirt stand-ins."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.cluster.api import Cache, Object
from tests.cluster.base import NAMESPACE, BaseCluster
from tests.cluster.controlplane import ControlPlane
from tests.cluster.kubevirt.timing import Timing
from tests.cluster.loopback import LoopbackRange
from tests.cluster.standin.kubelet import Kubelet
from tests.cluster.standin.services import ServiceProxy

log = logging.getLogger(__name__)


class Cluster(BaseCluster):
    """A running control plane with stand-ins for what a machine would add. A context manager.

    Differences to a real cluster that tests must know: pods that are not the product's only seem to run;
    0.0.0.0 in the product's arguments becomes the pod's loopback address; there is no DNS.
    """

    service_port = 8443
    """The chart's 443 would need root on this machine's loopback."""

    def __init__(self, plane: ControlPlane, *, timing: Timing | None = None) -> None:
        """`plane` is running, on loopback; it is not stopped here."""
        super().__init__(plane, timing=timing)
        if not isinstance(plane.addresses, LoopbackRange):
            raise TypeError("simulated nodes live on loopback")
        self.addresses = plane.addresses
        self.nodes: dict[str, Kubelet] = {}

    def all_problems(self) -> list[str]:
        """Everything that a stand-in could not do so far."""
        return [
            *super().all_problems(),
            *self.services.problems,
            *(f"{n.name}: {p}" for n in self.nodes.values() for p in n.problems),
        ]

    @property
    def node_names(self) -> list[str]:
        """The nodes there are."""
        return list(self.nodes)

    # nodes

    def add_node(
        self,
        name: str,
        *,
        labels: Mapping[str, str] | None = None,
        prepare: Callable[[Path], object] | None = None,
    ) -> Kubelet:
        """A new node. `prepare` fills its file tree (``<root>/sys``, ``<root>/dev``) before anything runs."""
        kubelet = Kubelet(
            self.api,
            name,
            number=len(self.nodes) + 1,
            directory=self.plane.directory,
            addresses=self.addresses,
            kubeconfig_of=self.plane.kubeconfig_of,
            program_dirs=[self.plane.binaries.kubectl.parent],
            labels=labels or {},
        )
        if prepare is not None:
            prepare(kubelet.root)
        self.run(self._join(kubelet))
        return kubelet

    def restart_kubelet(self, name: str) -> None:
        """What a restart of the node's kubelet does."""
        self.run(self.nodes[name].restart())

    def reboot(self, name: str) -> None:
        """Gives the node a new boot id."""
        self.run(self.nodes[name].reboot())

    def held(self, node: str, resource: str) -> dict[str, list[str]]:
        """Devices of a resource that pods hold on the node, by pod name."""
        manager = self.nodes[node].devices
        return {
            name: sorted(d for held in containers.values() for d in held.get(resource, ()))
            for (_, name), containers in manager.pods.items()
        }

    def pod_log(self, pod: str, namespace: str = NAMESPACE) -> str:
        """What the containers of one of the product's pods wrote so far."""
        texts = []
        for node in self.nodes.values():
            directory = node.root / "var" / "log" / "pods" / f"{namespace}_{pod}"
            texts += [p.read_text(errors="replace") for p in sorted(directory.glob("*.log"))]
        return "".join(texts)

    async def _begin(self) -> None:
        await super()._begin()
        self.services = ServiceProxy(self.pods)
        services = Cache(self.api, "/api/v1/services", self.services.see)
        self._tasks.append(asyncio.create_task(services.run()))
        async with asyncio.timeout(30):
            await services.synced.wait()

    async def _join(self, kubelet: Kubelet) -> None:
        """In the loop, because the watches' callbacks go through the nodes there."""
        await kubelet.start()
        self.nodes[kubelet.name] = kubelet
        for pod in self.pods.all():
            kubelet.see("ADDED", pod)

    async def _end(self) -> None:
        await asyncio.gather(*(kubelet.stop() for kubelet in self.nodes.values()))
        await self.services.close()
        await super()._end()

    def _see_pod(self, kind: str, pod: Object) -> None:
        for kubelet in self.nodes.values():
            kubelet.see(kind, pod)
        super()._see_pod(kind, pod)
