"""What every test cluster has: a control plane, KubeVirt's controller, the installed chart, and waiting.

The stand-ins live in one event loop in a thread of their own; call what is here from any other thread.
"""

from __future__ import annotations

import abc
import asyncio
import base64
import contextlib
import threading
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import yaml

from tests.cluster.api import Api, Cache, Object
from tests.cluster.controlplane import ClusterError, ControlPlane
from tests.cluster.kubevirt import objects
from tests.cluster.kubevirt.controller import VirtController
from tests.cluster.kubevirt.timing import Timing

T = TypeVar("T")

CHART = Path(__file__).parents[2] / "charts" / "migcompat"
RELEASE = NAMESPACE = "migcompat"
_CALL_DEADLINE = 60.0
_POLL = 0.1


class BaseCluster(abc.ABC):
    """A running control plane with KubeVirt's controller stood in for. A context manager."""

    service_port = 443
    """Of the extender's Service."""

    def __init__(
        self, plane: ControlPlane, *, timing: Timing | None = None, adapt: objects.Adapt = objects.as_recorded
    ) -> None:
        """`plane` is running; it is not stopped here. `adapt` is applied to each launcher pod."""
        self.plane = plane
        self.problems: list[str] = []
        """What the stand-ins could not do; `__exit__` fails on them unless the test cleared the list."""
        self._timing = timing
        self._adapt = adapt
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="stand-ins", daemon=True)
        self._tasks: list[asyncio.Task[None]] = []

    # life

    def __enter__(self) -> Self:
        self.plane.kubectl("apply", "--server-side", "-f", str(objects.CRDS))
        self.plane.await_kinds()
        self._thread.start()
        self.run(self._begin())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        problems = self.all_problems()
        self.run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
        if problems and kind is None:
            raise ClusterError("the stand-ins had problems:\n" + "\n".join(problems))

    def run(self, work: Coroutine[Any, Any, T], within: float = _CALL_DEADLINE) -> T:
        """The result of a coroutine that runs in the stand-ins' loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(within)

    def all_problems(self) -> list[str]:
        """Everything that a stand-in could not do so far."""
        return [*self.problems, *self.virt.problems]

    # VMs

    def start_vm(self, name: str, namespace: str = "default", **options: Any) -> Object:
        """Makes a VMI (options as of `kubevirt.objects.vmi`) and waits until it runs."""
        self.plane.apply(objects.vmi(name, namespace, **options))
        self.wait(
            lambda: self.vmi(name, namespace).get("status", {}).get("phase") == "Running",
            f"VMI {namespace}/{name} runs",
        )
        return self.vmi(name, namespace)

    def vmi(self, name: str, namespace: str = "default") -> Object:
        """The VMI as it is."""
        return self.plane.get("vmi", name, "-n", namespace)

    def migrate(self, name: str, namespace: str = "default") -> str:
        """A migration as a user asks for it; its name."""
        path = f"/apis/kubevirt.io/v1/namespaces/{namespace}/virtualmachineinstancemigrations"
        made = self.run(self.api.create(path, objects.migration(name, namespace)))
        return str(made["metadata"]["name"])

    def drain(self, node: str) -> None:
        """Cordons the node and evacuates its VMs as KubeVirt does."""
        self.plane.kubectl("cordon", node)
        self._loop.call_soon_threadsafe(self.virt.evacuations.begin, node)

    def end_drain(self, node: str) -> None:
        """Uncordons the node; running migrations go on."""
        self._loop.call_soon_threadsafe(self.virt.evacuations.end, node)
        self.plane.kubectl("uncordon", node)

    def migrations(self, namespace: str = "default") -> list[Object]:
        """All migrations, oldest first."""
        items: list[Object] = self.plane.get("vmim", "-n", namespace)["items"]
        return sorted(items, key=lambda m: (m["metadata"]["creationTimestamp"], m["metadata"]["name"]))

    def target_pods(self, name: str, namespace: str = "default") -> list[Object]:
        """The pods made as migration targets of a VM that are there now."""
        selector = f"vmi.kubevirt.io/id={name},kubevirt.io/migrationJobUID"
        items: list[Object] = self.plane.get("pods", "-n", namespace, "-l", selector)["items"]
        return items

    def events(self, about: str, namespace: str = "default") -> list[Object]:
        """Events of the object of that name."""
        selector = f"involvedObject.name={about}"
        items: list[Object] = self.plane.get("events", "-n", namespace, "--field-selector", selector)["items"]
        return items

    # the product

    @property
    def extender_address(self) -> str:
        """Cluster IP that `install_chart` gives the extender's Service."""
        return self.plane.addresses.service(10)

    def chart_values(self, values: Mapping[str, Any]) -> Object:
        """*values* with what every installation on this cluster needs."""
        fixed = {"clusterIP": self.extender_address, "servicePort": self.service_port}
        return {**values, "extender": {**fixed, **values.get("extender", {})}}

    def install_chart(self, values: Mapping[str, Any] | None = None, *, within: float = 120.0) -> None:
        """Installs or upgrades the chart and waits until each of its pods is ready."""
        settings = self.chart_values(values or {})
        path = self.plane.directory / "values.yaml"
        path.write_text(yaml.safe_dump(settings))
        self.plane.helm(
            "upgrade",
            "--install",
            RELEASE,
            str(CHART),
            "-n",
            NAMESPACE,
            "--create-namespace",
            "-f",
            str(path),
        )
        self.wait(
            self._chart_is_ready,
            "all pods of the chart are ready",
            within=within,
            on_failure=self._chart_state,
        )

    def extender(self, resources: Sequence[str], **more: Any) -> Object:
        """An element for `ControlPlane.restart_scheduler` that points at the installed chart's extender."""
        secret = self.plane.get("secret", f"{RELEASE}-scheduler-client", "-n", NAMESPACE)
        files = {}
        for key in ("tls.crt", "tls.key", "ca.crt"):
            files[key] = self.plane.directory / "pki" / f"scheduler-{key}"
            files[key].write_bytes(base64.b64decode(secret["data"][key]))
        return {
            "urlPrefix": f"https://{self.extender_address}:{self.service_port}",
            "filterVerb": "filter",
            "prioritizeVerb": "prioritize",
            "weight": 1,
            "enableHTTPS": True,
            "nodeCacheCapable": True,
            "ignorable": True,
            "httpTimeout": "5s",
            "tlsConfig": {
                "caFile": str(files["ca.crt"]),
                "certFile": str(files["tls.crt"]),
                "keyFile": str(files["tls.key"]),
            },
            "managedResources": [{"name": r, "ignoredByScheduler": False} for r in resources],
            **more,
        }

    @abc.abstractmethod
    def pod_log(self, pod: str, namespace: str = NAMESPACE) -> str:
        """What the containers of a pod wrote so far."""

    @property
    @abc.abstractmethod
    def node_names(self) -> list[str]:
        """The nodes there are."""

    # waiting

    def wait(
        self,
        condition: Callable[[], object],
        what: str,
        *,
        within: float = 60.0,
        on_failure: Callable[[], str] = lambda: "",
    ) -> None:
        """Polls until `condition` is true; after `within` seconds raises ClusterError naming `what`."""
        deadline = time.monotonic() + within
        while True:
            problem = ""
            try:
                if condition():
                    return
            except ClusterError as error:
                problem = f" ({error})"
            if time.monotonic() > deadline:
                parts = [f"not within {within:.0f} s: {what}{problem}", on_failure(), *self.all_problems()]
                raise ClusterError("\n".join(p for p in parts if p))
            time.sleep(_POLL)

    # inside

    async def _begin(self) -> None:
        self.api = await Api(self.plane.kubeconfig).__aenter__()
        self.pods = Cache(self.api, "/api/v1/pods", self._see_pod)
        self.virt = VirtController(self.api, self.pods, timing=self._timing, adapt=self._adapt)
        self._tasks = [asyncio.create_task(work) for work in (self.pods.run(), self.virt.run())]
        async with asyncio.timeout(30):
            for cache in (self.pods, self.virt.vmis, self.virt.migrations):
                await cache.synced.wait()

    async def _end(self) -> None:
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await self.api.__aexit__()
        rest = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    def _see_pod(self, kind: str, pod: Object) -> None:
        self.virt.see_pod(kind, pod)

    def _chart_is_ready(self) -> bool:
        """Every Deployment and DaemonSet is rolled out; nodes make a DaemonSet's wanted number."""
        sets = self.plane.get("daemonsets", "-n", NAMESPACE)["items"]
        for item in sets:
            status = item.get("status", {})
            if status.get("observedGeneration", 0) < item["metadata"]["generation"]:
                return False
            wanted = status.get("desiredNumberScheduled", 0)
            if wanted != len(self.node_names) or status.get("updatedNumberScheduled", 0) != wanted:
                return False
            if status.get("numberReady", 0) != wanted:
                return False
        deployments = self.plane.get("deployments", "-n", NAMESPACE)["items"]
        for item in deployments:
            status, wanted = item.get("status", {}), item["spec"]["replicas"]
            if status.get("observedGeneration", 0) < item["metadata"]["generation"]:
                return False
            if not (status.get("readyReplicas", 0) == status.get("updatedReplicas", 0) == wanted):
                return False
        return bool(sets or deployments)

    def _chart_state(self) -> str:
        """What a person would look at when the chart's pods do not become ready."""
        text = self.plane.kubectl("get", "pods", "-n", NAMESPACE, "-o", "wide")
        for pod in self.plane.get("pods", "-n", NAMESPACE)["items"]:
            ready = any(
                c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", ())
            )
            if not ready:
                name = pod["metadata"]["name"]
                statuses = pod["status"].get("containerStatuses")
                text += f"\n{name}: {statuses}\n{self.pod_log(name)[-3000:]}"
        return text
