"""Cgroups of the nodes. The janitor removes them, as nothing else outlives a killed run."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from tests.node.janitor import CGROUPS, hierarchies

MEMORY = CGROUPS if (CGROUPS / "cgroup.controllers").exists() else CGROUPS / "memory"
"""Root of the hierarchy with the memory controller."""


def make(path: str) -> None:
    """Makes the cgroup `path` (relative, e.g. ``run/node-1``) in every hierarchy, ready to hold processes.

    cgroup v1's cpuset takes no process before its processors and memory nodes are filled in (cgroups(7)); in
    cgroup v2 controllers are handed down one level at a time.
    """
    for top in hierarchies():
        current = top
        for part in Path(path).parts:
            parent, current = current, current / part
            current.mkdir(exist_ok=True)
            for name in ("cpuset.cpus", "cpuset.mems"):
                given = parent / name
                if given.exists() and (parent / "cgroup.clone_children").exists():
                    (current / name).write_text(given.read_text())
            if (CGROUPS / "cgroup.controllers").exists():
                _hand_down(parent)


def of_pod(node: str, pod_uid: str) -> dict[str, str]:
    """Cgroups of a pod's containers by container id, relative to the hierarchy's root; `node`: its node's."""
    found: dict[str, str] = {}
    # Others come and go meanwhile: os.walk passes over what is gone.
    for directory, below, _ in os.walk(MEMORY / node):
        if directory.endswith(f"pod{pod_uid}"):
            found |= {name: str(Path(directory, name).relative_to(MEMORY)) for name in below}
            below.clear()
    return found


def processes(path: str) -> list[int]:
    """Process ids in a cgroup, ascending; none when the cgroup is gone."""
    try:
        return sorted(int(pid) for pid in (MEMORY / path / "cgroup.procs").read_text().split())
    except OSError:
        # Gone before it was opened (ENOENT) or before it was read (ENODEV).
        return []


def memory(path: str) -> dict[str, int]:
    """Memory statistics of a cgroup, as the kernel counts: bytes by name (``rss`` in v1, ``anon`` in v2)."""
    lines = (MEMORY / path / "memory.stat").read_text().splitlines()
    return {name: int(value) for name, value in (line.split() for line in lines)}


def resident(path: str) -> int:
    """Bytes of anonymous memory in a cgroup without children."""
    statistics = memory(path)
    return statistics["anon"] if "anon" in statistics else statistics["rss"]


def working_set(path: str) -> int:
    """Bytes that a cgroup uses without page cache that is easily given back, as the kubelet reckons."""
    used = MEMORY / path / ("memory.current" if CGROUPS == MEMORY else "memory.usage_in_bytes")
    statistics = memory(path)
    cold = statistics.get("total_inactive_file", statistics["inactive_file"])
    return max(0, int(used.read_text()) - cold)


def _hand_down(cgroup: Path) -> None:
    for name in (cgroup / "cgroup.controllers").read_text().split():
        with contextlib.suppress(OSError):
            (cgroup / "cgroup.subtree_control").write_text(f"+{name}")
