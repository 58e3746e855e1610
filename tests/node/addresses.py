"""Addresses of a cluster with real nodes: fixed ones, as it has a network namespace for itself."""

from __future__ import annotations

import socket


class BridgeNetwork:
    """A bridge that the control plane and the nodes hang on.

    * ``10.90.0.1``: the control plane (the bridge itself);
    * ``10.90.0.<10+n>``: node n;
    * ``10.90.<100+n>.0/24``: its pods;
    * ``10.91.0.0/16``: services.
    """

    bridge = "cluster0"
    control_plane = "10.90.0.1"
    services = "10.91.0.0/16"
    pods = "10.90.0.0/16"
    """Holds the addresses of all pods (and of the nodes)."""

    def service(self, number: int) -> str:
        """A cluster IP (number 10 to 250) that kube-apiserver does not give away by itself."""
        return f"10.91.0.{number}"

    def node(self, number: int) -> str:
        """Address of node `number`, 1 to 100."""
        return f"10.90.0.{10 + number}"

    def pod_subnet(self, number: int) -> str:
        """CIDR of the pods of node `number`."""
        return f"10.90.{100 + number}.0/24"

    def free_port(self, address: str) -> int:
        """A port that nobody listens on at `address` just now."""
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.bind((address, 0))
            port: int = probe.getsockname()[1]
            return port

    def release(self) -> None:
        """Nothing is held: the addresses end with the network namespace."""
