"""What is wrong with one node is said there, in words that help; its agent lives on, the other node is well.

The agents' host paths lead to a directory that each node has its own of, so one node can be spoiled and
mended while they run. Paths that are wrong on every node come with an upgrade of the chart.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest
import yaml
from migcompat.kubelet.connection import MINIMUM_KUBELET

from tests.cluster.api import Object
from tests.cluster.base import CHART, RELEASE
from tests.cluster.base import NAMESPACE as PRODUCT
from tests.cluster.controlplane import ClusterError
from tests.node import containers, vms
from tests.node.cluster import NodeCluster
from tests.node.containers import Container
from tests.node.node import Node, shared_host
from tests.node.vms import NAMESPACE
from tests.scenario import nodes
from tests.scenario.nodes import POOL

# For the test alone: what the cluster's start may take, its own deadlines say.
pytestmark = pytest.mark.timeout(600, func_only=True)

OTHER, SUBJECT = "node-1", "node-2"
COUNTS = {OTHER: 1, SUBJECT: 2}
FIRST, SECOND = (nodes.device_id(SUBJECT, number) for number in range(2))
PLUGIN = "device-plugin"
POD_RESOURCES = "kubelet/pod-resources/kubelet.sock"
VERSION = "migration/self/software_version"
NO_MODULE = "VFIO's module is not loaded, or hostPaths.dev is not the host's /dev"


@pytest.fixture(scope="module")
def installed(bare: NodeCluster) -> NodeCluster:
    """The product installed, with all of its host paths but the plugins' directory below `Node.host`."""
    for node in bare.nodes.values():
        (node.host / POD_RESOURCES).parent.mkdir(parents=True)
        # The kubelet's own socket by a second name.
        os.link(node.root / POD_RESOURCES, node.host / POD_RESOURCES)
        tell_boot_id(node)
    bare.install_chart({"hostPaths": host_paths(bare)})
    for name in COUNTS:
        until_well(bare, name)
    return bare


@pytest.fixture
def cluster(installed: NodeCluster) -> Iterator[NodeCluster]:
    """Nothing happens to the other node; and whatever does to this one, no container is started again."""
    before = conditions(installed, OTHER), agent(installed, OTHER)
    yield installed
    vms.end(installed)
    assert (conditions(installed, OTHER), agent(installed, OTHER)) == before
    assert installed.allocatable(OTHER, POOL) == COUNTS[OTHER]
    until_well(installed, SUBJECT)
    assert_no_restart(installed)


@pytest.fixture
def upgraded(installed: NodeCluster) -> Iterator[NodeCluster]:
    """The chart's values may be made wrong; right ones come back after the test, and all is well then."""
    yield installed
    restarts = [restart_counts(pod) for pod in installed.product_pods(PLUGIN)]
    vms.end(installed)
    installed.install_chart({"hostPaths": host_paths(installed)})
    for name in COUNTS:
        until_well(installed, name)
    assert all(counts in ([], [0]) for counts in restarts)


# device nodes


def test_no_device_nodes_at_all(cluster: NodeCluster) -> None:
    node = cluster.nodes[SUBJECT]
    missing = f"no device node: {cluster.host_paths['dev']}/vfio/vfio"
    with lives_on(cluster) as says, without(node.host / "dev/vfio"):
        message = reason(cluster, "DevicesUsable", "DeviceNodesMissing", missing)
        assert NO_MODULE in message
        devices = published(cluster)
        assert message.startswith(f"{len(devices)} of {len(devices)} devices unhealthy: ")
        assert all(device["problem"].startswith(missing) for device in devices.values())
        says(": no device node: ")
        told = [line for line in log(cluster).splitlines() if f": {missing}" in line]
        assert told
        for line in told:
            assert line.partition("unhealthy: ")[2].split(": ")[0] in devices, "it names the device"
            assert NO_MODULE in line
        assert condition(cluster, "Ready")["status"] == "True", "the agent is well"
        cluster.wait(lambda: cluster.allocatable(SUBJECT, POOL) == 0, "the kubelet hands out none")
    says(f"{len(devices)} device(s) are healthy again: ")


def test_the_device_nodes_of_one_device_are_missing(cluster: NodeCluster) -> None:
    host = cluster.nodes[SUBJECT].host
    device = host / "sys" / nodes.PARENT / FIRST
    group = host / "dev/vfio" / (device / "iommu_group").readlink().name
    cdevs = [host / "dev/vfio/devices" / entry.name for entry in (device / "vfio-dev").iterdir()]
    problem = f"{FIRST}: no device node: {cluster.host_paths['dev']}/vfio/{group.name}"
    with lives_on(cluster) as says, without(group, *cdevs):
        message = reason(cluster, "DevicesUsable", "DeviceNodesMissing", problem)
        assert message.startswith("1 of ")
        says(f"unhealthy: {problem}")
        cluster.wait(lambda: cluster.allocatable(SUBJECT, POOL) == 1, "the other device stays")
    says(f"1 device(s) are healthy again: {FIRST}")


# sysfs; root without capabilities, as the agent is, opens no file whose mode lets nobody


def test_what_a_device_says_cannot_be_read(cluster: NodeCluster) -> None:
    version = cluster.nodes[SUBJECT].host / "sys" / nodes.PARENT / SECOND / VERSION
    problem = f"{SECOND}: {VERSION} cannot be read (Permission denied)"
    with lives_on(cluster) as says, mode(version, 0):
        reason(cluster, "DeclarationsValid", "Unreadable", problem)
        says(f"flawed declaration: {problem}")
        assert presences(cluster) == {FIRST: "Present", SECOND: "Unreadable"}
        assert_all_offered(cluster)
    assert presences(cluster) == {FIRST: "Present", SECOND: "Present"}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        pytest.param(b"\xff\xfe\x00" * 1000, "software_version", id="binary"),
        pytest.param(b"1" * (1 << 20), f"{VERSION} is longer than 65536 bytes", id="too long"),
        pytest.param(None, f"{VERSION} is not a regular file", id="a pipe that nobody writes to"),
    ],
)
def test_what_a_device_says_is_garbage(cluster: NodeCluster, content: bytes | None, problem: str) -> None:
    host = cluster.nodes[SUBJECT].host
    with lives_on(cluster) as says, instead_of(host, nodes.PARENT / SECOND / VERSION, content):
        message = reason(cluster, "DeclarationsValid", "Malformed", problem)
        told = message.partition(": ")[2]
        assert told.startswith(f"{SECOND}: ")
        assert problem in told
        says(f"flawed declaration: {told}")
        assert presences(cluster) == {FIRST: "Present", SECOND: "Malformed"}
        assert_all_offered(cluster)
    assert presences(cluster) == {FIRST: "Present", SECOND: "Present"}


def test_a_device_cannot_be_read(cluster: NodeCluster) -> None:
    device = cluster.nodes[SUBJECT].host / "sys" / nodes.PARENT / FIRST
    with lives_on(cluster) as says, mode(device, 0):
        message = reason(cluster, "DevicesUsable", "DevicesUnhealthy", f": {FIRST}: ")
        assert message.startswith("1 of ")
        told = message.partition(": ")[2]
        assert "Permission denied" in told
        says(f"unhealthy: {told}")
        cluster.wait(lambda: cluster.allocatable(SUBJECT, POOL) == 1, "the other device stays")


def test_a_name_on_a_bus_that_is_no_device(cluster: NodeCluster) -> None:
    odd = cluster.nodes[SUBJECT].host / "sys/bus/mdev/devices/no-uuid"
    before = published(cluster)
    with lives_on(cluster) as says:
        odd.symlink_to("../../../devices/nowhere")
        try:
            problem = "bus/mdev/devices/no-uuid: the name is not a UUID"
            reason(cluster, "DevicesUsable", "Unreadable", problem)
            says(f"/host/sys/{problem}")
            assert published(cluster) == before, "all others are what they were"
        finally:
            odd.unlink()


def test_a_bus_cannot_be_read(cluster: NodeCluster) -> None:
    bus = cluster.nodes[SUBJECT].host / "sys/bus/mdev/devices"
    before = published(cluster)
    with lives_on(cluster) as says, mode(bus, 0):
        problem = "bus/mdev/devices cannot be listed (Permission denied)"
        message = reason(cluster, "Ready", "ScanFailed", problem)
        says(f"scan failed, keeping what is known: {message}")
        assert published(cluster) == before
        assert_all_offered(cluster)


# host paths of one node


def test_host_paths_that_lead_to_something_else(cluster: NodeCluster) -> None:
    """A new agent that finds neither boot id nor sysfs says so, one by one, until they are mended."""
    node = cluster.nodes[SUBJECT]
    with contextlib.ExitStack() as spoiled:
        spoiled.enter_context(without(node.host / "sys/bus", node.host / "sys/devices"))
        spoiled.callback(tell_boot_id, node)
        (node.host / "boot_id").write_text("no boot id\n")
        new_agent(cluster)
        message = reason(cluster, "Ready", "WrongHostPath", "/host/boot_id holds no boot id but 'no boot id'")
        assert "hostPaths.bootID" in message
        with lives_on(cluster, since_start=True) as says:
            says(message)
            tell_boot_id(node)
            no_sysfs = "/host/sys is no sysfs: it has no directory bus/"
            message = reason(cluster, "Ready", "WrongHostPath", no_sysfs)
            assert "hostPaths.sys" in message
            says(message)
            assert not is_ready(cluster.agent(SUBJECT))
            spoiled.close()


def test_a_host_path_that_does_not_exist(cluster: NodeCluster) -> None:
    with without(cluster.nodes[SUBJECT].host / "sys"):
        pod = new_agent(cluster)
        wanted = f"hostPath type check failed: {cluster.host_paths['sys']} is not a directory"
        cluster.wait(lambda: wanted in failed_mounts(cluster, pod), "an event says so")
        cluster.wait(lambda: "ContainerCreating" in waits_for(cluster.agent(SUBJECT)), "so does the status")
    cluster.wait(lambda: is_ready(cluster.agent(SUBJECT)), "the same pod starts")
    assert cluster.agent(SUBJECT)["metadata"]["name"] == pod


# host paths in the chart's values


@pytest.mark.parametrize(
    ("path", "kind", "wanted", "words"),
    [
        (("sys", "dev"), "Ready", "WrongHostPath", "/host/sys is no sysfs: it has no directory bus/"),
        (("dev", "sys"), "DevicesUsable", "DeviceNodesMissing", NO_MODULE),
    ],
)
def test_a_host_path_to_a_directory_of_another_kind(
    upgraded: NodeCluster, path: tuple[str, str], kind: str, wanted: str, words: str
) -> None:
    name, leads_to = path
    upgrade(upgraded, {name: upgraded.host_paths[leads_to]})
    message = reason(upgraded, kind, wanted, words)
    assert f"hostPaths.{name}" in message
    logged(upgraded, words)
    logged(upgraded, f"hostPaths.{name}")


def test_a_directory_without_pod_resources_still_lets_vms_start(upgraded: NodeCluster) -> None:
    elsewhere = shared_host(upgraded.plane.directory) / "elsewhere"
    for node in upgraded.nodes.values():
        (node.host / "elsewhere/pod-resources").mkdir(parents=True)
    upgrade(upgraded, {"kubelet": str(elsewhere)})
    silent = "pod-resources/kubelet.sock does not exist"
    message = reason(upgraded, "Ready", "PodResourcesUnavailable", silent)
    assert "hostPaths.kubelet" in message
    logged(upgraded, f"holders of devices are not known: {message}")
    vms.start(upgraded, "vm-first", SUBJECT)
    vms.end(upgraded, "vm-first")


def test_a_path_that_no_node_has_is_an_event_of_each_pod(upgraded: NodeCluster) -> None:
    upgrade(upgraded, {"sys": "/nowhere/sys"})
    wanted = "hostPath type check failed: /nowhere/sys is not a directory"
    for node in COUNTS:
        upgraded.wait(
            lambda node=node: wanted in failed_mounts(upgraded, agent_name(upgraded, node)),  # type: ignore[misc]
            f"the kubelet of {node} says which path is missing",
        )


# kubelet


def test_pod_resources_switched_off(cluster: NodeCluster) -> None:
    """First starts are served, targets refused: nobody can tell whom their devices are for."""
    node = cluster.nodes[SUBJECT]
    source = vms.start(cluster, "vm-a", OTHER)
    cluster.wait(lambda: vms.answer(cluster, "vm-a")[1] == "True", "vm-a can move")
    with lives_on(cluster) as says, without(node.host / POD_RESOURCES):
        silent = "pod-resources/kubelet.sock does not exist"
        message = reason(cluster, "Ready", "PodResourcesUnavailable", silent)
        assert "hostPaths.kubelet" in message
        says(f"holders of devices are not known: {message}")
        vms.start(cluster, "vm-b", SUBJECT)
        says(f" of {POOL}: may start, as no migration target waits; PodResourcesUnavailable: ")
        vms.end(cluster, "vm-b")
        job = cluster.migrate("vm-a", NAMESPACE)
        cluster.wait(lambda: vms.phase(cluster, job) == "Failed", "the migration is over")
        says(f" of {POOL}: PodResourcesUnavailable: ")
        refused = f"on node {SUBJECT} is deleted: migcompat guard: PodResourcesUnavailable: "
        cluster.wait(lambda: refused in events(cluster, "vm-a", NAMESPACE, "GuardRefused"), "its VM says why")
        assert silent in events(cluster, "vm-a", NAMESPACE, "GuardRefused")
        vms.assert_lives(cluster, source)
    assert vms.migrate(cluster, "vm-a").node == SUBJECT
    vms.end(cluster)


def test_a_kubelet_older_than_the_api_needs(cluster: NodeCluster) -> None:
    """Its PodResources does not know what is asked: stood in for, as no such kubelet joins this cluster."""
    socket = cluster.nodes[SUBJECT].host / POD_RESOURCES
    with lives_on(cluster) as says, without(socket), knowing_nothing(socket):
        needed = f"Kubernetes {MINIMUM_KUBELET} or newer is needed on the node"
        message = reason(cluster, "Ready", "KubeletTooOld", needed)
        says(f"holders of devices are not known: {message}")
        vms.start(cluster, "vm-first", SUBJECT)
        vms.end(cluster, "vm-first")


# values


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (
            {"extender": {"enabled": False}},
            "webhook.enabled=true and extender.enabled=false: the extender serves the webhook",
        ),
        ({"bindAddress": "127.0.0.1"}, "bindAddress=127.0.0.1: nobody outside a pod could reach it"),
        ({"devicePlugin": {"scanInterval": 0}}, "/devicePlugin/scanInterval"),
    ],
)
def test_values_that_are_wrong_or_contradict_each_other_change_nothing(
    cluster: NodeCluster, values: Object, sentence: str
) -> None:
    before = cluster.plane.helm("get", "manifest", RELEASE, "-n", PRODUCT)
    with pytest.raises(ClusterError) as refused:
        cluster.install_chart(values)
    assert sentence in str(refused.value)
    assert cluster.plane.helm("get", "manifest", RELEASE, "-n", PRODUCT) == before


# what tests spoil


def host_paths(cluster: NodeCluster) -> dict[str, str]:
    """The chart's ``hostPaths`` that can be spoiled on one node."""
    shared = shared_host(cluster.plane.directory)
    return {**cluster.host_paths, "kubelet": f"{shared}/kubelet", "bootID": f"{shared}/boot_id"}


def upgrade(cluster: NodeCluster, wrong: dict[str, str]) -> None:
    """Changes host paths on all nodes without waiting for pods, which cannot become ready."""
    # Both agents at once: the first would never get ready and hold up the other.
    values = {"hostPaths": {**host_paths(cluster), **wrong}, "devicePlugin": {"maxUnavailable": "100%"}}
    path: Path = cluster.plane.directory / "bad-values.yaml"
    path.write_text(yaml.safe_dump(cluster.chart_values(values)))
    former = {name: agent_name(cluster, name) for name in COUNTS}
    cluster.plane.helm("upgrade", RELEASE, str(CHART), "-n", PRODUCT, "-f", str(path))
    for name in COUNTS:
        until_new_agent(cluster, name, former[name])


@contextlib.contextmanager
def without(*paths: Path) -> Iterator[None]:
    """Meanwhile these are elsewhere."""
    aside = [path.with_name(f"{path.name}.aside") for path in paths]
    for path, other in zip(paths, aside, strict=True):
        path.rename(other)
    try:
        yield
    finally:
        for path, other in zip(paths, aside, strict=True):
            other.rename(path)


@contextlib.contextmanager
def mode(path: Path, bits: int) -> Iterator[None]:
    """Meanwhile the file has this mode."""
    before = path.stat().st_mode
    path.chmod(bits)
    try:
        yield
    finally:
        path.chmod(before)


@contextlib.contextmanager
def instead_of(host: Path, attribute: Path, content: bytes | None) -> Iterator[None]:
    """Meanwhile the attribute below ``host/sys`` has this content; None: it is a FIFO.

    Whoever reads finds either: nothing is ever missing, cut short, or there besides.
    """
    path, spare = host / "sys" / attribute, host / "spare"
    good = path.read_bytes()
    if content is None:
        os.mkfifo(spare)
    else:
        spare.write_bytes(content)
    spare.rename(path)
    try:
        yield
    finally:
        spare.write_bytes(good)
        spare.rename(path)


@contextlib.contextmanager
def knowing_nothing(socket: Path) -> Iterator[None]:
    """Meanwhile a gRPC server listens there that knows no service."""
    server = grpc.server(futures.ThreadPoolExecutor(1))
    server.add_insecure_port(f"unix:{socket}")
    server.start()
    try:
        yield
    finally:
        server.stop(0).wait(5)
        socket.unlink(missing_ok=True)


def tell_boot_id(node: Node) -> None:
    """In place: it is the file that a container has mounted."""
    (node.host / "boot_id").write_text(f"{node.boot_id}\n")


# what tests look at


def agent(cluster: NodeCluster, node: str) -> Container | None:
    """The container of the node's agent, if it runs."""
    return containers.running(cluster.agent(node), PLUGIN)


def agent_name(cluster: NodeCluster, node: str) -> str:
    """The agent's pod."""
    return str(cluster.agent(node)["metadata"]["name"])


def log(cluster: NodeCluster, node: str = SUBJECT) -> str:
    """Of the agent that is there now."""
    return cluster.pod_log(agent_name(cluster, node))


def logged(cluster: NodeCluster, text: str, start: int = 0) -> None:
    """Waits until the subject's agent has said it, after so many characters of its log.

    A line takes its time through containerd; what is published may be there before.
    """
    cluster.wait(
        lambda: text in log(cluster)[start:],
        f"the agent's log says: {text}",
        on_failure=lambda: log(cluster)[start:],
    )


def conditions(cluster: NodeCluster, node: str) -> list[dict[str, str]]:
    """Of the VFIONode, with the times at which they became what they are."""
    found: list[dict[str, str]] = cluster.plane.get("vfionode", node).get("status", {}).get("conditions", [])
    return found


def condition(cluster: NodeCluster, kind: str) -> dict[str, str]:
    """Of the subject's VFIONode."""
    found = [c for c in conditions(cluster, SUBJECT) if c["type"] == kind]
    if len(found) != 1:
        raise ClusterError(f"the VFIONode of {SUBJECT} has {len(found)} conditions {kind}, not one")
    return found[0]


def reason(cluster: NodeCluster, kind: str, wanted: str, words: str) -> str:
    """The message of the condition once it is False with that reason and these words."""

    found: dict[str, str] = {}

    def said() -> bool:
        found.update(condition(cluster, kind))
        return (found["status"], found["reason"]) == ("False", wanted) and words in found["message"]

    cluster.wait(
        said,
        f"{kind} of {SUBJECT} says {wanted}: {words}",
        on_failure=lambda: f"{found}\n{log(cluster)[-2000:]}",
    )
    return found["message"]


def published(cluster: NodeCluster) -> dict[str, Object]:
    """The subject's devices by id, as its VFIONode says."""
    return {d["id"]: d for d in cluster.plane.get("vfionode", SUBJECT)["status"]["devices"]}


def presences(cluster: NodeCluster) -> dict[str, str]:
    """How well what the subject's devices of the pool say about themselves is understood, by id."""
    status = cluster.plane.get("vfionode", SUBJECT)["status"]
    profiles = {d["id"]: status["profiles"][d["profile"]] for d in status["devices"] if d["resource"] == POOL}
    return {id_: profile["self"].get("presence", "Present") for id_, profile in profiles.items()}


def assert_all_offered(cluster: NodeCluster) -> None:
    """Each device of the subject may be handed out, as its VFIONode and its kubelet say."""
    assert not [d for d in published(cluster).values() if d.get("health", "Healthy") != "Healthy"]
    assert cluster.allocatable(SUBJECT, POOL) == COUNTS[SUBJECT]


def assert_no_restart(cluster: NodeCluster) -> None:
    """No agent that is there now has ended before."""
    for pod in cluster.product_pods(PLUGIN):
        assert restart_counts(pod) in ([], [0])


def restart_counts(pod: Object) -> list[int]:
    """How often each of the pod's containers was started again."""
    return [s["restartCount"] for s in pod["status"].get("containerStatuses", ())]


def until_well(cluster: NodeCluster, node: str) -> None:
    """Nothing is wrong with the node, and the kubelet counts all of its devices."""

    def well() -> bool:
        return (
            (found := conditions(cluster, node)) != []
            and all(c["status"] == "True" for c in found)
            and cluster.allocatable(node, POOL) == COUNTS[node]
            and is_ready(cluster.agent(node))
        )

    cluster.wait(
        well,
        f"{node} is well",
        on_failure=lambda: f"{conditions(cluster, node)}\n{log(cluster, node)[-2000:]}",
    )


@contextlib.contextmanager
def lives_on(cluster: NodeCluster, *, since_start: bool = False) -> Iterator[Callable[[str], None]]:
    """What happens meanwhile, and being mended at its end, do not end the agent's process.

    Yields what waits for a text in the agent's log: since now, or since the agent's start.
    """
    cluster.wait(lambda: agent(cluster, SUBJECT), "the agent runs")
    before = agent(cluster, SUBJECT)
    start = 0 if since_start else len(log(cluster))
    yield lambda text: logged(cluster, text, start)
    until_well(cluster, SUBJECT)
    assert agent(cluster, SUBJECT) == before


def is_ready(pod: Object) -> bool:
    """Whether the kubelet says so."""
    return any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", ()))


def new_agent(cluster: NodeCluster) -> str:
    """Deletes the subject's agent; the name of the next one, once it is on the node."""
    former = agent_name(cluster, SUBJECT)
    cluster.plane.kubectl("delete", "pod", former, "-n", PRODUCT, "--timeout=30s")
    return until_new_agent(cluster, SUBJECT, former)


def until_new_agent(cluster: NodeCluster, node: str, former: str) -> str:
    """The name of the agent that follows the former one, once it is on the node."""
    cluster.wait(lambda: agent_name(cluster, node) != former, f"there is a new agent on {node}")
    return agent_name(cluster, node)


def waits_for(pod: Object) -> list[str]:
    """Why the pod's containers do not run yet, in the kubelet's word."""
    return [
        s["state"].get("waiting", {}).get("reason", "") for s in pod["status"].get("containerStatuses", ())
    ]


def failed_mounts(cluster: NodeCluster, pod: str) -> str:
    """What the kubelet says of volumes that it cannot mount."""
    return events(cluster, pod, PRODUCT, "FailedMount")


def events(cluster: NodeCluster, about: str, namespace: str, wanted: str) -> str:
    """The messages of the events with that reason, one a line."""
    return "\n".join(e["message"] for e in cluster.events(about, namespace) if e["reason"] == wanted)
