"""Resources by a file, on real kubelets: names they take, changes that reach the agents without a restart."""

from __future__ import annotations

import json

import pytest

from tests.cluster.api import Object
from tests.cluster.base import CHART, RELEASE
from tests.cluster.base import NAMESPACE as PRODUCT
from tests.node import vms
from tests.node.cluster import NodeCluster
from tests.node.vms import NAMESPACE
from tests.scenario import nodes
from tests.scenario.nodes import POOL, TYPE

# For the test alone: what the cluster's start may take, its own deadlines say.
pytestmark = pytest.mark.timeout(600, func_only=True)

SOURCE, TARGET = "node-1", "node-2"
COUNTS = {SOURCE: 1, TARGET: 2}
SERIAL, LINE = "example.com/serial_line", "example.com/Line.2"
"""In a domain of their own, and spelled as no default name is."""
VM = "vm-a"
CONFIG_MAP = f"{RELEASE}-device-plugin"


def values(resource: str) -> Object:
    selector = {"types": [TYPE], "kinds": ["mdev"]}
    config = {"resources": [{"name": resource, "selectors": [selector]}], "others": "ignore"}
    return {"devicePlugin": {"config": config}}


def resources(cluster: NodeCluster, node: str) -> dict[str, str]:
    """The resource of each device, as the VFIONode says."""
    return {d["id"]: d["resource"] for d in cluster.plane.get("vfionode", node)["status"]["devices"]}


def offers(cluster: NodeCluster, resource: str, counts: dict[str, int]) -> None:
    """Waits until the kubelets count so many devices of the resource."""
    cluster.wait(
        lambda: {node: cluster.allocatable(node, resource) for node in COUNTS} == counts,
        f"{counts} devices of {resource} are offered",
        on_failure=lambda: "\n".join(cluster.pod_log(cluster.agent(n)["metadata"]["name"]) for n in COUNTS),
    )


def hasten(cluster: NodeCluster, mark: str) -> None:
    """Kubelets look at a pod's volumes when the pod changes; else once a minute."""
    for node in COUNTS:
        name = cluster.agent(node)["metadata"]["name"]
        cluster.plane.kubectl("annotate", "pod", name, f"tests/mark={mark}", "--overwrite", "-n", PRODUCT)


def agents(cluster: NodeCluster) -> dict[str, tuple[str, int]]:
    """Which containers the agents are."""
    found = {}
    for node in COUNTS:
        (status,) = cluster.agent(node)["status"]["containerStatuses"]
        found[node] = status["containerID"], status["restartCount"]
    return found


def test_pools_of_a_file(bare: NodeCluster) -> None:
    bare.install_chart(values(SERIAL))
    offers(bare, SERIAL, COUNTS)
    offers(bare, POOL, dict.fromkeys(COUNTS, 0))
    before = agents(bare)

    # Webhook, guard and operator take the name from the VFIONodes.
    with vms.only(bare, SOURCE):
        bare.start_vm(VM, NAMESPACE, gpus=[SERIAL])
    job = bare.migrate(VM, NAMESPACE)
    bare.wait(lambda: vms.phase(bare, job) in ("Succeeded", "Failed"), f"migration {job} is over")
    assert vms.phase(bare, job) == "Succeeded", bare.events(VM, NAMESPACE)
    accepting, refusing = nodes.device_id(TARGET, 1), nodes.device_id(TARGET, 0)
    assert list(bare.held(TARGET, SERIAL).values()) == [[accepting]]

    # A mistake is told, and changes nothing.
    mistaken = {"data": {"resources.yaml": "resources:\n- name: kubernetes.io/x\n  selektors: []\n"}}
    bare.plane.kubectl("patch", "configmap", CONFIG_MAP, "-n", PRODUCT, "-p", json.dumps(mistaken))
    hasten(bare, "mistake")
    for node in COUNTS:
        message = invalid(bare, node)
        assert "/etc/migcompat/resources.yaml:2:9: the kubelet would refuse this: " in message
        assert "/etc/migcompat/resources.yaml:3:3: unknown key 'selektors'" in message
    offers(bare, SERIAL, COUNTS)

    # Another name: what is free moves at once, what the VM holds when it is gone.
    values_file = str(renamed(bare))
    bare.plane.helm("upgrade", RELEASE, str(CHART), "-n", PRODUCT, "-f", values_file, "--force-conflicts")
    hasten(bare, "renamed")
    offers(bare, LINE, {SOURCE: 1, TARGET: 1})
    offers(bare, SERIAL, {SOURCE: 0, TARGET: 1})
    assert resources(bare, TARGET) == {accepting: SERIAL, refusing: LINE}
    assert list(bare.held(TARGET, SERIAL).values()) == [[accepting]]
    vms.end(bare)
    offers(bare, LINE, COUNTS)
    offers(bare, SERIAL, dict.fromkeys(COUNTS, 0))
    assert agents(bare) == before


def invalid(cluster: NodeCluster, node: str) -> str:
    """The message of the condition, once it says that the file is."""
    found: dict[str, str] = {}

    def said() -> bool:
        conditions = cluster.plane.get("vfionode", node)["status"]["conditions"]
        found.update(next(c for c in conditions if c["type"] == "ConfigurationValid"))
        return found["reason"] == "Invalid"

    cluster.wait(said, f"{node} says that its configuration is invalid", within=120.0)
    return found["message"]


def renamed(cluster: NodeCluster) -> object:
    """A file of values like the installed ones, but for the resource's name."""
    path = cluster.plane.directory / "renamed.yaml"
    path.write_text(json.dumps(cluster.chart_values(values(LINE))))
    return path
