"""Removes what the kernel does not: the run's cgroups and files. Outlives the run, however it ended.

Called as ``python -IS janitor.py DIRECTORY CGROUP MARK FD MOUNTPOINT...``. FD is the reading end of a pipe
whose other ends the run's processes hold; it reads as ended when the last of them is gone, killed or not.
Processes, mounts and network namespaces need no removal: they end with the run's PID namespace. A MOUNTPOINT
is a directory that nodes mount something on; one with a file MARK in it was made by a run.
"""

import contextlib
import fcntl
import os
import shutil
import signal
import sys
import time
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
_PATIENCE = 20.0


def hierarchies() -> list[Path]:
    """Roots of the cgroup hierarchies: one with cgroup v2, one a controller with v1."""
    if (CGROUPS / "cgroup.controllers").exists():
        return [CGROUPS]
    return sorted(p for p in CGROUPS.iterdir() if (p / "cgroup.procs").exists() and not p.is_symlink())


def remove_cgroup(top: Path, deadline: float) -> bool:
    """Removes a cgroup with all below it, and kills what is still in there. Whether it is gone."""
    while top.exists():
        for directory, _, _ in os.walk(top, topdown=False):
            try:
                os.rmdir(directory)
            except OSError:
                _kill(Path(directory))
        if time.monotonic() > deadline:
            return not top.exists()
        time.sleep(0.05)
    return True


def _kill(cgroup: Path) -> None:
    try:
        pids = (cgroup / "cgroup.procs").read_text().split()
    except OSError:
        return
    for pid in pids:
        try:
            os.kill(int(pid), signal.SIGKILL)
        except OSError:
            continue


def remove_files(top: Path, deadline: float) -> bool:
    """Removes a directory, again while processes that are being killed write to it. Whether it is gone."""
    while top.exists():
        shutil.rmtree(top, ignore_errors=True)
        if time.monotonic() > deadline:
            return not top.exists()
        time.sleep(0.05)
    return True


def remove_run(directory: Path, cgroup: str, deadline: float) -> list[Path]:
    """Removes a run's cgroup in each hierarchy, and its files; what could not be removed."""
    left = [h / cgroup for h in hierarchies() if not remove_cgroup(h / cgroup, deadline)]
    # Last: a directory that is there tells that there may be cgroups.
    return left if remove_files(directory, deadline) else [*left, directory]


def remove_mount_points(made: list[Path], mark: str) -> None:
    """Removes the directories with the *mark*: nobody may have mounted something on them."""
    for directory in made:
        with contextlib.suppress(OSError):
            (directory / mark).unlink()
            directory.rmdir()


def main() -> int:
    """Waits for the run's end, then removes; 1 when something stayed."""
    directory, cgroup, mark, descriptor = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while os.read(descriptor, 4096):
        pass
    left = remove_run(directory, cgroup, time.monotonic() + _PATIENCE)
    lock = os.open(directory.parent, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    if not any(directory.parent.glob(f"{directory.name.partition('-')[0]}-*")):
        remove_mount_points([Path(argument) for argument in sys.argv[5:]], mark)
    os.close(lock)
    for path in left:
        print(f"janitor: {path} could not be removed", file=sys.stderr, flush=True)
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
