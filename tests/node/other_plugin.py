"""Another device plugin on a real node: KubeVirt's, as far as its ids go, in a process of its own."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.cluster.processes import Process
from tests.node.node import Node
from tests.support.otherplugin import other_plugin

ROOT = Path(__file__).resolve().parents[2]


def start(node: Node, resource: str, ids: Sequence[str]) -> Process:
    """Serves *ids* of *resource* on the node until the process is stopped."""
    given = filter(None, [os.environ.get("PYTHONPATH")])
    directory = node.root / "kubelet/device-plugins"
    return Process(
        f"other plugin of {node.name}",
        [sys.executable, "-m", "tests.node.other_plugin", str(directory), resource, *ids],
        log=node.log("other-plugin"),
        environment={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *given])},
    )


async def serve(directory: Path, resource: str, ids: Sequence[str]) -> None:
    """Until it is killed."""
    async with other_plugin(directory, resource, *ids):
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), sys.argv[2], sys.argv[3:]))
