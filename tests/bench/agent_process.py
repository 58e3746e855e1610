"""The real agent over a fabricated sysfs, as a process of its own that hears events from a socket.

``python -m tests.bench.agent_process NODE.json SERVER EVENTS``: NODE as :class:`Node`,
SERVER the URL of an API server, EVENTS the path of a datagram socket to be made, whose messages count as the
kernel's. It takes its sysfs for one that the kernel's events tell of, as ``/sys`` is. Ends with SIGTERM.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from pathlib import Path

import msgspec
from migcompat.kube.client import Client
from migcompat.kube.config import Connection
from migcompat.sysfs.uevents import Listener
from migcompat_deviceplugin.app import WRITES_PER_SECOND, Agent, Settings
from migcompat_deviceplugin.devnodes import DevDir

KERNEL = (0, 1)
"""Sender and group of the kernel's own messages."""


class Events:
    """A datagram socket in place of netlink's."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(str(path))

    def fileno(self) -> int:
        return self._socket.fileno()

    def recvfrom(self, bufsize: int, /) -> tuple[bytes, tuple[int, int]]:
        return self._socket.recv(bufsize), KERNEL

    def close(self) -> None:
        self._socket.close()


class Node(msgspec.Struct):
    """What differs from an agent's defaults."""

    node_name: str
    health_bind: str
    sysfs_root: Path
    dev_root: Path
    boot_id_file: Path
    kubelet_dir: Path

    def settings(self) -> Settings:
        """The agent's."""
        return Settings(
            node_name=self.node_name,
            health_bind=self.health_bind,
            sysfs_root=self.sysfs_root,
            dev=DevDir(self.dev_root),
            boot_id_file=self.boot_id_file,
            kubelet_dir=self.kubelet_dir,
        )


async def serve(node: Node, server: str, events: Path) -> None:
    """Run the agent until SIGTERM."""
    async with Client(Connection(server), writes_per_second=WRITES_PER_SECOND) as client:
        agent = Agent(node.settings(), client, listen=lambda: Listener(Events(events)), told=lambda _: True)
        task = asyncio.create_task(agent.run())
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        await asyncio.wait({task})


if __name__ == "__main__":
    described = msgspec.json.decode(
        Path(sys.argv[1]).read_bytes(), type=Node, dec_hook=lambda _, text: Path(text)
    )
    asyncio.run(serve(described, sys.argv[2], Path(sys.argv[3])))
