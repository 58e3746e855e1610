"""The booted machine as a node: a kubelet's device manager, an API server, and the agent as a process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import msgspec
import yaml
from migcompat.api.vfionode import Device, VFIONode
from migcompat.kube.kinds import NODES

from tests.deviceplugin.fake_api import FakeApi, running_api
from tests.kernel.guest import hardware
from tests.support import fleets
from tests.support.kubelet import DeviceManager

NAME = "node-1"
NEVER = 3600.0
"""Seconds between two looks without an event: so far away that nothing in a test comes of them."""
SETTLED = 30.0
"""Seconds within which the kubelet has to know what the kernel has. No speed is asserted, only an end."""

_START = 60.0


class Messages(list[tuple[str, dict[str, bool]]]):
    """What ListAndWatch said; ``on_message`` is called for each, before anybody else hears of it."""

    on_message: Callable[[str, dict[str, bool]], None] | None = None

    def append(self, message: tuple[str, dict[str, bool]]) -> None:
        super().append(message)
        if self.on_message is not None:
            self.on_message(*message)


class AgentProcess:
    """The agent, as the chart starts it but for the paths."""

    def __init__(self, directory: Path, api: FakeApi, kubelet: DeviceManager) -> None:
        self._kubelet_dir = kubelet.kubelet_dir
        self._process: asyncio.subprocess.Process | None = None
        self._kubeconfig = directory / "kubeconfig"
        cluster = {"name": "c", "cluster": {"server": api.url}}
        context = {"name": "c", "context": {"cluster": "c", "user": ""}}
        text = {"clusters": [cluster], "contexts": [context], "current-context": "c"}
        self._kubeconfig.write_text(yaml.safe_dump(text))
        self._log = directory / "agent.log"
        self._told = 0
        self._port = 0

    async def start(self) -> None:
        """Start it, and wait until it is ready."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "migcompat_deviceplugin.cli"),
                f"--kubelet-dir={self._kubelet_dir}",
                f"--kubeconfig={self._kubeconfig}",
                f"--health-bind=127.0.0.1:{self._port}",
                f"--scan-interval={NEVER}",
                env={**os.environ, "NODE_NAME": NAME},
                stderr=log,
            )
        async with asyncio.timeout(_START):
            while await self._get("/readyz") is None:
                assert self._process.returncode is None, self.news()
                await asyncio.sleep(0.1)

    async def stop(self) -> None:
        """SIGTERM, and its end."""
        assert self._process is not None
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(20):
            await self._process.wait()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """It does not run meanwhile."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)

    def open_files(self) -> set[str]:
        """What its descriptors lead to."""
        links = []
        for path in Path(f"/proc/{self.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                links.append(os.readlink(path))
        return set(links)

    def resident(self) -> float:
        """MiB of memory that the kernel counts for it."""
        (size,) = re.findall(
            r"^VmRSS:\s+(\d+) kB$", Path(f"/proc/{self.pid}/status").read_text(), re.MULTILINE
        )
        return int(size) / 1024

    def dropped(self) -> int:
        """Messages that the kernel could not deliver to it (the column Drops of /proc/net/netlink)."""
        rows = [line.split() for line in Path("/proc/net/netlink").read_text().splitlines()[1:]]
        inodes = {f"socket:[{row[9]}]": int(row[8]) for row in rows if row[1] == "15"}
        return sum(inodes.get(file, 0) for file in self.open_files())

    async def metric(self, name: str) -> float:
        """The sum of a metric's values over its labels."""
        text = await self._get("/metrics") or ""
        found = re.findall(rf"^{name}(?:\{{[^}}]*\}})? (\S+)$", text, re.MULTILINE)
        assert found, f"no metric {name} in:\n{text}"
        return sum(float(value) for value in found)

    def news(self) -> str:
        """What it has logged since the last time."""
        text = self._log.read_text(errors="replace")
        news, self._told = text[self._told :], len(text)
        return news

    async def _get(self, path: str) -> str | None:
        url = f"http://127.0.0.1:{self._port}{path}"
        try:
            async with aiohttp.ClientSession() as http, http.get(url) as answer:
                return await answer.text() if answer.status == 200 else None
        except aiohttp.ClientError:
            return None


class Node:
    """``messages``: what the agent told the kubelet."""

    def __init__(self, directory: Path, api: FakeApi) -> None:
        self.api = api
        self.messages = Messages()
        self.kubelet = DeviceManager(directory / "kubelet", messages=self.messages)
        self.agent = AgentProcess(directory, api, self.kubelet)

    @property
    def view(self) -> hardware.Pools:
        """What the kubelet knows; a resource without devices is left out."""
        return {name: devices for name, devices in self.kubelet.resources.items() if devices}

    @property
    def published(self) -> dict[str, Device]:
        """What the VFIONode shows, by id."""
        node = msgspec.convert(self.api.get("vfionodes", NAME), VFIONode)
        return {device.id: device for device in node.status.devices}

    async def settled(self) -> float:
        """Wait until the kubelet knows exactly what the kernel has; seconds that it took."""
        start = time.perf_counter()
        try:
            await self.kubelet.wait_for(lambda: self.view == hardware.truth(), SETTLED)
        except TimeoutError:
            missing = _flat(hardware.truth()) - _flat(self.view)
            wrong = _flat(self.view) - _flat(hardware.truth())
            raise AssertionError(
                f"after {SETTLED:g} s the kubelet lacks {sorted(missing)}, and wrongly has {sorted(wrong)}"
            ) from None
        return time.perf_counter() - start

    async def comes_true(self, condition: Callable[[], bool]) -> None:
        """Wait until *condition* holds, which is not about what the kubelet knows."""
        async with asyncio.timeout(SETTLED):
            while not condition():
                await asyncio.sleep(0.02)


def boot_id() -> str:
    """The running kernel's."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _flat(pools: hardware.Pools) -> set[tuple[str, str, bool]]:
    return {(pool, id_, usable) for pool, devices in pools.items() for id_, usable in devices.items()}


@asynccontextmanager
async def running_node() -> AsyncIterator[Node]:
    """This machine as a node; the agent runs."""
    api = FakeApi()
    with tempfile.TemporaryDirectory(prefix="n-") as directory:
        async with running_api(api):
            api.put(NODES, fleets.node(NAME, boot_id=boot_id()))
            node = Node(Path(directory), api)
            await node.kubelet.start()
            await node.agent.start()
            try:
                yield node
            finally:
                await node.agent.stop()
                await node.kubelet.stop()
