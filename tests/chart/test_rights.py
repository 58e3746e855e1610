"""Each component may do what it does, and nothing else."""

from __future__ import annotations

import contextlib
import json

import pytest
import yaml

from tests.chart.support import NAMESPACE, RELEASE, Installed, Object
from tests.cluster.controlplane import ClusterError

LIST: Object = {"apiVersion": "v1", "kind": "List"}
READ = ("get", "list", "watch")
WRITE = ("create", "update", "patch", "delete", "deletecollection")

# Who -> resource[.group][/subresource] -> verbs. All else that EVERYTHING names is forbidden.
ALLOWED: dict[str, dict[str, tuple[str, ...]]] = {
    "device-plugin": {
        "vfionodes.migcompat.io": ("get", "create"),
        "vfionodes.migcompat.io/status": ("update",),
        "compatibilitypolicies.migcompat.io": ("list",),
        "nodes": ("get", "patch"),
        "pods": ("get", "list"),
        "virtualmachineinstances.kubevirt.io": ("get",),
    },
    "operator": {
        "vfionodes.migcompat.io": READ,
        "compatibilitypolicies.migcompat.io": (*READ, "create"),
        "compatibilitypolicies.migcompat.io/status": ("patch",),
        "migrationcompatibilities.migcompat.io": (*READ, "create", "patch", "delete"),
        "migrationcompatibilities.migcompat.io/status": ("patch",),
        "nodes": READ,
        "pods": (*READ, "patch", "delete"),
        "virtualmachineinstances.kubevirt.io": READ,
        "virtualmachineinstancemigrations.kubevirt.io": (*READ, "patch"),
        "events": ("create", "patch"),
        "customresourcedefinitions.apiextensions.k8s.io": ("list", "watch"),
    },
    "extender": {
        "vfionodes.migcompat.io": READ,
        "compatibilitypolicies.migcompat.io": READ,
        "nodes": READ,
        "pods": READ,
        "virtualmachineinstances.kubevirt.io": READ,
    },
}
NOBODY = (
    "secrets",
    "configmaps",
    "serviceaccounts",
    "serviceaccounts/token",
    "pods/exec",
    "pods/eviction",
    "pods/status",
    "nodes/status",
    "nodes/proxy",
    "clusterroles.rbac.authorization.k8s.io",
    "mutatingwebhookconfigurations.admissionregistration.k8s.io",
    "validatingadmissionpolicies.admissionregistration.k8s.io",
)
EVERYTHING = sorted({name for rules in ALLOWED.values() for name in rules} | set(NOBODY))


def reviews(user: str, groups: list[str], resource: str) -> list[Object]:
    """One question for each verb, as ``kubectl auth can-i --as`` asks it."""
    name, _, subresource = resource.partition("/")
    plural, _, group = name.partition(".")
    return [
        {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {
                "user": user,
                "groups": groups,
                "resourceAttributes": {
                    "verb": verb,
                    "group": group,
                    "resource": plural,
                    "subresource": subresource,
                    "namespace": "default",
                },
            },
        }
        for verb in (*READ, *WRITE)
    ]


@pytest.mark.parametrize("component", ALLOWED)
def test_a_component_has_exactly_the_rights_it_uses(installed: Installed, component: str) -> None:
    user = f"system:serviceaccount:{NAMESPACE}:{RELEASE}-{component}"
    groups = ["system:serviceaccounts", f"system:serviceaccounts:{NAMESPACE}", "system:authenticated"]
    asked = [review for resource in EVERYTHING for review in reviews(user, groups, resource)]
    text = installed.plane.kubectl(
        "create", "-f", "-", "-o", "yaml", stdin=json.dumps({**LIST, "items": asked})
    )
    found: dict[str, set[str]] = {}
    for review in yaml.safe_load_all(text):
        if review["status"]["allowed"]:
            about = review["spec"]["resourceAttributes"]
            name = ".".join(filter(None, (about["resource"], about.get("group", ""))))
            name = "/".join(filter(None, (name, about.get("subresource", ""))))
            found.setdefault(name, set()).add(about["verb"])
    assert found == {name: set(verbs) for name, verbs in ALLOWED[component].items()}


@pytest.mark.parametrize(
    ("what", "namespace", "verbs"),
    [
        ("secret/migcompat-extender-ca", NAMESPACE, {"get", "patch"}),
        ("secret/migcompat-extender-tls", NAMESPACE, {"get", "patch"}),
        ("secret/migcompat-scheduler-client", NAMESPACE, {"get", "patch"}),
        ("secret/other", NAMESPACE, set()),
        ("secret/migcompat-extender-ca", "default", set()),
        ("mutatingwebhookconfiguration/migcompat-extender", "", {"get", "patch"}),
        ("mutatingwebhookconfiguration/other", "", set()),
    ],
)
def test_the_operator_keeps_certificates_by_name(
    installed: Installed, what: str, namespace: str, verbs: set[str]
) -> None:
    found = set()
    for verb in (*READ, *WRITE):
        question = ("auth", "can-i", verb, what, f"--as=system:serviceaccount:{NAMESPACE}:{RELEASE}-operator")
        with contextlib.suppress(ClusterError):  # it says no with an exit status
            installed.plane.kubectl(*question, *(("-n", namespace) if namespace else ()))
            found.add(verb)
    assert found == verbs


@pytest.mark.parametrize(
    ("verb", "resource", "answer"),
    [("get", "migcompat", "yes"), ("create", "migcompat", "no"), ("list", "vfionodes", "no")],
)
def test_viewers_of_a_namespace_see_its_answers(
    installed: Installed, verb: str, resource: str, answer: str
) -> None:
    assert as_user(installed, "view", verb, resource) == answer


@pytest.mark.parametrize(
    ("verb", "resource", "answer"),
    [("create", "migcompat", "yes"), ("delete", "migcompat", "yes"), ("create", "compatpolicy", "no")],
)
def test_editors_of_a_namespace_ask_questions(
    installed: Installed, verb: str, resource: str, answer: str
) -> None:
    assert as_user(installed, "edit", verb, resource) == answer


def as_user(installed: Installed, role: str, verb: str, resource: str) -> str:
    """What ``kubectl auth can-i`` says to somebody with Kubernetes' own *role* in a namespace."""
    name = f"{role}-{verb}-{resource}"
    installed.plane.apply(
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": name, "namespace": "default"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "User", "name": name}],
        }
    )
    question = ("auth", "can-i", verb, resource, "-n", "default", f"--as={name}")
    try:
        return installed.plane.kubectl(*question).strip()
    except ClusterError as error:
        return "no" if " no" in str(error) else str(error)
