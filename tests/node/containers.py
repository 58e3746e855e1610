"""What ran on a node: containerd's log tells of every container, also of pods that are gone."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.api import Object
from tests.cluster.controlplane import ClusterError
from tests.node import cgroups
from tests.node.node import Node

_SANDBOX = re.compile(
    r"RunPodSandbox for &PodSandboxMetadata\{Name:(?P<pod>[^,]+),Uid:(?P<uid>[^,]+),Namespace:[^}]*\}"
    r' returns sandbox id \\?"(?P<sandbox>\w+)'
)
_CREATE = re.compile(
    r'CreateContainer within sandbox \\?"(?P<sandbox>\w+)\\?"'
    r" for container &ContainerMetadata\{Name:(?P<name>[^,]+)"
)


def asked_for(node: Node, pod_uid: str) -> list[str]:
    """Names of the containers that containerd was asked to make for a pod, in order, repeats too."""
    sandboxes, names = set(), []
    for line in node.log("containerd").read_text(errors="replace").splitlines():
        if (match := _SANDBOX.search(line)) and match["uid"] == pod_uid:
            sandboxes.add(match["sandbox"])
        elif (match := _CREATE.search(line)) and match["sandbox"] in sandboxes:
            names.append(match["name"])
    return names


@dataclass(frozen=True)
class Container:
    """A running container of a pod, as its status names it."""

    pod_uid: str
    id: str
    started: str

    def pids(self, node: Node) -> list[int]:
        """Its process ids in the run's PID namespace, in the order of their start; at least one.

        Raises:
            ClusterError: it does not run on the node any more.
        """
        found = cgroups.processes(self.cgroup(node))
        if not found:
            raise ClusterError(f"container {self.id} of pod {self.pod_uid} has no process on {node.name}")
        return found

    def cgroup(self, node: Node) -> str:
        """Its cgroup, relative to the hierarchy's root.

        Raises:
            ClusterError: it does not run on the node any more.
        """
        try:
            return node.cgroups_of_pod(self.pod_uid)[self.id]
        except KeyError:
            raise ClusterError(f"container {self.id} of pod {self.pod_uid} is not on {node.name}") from None


def running(pod: Object, name: str, kind: str = "containerStatuses") -> Container | None:
    """The container of that name if it runs, as the pod's status says."""
    for status in pod["status"].get(kind, ()):
        if status["name"] == name and "running" in status.get("state", {}):
            id_ = status["containerID"].removeprefix("containerd://")
            return Container(pod["metadata"]["uid"], id_, status["state"]["running"]["startedAt"])
    return None


@dataclass(frozen=True)
class Credentials:
    """What the kernel lets a process do (proc_pid_status(5))."""

    uids: tuple[int, ...]
    """Real, effective, saved, file system."""
    effective: int
    """Capabilities, as a mask; so the next two."""
    permitted: int
    bounding: int
    no_new_privileges: bool
    seccomp_filter: bool


def credentials(pid: int) -> Credentials:
    """Of a process in the run's PID namespace."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in lines)
    return Credentials(
        uids=tuple(int(uid) for uid in status["Uid"].split()),
        effective=int(status["CapEff"], 16),
        permitted=int(status["CapPrm"], 16),
        bounding=int(status["CapBnd"], 16),
        no_new_privileges=status["NoNewPrivs"].strip() == "1",
        seccomp_filter=status["Seccomp"].strip() == "2",
    )


def is_read_only(pid: int, path: str) -> bool:
    """Whether the mount that `path` lies on in the process's mount namespace may only be read."""
    best, options = "", ""
    for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines():
        fields = line.split()
        point = fields[4]
        inside = point in ("/", path) or path.startswith(f"{point}/")
        # Later lines lie over earlier ones.
        if inside and len(point) >= len(best):
            best, options = point, fields[5]
    return "ro" in options.split(",")
