"""The life of a release: installed, upgraded, uninstalled. Without nodes, so no Job runs here."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from migcompat.kube.client import Client
from migcompat.kube.errors import Forbidden
from migcompat_operator import certificates as x509s
from migcompat_operator.keeper import SECRETS, Keeper
from migcompat_operator.metrics import Metrics
from migcompat_operator.rotation import Times

from tests.chart.support import CHART, Object, named
from tests.cluster.binaries.build import Binaries
from tests.cluster.controlplane import ClusterError, ControlPlane

NAMESPACE = "elsewhere"
RELEASE = "second"
CERTIFICATES = (
    f"{RELEASE}-migcompat-extender-ca",
    f"{RELEASE}-migcompat-extender-tls",
    f"{RELEASE}-migcompat-scheduler-client",
)


@pytest.fixture(scope="module")
def plane(binaries: Binaries) -> Iterator[ControlPlane]:
    """A control plane of its own: the definitions come and go."""
    with ControlPlane(binaries) as plane:
        yield plane


@pytest.fixture(autouse=True)
def _clean(plane: ControlPlane) -> Iterator[None]:
    yield
    plane.helm("uninstall", RELEASE, "--namespace", NAMESPACE, "--ignore-not-found", "--no-hooks")
    plane.kubectl("delete", "job", "--all", "--ignore-not-found", "-n", NAMESPACE)
    plane.kubectl("delete", "crd", "--all", "--wait=false")
    eventually_no_crds(plane)


def uninstall(plane: ControlPlane) -> None:
    plane.helm("uninstall", RELEASE, "--namespace", NAMESPACE, "--no-hooks")


def eventually_no_crds(plane: ControlPlane) -> None:
    """A definition goes once the API server has removed its objects.

    While it cannot list these yet ("storage is (re)initializing") it waits twice as long after each attempt;
    any change of the definition brings the next one at once.
    """
    deadline = time.monotonic() + 120
    for attempt in itertools.count(1):
        found = crds(plane)
        if not found:
            return
        if attempt % 25 == 0:
            with contextlib.suppress(ClusterError):  # it has gone just now
                plane.kubectl("annotate", "--overwrite", *found, f"example.org/attempt={attempt}")
        assert time.monotonic() < deadline, plane.kubectl("get", *found, "-o", "yaml")
        time.sleep(0.2)


def install(plane: ControlPlane, *flags: str) -> None:
    plane.helm(
        *("upgrade", "--install", RELEASE, str(CHART), "--namespace", NAMESPACE, "--create-namespace", *flags)
    )


def certificates(plane: ControlPlane) -> dict[str, Object]:
    return {name: plane.get("secret", name, "-n", NAMESPACE)["data"] for name in CERTIFICATES}


def crds(plane: ControlPlane) -> set[str]:
    return set(plane.kubectl("get", "crd", "-o", "name").split())


def test_an_install_that_is_repeated_changes_nothing(plane: ControlPlane) -> None:
    install(plane)
    before = certificates(plane)
    install(plane)
    assert certificates(plane) == before
    webhook = plane.get("mutatingwebhookconfiguration", f"{RELEASE}-migcompat-extender")
    assert webhook["webhooks"][0]["clientConfig"]["caBundle"] == before[CERTIFICATES[0]]["tls.crt"]


def test_a_new_name_gives_a_new_server_certificate_of_the_same_authority(plane: ControlPlane) -> None:
    """Which helm makes where no operator would."""
    alone = ("--set", "operator.enabled=false")
    install(plane, *alone)
    authority, server, client = CERTIFICATES
    before = certificates(plane)
    install(plane, *alone, "--set", "tls.extraNames={ext.example.org}")
    after = certificates(plane)
    assert after[server]["tls.crt"] != before[server]["tls.crt"]
    assert (after[authority], after[client]) == (before[authority], before[client])
    assert after[server]["ca.crt"] == before[authority]["tls.crt"]


def test_a_deleted_authority_is_replaced_with_all_it_signed(plane: ControlPlane) -> None:
    install(plane)
    before = certificates(plane)
    plane.kubectl("delete", "secret", "-n", NAMESPACE, *CERTIFICATES)
    install(plane)
    after = certificates(plane)
    assert all(after[name]["tls.crt"] != before[name]["tls.crt"] for name in CERTIFICATES)
    assert {after[name].get("ca.crt", after[name]["tls.crt"]) for name in CERTIFICATES} == {
        after[CERTIFICATES[0]]["tls.crt"]
    }
    keep(plane)
    assert certificates(plane) == after
    assert pem(after[CERTIFICATES[0]], "tls.crt")[0] in pem({"ca": trusted(plane)}, "ca")


def test_all_can_be_replaced_at_once_also_after_the_operator_has_renewed_it(plane: ControlPlane) -> None:
    install(plane)
    replace_authority(plane)
    before = certificates(plane)
    plane.kubectl("delete", "secret", "-n", NAMESPACE, CERTIFICATES[2])
    install(plane)
    after = certificates(plane)
    (current,) = pem(before[CERTIFICATES[0]], "tls.crt")
    pem(after[CERTIFICATES[2]], "tls.crt")[0].verify_directly_issued_by(current)
    plane.kubectl("delete", "secret", "-n", NAMESPACE, *CERTIFICATES)
    install(plane)
    keep(plane)
    (current,) = pem(certificates(plane)[CERTIFICATES[0]], "tls.crt")
    assert current not in pem(after[CERTIFICATES[0]], "tls.crt")
    assert current in pem({"ca": trusted(plane)}, "ca")


def operators(plane: ControlPlane) -> str:
    """Kubeconfig of the operator's service account."""
    token = plane.kubectl("create", "token", f"{RELEASE}-migcompat-operator", "-n", NAMESPACE).strip()
    path = plane.directory / "operator.kubeconfig"
    path.write_text(yaml.safe_dump(plane.kubeconfig_of({"token": token})))
    return str(path)


def keep(plane: ControlPlane, *, authority: float = 3650, overlap: float = 7, server: float = 90) -> Metrics:
    """What the operator does with the certificates, with its own rights; times in days."""
    metrics = Metrics()
    days = (timedelta(days=count) for count in (server, 365, authority, overlap))

    async def once() -> None:
        async with Client.from_environment(operators(plane)) as client:
            await Keeper(client, NAMESPACE, f"{RELEASE}-migcompat", Times(*days), metrics).pass_once()

    asyncio.run(once())
    return metrics


def pem(data: Object, key: str) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(base64.b64decode(data[key]))


def trusted(plane: ControlPlane) -> str:
    """kube-apiserver's authorities for the webhook, base64."""
    hook = plane.get("mutatingwebhookconfiguration", f"{RELEASE}-migcompat-extender")["webhooks"][0]
    bundle: str = hook["clientConfig"].get("caBundle", "")
    return bundle


def replace_authority(plane: ControlPlane, overlap: float = 0) -> None:
    """All three Secrets as if they had been made years ago, and what the operator makes of it."""
    long_ago = datetime.now(UTC) - timedelta(days=3000)
    pair = x509s.make_authority("old", long_ago, timedelta(days=3650))
    names = x509s.names_of(pem(certificates(plane)[CERTIFICATES[1]], "tls.crt")[0])
    server = x509s.Profile("server", x509s.Usage.SERVER, names)
    client = x509s.Profile("kube-scheduler", x509s.Usage.CLIENT)
    now, year = datetime.now(UTC), timedelta(days=365)
    patches = {
        CERTIFICATES[0]: pair,
        CERTIFICATES[1]: x509s.issue(pair, server, now, year),
        CERTIFICATES[2]: x509s.issue(pair, client, now, year),
    }
    bundle = base64.b64encode(x509s.write(pair.certificate)).decode()
    for name, leaf in patches.items():
        crt, key = (base64.b64encode(text).decode() for text in leaf.pem())
        data = {"tls.crt": crt, "tls.key": key, **({} if leaf is pair else {"ca.crt": bundle})}
        plane.kubectl(
            "patch", "secret", name, "-n", NAMESPACE, "--type=merge", "-p", json.dumps({"data": data})
        )
    keep(plane, overlap=overlap)


def test_an_upgrade_keeps_what_the_operator_has_renewed(plane: ControlPlane) -> None:
    install(plane)
    keep(plane)
    first = certificates(plane)
    install(plane)
    assert certificates(plane) == first, "the operator changes nothing of what is good"
    replace_authority(plane)
    before, trust = certificates(plane), trusted(plane)
    assert before[CERTIFICATES[0]].keys() == {"tls.crt", "tls.key", "old.crt"}
    (current,) = pem(before[CERTIFICATES[0]], "tls.crt")
    for name in CERTIFICATES[1:]:
        pem(before[name], "tls.crt")[0].verify_directly_issued_by(current)
        assert len(pem(before[name], "ca.crt")) == 2, "the one before, and the one that signs"
    for flags in ((), ("--set", "logLevel=debug")):
        install(plane, *flags)
        assert certificates(plane) == before
        assert trusted(plane) == trust
    install(plane, "--set", "tls.extraNames={ext.example.org}")
    assert certificates(plane) == before, "that is the operator's to do"
    keep(plane)
    after = certificates(plane)
    assert {name for name in CERTIFICATES if after[name] != before[name]} == {CERTIFICATES[1]}
    pem(after[CERTIFICATES[1]], "tls.crt")[0].verify_directly_issued_by(current)
    assert after[CERTIFICATES[1]]["ca.crt"] == before[CERTIFICATES[1]]["ca.crt"]


def test_an_upgrade_while_an_authority_is_being_replaced_does_not_disturb_it(plane: ControlPlane) -> None:
    install(plane)
    replace_authority(plane, overlap=7)
    before, trust = certificates(plane), trusted(plane)
    assert before[CERTIFICATES[0]].keys() == {"tls.crt", "tls.key", "next.crt", "next.key"}
    install(plane, "--set", "logLevel=debug")
    assert (certificates(plane), trusted(plane)) == (before, trust)
    keep(plane, overlap=0)
    after = certificates(plane)
    assert after[CERTIFICATES[0]]["tls.crt"] == before[CERTIFICATES[0]]["next.crt"]


def test_a_certificate_of_somebody_else_is_left_alone(plane: ControlPlane) -> None:
    install(plane)
    first = certificates(plane)
    plane.kubectl("delete", "secret", "-n", NAMESPACE, CERTIFICATES[0])
    install(plane)
    theirs = {"data": first[CERTIFICATES[1]]}
    plane.kubectl(
        "patch", "secret", "-n", NAMESPACE, CERTIFICATES[1], "--type=merge", "-p", json.dumps(theirs)
    )
    metrics = keep(plane)
    assert certificates(plane)[CERTIFICATES[1]] == first[CERTIFICATES[1]]
    sample = metrics.registry.get_sample_value
    assert sample("migcompat_operator_certificate_problems", {"certificate": "server"}) == 1
    assert sample("migcompat_operator_certificate_problems", {"certificate": "client"}) == 0


OPERATOR = ("--set", "tls.madeBy=operator")


def test_the_operator_fills_empty_secrets_and_upgrades_leave_them(plane: ControlPlane) -> None:
    install(plane, *OPERATOR)
    assert trusted(plane) == ""
    keep(plane)
    made = certificates(plane)
    names = pem(made[CERTIFICATES[1]], "tls.crt")[0].extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert f"{RELEASE}-migcompat-extender.{NAMESPACE}.svc" in names.value.get_values_for_type(x509.DNSName)
    assert trusted(plane) == made[CERTIFICATES[0]]["tls.crt"]
    for flags in (OPERATOR, OPERATOR, (), OPERATOR):
        install(plane, *flags)
        assert certificates(plane) == made
        assert trusted(plane) == made[CERTIFICATES[0]]["tls.crt"]
    install(plane, *OPERATOR, "--set", "tls.extraNames={ext.example.org}")
    assert certificates(plane) == made, "that is the operator's to do"
    keep(plane)
    assert certificates(plane)[CERTIFICATES[1]] != made[CERTIFICATES[1]]


@pytest.mark.parametrize("flags", [("--server-side", "--force-conflicts"), ()], ids=["server", "client"])
def test_applying_rendered_manifests_again_and_again_keeps_the_certificates(
    plane: ControlPlane, flags: tuple[str, ...]
) -> None:
    """As GitOps tools do: what is rendered knows nothing of the cluster."""
    command = ("template", RELEASE, str(CHART), "--namespace", NAMESPACE, "--no-hooks", *OPERATOR)
    rendered = plane.helm(*command)
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    plane.apply(namespace)
    assert plane.helm(*command) == rendered, "the same each time"
    plane.kubectl("apply", "-f", "-", *flags, stdin=rendered)
    keep(plane)
    made, trust = certificates(plane), trusted(plane)
    plane.kubectl("apply", "-f", "-", *flags, stdin=rendered)
    assert (certificates(plane), trusted(plane)) == (made, trust)
    plane.kubectl("delete", "-f", "-", "--wait=false", stdin=rendered)


def test_the_operator_sees_no_other_secret(plane: ControlPlane) -> None:
    install(plane)
    plane.kubectl("create", "secret", "generic", "other", "-n", NAMESPACE, "--from-literal=a=b")

    async def look() -> None:
        async with Client.from_environment(operators(plane)) as client:
            for asked in (
                client.get(SECRETS, "other", NAMESPACE),
                client.list(SECRETS, NAMESPACE),
                client.create(SECRETS, {"metadata": {"name": "new"}}, NAMESPACE),
                client.delete(SECRETS, CERTIFICATES[0], NAMESPACE),
                client.get(SECRETS, CERTIFICATES[0], "default"),
            ):
                with pytest.raises(Forbidden):
                    await asked

    asyncio.run(look())


def test_uninstalling_leaves_nothing(plane: ControlPlane) -> None:
    install(plane)
    policy = {
        "apiVersion": "migcompat.io/v1alpha1",
        "kind": "CompatibilityPolicy",
        "metadata": {"name": "mine"},
        "spec": {},
    }
    plane.kubectl("create", "-f", "-", stdin=json.dumps(policy))
    uninstall(plane)
    eventually_no_crds(plane)
    assert left(plane) == set()


def left(plane: ControlPlane) -> set[str]:
    """What says that it is of migcompat, but the definitions."""
    kinds = (
        "all,secrets,serviceaccounts,roles,rolebindings,clusterroles,clusterrolebindings,"
        "mutatingwebhookconfigurations,validatingadmissionpolicies,validatingadmissionpolicybindings,"
        "poddisruptionbudgets"
    )
    return set(
        plane.kubectl("get", kinds, "-A", "-o", "name", "-l", "app.kubernetes.io/part-of=migcompat").split()
    )


def test_an_uninstall_whose_job_cannot_run_says_so_and_changes_nothing(plane: ControlPlane) -> None:
    install(plane)
    before = left(plane)
    with pytest.raises(ClusterError) as failed:
        plane.helm("uninstall", RELEASE, "--namespace", NAMESPACE, "--timeout", "5s")
    assert f"{RELEASE}-migcompat-clean-up" in str(failed.value)
    remains = {name for name in left(plane) - before if not name.startswith("pod/")}
    assert remains == {f"job.batch/{RELEASE}-migcompat-clean-up"}
    uninstall(plane)
    eventually_no_crds(plane)
    assert not {name for name in left(plane) if "clean-up" not in name}


def clean_up(plane: ControlPlane) -> subprocess.CompletedProcess[str]:
    """The documented command, by hand."""
    return subprocess.run(
        [
            *(Path(sys.executable).with_name("migcompat"), "clean-up"),
            *("--namespace", NAMESPACE, "--name", f"{RELEASE}-migcompat"),
            *("--kubeconfig", plane.kubeconfig),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_by_hand_the_same_is_removed(plane: ControlPlane) -> None:
    install(plane)
    ours = {"migcompat.io/managed": "true", "offers.migcompat.io/x": "true", "type.migcompat.io/t": "true"}
    plane.apply(
        {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": "labelled", "labels": {**ours, "zone": "a"}},
        }
    )
    ended = clean_up(plane)
    assert ended.returncode == 0, ended.stderr
    assert plane.get("node", "labelled")["metadata"]["labels"] == {"zone": "a"}
    kept = {
        name for name in left(plane) if name.startswith(("daemonset", "deployment", "replicaset", "pod/"))
    }
    assert all("extender" in name for name in kept), kept
    assert "labels of migcompat removed from 1 Node(s)" in ended.stdout
    again = clean_up(plane)
    assert (again.returncode, again.stderr) == (0, "")
    install(plane)
    assert f"daemonset.apps/{RELEASE}-migcompat-device-plugin" in left(plane)


def test_definitions_and_objects_can_be_kept(plane: ControlPlane) -> None:
    install(plane, "--set", "crds.keep=true")
    policy = {
        "apiVersion": "migcompat.io/v1alpha1",
        "kind": "CompatibilityPolicy",
        "metadata": {"name": "mine"},
        "spec": {"unknown": "Allow"},
    }
    plane.kubectl("create", "-f", "-", stdin=json.dumps(policy))
    uninstall(plane)
    assert plane.get("compatpolicy", "mine")["spec"] == {"unknown": "Allow"}
    install(plane, "--set", "crds.keep=true")
    assert plane.get("compatpolicy", "mine")["spec"] == {"unknown": "Allow"}


def policy(plane: ControlPlane, name: str = "mine") -> None:
    body = {
        "apiVersion": "migcompat.io/v1alpha1",
        "kind": "CompatibilityPolicy",
        "metadata": {"name": name},
        "spec": {"unknown": "Allow"},
    }
    plane.kubectl("create", "-f", "-", stdin=json.dumps(body))


def uids(plane: ControlPlane) -> set[str]:
    return {item["metadata"]["uid"] for item in plane.get("crd")["items"]}


def test_an_upgrade_keeps_the_definitions_and_their_objects(plane: ControlPlane) -> None:
    """Whatever becomes of crds.keep meanwhile."""
    install(plane)
    policy(plane)
    before = uids(plane)
    for keep in ("true", "false", "true"):
        install(plane, "--set", f"crds.keep={keep},logLevel=debug")
        assert uids(plane) == before
        annotations = plane.get("crd", "vfionodes.migcompat.io")["metadata"]["annotations"]
        assert annotations.get("helm.sh/resource-policy") == ("keep" if keep == "true" else None)
    assert plane.get("compatpolicy", "mine")["spec"] == {"unknown": "Allow"}


def test_definitions_are_not_deleted_by_a_value(plane: ControlPlane) -> None:
    """crds.install=false takes them out of the release, and helm would delete them with all objects."""
    install(plane)
    policy(plane)
    with pytest.raises(ClusterError, match=r"upgrade with crds\.keep=true first"):
        install(plane, "--set", "crds.install=false")
    install(plane, "--set", "crds.keep=true")
    install(plane, "--set", "crds.install=false")
    assert plane.get("compatpolicy", "mine")["spec"] == {"unknown": "Allow"}
    install(plane, "--set", "crds.install=false")


def test_an_upgrade_brings_new_definitions(plane: ControlPlane) -> None:
    """Helm never upgrades what lies in a chart's crds directory; ours are templates."""
    install(plane)
    name = "vfionodes.migcompat.io"
    columns = plane.get("crd", name)["spec"]["versions"][0]["additionalPrinterColumns"]
    patch = [{"op": "replace", "path": "/spec/versions/0/additionalPrinterColumns", "value": columns[:1]}]
    plane.kubectl("patch", "crd", name, "--type=json", "-p", json.dumps(patch))
    install(plane, "--force-conflicts")
    assert plane.get("crd", name)["spec"]["versions"][0]["additionalPrinterColumns"] == columns


def test_the_notes_say_where_the_client_certificate_is(plane: ControlPlane) -> None:
    install(plane)
    notes = plane.helm("get", "notes", RELEASE, "--namespace", NAMESPACE)
    assert f"{NAMESPACE}/{RELEASE}-migcompat-scheduler-client" in notes
    assert f"serverName: {RELEASE}-migcompat-extender.{NAMESPACE}.svc" in notes
    secret = plane.get("secret", f"{RELEASE}-migcompat-scheduler-client", "-n", NAMESPACE)
    assert named([secret], "Secret")["data"].keys() == {"tls.crt", "tls.key", "ca.crt"}
