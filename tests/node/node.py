"""One real node: containerd, runc, CNI plugins, kubelet and kube-proxy in namespaces of its own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.binaries.build import NodeBinaries
from tests.cluster.controlplane import ClusterError
from tests.cluster.processes import Process
from tests.node import cgroups, network
from tests.node.commands import ENVIRONMENT, run
from tests.node.controlplane import NodeControlPlane
from tests.node.images import PAUSE
from tests.node.janitor import hierarchies, remove_cgroup
from tests.node.run import CNI_DIRECTORY, KUBELET_DIRECTORY
from tests.support import overlay

_READY_DEADLINE = 120.0
_END_DEADLINE = 60.0
_SETTINGS = Path("/proc/sys")
BOOT_ID = _SETTINGS / "kernel/random/boot_id"
_KUBELET_SETS = (
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)
"""Kernel settings that a kubelet changes for the whole machine (its ``setupKernelTunables``)."""
_CONTAINERD = "/run/containerd/containerd.sock"
_CNI_PROGRAMS = "/usr/lib/cni"


class Node:
    """A node: `start` and `stop` it, or let it end with the run's namespaces.

    Its mount namespace shows `root`/kubelet at /var/lib/kubelet, `root`/run at /run, `root`/log at
    /var/log, `root`/boot_id as the kernel's boot id, files in place of the kernel settings that a kubelet
    changes, and `host` at a path that is the same on all nodes, for the chart's hostPaths.
    """

    def __init__(
        self, name: str, number: int, *, plane: NodeControlPlane, programs: NodeBinaries, cgroup: str
    ) -> None:
        """Nothing runs until `start`.

        Args:
            name: of the Node object.
            number: 1 to 100, for its addresses.
            plane: what it joins; running.
            programs: kubelet and kube-proxy.
            cgroup: the run's cgroup, relative to the hierarchies' roots.
        """
        self.name = name
        self.number = number
        self.address = plane.network.node(number)
        self.root = plane.directory / "nodes" / name
        self.host = self.root / "host"
        """What the chart's hostPaths lead to: put devices into ``host/sys`` and ``host/dev``."""
        self.cgroup = f"{cgroup}/{name}"
        self._plane = plane
        self._programs = programs
        self._processes: dict[str, Process] = {}
        for part in ("kubelet", "run", "log", "host/sys", "host/dev", "logs", "containerd", "cni/cache"):
            (self.root / part).mkdir(parents=True, exist_ok=True)
        # Copies of whole layers, where there is no overlayfs.
        self._snapshotter = "overlayfs" if overlay.mounts(self.root / "containerd") else "native"
        self.shared = shared_host(plane.directory)
        self.shared.mkdir(exist_ok=True)
        self.new_boot_id()
        self._kubeconfig = self._identity(f"system:node:{name}", "system:nodes")
        self._proxy_kubeconfig = self._identity("system:kube-proxy", "")

    # life

    def start(self, images: Mapping[str, Path]) -> None:
        """Starts everything.

        Args:
            images: docker-archive tars to import at the first start, by the reference they must bring.

        Raises:
            ClusterError: a part did not start; with the end of its log.
        """
        self._enter_namespaces()
        cgroups.make(self.cgroup)
        self.start_containerd()
        for reference, archive in images.items():
            self.import_image(reference, archive)
        self.start_kubelet()
        self._start_proxy()

    def stop(self) -> None:
        """Ends every process of the node, containers too, and with them its mounts and its network.

        Raises:
            ClusterError: something stays; all else is gone.
        """
        for name in ("kube-proxy", "kubelet", "containerd"):
            self._end(name)
        holder = self._processes.pop("holder", None)
        if holder is None:
            return
        with contextlib.ExitStack() as stack:
            for top in hierarchies():
                stack.callback(self._remove_cgroup, top / self.cgroup)
            stack.callback(holder.stop, 0.0)
            # The kernel takes a dead namespace's interfaces away later, when the next start may be at it.
            stack.callback(network.disconnect, self.number)
            self._kill_members(holder.pid)

    def reboot(self) -> None:
        """What a reset does: every process and mount is gone, files stay, the kernel has a new boot id."""
        self.stop()
        shutil.rmtree(self.root / "run")
        (self.root / "run").mkdir()
        self.new_boot_id()
        self.start({})

    def new_boot_id(self) -> None:
        """Writes a fresh boot id into the file that is mounted over the kernel's."""
        (self.root / "boot_id").write_text(f"{uuid.uuid4()}\n")

    @property
    def boot_id(self) -> str:
        """The boot id that the node has now."""
        return (self.root / "boot_id").read_text().strip()

    def start_containerd(self) -> None:
        """Starts containerd and waits until it answers. Raises ClusterError."""
        path = self.root / "containerd.toml"
        path.write_text(_toml(self._containerd_config()))
        self._run("containerd", "containerd", f"--config={path}")
        self._await("containerd", lambda: self.ctr("version", timeout=10.0))

    def start_kubelet(self, **changes: Any) -> None:
        """Starts the kubelet; `changes` are keys of its configuration. Does not wait until it is ready."""
        path = self.root / "kubelet.yaml"
        path.write_text(yaml.safe_dump({**self._kubelet_config(), **changes}))
        self._run(
            "kubelet",
            str(self._programs.kubelet),
            f"--config={path}",
            f"--kubeconfig={self._kubeconfig}",
            f"--hostname-override={self.name}",
            f"--node-ip={self.address}",
            f"--root-dir={KUBELET_DIRECTORY}",
            "--v=2",
        )

    def stop_kubelet(self) -> None:
        """Ends the kubelet (containers go on)."""
        self._end("kubelet")

    def restart_kubelet(self, **changes: Any) -> None:
        """Ends the kubelet and starts it anew: it wipes the plugins' sockets and admits all pods again."""
        self.stop_kubelet()
        self.start_kubelet(**changes)

    # use

    def enter(self, *command: str, timeout: float = 60.0, stdin: str = "") -> str:
        """The output of a command in the node's mount and network namespaces. Raises ClusterError."""
        return run(*self._nsenter(), *command, timeout=timeout, stdin=stdin)

    def ctr(self, *arguments: str, timeout: float = 60.0) -> str:
        """The output of containerd's command line, in the kubelet's namespace of it. Raises ClusterError."""
        return self.enter("ctr", "-a", _CONTAINERD, "-n", "k8s.io", *arguments, timeout=timeout)

    def import_image(self, reference: str, archive: Path) -> None:
        """Imports a docker-archive. Raises ClusterError when it does not bring `reference`."""
        self.ctr("images", "import", f"--snapshotter={self._snapshotter}", str(archive), timeout=180.0)
        known = self.ctr("images", "ls", "-q").split()
        if reference not in known:
            raise ClusterError(f"{archive} brought no {reference}; containerd on {self.name} has {known}")

    def kill_container(self, pod_uid: str, number: int = signal.SIGKILL) -> None:
        """Sends a signal to all processes of a pod's containers (also its sandbox's)."""
        for pid in self.pids_of_pod(pod_uid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def cgroups_of_pod(self, pod_uid: str) -> dict[str, str]:
        """Cgroups of a running pod's containers, relative to the hierarchy's root, by container id."""
        return cgroups.of_pod(self.cgroup, pod_uid)

    def pids_of_pod(self, pod_uid: str) -> list[int]:
        """Process ids (in the run's PID namespace) of a pod's containers."""
        return [pid for path in self.cgroups_of_pod(pod_uid).values() for pid in cgroups.processes(path)]

    def log(self, part: str) -> Path:
        """The log file of a part, e.g. ``kubelet``."""
        return self.root / "logs" / f"{part}.log"

    def problems(self) -> list[str]:
        """Parts that ended though nobody ended them."""
        return [
            f"{self.name}: {part} ended with {code}: {process.tail(500)}"
            for part, process in self._processes.items()
            if (code := process.exit_code()) is not None
        ]

    # inside

    def _enter_namespaces(self) -> None:
        """Starts the process that holds the node's namespaces, and connects its network."""
        ready = self.root / "ready"
        ready.unlink(missing_ok=True)
        settings = "\n".join(f"mount --bind {self._setting(n)} {_SETTINGS / n}" for n in _KUBELET_SETS)
        script = f"""
            {settings}
            mount --bind {self.root}/kubelet {KUBELET_DIRECTORY}
            mount --bind {self.root}/cni/cache {CNI_DIRECTORY}
            mount --bind {self.root}/log /var/log
            mount --bind {self.host} {self.shared}
            mount --bind {self.root}/boot_id {BOOT_ID}
            mount --bind {self.root}/run /run
            mount --make-rshared /
            touch {ready}
            exec sleep infinity
        """
        self._processes["holder"] = holder = Process(
            "holder",
            ["unshare", "--mount", "--net", "--propagation=private", "sh", "-ec", script],
            log=self.log("holder"),
            environment=ENVIRONMENT,
        )
        self._await("holder", ready.stat)
        network.connect(self._plane.network, self.number, holder.pid)

    def _setting(self, name: str) -> Path:
        """A file of the node's own that says what the kernel's does now."""
        path = self.root / "settings" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text((_SETTINGS / name).read_text())
        return path

    def _nsenter(self) -> list[str]:
        pid = self._processes["holder"].pid
        return ["nsenter", f"--mount=/proc/{pid}/ns/mnt", f"--net=/proc/{pid}/ns/net"]

    def _run(self, part: str, *command: str) -> None:
        self._end(part)
        self._processes[part] = Process(
            part,
            [*self._nsenter(), *command],
            log=self.log(part),
            environment={**ENVIRONMENT, "HOME": str(self.root)},
        )

    def _end(self, part: str) -> None:
        process = self._processes.pop(part, None)
        if process:
            process.stop(5.0)

    def _await(self, part: str, answers: Any) -> None:
        process = self._processes[part]
        deadline = time.monotonic() + _READY_DEADLINE
        while True:
            try:
                answers()
                return
            except (ClusterError, OSError) as error:
                problem = error
            code = process.exit_code()
            if code is not None:
                raise ClusterError(
                    f"{self.name}: {part} ended with {code}; the end of its log:\n{process.tail()}"
                )
            if time.monotonic() > deadline:
                raise ClusterError(f"{self.name}: {part}: {problem}; the end of its log:\n{process.tail()}")
            time.sleep(0.1)

    def _kill_members(self, holder: int) -> None:
        """Kills what runs in the node's cgroups or in its mount namespace (containers; their shims)."""
        deadline = time.monotonic() + _END_DEADLINE
        while members := [p for p in self._members(holder) if p != holder]:
            for pid in members:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if time.monotonic() > deadline:
                raise ClusterError(f"{self.name}: processes {members} do not end")
            time.sleep(0.05)

    def _remove_cgroup(self, path: Path) -> None:
        if not remove_cgroup(path, time.monotonic() + _END_DEADLINE):
            raise ClusterError(f"{self.name}: {path} cannot be removed")

    def _members(self, holder: int) -> list[int]:
        own = _link(Path(f"/proc/{holder}/ns/mnt"))
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError):
                mine = _link(entry / "ns/mnt") == own != ""
                if mine or f"/{self.cgroup}/" in (entry / "cgroup").read_text():
                    found.append(int(entry.name))
        return found

    def _identity(self, user: str, group: str) -> Path:
        pair = self._plane.authority.issue(user, organization=group)
        path = self.root / f"{user.replace(':', '-')}.kubeconfig"
        path.write_text(
            yaml.safe_dump(
                self._plane.kubeconfig_of(
                    {"client-certificate": str(pair.certificate), "client-key": str(pair.key)}
                )
            )
        )
        return path

    def _kubelet_config(self) -> dict[str, Any]:
        resolv = self.root / "resolv.conf"
        resolv.touch()
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": False},
                "x509": {"clientCAFile": str(self._plane.authority.certificate)},
            },
            "authorization": {"mode": "AlwaysAllow"},
            "containerRuntimeEndpoint": f"unix://{_CONTAINERD}",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{self.cgroup}",
            "failCgroupV1": False,
            "failSwapOn": False,
            "localStorageCapacityIsolation": False,
            "resolvConf": str(resolv),
            "podLogsDir": "/var/log/pods",
            "oomScoreAdj": 0,
            "imageGCHighThresholdPercent": 100,
            "evictionHard": {"memory.available": "50Mi", "nodefs.available": "0%", "imagefs.available": "0%"},
            "enforceNodeAllocatable": ["pods"],
            # Faster than a real node's 10 s, so that the answer to a restart is not the wait for a clock.
            "nodeStatusUpdateFrequency": "2s",
            "registerNode": True,
        }

    def _containerd_config(self) -> dict[str, Any]:
        (self.root / "cni/net.d").mkdir(parents=True, exist_ok=True)
        conflist = {
            "cniVersion": "0.4.0",
            "name": "pods",
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": "pods0",
                    "isGateway": True,
                    "hairpinMode": True,
                    "ipam": {
                        "type": "host-local",
                        "dataDir": str(self.root / "cni/state"),
                        "ranges": [[{"subnet": self._plane.network.pod_subnet(self.number)}]],
                        "routes": [{"dst": "0.0.0.0/0"}],
                    },
                }
            ],
        }
        (self.root / "cni/net.d/10-pods.conflist").write_text(json.dumps(conflist))
        return {
            "version": 2,
            "root": str(self.root / "containerd"),
            "state": "/run/containerd",
            "grpc": {"address": _CONTAINERD},
            "plugins": {
                "io.containerd.internal.v1.opt": {"path": str(self.root / "opt")},
                "io.containerd.grpc.v1.cri": {
                    "sandbox_image": PAUSE,
                    "disable_apparmor": True,
                    # Without CAP_SYS_RESOURCE nobody may lower the score that runc is told to set.
                    "restrict_oom_score_adj": True,
                    # As KubeVirt asks its nodes for: devices belong to the user that the pod runs as.
                    "device_ownership_from_security_context": True,
                    "containerd": {
                        "snapshotter": self._snapshotter,
                        "runtimes": {
                            "runc": {
                                "runtime_type": "io.containerd.runc.v2",
                                "options": {"SystemdCgroup": False},
                            }
                        },
                    },
                    "cni": {"bin_dir": _CNI_PROGRAMS, "conf_dir": str(self.root / "cni/net.d")},
                },
            },
        }

    def _start_proxy(self) -> None:
        self._run(
            "kube-proxy", *proxy_command(self._programs, self._plane, self._proxy_kubeconfig, self.name)
        )


def _link(path: Path) -> str:
    """Where a link leads to, empty when its process has ended."""
    try:
        return os.readlink(path)
    except OSError:
        return ""


def proxy_command(
    programs: NodeBinaries, plane: NodeControlPlane, kubeconfig: Path, node: str
) -> tuple[str, ...]:
    """kube-proxy for the network namespace in which it is started."""
    return (
        str(programs.kube_proxy),
        f"--kubeconfig={kubeconfig}",
        f"--hostname-override={node}",
        "--proxy-mode=iptables",
        f"--cluster-cidr={plane.network.pods}",
        "--conntrack-max-per-core=0",
        "--conntrack-tcp-timeout-established=0",
        "--conntrack-tcp-timeout-close-wait=0",
        "--oom-score-adj=0",
    )


def shared_host(directory: Path) -> Path:
    """Where each node shows its own `Node.host`."""
    return directory / "host"


def _toml(config: Mapping[str, Any], prefix: str = "") -> str:
    """Mappings as TOML; values are strings, numbers and booleans, which JSON writes the same way."""
    lines, tables = [], []
    for key, value in config.items():
        quoted = json.dumps(key)
        if isinstance(value, Mapping):
            path = f"{prefix}.{quoted}" if prefix else quoted
            tables.append(f"[{path}]\n{_toml(value, path)}")
        else:
            lines.append(f"{quoted} = {json.dumps(value)}")
    return "\n".join([*lines, *tables]) + "\n"
