"""The chart's own kube-scheduler: what it is made of, and what makes its pods roll.

That it works is shown with a real API server in tests/extender/test_own_scheduler.py, and as a pod in
tests/node/test_own_scheduler.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import yaml

from tests.chart.support import CHART, NAMESPACE, Object, named, notes, pod_specs, render
from tests.cluster.binaries.build import Binaries
from tests.cluster.controlplane import ClusterError, ControlPlane

NAME = "migcompat-scheduler"
ON = ("--set", "scheduler.enabled=true")


def of_scheduler(objects: list[Object]) -> list[Object]:
    return [o for o in objects if o["metadata"]["labels"]["app.kubernetes.io/component"] == "scheduler"]


def configuration(objects: list[Object]) -> Object:
    read: Object = yaml.safe_load(named(objects, "ConfigMap", NAME)["data"]["config.yaml"])
    return read


def container(objects: list[Object]) -> Object:
    (only,) = pod_specs(objects)["scheduler"]["containers"]
    found: Object = only
    return found


def on_pods(objects: list[Object]) -> dict[str, str]:
    found: dict[str, str] = named(objects, "Deployment", NAME)["spec"]["template"]["metadata"]["annotations"]
    return found


def test_nobody_gets_one_who_does_not_ask_for_it(binaries: Binaries) -> None:
    objects = render(binaries)
    assert not of_scheduler(objects)
    (extender,) = pod_specs(objects)["extender"]["containers"]
    assert not [argument for argument in extender["args"] if argument.startswith("--scheduler-name")]


def test_what_it_brings(binaries: Binaries) -> None:
    before, after = render(binaries), render(binaries, *ON)
    assert sorted(o["kind"] for o in of_scheduler(after)) == [
        "ClusterRoleBinding",
        "ClusterRoleBinding",
        "ConfigMap",
        "Deployment",
        "PodDisruptionBudget",
        "Role",
        "RoleBinding",
        "ServiceAccount",
    ]
    assert len(after) - len(before) == len(of_scheduler(after))
    (extender,) = pod_specs(after)["extender"]["containers"]
    assert f"--scheduler-name={NAME}" in extender["args"]
    without = render(binaries, *ON, "--set", "scheduler.podDisruptionBudget=false")
    assert "PodDisruptionBudget" not in {o["kind"] for o in of_scheduler(without)}


def test_its_configuration(binaries: Binaries) -> None:
    said = configuration(render(binaries, *ON, "--set", "scheduler.schedulerName=vfio-scheduler"))
    assert said["profiles"] == [{"schedulerName": "vfio-scheduler"}]
    assert said["percentageOfNodesToScore"] == 100
    assert said["leaderElection"] == {
        "leaderElect": True,
        "resourceName": NAME,
        "resourceNamespace": NAMESPACE,
    }
    assert "clientConnection" not in said, "it is in the cluster"
    (extender,) = said["extenders"]
    assert (extender["filterVerb"], extender["prioritizeVerb"]) == ("filter", "prioritize")
    assert extender["weight"] >= 1
    assert extender["ignorable"] is extender["nodeCacheCapable"] is extender["enableHTTPS"] is True
    assert "managedResources" not in extender, "targets alone come here, whatever they ask for"
    assert "bindVerb" not in extender
    assert set(extender["tlsConfig"]) == {"serverName", "caFile", "certFile", "keyFile"}


def test_its_files_are_where_its_configuration_says(binaries: Binaries) -> None:
    objects = render(binaries, *ON)
    (extender,) = configuration(objects)["extenders"]
    spec = pod_specs(objects)["scheduler"]
    volumes = {v["name"]: v for v in spec["volumes"]}
    mounts = {m["mountPath"]: volumes[m["name"]] for m in container(objects)["volumeMounts"]}
    assert all(m["readOnly"] for m in container(objects)["volumeMounts"])
    assert mounts["/etc/migcompat/scheduler"]["configMap"]["name"] == NAME
    assert "--config=/etc/migcompat/scheduler/config.yaml" in container(objects)["args"]
    secret = named(objects, "Secret", mounts["/etc/migcompat/tls"]["secret"]["secretName"])
    assert secret["metadata"]["name"] == "migcompat-scheduler-client"
    files = {extender["tlsConfig"][key] for key in ("caFile", "certFile", "keyFile")}
    assert files == {f"/etc/migcompat/tls/{key}" for key in secret["data"]}


def test_certificates_of_somebody_else(binaries: Binaries) -> None:
    values = "tls.existingSecret=theirs,scheduler.clientSecret=client,extender.url=https://ext.example.org"
    spec = pod_specs(render(binaries, *ON, "--set", values))["scheduler"]
    assert [v["secret"]["secretName"] for v in spec["volumes"] if "secret" in v] == ["client"]


@pytest.mark.parametrize(
    ("values", "address"),
    [
        ("extender.port=8443", f"https://migcompat-extender.{NAMESPACE}.svc:443"),
        ("extender.clusterIP=10.96.0.50", "https://10.96.0.50:443"),
        ("extender.clusterIP=fd00::50,extender.servicePort=8443", "https://[fd00::50]:8443"),
    ],
)
def test_where_it_finds_the_extender(binaries: Binaries, values: str, address: str) -> None:
    (extender,) = configuration(render(binaries, *ON, "--set", values))["extenders"]
    assert extender["urlPrefix"] == address
    assert extender["tlsConfig"]["serverName"] == f"migcompat-extender.{NAMESPACE}.svc"


@pytest.mark.parametrize(
    ("cluster", "tag"),
    [
        ("v1.33.1", "v1.33.1"),
        ("v1.33.1+k3s1", "v1.33.1"),
        ("v1.32.4-gke.1415000", "v1.32.4"),
        ("v1.32.3-eks-bcf3d70", "v1.32.3"),
        ("v1.33.2+rke2r1", "v1.33.2"),
        ("v1.35.0-rc.1", "v1.35.0-rc.1"),
        ("v1.35.0-alpha.2.17+abcdef", "v1.35.0-alpha.2"),
    ],
)
def test_its_image_is_that_of_the_cluster_s_version(binaries: Binaries, cluster: str, tag: str) -> None:
    objects = render(binaries, *ON, "--kube-version", cluster)
    assert container(objects)["image"] == f"registry.k8s.io/kube-scheduler:{tag}"


def test_another_image(binaries: Binaries) -> None:
    def image(values: str) -> str:
        found: str = container(render(binaries, *ON, "--set", values))["image"]
        return found

    digest = f"sha256:{'0' * 64}"
    mine = "scheduler.image.repository=mirror.example.org/kube-scheduler"
    assert image(f"{mine},scheduler.image.tag=v1.33.9") == "mirror.example.org/kube-scheduler:v1.33.9"
    assert image(f"{mine},scheduler.image.digest={digest}") == f"mirror.example.org/kube-scheduler@{digest}"


def test_it_has_no_privilege(binaries: Binaries) -> None:
    objects = render(binaries, *ON)
    (extender,) = pod_specs(objects)["extender"]["containers"]
    assert container(objects)["securityContext"] == extender["securityContext"]
    assert container(objects)["securityContext"]["runAsNonRoot"] is True
    spec = pod_specs(objects)["scheduler"]
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    assert not any("hostPath" in volume for volume in spec["volumes"])
    assert spec["serviceAccountName"] == NAME


@pytest.mark.parametrize(("bind", "address"), [("0.0.0.0", "0.0.0.0"), ("[::]", "::"), ("$(POD_IP)",) * 2])
def test_it_listens_where_it_is_told(binaries: Binaries, bind: str, address: str) -> None:
    objects = render(binaries, *ON, "--set", f"bindAddress={bind},scheduler.healthPort=10999")
    assert {f"--bind-address={address}", "--secure-port=10999"} <= set(container(objects)["args"])
    assert container(objects)["ports"] == [{"name": "health", "containerPort": 10999}]


def test_its_pods_roll_when_its_configuration_changes_and_only_then(binaries: Binaries) -> None:
    def checksum(*flags: str) -> str:
        return on_pods(render(binaries, *ON, *flags))["checksum/config"]

    assert checksum() == checksum("--set", "webhook.maxNames=7")
    assert checksum() != checksum("--set", "extender.clusterIP=10.96.0.50")
    with_own = on_pods(render(binaries, *ON, "--set", "scheduler.podAnnotations.a=b"))
    assert with_own["a"] == "b"
    assert "checksum/config" in with_own


def test_the_notes_do_not_ask_for_what_the_chart_has_done(binaries: Binaries) -> None:
    assert "give its configuration the extender" in notes(binaries)
    said = notes(binaries, *ON)
    assert "give its configuration the extender" not in said
    assert f"scheduler {NAME}" in said


@pytest.fixture(scope="module")
def plane(binaries: Binaries) -> Iterator[ControlPlane]:
    """A control plane with the chart and its scheduler."""
    with ControlPlane(binaries) as plane:
        upgrade(plane)
        yield plane


def upgrade(plane: ControlPlane) -> None:
    plane.helm("upgrade", "--install", "migcompat", str(CHART), "-n", NAMESPACE, "--create-namespace", *ON)


def authority(plane: ControlPlane) -> str:
    template = plane.get("deployment", NAME, "-n", NAMESPACE)["spec"]["template"]
    found: str = template["metadata"]["annotations"]["checksum/ca"]
    return found


def test_another_authority_makes_its_pods_roll(plane: ControlPlane) -> None:
    """kube-scheduler would go on with the CA that it has read at its start."""
    upgrade(plane)
    before = authority(plane)
    upgrade(plane)
    assert authority(plane) == before
    secrets = ("migcompat-extender-ca", "migcompat-extender-tls", "migcompat-scheduler-client")
    plane.kubectl("delete", "secret", "-n", NAMESPACE, *secrets)
    upgrade(plane)
    made = authority(plane)
    assert made != before
    plane.kubectl("delete", "secret", "-n", NAMESPACE, *secrets)
    upgrade(plane)
    assert authority(plane) not in (before, made)


@pytest.mark.parametrize(
    ("verb", "what", "namespace", "may"),
    [
        ("create", "pods/binding", "default", True),
        ("patch", "pods/status", "default", True),
        ("list", "nodes", "", True),
        ("list", "storageclasses.storage.k8s.io", "", True),
        ("update", f"leases.coordination.k8s.io/{NAME}", NAMESPACE, True),
        ("update", f"leases.coordination.k8s.io/{NAME}", "default", False),
        ("update", "leases.coordination.k8s.io/other", NAMESPACE, False),
        ("get", "secrets", NAMESPACE, False),
        ("get", "configmaps", "kube-system", False),
        ("patch", "nodes", "", False),
    ],
)
def test_its_rights(plane: ControlPlane, verb: str, what: str, namespace: str, may: bool) -> None:
    kind, _, name = what.partition("/")
    question = ["auth", "can-i", verb, kind, f"--as=system:serviceaccount:{NAMESPACE}:{NAME}"]
    if "." in kind and name:
        question[3] = f"{kind}/{name}"
    elif name:
        question.append(f"--subresource={name}")
    if namespace:
        question += ["-n", namespace]
    try:
        answer = plane.kubectl(*question).strip()
    except ClusterError as error:
        answer = "no" if " no" in str(error) else str(error)
    assert answer == ("yes" if may else "no")
