"""Runs a command in namespaces of its own, beside a janitor, so that nothing of it stays however it ends.

The command becomes the child of process 1 of a PID namespace with its own mounts, network, host name and IPC.
When this process dies, even by SIGKILL, the kernel kills that process 1 and with it everything in there; the
janitor outlives both and removes cgroups and files.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from tests.cluster.controlplane import ClusterError
from tests.node.janitor import remove_run

_HERE = Path(__file__).parent
DIE_WITH_PARENT = _HERE.parent / "cluster" / "die_with_parent.py"
_GRACE = 60.0
_CLEANING = 120.0
_SWEEPING = 20.0
_NAME, _CGROUP = "mcn-", "migcompat-"
_LOCK = "lock"
"""In a run's directory: locked as long as the run or its janitor is there."""

KUBELET_DIRECTORY = Path("/var/lib/kubelet")
"""Not to be chosen: the kubelet's device plugin directory lies below it whatever ``--root-dir`` says."""
CNI_DIRECTORY = Path("/var/lib/cni")
"""Where containerd keeps what the CNI plugins answered; not to be chosen either."""
MOUNT_POINTS = (KUBELET_DIRECTORY, CNI_DIRECTORY)
"""Each node mounts its own over them."""
MADE_BY_US = ".of-migcompat-tests"
"""Empty file in a mount point that a run made: the last run that is there takes it away again."""
DIRECTORY, CGROUP = "MIGCOMPAT_RUN_DIRECTORY", "MIGCOMPAT_RUN_CGROUP"
"""Environment of the command: where its files belong; its cgroup, relative to the hierarchies' roots."""


def place() -> tuple[Path, str]:
    """Directory and cgroup of the run that this process is in.

    Raises:
        ClusterError: it is in none.
    """
    try:
        return Path(os.environ[DIRECTORY]), os.environ[CGROUP]
    except KeyError as error:
        raise ClusterError("not inside a run: start this with `make test-node`") from error


def require_root() -> None:
    """Raises ClusterError when this process is not root."""
    if os.geteuid() != 0:
        raise ClusterError("root is needed (namespaces, cgroups, mounts): run this as root")


def contained(command: Sequence[str]) -> int:
    """Runs `command` to its end and cleans up; its exit status.

    Ctrl-C reaches the command, which has `_GRACE` seconds to end by itself; SIGTERM ends it at once.

    Raises:
        ClusterError: not root; unshare is missing; something could not be removed.
    """
    require_root()
    if shutil.which("unshare") is None:
        raise ClusterError("unshare is missing (on Debian: apt-get install util-linux)")
    # Short, because sockets with their 107 characters of path lie below it.
    directory = Path("/tmp") / f"{_NAME}{secrets.token_hex(3)}"
    cgroup = f"{_CGROUP}{directory.name}"
    reading, writing = os.pipe()
    with no_run_comes_or_goes(directory.parent):
        sweep(directory.parent)
        directory.mkdir(mode=0o711)
        held = _hold(directory)
        removes = [str(directory), cgroup, MADE_BY_US, str(reading), *map(str, MOUNT_POINTS)]
        janitor = subprocess.Popen(
            [sys.executable, "-IS", str(_HERE / "janitor.py"), *removes],
            stdin=subprocess.DEVNULL,
            pass_fds=[reading, held],
            start_new_session=True,
        )
        os.close(reading)
        for mount_point in MOUNT_POINTS:
            if not mount_point.exists():
                mount_point.mkdir(parents=True)
                (mount_point / MADE_BY_US).touch()
    inside = [
        "unshare", "--fork", "--pid", "--kill-child", "--mount", "--mount-proc", "--net", "--uts", "--ipc",
        sys.executable, "-IS", str(_HERE / "init.py"), *command,
    ]  # fmt: skip
    previous = signal.signal(signal.SIGTERM, _terminated)
    process: subprocess.Popen[bytes] | None = None
    try:
        process = subprocess.Popen(
            [sys.executable, "-IS", str(DIE_WITH_PARENT), str(os.getpid()), *inside],
            env={**os.environ, DIRECTORY: str(directory), CGROUP: cgroup},
            pass_fds=[writing],
        )
        return _wait(process)
    finally:
        if process is not None and process.poll() is None:
            process.kill()
            process.wait()
        os.close(writing)
        signal.signal(signal.SIGTERM, previous)
        left = janitor.wait(_CLEANING)
        os.close(held)
        if left:
            raise ClusterError("cgroups or files of this run could not be removed; see above")


def sweep(parent: Path) -> None:
    """Removes cgroups and files of runs in `parent` that were killed together with their janitors.

    No run may come or go meanwhile. What cannot be removed is told, and does no harm to a new run.
    """
    for directory in parent.glob(f"{_NAME}*"):
        if not (directory / _LOCK).exists():
            # The janitor is just removing it.
            continue
        try:
            descriptor = _hold(directory)
        except OSError:
            continue
        print(f"real nodes: removing what a killed run left: {directory}", file=sys.stderr, flush=True)
        for left in remove_run(directory, f"{_CGROUP}{directory.name}", time.monotonic() + _SWEEPING):
            print(f"real nodes: {left} could not be removed", file=sys.stderr, flush=True)
        os.close(descriptor)


def _hold(directory: Path) -> int:
    """A descriptor that locks a run's directory until all who have it are gone, however they end.

    Raises:
        BlockingIOError: others have it.
    """
    descriptor = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    return descriptor


@contextlib.contextmanager
def no_run_comes_or_goes(parent: Path) -> Iterator[None]:
    """Holds the lock under which runs make and janitors remove what runs share."""
    descriptor = os.open(parent, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _wait(process: subprocess.Popen[bytes]) -> int:
    try:
        code = process.wait()
    except KeyboardInterrupt:
        print("real nodes: ending the cluster, up to 20 s …", file=sys.stderr, flush=True)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE)
        raise
    return code if code >= 0 else 128 - code


def _terminated(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)
