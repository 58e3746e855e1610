"""The agent of a node: what it costs while nothing happens, and how soon it has done what it is asked.

The real agent in a process of its own (tests/bench/agent_process.py), beside a kubelet's device manager and
an API server in memory, both in the process that measures. The node's tree is fabricated; events come from a
socket in place of the kernel's.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import shutil
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path

import aiohttp
import msgspec
from aiohttp import web
from migcompat.kube.kinds import NODES
from migcompat.kubelet.deviceplugin_v1beta1 import deviceplugin_pb2 as pb
from migcompat.sysfs.scan import scan

from tests.bench import agent_process
from tests.bench.figures import BenchError, Row, percentile
from tests.cluster.processes import Process
from tests.deviceplugin.fake_api import FakeApi, running_api
from tests.support import fleets
from tests.support.fabricate import add_group_nodes
from tests.support.kubelet import DeviceManager, running_device_manager
from tests.support.uevents import message
from tests.support.vfs import make_vfs

NODE = "bench-node"
POOL = "vfio.migcompat.io/pci-15b3-101e"
FEW, MANY = 64, 1024
IDLE_SECONDS = 60.0
SETTLE_SECONDS = 70.0
"""From ready to the measurement: an agent does not count on its own start (``allocations.PENDING``)."""
IDLE_GOAL = 0.1
"""Per cent of one core."""
MEMORY_GOAL = 60.0
PUBLISH_GOAL_MS = 100.0
ALLOCATE_GOAL_MS = 20.0
CHANGES = 20
CHANGE_PAUSE = 1.2
"""Seconds between two changes: longer than what the limit of writes (2 a second) makes one wait."""
CALLS = 1000
PROBE_SECONDS = {"healthz": 10.0, "readyz": 5.0}
"""How often the kubelet asks (the chart's probes)."""
READY_SECONDS = 60.0
PATIENCE = 10.0


class Api(FakeApi):
    """Tells when a VFIONode has arrived in full."""

    def __init__(self) -> None:
        super().__init__()
        self.arrived = asyncio.Condition()
        self.last: tuple[float, bytes] = 0.0, b""

    async def handle(self, request: web.Request) -> web.Response:
        if request.method == "PUT":
            body = await request.read()
            async with self.arrived:
                self.last = time.perf_counter(), body
                self.arrived.notify_all()
        return await super().handle(request)


class Node:
    """One node under measurement. ``vfs``: addresses and directories of its VFs."""

    def __init__(self, directory: Path, api: Api, kubelet: DeviceManager, count: int) -> None:
        self.api = api
        self.kubelet = kubelet
        self.health = f"127.0.0.1:{_free_port()}"
        self.sysfs = make_vfs(directory, count, declare=True)
        self.vfs = {d.id: self.sysfs / d.path for d in scan(self.sysfs).devices if d.is_vf}
        if len(self.vfs) != count:
            raise BenchError(f"{len(self.vfs)} VFs found where {count} were made")
        add_group_nodes(directory / "dev", self.sysfs)
        (directory / "boot_id").write_text(f"{fleets.BOOT}\n")
        api.put(NODES, fleets.node(NODE))
        described = agent_process.Node(
            node_name=NODE,
            health_bind=self.health,
            sysfs_root=self.sysfs,
            dev_root=directory / "dev",
            boot_id_file=directory / "boot_id",
            kubelet_dir=kubelet.kubelet_dir,
        )
        file = directory / "node.json"
        file.write_bytes(msgspec.json.encode(described, enc_hook=str))
        self._events = directory / "events"
        module = "tests.bench.agent_process"
        command = [sys.executable, "-m", module, str(file), api.url, str(self._events)]
        self.process = Process("agent", command, log=directory / "agent.log")

    async def ready(self) -> None:
        """Wait until the agent is. Raises BenchError with the end of its log."""
        url = f"http://{self.health}/readyz"
        deadline = time.monotonic() + READY_SECONDS
        async with aiohttp.ClientSession() as http:
            while time.monotonic() < deadline and self.process.exit_code() is None:
                with contextlib.suppress(aiohttp.ClientError):
                    async with http.get(url) as answer:
                        if answer.status == 200 and self._served():
                            return
                await asyncio.sleep(0.2)
        raise BenchError(f"the agent is not ready; the end of its log:\n{self.process.tail()}")

    def _served(self) -> bool:
        return len(self.kubelet.resources.get(POOL, ())) == len(self.vfs)

    async def ask_for(self, path: str) -> None:
        """Ask for *path* as the kubelet does, on a new connection each time, until cancelled."""
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as http:
            while True:
                async with http.get(f"http://{self.health}/{path}") as answer:
                    await answer.read()
                await asyncio.sleep(PROBE_SECONDS[path])

    def send(self, action: str, vf: Path) -> None:
        """Say what the kernel says when a function's driver changes."""
        devpath = f"/{vf.relative_to(self.sysfs)}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(message(action, "pci", devpath), str(self._events))

    async def published(self, count: int) -> float:
        """When (perf_counter) the VFIONode with *count* devices arrived. Raises BenchError."""

        def there() -> bool:
            body = self.api.last[1]
            return bool(body) and body.count(b'"resource":"' + POOL.encode() + b'"') == count

        try:
            async with asyncio.timeout(PATIENCE), self.api.arrived:
                await self.api.arrived.wait_for(there)
        except TimeoutError:
            raise BenchError(f"a change was not published within {PATIENCE:g} s") from None
        return self.api.last[0]


@contextlib.asynccontextmanager
async def node(count: int) -> AsyncIterator[Node]:
    """A node with *count* VFs whose agent is ready."""
    with tempfile.TemporaryDirectory(prefix="migcompat-bench-") as scratch:
        api = Api()
        async with running_api(api), running_device_manager(Path(scratch) / "kubelet") as kubelet:
            made = await asyncio.to_thread(Node, Path(scratch), api, kubelet, count)
            try:
                await made.ready()
                yield made
            finally:
                await asyncio.to_thread(made.process.stop)


def measure() -> list[Row]:
    """Idle cost, change to publication, Allocate. Raises BenchError."""
    return [*asyncio.run(_busy()), *asyncio.run(_idle())]


async def _idle() -> list[Row]:
    """Three nodes at a time: nobody holds a device; a pod holds half of them; the kubelet asks for health."""
    async with node(FEW) as free, node(FEW) as held, node(FEW) as probed:
        await held.kubelet.admit("ns", "virt-launcher", "compute", {POOL: FEW // 2})
        asking = [asyncio.create_task(probed.ask_for(path)) for path in PROBE_SECONDS]
        await asyncio.sleep(SETTLE_SECONDS)
        nodes = {"all free": free, "half held": held, "all free, with the kubelet's probes": probed}
        before = {what: cpu_seconds(each.process.pid) for what, each in nodes.items()}
        await asyncio.sleep(IDLE_SECONDS)
        used = {what: cpu_seconds(each.process.pid) - before[what] for what, each in nodes.items()}
        rows = [
            Row(
                name=f"idle agent, {FEW} VFs, {what}: CPU over {IDLE_SECONDS:g} s",
                value=100 * seconds / IDLE_SECONDS,
                unit="% of a core",
                goal=IDLE_GOAL if what == "all free" else None,
            )
            for what, seconds in used.items()
        ]
        rows += _memory(held, f"{FEW} VFs")
        for task in asking:
            task.cancel()
    return rows


async def _busy() -> list[Row]:
    async with node(MANY) as busy:
        rows = await _changes(busy)
        rows += await _allocations(busy)
        rows += _memory(busy, f"{MANY} VFs")
    return rows


async def _changes(busy: Node) -> list[Row]:
    """A VF's driver is unbound, and bound again: from the event to the whole VFIONode's arrival."""
    taken: dict[str, list[float]] = {"unbound": [], "bound again": []}
    for number, vf in enumerate(random.Random(1).sample(list(busy.vfs.values()), CHANGES)):
        aside = busy.sysfs.parent / f"aside-{number}"
        aside.mkdir()
        for what, action, source, target, left in (
            ("unbound", "unbind", vf, aside, MANY - 1),
            ("bound again", "bind", aside, vf, MANY),
        ):
            await asyncio.sleep(CHANGE_PAUSE)
            for name in ("driver", "vfio-dev"):
                shutil.move(source / name, target / name)
            start = time.perf_counter()
            busy.send(action, vf)
            taken[what].append((await busy.published(left) - start) * 1000)
    return [
        Row(
            name=f"a VF of {MANY} is {what}: event to publication, {title}",
            value=figure(samples),
            unit="ms",
            goal=PUBLISH_GOAL_MS if title == "p50" else None,
        )
        for what, samples in taken.items()
        for title, figure in (("p50", statistics.median), ("p90", lambda s: percentile(s, 90)))
    ]


async def _allocations(busy: Node) -> list[Row]:
    """Allocate of one device, beside a call of the same socket that does nothing."""
    stub = busy.kubelet.plugins[POOL].stub
    await asyncio.sleep(CHANGE_PAUSE)
    ids = random.Random(2).choices(list(busy.vfs), k=CALLS)
    null, ours = [], []
    for id_ in ids:
        wanted = pb.ContainerAllocateRequest(devices_ids=[id_])
        null.append(await _milliseconds(stub.GetDevicePluginOptions(pb.Empty())))
        ours.append(await _milliseconds(stub.Allocate(pb.AllocateRequest(container_requests=[wanted]))))
    rows = []
    for percent in (50, 99):
        base = percentile(null, percent)
        value = percentile(ours, percent)
        rows += [
            Row(name=f"a call that does nothing, p{percent}", value=base, unit="ms"),
            Row(
                name=f"Allocate, {MANY} VFs on the node, p{percent}",
                value=value,
                unit="ms",
                baseline=f"a call that does nothing, p{percent}",
                ratio=value / base,
                goal=ALLOCATE_GOAL_MS if percent == 99 else None,
            ),
        ]
    return rows


async def _milliseconds(call: Awaitable[object]) -> float:
    start = time.perf_counter()
    await call
    return (time.perf_counter() - start) * 1000


def _memory(each: Node, what: str) -> list[Row]:
    """What the process has for itself, as a container is charged for it, and all that it has mapped."""
    own, mapped = resident(each.process.pid)
    return [
        Row(name=f"agent, {what}, resident memory of its own", value=own, unit="MB", goal=MEMORY_GOAL),
        Row(name=f"agent, {what}, resident memory with files it shares", value=mapped, unit="MB"),
    ]


def resident(pid: int) -> tuple[float, float]:
    """``RssAnon`` and ``VmRSS`` of a process in MB (proc_pid_status(5))."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError as problem:
        raise BenchError(f"memory of process {pid} cannot be read: {problem}") from problem
    kib = dict(re.findall(r"^(RssAnon|VmRSS):\s+(\d+) kB$", status, re.M))
    return int(kib["RssAnon"]) * 1024 / 1e6, int(kib["VmRSS"]) * 1024 / 1e6


def cpu_seconds(pid: int) -> float:
    """CPU time of all threads of a process so far, from its CPU clock (clock_getcpuclockid(3))."""
    try:
        return time.clock_gettime(~pid << 3 | 2)
    except OSError as problem:
        raise BenchError(f"CPU time of process {pid} cannot be read: {problem}") from problem


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
