"""The run's network: a bridge in its own namespace, and a pair of virtual Ethernet ends to each node."""

from __future__ import annotations

import socket

from tests.node.addresses import BridgeNetwork
from tests.node.commands import run

_FORWARD = "echo 1 > /proc/sys/net/ipv4/ip_forward"


def make_bridge(network: BridgeNetwork) -> None:
    """Sets up this process's network namespace, which must be one of its own: loopback, bridge, forwarding.

    Raises:
        ClusterError: a command failed.
    """
    run("ip", "link", "set", "lo", "up")
    run("ip", "link", "add", network.bridge, "type", "bridge")
    run("ip", "addr", "add", f"{network.control_plane}/24", "dev", network.bridge)
    run("ip", "link", "set", network.bridge, "up")
    # There is no default route here. kube-proxy rewrites only what had somewhere to go in the first place.
    run("ip", "route", "add", network.services, "dev", network.bridge)
    run("sh", "-ec", _FORWARD)


def connect(network: BridgeNetwork, number: int, holder: int) -> None:
    """Connects the network namespace of process `holder`, which becomes node `number`, to the bridge.

    Raises:
        ClusterError: a command failed.
    """
    end = _end(number)
    address = network.node(number)
    run("ip", "link", "add", end, "type", "veth", "peer", "name", "eth0", "netns", str(holder))
    run("ip", "link", "set", end, "master", network.bridge, "up")
    run("ip", "route", "replace", network.pod_subnet(number), "via", address)
    inside = (
        "ip link set lo up",
        f"ip addr add {address}/24 dev eth0",
        "ip link set eth0 up",
        f"ip route add default via {network.control_plane}",
        _FORWARD,
    )
    run("nsenter", f"--net=/proc/{holder}/ns/net", "sh", "-ec", "\n".join(inside))


def disconnect(number: int) -> None:
    """Takes node `number` off the bridge; its namespace still holds the other end.

    Raises:
        ClusterError: the command failed.
    """
    # As this process's network namespace has it; /sys shows the namespace in which it was mounted.
    if any(name == _end(number) for _, name in socket.if_nameindex()):
        run("ip", "link", "del", _end(number))


def _end(number: int) -> str:
    return f"node{number}"
