"""What is derived from the chart is up to date, works without helm, and documented commands do too."""

from __future__ import annotations

import ast
import base64
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.chart.support import CHART, ROOT, Installed
from tests.cluster.binaries.build import Binaries
from tests.cluster.controlplane import ControlPlane
from tests.tools.chart_reference import documented, leaves
from tests.tools.render_manifests import NAMESPACE, rendered

NO_KUBELET = ("PodResourcesUnavailable", "NotRegistered")
"""Reasons of VFIONodes that an agent gives which may not use the kubelet's sockets."""
SERVER_AUTH = ExtendedKeyUsageOID.SERVER_AUTH
CLIENT_AUTH = ExtendedKeyUsageOID.CLIENT_AUTH


@pytest.fixture(scope="module")
def plain(binaries: Binaries) -> Iterator[ControlPlane]:
    """A control plane with deploy/manifests.yaml and certificates, and no helm."""
    with ControlPlane(binaries) as plane:
        plane.kubectl("apply", "--server-side", "-f", str(ROOT / "deploy" / "manifests.yaml"))
        shell(plane, str(ROOT / "deploy" / "certificates.sh"), NAMESPACE, "10.96.0.50", "ext.example.org")
        yield plane


def shell(plane: ControlPlane, *command: str, stdin: str = "") -> str:
    """Runs a command of the documentation as the administrator."""
    environment = {
        "PATH": f"{plane.binaries.kubectl.parent}:{os.environ['PATH']}",
        "KUBECONFIG": str(plane.kubeconfig),
        "HOME": str(plane.directory),
    }
    result = subprocess.run(
        command, input=stdin, capture_output=True, text=True, timeout=60, check=False, env=environment
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_derived_files_are_up_to_date(binaries: Binaries) -> None:
    for path, text in rendered(binaries).items():
        assert path.read_text() == text, f"{path.relative_to(ROOT)} is out of date: run `make manifests`"


def test_every_value_is_explained() -> None:
    text = (CHART / "values.yaml").read_text()
    groups = ("resources", "nodeSelector")
    assert documented(text) == set(leaves(yaml.safe_load(text), groups))


def test_plain_manifests_hold_no_key_and_no_traces_of_helm() -> None:
    text = (ROOT / "deploy" / "manifests.yaml").read_text()
    assert "kind: Secret" not in text
    assert "clean-up" not in text
    assert "helm" not in text.removeprefix(text.splitlines()[0]).lower()


def test_plain_manifests_install_everything(plain: ControlPlane) -> None:
    assert plain.kubectl("get", "vfionodes,migrationcompat,compatpolicy", "-A") == ""
    for workload in ("daemonset/migcompat-device-plugin", "deployment/migcompat-operator"):
        plain.kubectl("get", workload, "-n", NAMESPACE)


def test_the_certificates_of_the_script_are_those_the_webhook_trusts(plain: ControlPlane) -> None:
    server = plain.get("secret", "migcompat-extender-tls", "-n", NAMESPACE)["data"]
    client = plain.get("secret", "migcompat-scheduler-client", "-n", NAMESPACE)["data"]
    webhook = plain.get("mutatingwebhookconfiguration", "migcompat-extender")["webhooks"][0]
    assert webhook["clientConfig"]["caBundle"] == server["ca.crt"] == client["ca.crt"]
    root = certificate(server, "ca.crt")
    assert root.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    for secret, purpose in ((server, SERVER_AUTH), (client, CLIENT_AUTH)):
        leaf = certificate(secret, "tls.crt")
        leaf.verify_directly_issued_by(root)
        assert list(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [purpose]
        assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        assert leaf.not_valid_before_utc <= datetime.now(UTC) < leaf.not_valid_after_utc
        key = load_pem_private_key(base64.b64decode(secret["tls.key"]), password=None)
        assert key.public_key() == leaf.public_key()
    good_for = certificate(server, "tls.crt").extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert {f"migcompat-extender.{NAMESPACE}.svc", "ext.example.org"} <= set(
        good_for.value.get_values_for_type(x509.DNSName)
    )
    assert "10.96.0.50" in map(str, good_for.value.get_values_for_type(x509.IPAddress))


def certificate(data: dict[str, str], key: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(base64.b64decode(data[key]))


@pytest.mark.parametrize("missing", ["openssl", "kubectl"])
def test_the_script_says_which_program_it_lacks(tmp_path: Path, missing: str) -> None:
    for program in {"bash", "base64", "openssl", "kubectl"} - {missing}:
        stub = tmp_path / program
        stub.write_text("#!/bin/sh\nexit 97\n")
        stub.chmod(0o755)
    bash = shutil.which("bash")
    assert bash is not None, "bash is needed"
    result = subprocess.run(
        [bash, str(ROOT / "deploy" / "certificates.sh"), NAMESPACE],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PATH": str(tmp_path)},
    )
    assert result.returncode == 1
    assert f"needs the program {missing}, which is not on the PATH" in result.stderr
    assert "Nothing has been changed" in result.stderr


def test_kube_scheduler_takes_the_fragment(plain: ControlPlane) -> None:
    """As installed by the documentation's commands, with files where this scheduler can read them."""
    configuration = yaml.safe_load((ROOT / "deploy" / "kube-scheduler-extender.yaml").read_text())
    (extender,) = configuration["extenders"]
    for key, name in (("caFile", "ca.crt"), ("certFile", "tls.crt"), ("keyFile", "tls.key")):
        path = plain.directory / f"client-{name}"
        path.write_text(
            shell(
                plain,
                *("kubectl", "-n", NAMESPACE, "get", "secret", "migcompat-scheduler-client", "-o"),
                f'go-template={{{{index .data "{name}" | base64decode}}}}',
            )
        )
        extender["tlsConfig"][key] = str(path)
    plain.restart_scheduler([extender])


def test_the_documented_command_removes_our_labels_and_no_others(installed: Installed) -> None:
    text = (ROOT / "docs" / "install.md").read_text()
    (command,) = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
    labels = {
        "migcompat.io/managed": "true",
        "type.migcompat.io/nvidia-592": "true",
        "offers.migcompat.io/000000000000000000000000": "true",
        "zone": "a",
        "notmigcompat.io/x": "y",
    }
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "labelled", "labels": labels}}
    installed.plane.kubectl("create", "-f", "-", stdin=json.dumps(node))
    shell(installed.plane, "bash", "-c", command)
    assert installed.plane.get("node", "labelled")["metadata"]["labels"] == {
        "zone": "a",
        "notmigcompat.io/x": "y",
    }


PAGES = sorted(str(p.relative_to(ROOT)) for p in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")))


def prose(path: Path) -> str:
    return re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", prose(path), flags=re.MULTILINE)
    plain = [re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES)
def test_links_of_the_documentation_lead_somewhere(page: str) -> None:
    path = ROOT / page
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)]*))?\)", prose(path)):
        if target.startswith("http"):
            continue
        found = path.parent / target if target else path
        assert found.exists(), f"{page} links to {target}, which does not exist"
        if anchor:
            assert anchor in anchors(found), f"{page} links to {target}#{anchor}, which has no such heading"


@pytest.mark.parametrize(
    "page", ["README.md", "CHANGELOG.md", "docs/concepts.md", "docs/reference/extender.md"]
)
def test_what_is_not_there_yet_is_said_where_people_look(page: str) -> None:
    assert "contract.md#not-yet)" in (ROOT / page).read_text()


@pytest.mark.parametrize("page", PAGES)
def test_values_that_the_documentation_names_exist(page: str) -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    groups = "|".join(name for name, value in values.items() if isinstance(value, dict) and name != "image")
    for group, key in re.findall(rf"[` ]({groups})\.([a-zA-Z]+)(?=[`=])", (ROOT / page).read_text()):
        assert key in values[group], f"{page} names {group}.{key}"


def defined_in(path: Path) -> set[str]:
    """Names of the tests of a file; none if there is no such file."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = ast.walk(ast.parse(path.read_text())) if path.is_file() else ()
    return {node.name for node in nodes if isinstance(node, functions) and node.name.startswith("test_")}


@pytest.mark.parametrize("page", PAGES)
def test_tests_that_the_documentation_names_exist(page: str) -> None:
    for path, test in re.findall(r"([\w./-]+\.py)::(\w+)", (ROOT / page).read_text()):
        assert test in defined_in(ROOT / path), f"{page} names {path}::{test}, which does not exist"


def test_what_the_comparison_says_of_us_names_a_test() -> None:
    page = (ROOT / "docs" / "reference" / "comparison.md").read_text()
    tables = page.partition("## Where it was read")[0]
    rows = [line for line in tables.splitlines() if re.match(r"\| (?!\|)", line)]
    assert rows
    for row in rows:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert len(cells) == 8, row
        assert re.match(r"✔ `tests/[\w/]+\.py::test_\w+`|✘", cells[-1]), f"neither a test nor a no: {row}"


def test_selinux_is_said_where_it_bites() -> None:
    runbook = (ROOT / "docs" / "runbook.md").read_text()
    for place in (
        (ROOT / "docs" / "install.md").read_text(),
        *(re.findall(rf"^\| `{reason}` .*$", runbook, re.MULTILINE)[0] for reason in NO_KUBELET),
    ):
        assert "devicePlugin.seLinuxType=spc_t" in place
