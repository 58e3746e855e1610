"""How long a scan of 1,024 VFs takes, beside the bare system calls over the same tree.

The baseline does a part of what any scan must: for each function one ``readlink`` of its entry, driver,
IOMMU group and PF, and one ``stat`` of the files whose contents say what it is. It opens and decides
nothing.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from migcompat.sysfs.scan import scan

from tests.bench.figures import BenchError, Row
from tests.support.vfs import make_vfs

VFS = 1024
ROUNDS = 9
GOAL_MS = {False: 100.0, True: 250.0}
"""Without and with declarations: a scan every five seconds, below a twentieth of one core in any case."""
LINKS = ("driver", "iommu_group", "physfn")
FILES = ("vendor", "device", "revision", "numa_node", "vfio-dev", "migration")


def bare(sysfs: Path) -> int:
    """The bare system calls; returns how many functions there are."""
    bus = f"{sysfs}/bus/pci/devices"
    functions = os.listdir(bus)
    for name in functions:
        entry = f"{bus}/{name}"
        os.readlink(entry)
        for link in LINKS:
            try:
                os.readlink(f"{entry}/{link}")
            except FileNotFoundError:
                continue
        for file in FILES:
            try:
                os.stat(f"{entry}/{file}")
            except FileNotFoundError:
                continue
    return len(functions)


def _milliseconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return (time.perf_counter() - start) * 1000


def _turn(sysfs: Path) -> tuple[float, float]:
    return _milliseconds(lambda: bare(sysfs)), _milliseconds(lambda: scan(sysfs))


def measure() -> list[Row]:
    """The median of each in milliseconds, in turns. Raises BenchError."""
    rows = []
    for what, declare in (("without declarations", False), ("each with a migration/ tree", True)):
        with tempfile.TemporaryDirectory(prefix="migcompat-bench-") as scratch:
            sysfs = make_vfs(Path(scratch), VFS, declare=declare)
            found = scan(sysfs)
            if len([d for d in found.devices if d.is_vf]) != VFS or found.problems:
                raise BenchError(
                    f"scan: {len(found.devices)} devices and {len(found.problems)} problems where {VFS} VFs"
                    f" are; first problem: {found.problems[:1]}"
                )
            pairs = [_turn(sysfs) for _ in range(ROUNDS)]
        base, ours = (statistics.median(column) for column in zip(*pairs, strict=True))
        rows += [
            Row(name=f"bare readlink and stat of {VFS} VFs, {what}", value=base, unit="ms"),
            Row(
                name=f"scan of {VFS} VFs, {what}",
                value=ours,
                unit="ms",
                baseline="bare readlink and stat",
                ratio=ours / base,
                goal=GOAL_MS[declare],
            ),
        ]
    return rows
