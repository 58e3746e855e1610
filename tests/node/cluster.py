"""A cluster of real nodes, with the product from its image and chart."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.cluster.api import Object
from tests.cluster.base import NAMESPACE, BaseCluster
from tests.cluster.controlplane import ClusterError
from tests.cluster.kubevirt.timing import Timing
from tests.cluster.processes import Process
from tests.image.build import IMAGE
from tests.node import images, podresources
from tests.node.commands import ENVIRONMENT
from tests.node.controlplane import NodeControlPlane
from tests.node.needs import Parts
from tests.node.node import Node, proxy_command, shared_host

READY = 120.0
"""Seconds within which a node is Ready; 15 on a quiet machine."""
_ONLY_VIRT_HANDLER = ("devices.kubevirt.io/kvm", "devices.kubevirt.io/tun", "devices.kubevirt.io/vhost-net")


class NodeCluster(BaseCluster):
    """Real nodes on a running control plane. A context manager; in a run's namespaces (`tests.node.run`)."""

    def __init__(
        self, plane: NodeControlPlane, parts: Parts, *, cgroup: str, timing: Timing | None = None
    ) -> None:
        """`plane` is running; it is not stopped here. `cgroup`: the run's."""
        super().__init__(plane, timing=timing, adapt=launcher_shaped)
        self.network = plane.network
        self.nodes: dict[str, Node] = {}
        self._nodes_plane = plane
        self._parts = parts
        self._cgroup = cgroup
        self._proxy: Process | None = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # One node that does not end must not keep the others: the next cluster has nodes of the same names.
        with contextlib.ExitStack() as stack:
            for node in self.nodes.values():
                stack.callback(node.stop)
            if self._proxy:
                stack.callback(self._proxy.stop, 1.0)
            super().__exit__(kind, error, trace)

    def all_problems(self) -> list[str]:
        """What a stand-in could not do, and parts of nodes that ended by themselves."""
        return [*super().all_problems(), *(p for node in self.nodes.values() for p in node.problems())]

    # nodes

    @property
    def node_names(self) -> list[str]:
        """The nodes there are."""
        return list(self.nodes)

    def add_nodes(self, prepare: Mapping[str, Callable[[Path], object]]) -> None:
        """Starts nodes and waits until they are Ready.

        Args:
            prepare: by node name, what fills the node's `host` directory (``sys``, ``dev``) beforehand.

        Raises:
            ClusterError: a node's part did not start, or a node did not become Ready.
        """
        archives = {images.PAUSE: self._parts.launcher}
        if self._parts.product:
            archives[IMAGE] = self._parts.product
        for name, fill in prepare.items():
            node = Node(
                name,
                len(self.nodes) + 1,
                plane=self._nodes_plane,
                programs=self._parts.node_programs,
                cgroup=self._cgroup,
            )
            fill(node.host)
            self.nodes[name] = node
            node.start(archives)
        self.wait(
            lambda: all(self.is_ready(name) for name in prepare),
            f"{', '.join(prepare)} are Ready",
            within=READY,
            on_failure=self._node_logs,
        )
        for name in prepare:
            self.plane.kubectl("label", "node", name, "--overwrite", *KUBEVIRT_LABELS)
        if self._proxy is None:
            self._start_proxy()

    def is_ready(self, name: str) -> bool:
        """Whether the kubelet says so of its Node."""
        conditions = self.plane.get("node", name)["status"].get("conditions", ())
        return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)

    def allocatable(self, name: str, resource: str) -> int:
        """How many devices of a resource the kubelet offers; 0 also if it knows of none."""
        return int(self.plane.get("node", name)["status"].get("allocatable", {}).get(resource, 0))

    def held(self, node: str, resource: str) -> dict[str, list[str]]:
        """Devices of a resource that pods hold on the node, by pod name, as its PodResources API says."""
        return podresources.held(self.nodes[node].root / "kubelet/pod-resources/kubelet.sock", resource)

    # the product

    @property
    def product(self) -> Path:
        """The docker-archive of its image. Raises ClusterError when the nodes have none."""
        if self._parts.product is None:
            raise ClusterError("these nodes do not have the product's image")
        return self._parts.product

    @property
    def host_paths(self) -> dict[str, str]:
        """The chart's ``hostPaths``: the prepared sysfs and device nodes; the rest is where it really is."""
        shared = shared_host(self.plane.directory)
        return {"sys": str(shared / "sys"), "dev": str(shared / "dev")}

    def chart_values(self, values: Mapping[str, Any]) -> Object:
        """*values* with what every installation on this cluster needs."""
        fixed: Object = {
            "image": {"pullPolicy": "Never"},
            "hostPaths": self.host_paths,
            "devicePlugin": {"scanInterval": 1},
        }
        wanted = super().chart_values(values)
        return {**wanted, **{key: {**own, **wanted.get(key, {})} for key, own in fixed.items()}}

    def agent(self, node: str) -> Object:
        """The pod of the agent on the node.

        Raises:
            ClusterError: there is not exactly one that is not being deleted.
        """
        pods = [
            p
            for p in self.product_pods("device-plugin")
            if p["spec"].get("nodeName") == node and "deletionTimestamp" not in p["metadata"]
        ]
        if len(pods) != 1:
            raise ClusterError(f"{len(pods)} agents on {node}, not one")
        return pods[0]

    def product_pods(self, component: str) -> list[Object]:
        """The pods of a component: device-plugin, extender or operator."""
        selector = f"app.kubernetes.io/component={component}"
        items: list[Object] = self.plane.get("pods", "-n", NAMESPACE, "-l", selector)["items"]
        return items

    def pod_log(self, pod: str, namespace: str = NAMESPACE) -> str:
        """What the containers of a pod wrote so far, earlier ones too."""
        texts = []
        for node in self.nodes.values():
            for path in sorted((node.root / "log/pods").glob(f"{namespace}_{pod}_*/*/*.log")):
                texts += [
                    line.split(" ", 3)[-1]
                    for line in path.read_text(errors="replace").splitlines(keepends=True)
                ]
        return "".join(texts)

    def launched(self, pod: str, namespace: str = "default", *, container: str = "compute") -> Object:
        """What the launcher program in a pod says of its container now: environment, device nodes."""
        text = self.plane.kubectl("exec", "-n", namespace, pod, "-c", container, "--", "/launcher", "devices")
        said: Object = json.loads(text)
        return said

    # inside

    def _start_proxy(self) -> None:
        """kube-proxy where kube-apiserver and kube-scheduler run, which call Services."""
        node = next(iter(self.nodes.values()))
        lock = self.plane.directory / "xtables.lock"
        self._proxy = Process(
            "kube-proxy",
            proxy_command(
                self._parts.node_programs,
                self._nodes_plane,
                node.root / "system-kube-proxy.kubeconfig",
                node.name,
            ),
            log=self.plane.log("kube-proxy"),
            environment={**ENVIRONMENT, "XTABLES_LOCKFILE": str(lock)},
        )

    def _node_logs(self) -> str:
        parts: Iterable[str] = ("containerd", "kubelet", "kube-proxy")
        return "\n".join(
            f"--- {part} of {node.name}\n{node.log(part).read_text(errors='replace')[-2000:]}"
            for node in self.nodes.values()
            for part in parts
            if node.log(part).exists()
        )


KUBEVIRT_LABELS = (
    "cpu-vendor.node.kubevirt.io/Intel=true",
    "kubevirt.io/schedulable=true",
    "machine-type.node.kubevirt.io/q35=true",
)
"""What virt-handler would write, as virt-controller's pods ask for it."""


def launcher_shaped(pod: Object) -> Object:
    """The recorded pod with our program as virt-launcher, and without what only virt-handler provides."""
    spec = pod["spec"]
    for container in (*spec["containers"], *spec.get("initContainers", ())):
        container["image"] = images.LAUNCHER
        container["imagePullPolicy"] = "Never"
        container["command"] = ["/launcher"]
        for side in container["resources"].values():
            # The last: these kubelets do not count local storage.
            for name in (*_ONLY_VIRT_HANDLER, "ephemeral-storage"):
                side.pop(name, None)
            side.pop("memory", None)
    return pod
