"""The main job, told in chapters; ``make demo`` prints it, ``test_scenario.py`` asserts it.

Six nodes, two VMs on node-1, a drain; then the same with the webhook off, and with the extender off as well.
Each chapter checks what it tells and raises when it is not so.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

from migcompat.api import names

from tests.cluster.base import NAMESPACE as RELEASE_NAMESPACE
from tests.cluster.cluster import Cluster
from tests.cluster.kubevirt.timing import Timing
from tests.scenario import nodes
from tests.scenario.nodes import ACCEPTING, POOL, REFUSING, SOURCE, UPGRADED
from tests.support.fabricate import add_group_nodes

TENANT = "tenant-a"
WITHIN = 60.0
SECONDS = 15.0
"""What "within seconds" means: the agent looks at /sys every 5 s. Run with `RETRY_LATE`."""
RETRY_LATE = Timing(first_retry=1000.0)
"""No retry of virt-controller's own comes to help: only a touch of the migration brings the next try."""


class Narrator(Protocol):
    """Who tells the story."""

    def chapter(self, title: str) -> None:
        """A new chapter begins."""

    def say(self, text: str) -> None:
        """One sentence."""

    def show(self, command: str, output: str) -> None:
        """A command and what it printed."""


class Story:
    """The chapters in their order; each builds on those before it."""

    def __init__(self, cluster: Cluster, narrator: Narrator) -> None:
        self.cluster = cluster
        self.narrator = narrator
        self.chapters: list[Callable[[], None]] = [
            self.install,
            self.start_vms,
            self.drain,
            self.upgrade,
            self.extender_alone,
            self.guard_alone,
        ]

    def tell(self) -> None:
        """All chapters."""
        for chapter in self.chapters:
            chapter()

    # chapters

    def install(self) -> None:
        """Six nodes, the chart, and what the agents found."""
        self.narrator.chapter("Six nodes with recorded /sys trees; the chart is installed with helm")
        for name in nodes.NODES:
            self.cluster.add_node(name, prepare=lambda root, name=name: nodes.prepare(root, name))  # type: ignore[misc]
        self.cluster.install_chart()
        self.cluster.plane.kubectl("create", "namespace", TENANT)
        counts = {SOURCE: 1, **dict.fromkeys(REFUSING, 4), ACCEPTING: 2, UPGRADED: 1}
        self.wait(
            lambda: {n: self.allocatable(n) for n in counts} == counts,
            "every kubelet counts its node's devices",
        )
        self.kubectl("get", "vfionodes")
        self.kubectl("get", "nodes", "-L", names.NODE_MANAGED, "-L", f"{names.NODE_TYPE_PREFIX}{nodes.TYPE}")
        check(self.allocatable(nodes.OTHER_TYPE) == 0, "the node of another type offers none of this pool")

    def start_vms(self) -> None:
        """Two VMs on node-1; what can move is known before anything is drained."""
        self.narrator.chapter("Two VMs start on node-1; the second one's device appears while the agent runs")
        here = {"kubernetes.io/hostname": SOURCE}
        self.cluster.start_vm("vm-a", TENANT, gpus=[POOL], node_selector=here)
        root = self.cluster.nodes[SOURCE].root
        nodes.add_mdev(root / "sys", nodes.device_id(SOURCE, 1), "2.0.0", 201)
        add_group_nodes(root / "dev", root / "sys")
        self.wait(lambda: self.allocatable(SOURCE) == 2, "the new mdev is advertised")
        self.cluster.start_vm("vm-b", TENANT, gpus=[POOL], node_selector=here)
        # Users pin VMs with other means; here it only made them start on node-1.
        for vm in ("vm-a", "vm-b"):
            self.plain(
                "patch",
                "vmi",
                vm,
                "-n",
                TENANT,
                "--type=json",
                "-p",
                '[{"op":"remove","path":"/spec/nodeSelector"}]',
            )
        self.wait(
            lambda: (
                self.answer("vm-a") == ("1/4", "True", "Compatible")
                and self.answer("vm-b") == ("0/4", "False", "VersionMajorMismatch")
            ),
            "the operator has answered for both VMs",
        )
        table = self.kubectl("get", "migrationcompat", "-n", TENANT)
        header = table.splitlines()[0].split()
        check(
            header == ["NAME", "SOURCE", "DEVICES", "TARGETS", "FREE", "MIGRATABLE", "REASON", "AGE"],
            f"the table reads as the contract says, not {header}",
        )
        self.kubectl("describe", "migrationcompat", "vm-b", "-n", TENANT)

    def drain(self) -> None:
        """vm-a moves to the one node that accepts it; vm-b is denied with reasons."""
        self.narrator.chapter(
            "node-1 is drained; nodes that refuse have more free devices than the one that accepts"
        )
        self.cluster.drain(SOURCE)
        self.until_on("vm-a", ACCEPTING)
        held = self.devices_of("vm-a", ACCEPTING)
        check(held == [nodes.device_id(ACCEPTING, 1)], f"vm-a has the accepting device, not {held}")
        self.check_environment("vm-a", ACCEPTING, held)
        pod = self.launcher_on("vm-a", ACCEPTING)
        agreed = f"pod {TENANT}/{pod}: may start with {held[0]}"
        check(self.guard_said(agreed, ACCEPTING), f"the guard on the target node agreed: {agreed}")
        self.narrator.say(f"vm-a runs on {ACCEPTING} with the one device there that accepts its state.")
        self.wait(self.denial, "vm-b's target pod is denied")
        text = self.denial()
        for part in ("0 of 4 nodes accept", "4 VersionMajorMismatch", "2.0.0"):
            check(part in text, f"the denial says {part!r}: {text}")
        check(not self.cluster.target_pods("vm-b", TENANT), "vm-b has no target pod and holds no slot")
        self.events_of("vm-b")
        self.kubectl("get", "vmim", "-n", TENANT)
        self.follows("vm-a", ACCEPTING)
        self.kubectl("get", "migrationcompat", "-n", TENANT)

    def upgrade(self) -> None:
        """A driver upgrade on node-6 reaches everything without a restart, and vm-b goes there."""
        self.narrator.chapter(
            f"The driver of {UPGRADED} is upgraded: its migration/ tree changes under the agent"
        )
        before = self.labels(UPGRADED)
        restarts = self.restarts()
        device = nodes.device_id(UPGRADED, 0)
        nodes.upgrade(self.cluster.nodes[UPGRADED].root / "sys", device, "2.0.0")
        begun = time.monotonic()
        self.until_on("vm-b", UPGRADED)
        taken = time.monotonic() - begun
        check(taken < SECONDS, f"vm-b moved within seconds of the upgrade, not {taken:.0f} s")
        touched = [
            job["metadata"]["annotations"].get(names.RETRY)
            for job in self.cluster.migrations(TENANT)
            if job["spec"]["vmiName"] == "vm-b"
        ]
        check(any(touched), "the operator touched the waiting migration, so that the retry came at once")
        check(self.devices_of("vm-b", UPGRADED) == [device], "vm-b has the upgraded device")
        profiles = self.cluster.plane.get("vfionode", UPGRADED)["status"]["profiles"].values()
        versions = {p["self"].get("attributes", {}).get("software_version") for p in profiles} - {None}
        check("2.0.0" in versions, f"VFIONode shows the new version, not {versions}")
        after = self.labels(UPGRADED)
        check(before != after, f"the offers label has changed: {after}")
        self.follows("vm-b", UPGRADED)
        check(self.restarts() == restarts, "nothing was restarted")
        self.kubectl("get", "vmim", "-n", TENANT)
        self.kubectl("get", "migrationcompat", "-n", TENANT, "-o", "wide")

    def extender_alone(self) -> None:
        """Without the webhook, the scheduler extender alone keeps a target off nodes that refuse."""
        self.narrator.chapter("The webhook is switched off; kube-scheduler asks the extender instead")
        self.cluster.install_chart({"webhook": {"enabled": False}})
        self.cluster.plane.restart_scheduler([self.cluster.extender([POOL])])
        self.cluster.migrate("vm-a", TENANT)
        self.wait(lambda: self.unschedulable("vm-a")[1], "kube-scheduler says why no node will do")
        pod, text = self.unschedulable("vm-a")
        check("VersionMinorOlder" in text, f"the scheduler repeats the extender's reasons: {text}")
        condition = "{.status.conditions[?(@.type=='PodScheduled')].message}"
        self.kubectl("get", "pod", pod, "-n", TENANT, "-o", f"jsonpath={condition}")
        self.narrator.say(f"The only node that accepts vm-a is {SOURCE}, and it is cordoned. It comes back:")
        self.cluster.end_drain(SOURCE)
        self.until_on("vm-a", SOURCE)
        check(self.devices_of("vm-a", SOURCE) == [nodes.device_id(SOURCE, 0)], "vm-a has the right device")
        self.follows("vm-a", SOURCE)
        self.kubectl("get", "migrationcompat", "-n", TENANT)

    def guard_alone(self) -> None:
        """Without webhook and extender a target lands on a node that refuses, and the guard stops it."""
        self.narrator.chapter("The extender is off as well; all nodes but one that refuses are cordoned")
        self.cluster.plane.restart_scheduler()
        refusing = REFUSING[0]
        for name in nodes.NODES:
            if name != refusing:
                self.plain("cordon", name)
        job = self.cluster.migrate("vm-a", TENANT)
        device_ids = self.cluster.nodes[refusing].devices.resources[POOL]
        self.wait(
            lambda: any(self.guard_said(f"guard refuses {id_} of {POOL}", refusing) for id_ in device_ids),
            "the guard refuses",
        )
        self.wait(
            lambda: self.phase(job) == "Failed", "the refused target is deleted and the migration fails"
        )
        self.wait(lambda: self.event("GuardRefused"), "the VMI is told")
        self.events_of("vm-a")
        check("VersionMinorOlder" in self.event("GuardRefused"), "the event names the cause")
        check(not self.devices_of("vm-a", refusing), "nothing is left on the refusing device")
        self.kubectl("get", "vmim", "-n", TENANT)
        for name in nodes.NODES:
            self.plain("uncordon", name)
        vmi = self.cluster.vmi("vm-a", TENANT)
        check(vmi["status"]["nodeName"] == SOURCE, "vm-a still runs where it was")
        self.narrator.say("vm-a still runs on node-1: nothing ever ran on a device that refuses it.")

    # what the chapters look at

    def kubectl(self, *arguments: str) -> str:
        """Runs kubectl and shows it."""
        output = self.cluster.plane.kubectl(*arguments)
        self.narrator.show("kubectl " + " ".join(arguments), output)
        return output

    def plain(self, *arguments: str) -> str:
        """Runs kubectl without showing it."""
        return self.cluster.plane.kubectl(*arguments)

    def wait(self, condition: Callable[[], object], what: str) -> None:
        """Until *condition* holds."""
        self.cluster.wait(condition, what, within=WITHIN, on_failure=self.state)
        self.narrator.say(f"So it is: {what}.")

    def until_on(self, vm: str, node: str) -> None:
        """Until the VM runs on the node and its migration is over."""

        def arrived() -> bool:
            return bool(self.cluster.vmi(vm, TENANT)["status"].get("nodeName") == node) and all(
                job["status"].get("phase") in ("Succeeded", "Failed")
                for job in self.cluster.migrations(TENANT)
                if job["spec"]["vmiName"] == vm
            )

        self.wait(arrived, f"{vm} has migrated to {node}")

    def allocatable(self, node: str) -> int:
        """How many devices of the pool the kubelet offers."""
        found = self.cluster.plane.get("node", node)["status"].get("allocatable", {})
        return int(found.get(POOL, 0))

    def answer(self, vm: str) -> tuple[str, str, str]:
        """TARGETS, MIGRATABLE and REASON of a VM."""
        status = self.cluster.plane.get("migrationcompat", vm, "-n", TENANT).get("status", {})
        found = [c for c in status.get("conditions", ()) if c["type"] == "Migratable"]
        return (
            status.get("targets", ""),
            found[0]["status"] if found else "",
            found[0]["reason"] if found else "",
        )

    def follows(self, vm: str, node: str) -> None:
        """Until the VM's MigrationCompatibility speaks of its new source."""

        def source() -> str:
            found = self.cluster.plane.get("migrationcompat", vm, "-n", TENANT)["status"]["source"]
            return str(found.get("node", "")) if found.get("devices") else ""

        self.wait(lambda: source() == node, f"the MigrationCompatibility of {vm} speaks of {node}")

    def devices_of(self, vm: str, node: str) -> list[str]:
        """The devices of the pool that the VM's pods hold on the node, as its kubelet knows."""
        held = self.cluster.held(node, POOL)
        return sorted(d for pod, ids in held.items() if pod.startswith(f"virt-launcher-{vm}-") for d in ids)

    def check_environment(self, vm: str, node: str, held: list[str]) -> None:
        """The container's environment names the devices the way virt-launcher reads it."""
        answers = self.cluster.nodes[node].answers
        response = next(a for (_, pod), a in answers.items() if pod.startswith(f"virt-launcher-{vm}-"))[POOL]
        variable = "MDEV_PCI_RESOURCE_VFIO_MIGCOMPAT_IO_MTTY-2"
        check(dict(response.envs) == {variable: ",".join(held)}, f"environment: {dict(response.envs)}")
        paths = {d.container_path for d in response.devices}
        check("/dev/vfio/vfio" in paths and len(paths) >= 2, f"device nodes: {sorted(paths)}")

    def events_of(self, vm: str) -> None:
        """Shows the events of a VMI."""
        about = f"involvedObject.kind=VirtualMachineInstance,involvedObject.name={vm}"
        self.kubectl("get", "events", "-n", TENANT, "--field-selector", about)

    def launcher_on(self, vm: str, node: str) -> str:
        """The name of the VM's pod on the node."""
        pods = self.cluster.plane.get("pods", "-n", TENANT, "-l", f"vmi.kubevirt.io/id={vm}")["items"]
        return str(next(p["metadata"]["name"] for p in pods if p["spec"].get("nodeName") == node))

    def denial(self) -> str:
        """The latest text with which vm-b's target pod was denied."""
        texts = [e["message"] for e in self.cluster.events("vm-b", TENANT) if e["reason"] == "FailedCreate"]
        return texts[-1] if texts else ""

    def event(self, reason: str) -> str:
        """The latest event of vm-a with *reason*."""
        texts = [e["message"] for e in self.cluster.events("vm-a", TENANT) if e["reason"] == reason]
        return texts[-1] if texts else ""

    def unschedulable(self, vm: str) -> tuple[str, str]:
        """A target pod of the VM for which kube-scheduler finds no node, and why."""
        for pod in self.cluster.target_pods(vm, TENANT):
            for condition in pod.get("status", {}).get("conditions", ()):
                if condition["type"] == "PodScheduled" and condition.get("reason") == "Unschedulable":
                    return str(pod["metadata"]["name"]), str(condition["message"])
        return "", ""

    def phase(self, job: str) -> str:
        """The phase of a migration."""
        return str(self.cluster.plane.get("vmim", job, "-n", TENANT)["status"].get("phase", ""))

    def labels(self, node: str) -> dict[str, str]:
        """The node's labels about what its devices are."""
        found = self.cluster.plane.get("node", node)["metadata"]["labels"]
        return {k: v for k, v in found.items() if k.startswith(names.NODE_OFFERS_PREFIX)}

    def product_pods(self) -> list[dict[str, Any]]:
        """The pods of the chart."""
        items: list[dict[str, Any]] = self.cluster.plane.get("pods", "-n", RELEASE_NAMESPACE)["items"]
        return items

    def restarts(self) -> dict[str, int]:
        """Pods of the chart, and how often their containers were restarted."""
        return {
            p["metadata"]["name"]: sum(c["restartCount"] for c in p["status"].get("containerStatuses", ()))
            for p in self.product_pods()
        }

    def guard_said(self, words: str, node: str) -> bool:
        """Whether the agent on the node logged *words*."""
        pods = [
            p["metadata"]["name"]
            for p in self.product_pods()
            if p["spec"].get("nodeName") == node
            and p["metadata"]["labels"].get("app.kubernetes.io/component") == "device-plugin"
        ]
        return any(words in self.cluster.pod_log(pod) for pod in pods)

    def state(self) -> str:
        """What a person would look at when a chapter does not come true."""
        parts = [
            self.plain("get", "migrationcompat,vmi,vmim,pods", "-A", "-o", "wide"),
            self.plain("get", "events", "-A", "--sort-by=.lastTimestamp"),
        ]
        for pod in self.product_pods():
            log = self.cluster.pod_log(pod["metadata"]["name"])
            parts.append(f"--- {pod['metadata']['name']} on {pod['spec'].get('nodeName')}\n{log[-1500:]}")
        return "\n".join(parts)


def check(holds: object, what: str) -> None:
    """Raises AssertionError naming *what* unless it holds (also under ``python -O``)."""
    if not holds:
        raise AssertionError(f"not so: {what}")
