"""``python -m tests.node hold``: two real nodes with the product installed, until Ctrl-C."""

from __future__ import annotations

import contextlib
import signal
import sys
import time

from tests.node import needs, run
from tests.node.addresses import BridgeNetwork
from tests.node.cluster import NodeCluster
from tests.node.controlplane import NodeControlPlane
from tests.node.devices import prepare_accepting, prepare_source
from tests.node.network import make_bridge


def main() -> None:
    """Starts the cluster, says how to use it, and waits."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    begun = time.monotonic()
    parts, (directory, cgroup) = needs.parts(), run.place()
    network = BridgeNetwork()
    make_bridge(network)
    with (
        contextlib.suppress(KeyboardInterrupt),
        NodeControlPlane(parts.programs, network, directory) as plane,
        NodeCluster(plane, parts, cgroup=cgroup) as cluster,
    ):
        print(f"control plane, {time.monotonic() - begun:.0f} s", flush=True)
        cluster.add_nodes({"node-1": prepare_source, "node-2": prepare_accepting})
        print(f"nodes, {time.monotonic() - begun:.0f} s", flush=True)
        if "--bare" not in sys.argv:
            cluster.install_chart()
            print(f"product, {time.monotonic() - begun:.0f} s", flush=True)
        print(plane.kubectl("get", "pods,nodes", "-A", "-o", "wide"))
        # [e]tcd: so that no command line that holds this pattern is found by it.
        etcd = f"$(pgrep -f -- --data-dir={plane.directory}/[e]tcd)"
        print(
            f"Files of this run, with each node's logs: {plane.directory}\n"
            f"As root in another terminal: nsenter -t {etcd} -a --wd=/"
            f" {plane.binaries.kubectl} --kubeconfig={plane.kubeconfig} get pods -A",
            flush=True,
        )
        while True:
            signal.pause()


if __name__ == "__main__":
    main()
