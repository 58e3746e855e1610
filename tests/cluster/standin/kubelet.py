"""One simulated node: the Node object and its lease, the device manager, and the pods bound to it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import aiohttp
from migcompat.kubelet.deviceplugin_v1beta1 import deviceplugin_pb2 as dp

from tests.cluster.api import STRATEGIC, Api, ApiError, Object, now
from tests.cluster.loopback import LoopbackRange
from tests.cluster.standin.pod import PodWorker
from tests.support.kubelet import DeviceManager

log = logging.getLogger(__name__)

_LEASE_RENEWAL = 10.0
_CAPACITY = {
    "cpu": "16",
    "memory": "64Gi",
    "pods": "110",
    "ephemeral-storage": "100Gi",
    "devices.kubevirt.io/kvm": "110",
    "devices.kubevirt.io/tun": "110",
    "devices.kubevirt.io/vhost-net": "110",
}
"""KubeVirt's own device plugin would offer the last three."""

BOOT_ID = "proc/sys/kernel/random/boot_id"
"""Below the node's directory, as on a host."""


class Kubelet:
    """Stands in for a kubelet. Lives in one event loop.

    What is ``/`` to a node's hostPath volumes is `root`: put its devices into ``root/sys`` and ``root/dev``.
    """

    def __init__(
        self,
        api: Api,
        name: str,
        *,
        number: int,
        directory: Path,
        addresses: LoopbackRange,
        kubeconfig_of: Callable[[Mapping[str, str]], dict[str, Any]],
        program_dirs: list[Path],
        labels: Mapping[str, str],
    ) -> None:
        self.api = api
        self.name = name
        self.root = directory / name
        self.address = addresses.node(number)
        self.kubeconfig_of = kubeconfig_of
        self.program_dirs = program_dirs
        self.devices = DeviceManager(self.root / "var" / "lib" / "kubelet")
        self.admission = asyncio.Lock()
        self.answers: dict[tuple[str, str], dict[str, dp.ContainerAllocateResponse]] = {}
        """What Allocate answered, by namespace and name of the pod: environment, device nodes."""
        self.problems: list[str] = []
        """Pods this stand-in could not handle: the test is wrong, or the stand-in has a gap."""
        self.workers: dict[str, PodWorker] = {}
        self._published: dict[str, tuple[int, int]] = {}
        self._labels = labels
        self._number = number
        self._addresses = addresses
        self._roots = itertools.count(1)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._background: list[asyncio.Task[None]] = []
        self.root.mkdir(parents=True, exist_ok=True)
        for part in ("sys", "dev", "proc/sys/kernel/random"):
            (self.root / part).mkdir(parents=True, exist_ok=True)

    async def start(self) -> None:
        """Makes the Node object and begins to serve plugins."""
        self._write_boot_id()
        await self.devices.start()
        labels = {
            "kubernetes.io/hostname": self.name,
            "kubernetes.io/arch": "amd64",
            "kubernetes.io/os": "linux",
            "kubevirt.io/schedulable": "true",
            "cpu-vendor.node.kubevirt.io/Intel": "true",
            "machine-type.node.kubevirt.io/q35": "true",
            **self._labels,
        }
        node: Object = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": self.name, "labels": labels},
        }
        await self.api.apply(f"/api/v1/nodes/{self.name}", node)
        await self._publish()
        await self._renew()
        self._background = [
            asyncio.create_task(self._keep_lease()),
            asyncio.create_task(self._keep_capacity()),
        ]

    async def stop(self) -> None:
        """Ends everything that runs on the node; objects stay."""
        tasks = [*self._background, *self._tasks.values()]
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await self.devices.stop()
        await asyncio.gather(*(w.kill() for w in self.workers.values()))
        self.workers.clear()
        self._tasks.clear()

    async def restart(self) -> None:
        """Restarts the kubelet: sockets are deleted, capacity is 0 until plugins register; pods go on."""
        await self.devices.stop()
        await self._publish()
        await self.devices.start()

    async def reboot(self) -> None:
        """Gives the node another boot id (processes go on; delete the pods to restart them)."""
        self._write_boot_id()
        await self._publish()

    def see(self, kind: str, pod: Object) -> None:
        """A pod of the cluster has changed."""
        uid = pod["metadata"]["uid"]
        worker = self.workers.get(uid)
        if worker is not None:
            if kind == "DELETED":
                worker.gone()
            else:
                worker.update(pod)
        elif kind != "DELETED" and pod["spec"].get("nodeName") == self.name:
            host = bool(pod["spec"].get("hostNetwork"))
            address = self.address if host else self._free_address()
            worker = self.workers[uid] = PodWorker(self, pod, address)
            self._tasks[uid] = asyncio.create_task(self._work(uid, worker))

    def pod_directory(self, pod: Object) -> Path:
        """Where the pod's volumes and logs are kept."""
        meta = pod["metadata"]
        path = self.root / "var" / "log" / "pods" / f"{meta['namespace']}_{meta['name']}"
        path.mkdir(parents=True, exist_ok=True)
        return path

    def container_root(self) -> Path:
        """A new, short directory for the links of a container's file tree (sockets lie below it)."""
        path = self.root / "c" / str(next(self._roots))
        path.mkdir(parents=True)
        return path

    def _free_address(self) -> str:
        used = {worker.address for worker in self.workers.values()}
        return next(a for n in range(2, 255) if (a := self._addresses.pod(self._number, n)) not in used)

    async def _work(self, uid: str, worker: PodWorker) -> None:
        await worker.run()
        self.workers.pop(uid, None)
        self._tasks.pop(uid, None)

    def _write_boot_id(self) -> None:
        self.boot_id = str(uuid.uuid4())
        (self.root / BOOT_ID).write_text(self.boot_id + "\n")

    async def _publish(self) -> None:
        """Writes the node's status: devices as registered, healthy ones allocatable."""
        self._published = self._summary()
        capacity, allocatable = dict(_CAPACITY), dict(_CAPACITY)
        for resource, devices in self.devices.resources.items():
            capacity[resource] = str(len(devices))
            allocatable[resource] = str(sum(devices.values()))
        status = {
            "capacity": capacity,
            "allocatable": allocatable,
            "addresses": [
                {"type": "InternalIP", "address": self.address},
                {"type": "Hostname", "address": self.name},
            ],
            "conditions": [
                {
                    "type": "Ready",
                    "status": "True",
                    "reason": "KubeletReady",
                    "message": "stand-in",
                    "lastHeartbeatTime": now(),
                }
            ],
            "nodeInfo": {
                "bootID": self.boot_id,
                "machineID": self.name,
                "systemUUID": self.name,
                "architecture": "amd64",
                "operatingSystem": "linux",
                "osImage": "stand-in",
                "kernelVersion": "6.12",
                "kubeletVersion": "v1.36.3",
                "kubeProxyVersion": "",
                "containerRuntimeVersion": "standin://1",
            },
        }
        await self.api.patch(f"/api/v1/nodes/{self.name}/status", {"status": status}, STRATEGIC)

    async def _keep_capacity(self) -> None:
        """Publishes at once whenever a plugin's devices change."""
        shown: dict[str, tuple[int, int]] = {}
        while True:
            with contextlib.suppress(TimeoutError):
                await self.devices.wait_for(lambda shown=shown: self._summary() != shown, 60)  # type: ignore[misc]
                # Taken before the write, so that what changes meanwhile is seen as a change.
                latest = self._summary()
                try:
                    await self._publish()
                    shown = latest
                except (ApiError, OSError, aiohttp.ClientError) as error:
                    log.warning("%s: cannot write the node's status: %s", self.name, error)
                    self._published = {}
                    await asyncio.sleep(1)

    def _summary(self) -> dict[str, tuple[int, int]]:
        return {name: (len(d), sum(d.values())) for name, d in self.devices.resources.items()}

    async def _keep_lease(self) -> None:
        while True:
            await asyncio.sleep(_LEASE_RENEWAL)
            try:
                await self._renew()
            except (ApiError, OSError, aiohttp.ClientError) as error:
                log.warning("%s: cannot renew the lease: %s", self.name, error)

    async def _renew(self) -> None:
        moment = now().removesuffix("Z") + ".000000Z"
        lease = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self.name, "namespace": "kube-node-lease"},
            "spec": {"holderIdentity": self.name, "leaseDurationSeconds": 40, "renewTime": moment},
        }
        await self.api.apply(
            f"/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{self.name}", lease
        )
