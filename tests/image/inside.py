"""Becomes a command in an unpacked image as the chart's containers are: started by `container.Container`.

Called as ``python -IS inside.py JSON`` as process 1 of fresh mount, PID, network, IPC and UTS namespaces. The
root is read-only, the network has only its loopback, there is no capability and no way to get one.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import socket
import stat
import struct
import subprocess
import sys
from pathlib import Path

_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
_DEVICES = ("null", "zero", "full", "random", "urandom")


def main() -> None:
    """Builds the container around this process, then becomes the command."""
    spec = json.loads(sys.argv[1])
    root = Path(spec["root"])
    _mount("--rbind", root, root)
    for name in ("proc", "dev"):
        (root / name).mkdir(exist_ok=True)
    _mount("-t", "proc", "proc", root / "proc")
    _mount("-t", "tmpfs", "tmpfs", root / "dev")
    for name in _DEVICES:
        _bind(Path("/dev", name), root / "dev" / name, writable=True)
    for path, (major, minor, mode) in spec["nodes"].items():
        _make_node(root / path.lstrip("/"), os.makedev(major, minor), mode)
    for path, (source, writable) in spec["mounts"].items():
        _bind(Path(source), root / path.lstrip("/"), writable)
    _mount("-o", "remount,bind,ro", root)
    _raise_loopback()
    os.chroot(root)
    os.chdir("/")
    _give_up_privileges(spec["uid"])
    os.execve(spec["command"][0], spec["command"], spec["environment"])


def _make_node(target: Path, number: int, mode: int) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    os.mknod(target, stat.S_IFCHR | mode, number)
    target.chmod(mode)


def _bind(source: Path, target: Path, writable: bool) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        target.mkdir(exist_ok=True)
    else:
        target.touch()
    _mount("--bind", source, target)
    if not writable:
        _mount("-o", "remount,bind,ro", target)


def _mount(*arguments: str | Path) -> None:
    subprocess.run(["mount", *arguments], check=True)


def _raise_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        asked = fcntl.ioctl(any_socket, _SIOCGIFFLAGS, struct.pack("16sh14x", b"lo", 0))
        flags = struct.unpack_from("16sh", asked)[1]
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | _IFF_UP))


def _give_up_privileges(uid: int) -> None:
    """Also root's: execve(2) gives it no more than the bounding set (capabilities(7))."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    for capability in range(int(Path("/proc/sys/kernel/cap_last_cap").read_text()) + 1):
        if prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0):
            sys.exit(f"cannot drop capability {capability}: {os.strerror(ctypes.get_errno())}")
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    if prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        sys.exit(f"cannot set no_new_privs: {os.strerror(ctypes.get_errno())}")


main()
