"""What a run leaves on the machine: processes, namespaces, mounts, cgroups, files, interfaces, settings.

Others may use the machine meanwhile. Whose a process is, is known for sure: this process adopts orphans below
it (PR_SET_CHILD_SUBREAPER, prctl(2)), so whatever a run leaves running is a descendant of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.node.janitor import hierarchies
from tests.node.run import MADE_BY_US, MOUNT_POINTS

_PR_SET_CHILD_SUBREAPER = 36
_TMP = Path("/tmp")
_RUN = "mcn-"
_FILES = (
    *MOUNT_POINTS,
    Path("/dev/mqueue"),
    Path("/dev/shm"),
    Path("/opt/cni"),
    Path("/run/cni"),
    Path("/run/containerd"),
    Path("/run/netns"),
    Path("/run/runc"),
    Path("/run/xtables.lock"),
    Path("/var/lib/containerd"),
    Path("/var/log/containers"),
    Path("/var/log/pods"),
)
"""Where parts of a node put files when nobody tells them otherwise."""
_SETTINGS = (
    "kernel/panic",
    "kernel/panic_on_oops",
    "net/ipv4/ip_forward",
    "vm/overcommit_memory",
    "vm/panic_on_oom",
)


@dataclass(frozen=True)
class Traces:
    """What is there at one moment, in words that can be compared."""

    processes: frozenset[str]
    """Descendants of this process."""
    namespaces: frozenset[str]
    """Those of `processes` that are not this process's own."""
    mounts: frozenset[str]
    """In this process's mount namespace, and in any other that shows the run's directory."""
    cgroups: frozenset[str]
    """The run's, and those with no process in or below them."""
    files: frozenset[str]
    interfaces: frozenset[str]
    settings: frozenset[str]

    def since(self, before: Traces) -> list[str]:
        """What is there now and was not before."""
        return [
            f"{kind}: {one}"
            for kind, found in vars(self).items()
            for one in sorted(found - getattr(before, kind))
        ]


@contextlib.contextmanager
def adopting() -> Iterator[None]:
    """Meanwhile orphans below this process become its children."""
    prctl = ctypes.CDLL(None).prctl
    prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        prctl(_PR_SET_CHILD_SUBREAPER, 0)


def look(run: str = "", *, beside: int = 0) -> Traces:
    """What is there now; adopted children that have ended are reaped first.

    Args:
        run: name of the run's directory (``mcn-…``), known when it runs; other runs' are left out.
        beside: process whose descendants are left out too: another run's.
    """
    descendants = _descendants(os.getpid(), beside)
    return Traces(
        processes=frozenset(f"{pid} {_read(f'/proc/{pid}/comm')}".strip() for pid in descendants),
        namespaces=frozenset(_namespaces(descendants) - _namespaces([os.getpid()])),
        mounts=frozenset(_mounts(run)),
        cgroups=frozenset(_cgroups(run)),
        files=frozenset(_files(run)),
        interfaces=frozenset(path.name for path in Path("/sys/class/net").iterdir()),
        settings=frozenset(f"{name} = {_read(f'/proc/sys/{name}')}" for name in _SETTINGS),
    )


def _descendants(top: int, but: int) -> list[int]:
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        # The name in brackets may hold anything, brackets too; state and parent follow it (proc(5)).
        state, parent = (_read(f"{entry}/stat").rpartition(")")[2].split() or ["", "0"])[:2]
        if state == "Z" and int(parent) == top:
            if int(entry.name) != but:
                _reap(int(entry.name))
        else:
            parents.setdefault(int(parent), []).append(int(entry.name))
    found, rest = [], [top]
    while rest:
        children = [pid for pid in parents.get(rest.pop(), ()) if pid != but]
        found += children
        rest += children
    return found


def _reap(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def _namespaces(pids: list[int]) -> set[str]:
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for entry in os.scandir(f"/proc/{pid}/ns"):
                found.add(os.readlink(entry.path))
    return found


def _mounts(run: str) -> Iterator[str]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        yield " ".join(line.split()[3:5])
    for path in Path("/proc").glob("[0-9]*/mountinfo") if run else ():
        for line in _read(path).splitlines():
            if f"/{run}/" in line:
                yield f"{line.split()[4]} in the mount namespace of {path.parent.name}"


def _cgroups(run: str) -> Iterator[str]:
    for top in hierarchies():
        used: set[Path] = set()
        for path in sorted(_own_and_foreign(top, run), reverse=True):
            if path in used or _read(path / "cgroup.procs"):
                used.add(path.parent)
                if not run or run not in str(path):
                    continue
            yield str(path)


def _own_and_foreign(top: Path, run: str) -> Iterator[Path]:
    """Cgroups but for those of other runs."""
    for path, directories, _ in os.walk(top):
        directories[:] = [name for name in directories if f"-{_RUN}" not in name or (run and run in name)]
        yield Path(path)


def _files(run: str) -> Iterator[str]:
    others = run and any(path.name != run for path in _TMP.glob(f"{_RUN}*"))
    for top in _FILES:
        shared = {top, top / MADE_BY_US} if others and top in MOUNT_POINTS else set()
        yield from (str(path) for path in _all_below(top) if path not in shared)
    if run and (_TMP / run).exists():
        yield str(_TMP / run)


def _all_below(top: Path) -> Iterator[Path]:
    """The path with all below it; what goes meanwhile is passed over."""
    if top.exists():
        yield top
    for path, directories, files in os.walk(top):
        yield from (Path(path, name) for name in (*directories, *files))


def _read(path: Path | str) -> str:
    """What a file says, empty when it is gone."""
    try:
        return Path(path).read_text(errors="replace").strip()
    except OSError:
        return ""
