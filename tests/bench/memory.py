"""Memory of each process while nothing happens, beside bare Python.

The processes run as they do in a cluster: against a real control plane, the agent beside a kubelet's
device manager and a sysfs with eight VFs. PSS shares the pages of libraries among the processes that map
them; RSS counts them in full. Both come from ``/proc/<pid>/smaps_rollup`` (proc(5)).
"""

from __future__ import annotations

import asyncio
import re
import sys
import tempfile
import time
from pathlib import Path

from tests.bench import product
from tests.bench.figures import BenchError, Row
from tests.cluster.binaries.build import BuildError
from tests.cluster.certificates import Authority
from tests.cluster.controlplane import ClusterError, ControlPlane
from tests.cluster.processes import Process
from tests.support.fabricate import add_group_nodes
from tests.support.kubelet import running_device_manager
from tests.support.vfs import make_vfs

ROOT = Path(__file__).parents[2]
CRDS = (ROOT / "charts/migcompat/files/crds", ROOT / "tests/cluster/kubevirt/crds.yaml")
"""Our kinds, and those of KubeVirt's that the processes watch."""
NODE = "bench-node"
VFS = 8
SETTLE_SECONDS = 10.0
"""From ready to the measurement: start-up garbage is gone by then, and every watch is quiet."""
BARE = "bare Python"


def memory(pid: int) -> dict[str, float]:
    """PSS and RSS of a process in MiB. Raises BenchError when it is gone."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError as problem:
        raise BenchError(f"memory of process {pid} cannot be read: {problem}") from problem
    kib = dict(re.findall(r"^(Pss|Rss):\s+(\d+) kB", text, re.M))
    return {"PSS": int(kib["Pss"]) / 1024, "RSS": int(kib["Rss"]) / 1024}


def measure() -> list[Row]:
    """MiB of each process. Raises BenchError."""
    try:
        return asyncio.run(_measure())
    except (BuildError, ClusterError) as problem:
        raise BenchError(f"no control plane: {problem}") from problem


async def _measure() -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="migcompat-bench-") as scratch:
        plane = ControlPlane()
        try:
            await asyncio.to_thread(_prepare, plane)
            async with running_device_manager(Path(scratch) / "kubelet"):
                found = await asyncio.to_thread(_run, plane, Path(scratch))
        finally:
            await asyncio.to_thread(plane.stop)
    bare = found[BARE]
    return [
        Row(
            name=f"idle {name}, {kind}",
            value=value,
            unit="MiB",
            baseline="" if name == BARE else f"{BARE}, {kind}",
            ratio=None if name == BARE else value / bare[kind],
        )
        for name, kinds in found.items()
        for kind, value in kinds.items()
    ]


def _prepare(plane: ControlPlane) -> None:
    plane.start()
    for path in CRDS:
        if not path.exists():
            raise BenchError(f"no custom resource definitions at {path.relative_to(ROOT)}")
        plane.kubectl("apply", "--server-side", "-f", str(path))
    plane.await_kinds()
    plane.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}})


def _run(plane: ControlPlane, scratch: Path) -> dict[str, dict[str, float]]:
    """PSS and RSS by name; all run side by side, so that PSS is shared as on a node."""
    sysfs = make_vfs(scratch / "host", VFS, declare=True)
    add_group_nodes(scratch / "dev", sysfs)
    certificate = Authority(scratch).issue("extender", hosts=("127.0.0.1",))
    arguments = {
        "migcompat-device-plugin": [
            f"--node-name={NODE}",
            f"--sysfs-root={sysfs}",
            f"--dev-root={scratch / 'dev'}",
            f"--kubelet-dir={scratch / 'kubelet'}",
        ],
        "migcompat-operator": [],
        "migcompat-extender": [
            f"--bind=127.0.0.1:{plane.addresses.free_port('127.0.0.1')}",
            f"--tls-cert={certificate.certificate}",
            f"--tls-key={certificate.key}",
        ],
    }
    started: dict[str, Process] = {}
    health: dict[str, str] = {}
    try:
        started[BARE] = Process(
            BARE, [sys.executable, "-c", "import time; time.sleep(3600)"], log=scratch / "bare.log"
        )
        for name, own in arguments.items():
            health[name] = f"127.0.0.1:{plane.addresses.free_port('127.0.0.1')}"
            command = [
                str(product.program(name)),
                f"--health-bind={health[name]}",
                f"--kubeconfig={plane.kubeconfig}",
                *own,
            ]
            started[name] = Process(name, command, log=scratch / f"{name}.log")
        for name, address in health.items():
            product.await_ready(started[name], f"http://{address}/readyz")
        time.sleep(SETTLE_SECONDS)
        return {name: memory(process.pid) for name, process in started.items()}
    finally:
        for process in started.values():
            process.stop()
