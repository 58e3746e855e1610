"""Everything that real nodes need, installed and built before any namespace is entered."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tests.image.build as image
from tests.cluster.binaries.build import Binaries, NodeBinaries, binaries, node_binaries
from tests.node import debian, images

COMMANDS = {
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "/usr/lib/cni": "containernetworking-plugins",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "unshare": "util-linux",
    "mount": "mount",
}
"""Command (or path) to Debian package."""


@dataclass(frozen=True)
class Parts:
    """What a cluster with real nodes is made of."""

    programs: Binaries
    node_programs: NodeBinaries
    launcher: Path
    """docker-archive of the launcher-shaped pods' image and of the pause image."""

    product: Path | None
    """docker-archive of the product's image; None: nodes that do not get it."""


def parts() -> Parts:
    """All of it; what was built before is taken from the cache.

    Raises:
        BuildError, DebianError: a part cannot be had; the text says which, why, and what to do.
    """
    debian.need(COMMANDS)
    return Parts(binaries(), node_binaries(), images.launcher(), image.image())
