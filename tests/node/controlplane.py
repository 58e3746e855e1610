"""The control plane that real nodes join: node authorizer, endpoints, node life cycle, kubelet client."""

from __future__ import annotations

from pathlib import Path

from tests.cluster.binaries.build import Binaries
from tests.cluster.controlplane import ControlPlane
from tests.node.addresses import BridgeNetwork


class NodeControlPlane(ControlPlane):
    """Runs on the bridge; its network namespace must have one (`tests.node.network.make_bridge`)."""

    controllers = (
        *ControlPlane.controllers,
        "disruption-controller",
        "endpoints-controller",
        "endpointslice-controller",
        "node-lifecycle-controller",
        "pod-garbage-collector-controller",
        "taint-eviction-controller",
    )

    def __init__(self, programs: Binaries, network: BridgeNetwork, parent: Path) -> None:
        super().__init__(programs, network, parent)
        self.network = network
        self._kubelet_client = self.authority.issue("kube-apiserver", organization="system:masters")

    def node_flags(self) -> tuple[str, ...]:
        """As on a real cluster: a node's token reaches its own objects only."""
        return (
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--kubelet-preferred-address-types=InternalIP",
            f"--kubelet-client-certificate={self._kubelet_client.certificate}",
            f"--kubelet-client-key={self._kubelet_client.key}",
        )
