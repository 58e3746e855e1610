"""A range of loopback addresses for one test cluster, so that clusters side by side never share one."""

from __future__ import annotations

import random
import socket

_CLAIM_PORT = 41873
_FIRST, _LAST = 2, 250


class LoopbackRange:
    """``127.<k>.0.0/16``, claimed until `release` or the end of the process.

    The claim is a bound socket, which the kernel closes however the process ends.

    * ``127.k.0.1``: the control plane;
    * ``127.k.128.0/17``: addresses of services;
    * ``127.k.<n>.1``: node n, ``127.k.<n>.<m>``: its pods, n from 1 to 127.
    """

    def __init__(self) -> None:
        candidates = random.sample(range(_FIRST, _LAST), _LAST - _FIRST)
        for second in candidates:
            claim = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            try:
                claim.bind((f"127.{second}.255.254", _CLAIM_PORT))
            except OSError:
                claim.close()
                continue
            self._claim = claim
            self.prefix = f"127.{second}"
            return
        raise RuntimeError(f"no free loopback range: port {_CLAIM_PORT} is taken in all of 127.2 to 127.249")

    @property
    def control_plane(self) -> str:
        """Address of etcd, kube-apiserver, kube-scheduler and kube-controller-manager."""
        return f"{self.prefix}.0.1"

    @property
    def services(self) -> str:
        """Cluster IP range, CIDR."""
        return f"{self.prefix}.128.0/17"

    def service(self, number: int) -> str:
        """A cluster IP (number 10 to 250) that kube-apiserver does not give away by itself."""
        return f"{self.prefix}.128.{number}"

    def node(self, number: int) -> str:
        """Address of node `number` (1 to 127)."""
        return self.pod(number, 1)

    def pod(self, node: int, number: int) -> str:
        """Address of pod `number` (2 to 254) of node `node`."""
        if not (1 <= node <= 127 and 1 <= number <= 254):
            raise ValueError(f"no loopback address left for node {node}, pod {number}")
        return f"{self.prefix}.{node}.{number}"

    def free_port(self, address: str) -> int:
        """A port that nobody listens on at `address` just now."""
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.bind((address, 0))
            port: int = probe.getsockname()[1]
            return port

    def release(self) -> None:
        """Gives the range back."""
        self._claim.close()
