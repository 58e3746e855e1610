"""Way 3 with the real kube-scheduler: the chart's configuration, its rights and its webhook, on 160 nodes.

Only addresses and paths are put in place of the chart's; the process is the one that the chart's image holds.
"""

from __future__ import annotations

import asyncio
import base64
import os
import re
import ssl
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from migcompat.api import names

from tests.chart.support import NAMESPACE, Object, named, pod_specs, render
from tests.cluster.api import Api
from tests.cluster.binaries import build
from tests.cluster.controlplane import ControlPlane
from tests.cluster.processes import Process
from tests.extender.certificates import Authority
from tests.extender.test_real_cluster import Site, eventually
from tests.extender.world import built, required_terms
from tests.support.fleets import POOL, declared, node, vfionode

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

OURS = "migcompat-scheduler"
MORE = 156
ALL = MORE + 4
SAMPLE = 100
"""What kube-scheduler looks for of 160 nodes (``minFeasibleNodesToFind``; its 49 % of 160 are fewer)."""


class LargeSite(Site):
    """160 nodes, of which n2 alone accepts the VM's device; the chart's scheduler beside the default one."""

    def __init__(self, plane: ControlPlane, folder: Path) -> None:
        super().__init__(plane, folder, f"--scheduler-name={OURS}")
        self.folder = folder
        asyncio.run(self._add_nodes())
        self.chart = render(plane.binaries, "--set", "scheduler.enabled=true")
        plane.kubectl("create", "namespace", NAMESPACE)
        plane.apply(
            *(
                item
                for item in self.chart
                if item["metadata"]["labels"]["app.kubernetes.io/component"] == "scheduler"
                and item["kind"] in ("ServiceAccount", "Role", "RoleBinding", "ClusterRoleBinding")
            )
        )
        (self.named,) = [
            argument.partition("=")[2]
            for argument in pod_specs(self.chart)["extender"]["containers"][0]["args"]
            if argument.startswith("--scheduler-name")
        ]
        self.scheduler = self._start_scheduler()

    async def _add_nodes(self) -> None:
        """Nodes whose devices are a version behind."""
        capacity = {POOL: "2", "cpu": "8", "memory": "16Gi", "pods": "100"}

        async def add(api: Api, name: str) -> None:
            item = built(node(name))
            await api.create("/api/v1/nodes", {"apiVersion": "v1", "kind": "Node", **item})
            status = {"capacity": capacity, "allocatable": capacity, "nodeInfo": item["status"]["nodeInfo"]}
            await api.patch(f"/api/v1/nodes/{name}/status", {"status": status})
            kind = f"/apis/{names.API_VERSION}/vfionodes"
            head = {"apiVersion": names.API_VERSION, "kind": "VFIONode", "metadata": {"name": name}}
            await api.create(kind, head)
            published = built(vfionode(name, {"d": declared("1.0.0")}))["status"]
            await api.patch(f"{kind}/{name}/status", {"status": published})

        async with Api(self.plane.kubeconfig) as api:
            await asyncio.gather(*(add(api, f"node-{number}") for number in range(1000, 1000 + MORE)))

    def _start_scheduler(self) -> Process:
        plane = self.plane
        account = named(self.chart, "ServiceAccount", OURS)["metadata"]
        token = plane.kubectl("create", "token", account["name"], "-n", account["namespace"]).strip()
        kubeconfig = self.folder / "scheduler.kubeconfig"
        kubeconfig.write_text(yaml.safe_dump(plane.kubeconfig_of({"token": token})))
        configuration = yaml.safe_load(named(self.chart, "ConfigMap", OURS)["data"]["config.yaml"])
        configuration["clientConnection"] = {"kubeconfig": str(kubeconfig)}
        (extender,) = configuration["extenders"]
        extender["urlPrefix"] = f"https://127.0.0.1:{self.port}"
        certificate, key = self.client
        extender["tlsConfig"] = {
            "serverName": "localhost",
            "caFile": str(self.authority.file),
            "certFile": str(certificate),
            "keyFile": str(key),
        }
        path = self.folder / "scheduler.yaml"
        path.write_text(yaml.safe_dump(configuration))
        address = plane.addresses.control_plane
        port = plane.addresses.free_port(address)
        (container,) = pod_specs(self.chart)["scheduler"]["containers"]
        place = {"--config": str(path), "--bind-address": address, "--secure-port": str(port)}
        flags = [argument.partition("=") for argument in container["args"]]
        process = Process(
            OURS,
            [
                str(plane.binaries.kube_scheduler),
                *(f"{flag}={place.get(flag, value)}" for flag, _, value in flags),
            ],
            log=self.folder / "scheduler.log",
            environment={},
        )
        for probe in ("livenessProbe", "readinessProbe"):
            get = container[probe]["httpGet"]
            url = f"{get['scheme'].lower()}://{address}:{port}{get['path']}"
            eventually(lambda url=url: _get(url), until=lambda said: said == "ok")
        return process

    def register(self) -> None:
        """The chart's webhook, reached where this extender is."""
        hook = named(self.chart, "MutatingWebhookConfiguration")
        hook["metadata"]["name"] = "migcompat"
        hook["webhooks"][0]["failurePolicy"] = "Fail"
        hook["webhooks"][0]["clientConfig"] = {
            "url": f"https://127.0.0.1:{self.port}/mutate",
            "caBundle": base64.b64encode(self.authority.file.read_bytes()).decode(),
        }
        self.plane.apply(hook)
        eventually(
            lambda: self.create_target("--dry-run=server")["spec"]["schedulerName"],
            until=lambda name: name == OURS,
        )

    def restart_extender(self) -> None:
        """Ends the extender and starts it anew, with the files as they are now."""
        self.process.stop()
        former = self.process
        self.process = Process("extender", former.command, log=former.log, environment=dict(os.environ))
        self.await_ready()

    def asked(self) -> tuple[int, int]:
        """Calls of /filter so far, and nodes in them."""
        text = _get(f"http://127.0.0.1:{self.health}/metrics")
        calls = re.findall(r'^migcompat_extender_request_seconds_count{endpoint="filter"} (\S+)', text, re.M)
        nodes = re.findall(r"^migcompat_extender_filtered_nodes_total{.*} (\S+)", text, re.M)
        return sum(int(float(n)) for n in calls), sum(int(float(n)) for n in nodes)

    def bound(self, make: Callable[[], Object]) -> tuple[str, int, int]:
        """Where a new pod is bound or why not, and how often with how many nodes the extender was asked."""
        before = self.asked()
        said = self.placed(make())
        calls, nodes = self.asked()
        return said, calls - before[0], nodes - before[1]

    def target(self, scheduler: str) -> Object:
        """A new target pod that names its scheduler itself."""
        self._count += 1
        pod = self.pod(f"virt-launcher-vm-a-t{self._count}", target=True)
        pod["spec"]["schedulerName"] = scheduler
        self.plane.apply(pod)
        return pod

    def ordinary(self) -> Object:
        """A new pod that asks for the same resource and has nothing to do with a VM."""
        self._count += 1
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": f"ordinary-{self._count}", "namespace": "tenant-a"},
            "spec": {"containers": [{"name": "c", "image": "x", "resources": {"limits": {POOL: "1"}}}]},
        }
        self.plane.apply(pod)
        return self.plane.get("pod", "-n", "tenant-a", f"ordinary-{self._count}")


def _get(url: str) -> str:
    """What an HTTP server answers a caller without credentials who checks no certificate, like a kubelet."""
    context = ssl._create_unverified_context() if url.startswith("https") else None
    try:
        with urllib.request.urlopen(url, timeout=5, context=context) as answer:
            text: str = answer.read().decode()
            return text
    except OSError as error:
        return str(error)


@pytest.fixture(scope="module")
def site(binaries: build.Binaries, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LargeSite]:
    with ControlPlane(binaries) as plane:
        made = LargeSite(plane, tmp_path_factory.mktemp("own-scheduler"))
        try:
            yield made
        finally:
            made.scheduler.stop()
            made.process.stop()


def test_the_webhook_s_target_is_bound_by_our_scheduler_at_the_first_attempt(site: LargeSite) -> None:
    site.register()
    site.plane.stop_scheduler()  # nobody else could
    try:
        target = site.create_target()
        assert target["spec"]["schedulerName"] == OURS == site.named
        (term,) = required_terms(target)
        assert term["matchFields"] == [{"key": "metadata.name", "operator": "In", "values": ["n2"]}]
        assert site.placed(target) == "n2"
        assert site.bound(site.create_target) == ("n2", 1, 1), "one call about the one node that is named"
    finally:
        site.plane.start_scheduler()
        site.webhook(on=False)


def test_our_scheduler_shows_the_extender_every_node_and_the_default_one_a_sample(site: LargeSite) -> None:
    """Without the webhook's names: what is free this second is found wherever it is."""
    site.webhook(on=False)
    for _ in range(3):
        assert site.bound(lambda: site.target(OURS)) == ("n2", 1, ALL)
    site.plane.restart_scheduler([site.extender(by_name=True)])
    try:
        # Whether n2 is in its sample is chance, and nothing is said of it here.
        _, calls, nodes = site.bound(lambda: site.target("default-scheduler"))
        assert calls >= 1
        assert nodes == calls * SAMPLE
    finally:
        site.plane.restart_scheduler()


def test_pods_that_are_no_targets_are_left_to_their_schedulers(site: LargeSite) -> None:
    site.register()
    try:
        pods = [site.ordinary()]
        site.plane.apply(site.pod("virt-launcher-vm-b"))
        pods.append(site.plane.get("pod", "-n", "tenant-a", "virt-launcher-vm-b"))
        for pod in pods:
            assert pod["spec"]["schedulerName"] == "default-scheduler"
            assert "affinity" not in pod["spec"]
            said, calls, _ = site.bound(lambda pod=pod: pod)  # type: ignore[misc]
            assert "nodes are available" not in said
            assert calls == 0
        own = site.pod("virt-launcher-vm-a-own", target=True)
        own["spec"]["schedulerName"] = "volcano"
        site.plane.apply(own)
        stored = site.plane.get("pod", "-n", "tenant-a", "virt-launcher-vm-a-own")
        assert stored["spec"]["schedulerName"] == "volcano", "what the VM's owner chose"
        site.plane.kubectl("delete", "pod", "-n", "tenant-a", "virt-launcher-vm-a-own", "--force")
    finally:
        site.webhook(on=False)


def test_a_rotated_client_certificate_is_used_without_a_restart(site: LargeSite) -> None:
    """kube-scheduler loads it at each handshake; the CA of the extender it has read at its start."""
    site.webhook(on=False)
    before = {path: path.read_bytes() for path in (*site.client, site.authority.file)}
    assert site.bound(lambda: site.target(OURS))[1] == 1
    try:
        other = Authority(site.folder, "other")
        other.issue("kube-scheduler")  # into the same files
        site.authority.file.write_bytes(other.file.read_bytes())
        assert not [path for path, content in before.items() if path.read_bytes() == content]
        site.restart_extender()  # so that no connection stays open
        assert site.bound(lambda: site.target(OURS)) == ("n2", 1, ALL)
    finally:
        for path, content in before.items():
            path.write_bytes(content)
        site.restart_extender()


def test_the_chart_s_rights_are_enough_for_a_kube_scheduler(site: LargeSite) -> None:
    lease = site.plane.get("lease", OURS, "-n", NAMESPACE)
    assert lease["spec"]["holderIdentity"]
    assert site.scheduler.exit_code() is None
    log = site.scheduler.log.read_text()
    assert "forbidden" not in log.lower()
