"""What a kubelet does with one pod that is bound to its node."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import yaml

from tests.cluster.api import STRATEGIC, ApiError, Object, now
from tests.cluster.standin import containers, status
from tests.cluster.standin.processes import Container
from tests.support.kubelet import AdmissionError, PreStartError

if TYPE_CHECKING:
    from tests.cluster.standin.kubelet import Kubelet

log = logging.getLogger(__name__)

PRESTART_DELAY = 0.5
"""Between Allocate and PreStartContainer, as measured on a kubelet 1.36."""
PRESTART_RETRY = 10.0
_VOLUME_RETRY = 0.5


def is_ours(pod: Object) -> bool:
    """Whether the product's chart made the pod, so that its containers really run."""
    labels = pod["metadata"].get("labels") or {}
    return labels.get("app.kubernetes.io/part-of") == "migcompat" or (
        labels.get("app.kubernetes.io/name") == "migcompat"
    )


class PodWorker:
    """One pod from its binding to its removal. Containers of other people's pods only seem to run."""

    def __init__(self, kubelet: Kubelet, pod: Object, address: str) -> None:
        self.pod = pod
        self.address = address
        self.containers: list[Container] = []
        self._kubelet = kubelet
        self._deleted = asyncio.Event()
        self._gone = asyncio.Event()
        self._changed = asyncio.Event()
        self._seems_running = False
        self._started = now()

    @property
    def path(self) -> str:
        """Of the API object."""
        meta = self.pod["metadata"]
        return f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}"

    def update(self, pod: Object) -> None:
        """The API object has changed."""
        self.pod = pod
        if "deletionTimestamp" in pod["metadata"]:
            self._deleted.set()
        self._changed.set()

    def gone(self) -> None:
        """The API object has been removed."""
        self._deleted.set()
        self._gone.set()

    async def run(self) -> None:
        """From admission to the end; never raises."""
        if "deletionTimestamp" in self.pod["metadata"]:
            self._deleted.set()
        if self.pod.get("status", {}).get("phase") not in ("Succeeded", "Failed"):
            await self._reporting_problems(self._live())
        await self._deleted.wait()
        await self._reporting_problems(self._end())

    async def kill(self) -> None:
        """The node goes: ends the containers at once."""
        for container in self.containers:
            await container.stop(2.0)

    async def _reporting_problems(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except (ApiError, OSError, ValueError, aiohttp.ClientError, ExceptionGroup) as error:
            meta = self.pod["metadata"]
            log.exception("%s: pod %s/%s", self._kubelet.name, meta["namespace"], meta["name"])
            self._kubelet.problems.append(f"pod {meta['namespace']}/{meta['name']}: {error!r}")

    async def _live(self) -> None:
        try:
            await self._admit()
        except AdmissionError as error:
            await self._set_status(status.rejected(error))
            return
        await self._report()
        if not await self._until(self._prestart()):
            return
        if not is_ours(self.pod):
            self._seems_running = True
            await self._until(self._keep_reporting())
            return
        await self._until(self._run_containers())

    async def _admit(self) -> None:
        """Devices for each container, one pod after another as in the kubelet's sync loop."""
        meta = self.pod["metadata"]
        manager = self._kubelet.devices
        async with self._kubelet.admission:
            for container in self.pod["spec"]["containers"]:
                limits = container.get("resources", {}).get("limits", {})
                wanted = {name: int(n) for name, n in limits.items() if name in manager.resources and int(n)}
                if wanted:
                    answer = await manager.admit(meta["namespace"], meta["name"], container["name"], wanted)
                    self._kubelet.answers[meta["namespace"], meta["name"]] = answer

    async def _prestart(self) -> None:
        """Asks the plugins until they agree; their refusal is the container's reason for waiting."""
        meta = self.pod["metadata"]
        await asyncio.sleep(PRESTART_DELAY)
        for container in self.pod["spec"]["containers"]:
            while True:
                try:
                    await self._kubelet.devices.prestart(meta["namespace"], meta["name"], container["name"])
                    break
                except PreStartError as error:
                    text = f"device plugin PreStartContainer rpc failed with err: {error}"
                    waiting = {"reason": "CreateContainerConfigError", "message": text}
                    await self._report(waiting)
                await asyncio.sleep(PRESTART_RETRY)

    async def _run_containers(self) -> None:
        """The product's pods: real processes."""
        spec = self.pod["spec"]
        directory = self._kubelet.pod_directory(self.pod)
        root = self._kubelet.container_root()
        volumes = await self._volumes(directory)
        base = containers.base_environment(directory, self._kubelet.program_dirs)
        if volumes.has_token:
            config = directory / "kubeconfig"
            token = await containers.token(self._kubelet.api, self.pod)
            config.touch(mode=0o600)
            config.write_text(yaml.safe_dump(self._kubelet.kubeconfig_of({"token": token})))
            base["KUBECONFIG"] = str(config)
        restart = spec.get("restartPolicy", "Always") == "Always"
        for init in spec.get("initContainers", ()):
            await self._run_init(init, volumes, root, base, directory)
        for container in spec["containers"]:
            start = await containers.start(
                self._kubelet.api, self._addressed(), container, volumes=volumes, root=root, base=base
            )
            self.containers.append(
                Container(
                    container,
                    start,
                    log=directory / f"{container['name']}.log",
                    address=self.address,
                    restart=restart,
                    on_change=self._changed.set,
                )
            )
        async with asyncio.TaskGroup() as group:
            for running in self.containers:
                group.create_task(running.run())
            group.create_task(self._keep_reporting())

    async def _run_init(
        self, init: Object, volumes: containers.Volumes, root: Path, base: dict[str, str], directory: Path
    ) -> None:
        start = await containers.start(
            self._kubelet.api, self._addressed(), init, volumes=volumes, root=root, base=base
        )
        while True:
            container = Container(
                init,
                start,
                log=directory / f"{init['name']}.log",
                address=self.address,
                restart=False,
                on_change=self._changed.set,
            )
            await container.run()
            code = container.status()["state"]["terminated"]["exitCode"]
            if code == 0:
                return
            await self._report({"reason": "PodInitializing", "message": f"{init['name']} ended with {code}"})
            await asyncio.sleep(1.0)

    async def _volumes(self, directory: Path) -> containers.Volumes:
        while True:
            try:
                return await containers.materialise(
                    self._kubelet.api, self.pod, self._kubelet.root, directory
                )
            except containers.NotReadyYet as error:
                await self._report({"reason": "ContainerCreating", "message": f"FailedMount: {error}"})
            await asyncio.sleep(_VOLUME_RETRY)

    async def _keep_reporting(self) -> None:
        while True:
            self._changed.clear()
            await self._report()
            await self._changed.wait()

    def _addressed(self) -> Object:
        """The pod with its addresses, which the cached object may not have yet."""
        status = {"podIP": self.address, "hostIP": self._kubelet.address}
        return {**self.pod, "status": {**self.pod.get("status", {}), **status}}

    async def _until(self, work: Coroutine[Any, Any, None]) -> bool:
        """Does `work` until it is done (True) or the pod is to be deleted (False)."""
        task = asyncio.create_task(work)
        deletion = asyncio.create_task(self._deleted.wait())
        try:
            await asyncio.wait((task, deletion), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
                return True
            return False
        finally:
            for waiting in (task, deletion):
                waiting.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await waiting

    async def _end(self) -> None:
        """Stops the containers, frees the devices, then removes the object."""
        meta = self.pod["metadata"]
        grace = meta.get("deletionGracePeriodSeconds", 30)
        for container in self.containers:
            await container.stop(grace)
        self._kubelet.devices.release(meta["namespace"], meta["name"])
        if not self._gone.is_set():
            await self._kubelet.api.delete(self.path, uid=meta["uid"], grace=0)

    async def _report(self, waiting: Object | None = None) -> None:
        """Writes the status as it is now; `waiting` is what keeps containers from being made."""
        spec, since = self.pod["spec"], self._started if self._seems_running else ""
        statuses = [c.status() for c in self.containers] or [
            status.seeming(c, since=since, waiting=waiting) for c in spec["containers"]
        ]
        sidecars = [
            status.seeming(c, since=since)
            for c in spec.get("initContainers", ())
            if c.get("restartPolicy") == "Always" and not is_ours(self.pod)
        ]
        await self._set_status(
            status.pod_status(
                self.pod,
                statuses,
                sidecars,
                address=self.address,
                host=self._kubelet.address,
                since=self._started,
            )
        )

    async def _set_status(self, new: Object) -> None:
        body = {"metadata": {"uid": self.pod["metadata"]["uid"]}, "status": new}
        try:
            self.pod = await self._kubelet.api.patch(f"{self.path}/status", body, STRATEGIC)
        except ApiError as error:
            if error.status not in (404, 409):
                raise
