"""What the chart makes of its values, and which values it refuses."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from migcompat.api import names

from tests.chart.support import CHART, NAMESPACE, Object, named, notes, pod_specs, refusal, render
from tests.cluster.binaries.build import Binaries

PEM = "-----BEGIN CERTIFICATE-----"
CATALOGUE = sorted((CHART / "files" / "catalogue").glob("*.yaml"))
COMPONENTS = {"device-plugin", "operator", "extender"}


def arguments(spec: Object) -> list[str]:
    (container,) = spec["containers"]
    found: list[str] = container["args"]
    return found


HOOK = "helm.sh/hook"


def test_lint(binaries: Binaries) -> None:
    result = subprocess.run(
        [binaries.helm, "lint", "--strict", str(CHART)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_object_says_what_it_belongs_to(binaries: Binaries) -> None:
    for item in render(binaries):
        labels = item["metadata"]["labels"]
        assert labels["app.kubernetes.io/name"] == "migcompat"
        assert labels["app.kubernetes.io/part-of"] == "migcompat"
        assert labels["app.kubernetes.io/instance"] == "migcompat"
        assert labels["app.kubernetes.io/managed-by"] == "Helm"
        assert labels["app.kubernetes.io/version"]
        assert labels["app.kubernetes.io/component"]


def test_nothing_is_tied_to_a_name_or_namespace(binaries: Binaries) -> None:
    """Two releases share nothing but the definitions, whose names are the API's."""
    first = render(binaries, release="one", namespace="a")
    second = render(binaries, "--set", "crds.install=false", release="two", namespace="b")

    def keys(objects: list[Object]) -> set[tuple[str, str]]:
        return {(o["kind"], o["metadata"]["name"]) for o in objects}

    assert not keys(first) & keys(second)
    assert {o["metadata"].get("namespace", "a") for o in first} == {"a"}
    assert {o["metadata"].get("namespace", "b") for o in second} == {"b"}


@pytest.mark.parametrize("component", sorted(COMPONENTS))
def test_the_programs_know_the_flags_they_are_given(binaries: Binaries, component: str) -> None:
    flags = (
        *("--set", "allowLoosening=true,extender.preemptibleRejections=true,webhook.failurePolicy=Fail"),
        *("--set-json", 'devicePlugin.config={"resources": []}'),
        *("--set", "devicePlugin.privileged=true,devicePlugin.nvml.hostPath=/usr/lib64"),
        *("--set", "scheduler.enabled=true"),
    )
    (container,) = pod_specs(render(binaries, *flags))[component]["containers"]
    program = Path(sys.executable).parent / container["command"][0]
    assert shutil.which(program), f"{program} is not installed"
    result = subprocess.run(
        [program, "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={"COLUMNS": "400", "TERM": "dumb", "PATH": "/usr/bin"},
    )
    known = set(re.findall(r"--[a-z][a-z-]+", result.stdout))
    given = {argument.partition("=")[0] for argument in container["args"]}
    assert given <= known


def test_the_agent_is_told_its_mode(binaries: Binaries) -> None:
    def mode(*flags: str) -> list[str]:
        spec = pod_specs(render(binaries, *flags))["device-plugin"]
        return [argument for argument in arguments(spec) if argument.startswith("--mode")]

    assert mode() == ["--mode=serve"]
    assert mode("--set", "devicePlugin.mode=observe") == ["--mode=observe"]
    assert "devicePlugin" in refusal(binaries, "--set", "devicePlugin.mode=watch")


def test_no_container_is_privileged_and_only_the_agent_is_root(binaries: Binaries) -> None:
    specs = pod_specs(render(binaries))
    assert set(specs) == COMPONENTS
    for component, spec in specs.items():
        (container,) = spec["containers"]
        context = container["securityContext"]
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert "privileged" not in context
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
        assert (context["runAsUser"] == 0) == (component == "device-plugin")
        if component != "device-plugin":
            assert not any("hostPath" in volume for volume in spec.get("volumes", ()))


def test_the_agent_sees_of_its_host_what_it_needs(binaries: Binaries) -> None:
    flags = (
        "--set",
        "hostPaths.sys=/x/sys,hostPaths.dev=/x/dev,hostPaths.kubelet=/x/k,hostPaths.bootID=/x/boot,"
        "hostPaths.devicePlugins=/y/plugins",
    )
    spec = pod_specs(render(binaries, *flags))["device-plugin"]
    volumes = {v["name"]: v["hostPath"]["path"] for v in spec["volumes"]}
    mounts = {m["mountPath"]: m for m in spec["containers"][0]["volumeMounts"]}
    assert {path: volumes[m["name"]] for path, m in mounts.items()} == {
        "/host/sys": "/x/sys",
        "/host/dev": "/x/dev",
        "/host/boot_id": "/x/boot",
        "/host/kubelet/device-plugins": "/y/plugins",
        "/host/kubelet/pod-resources": "/x/k/pod-resources",
    }
    assert "--host-dev=/x/dev" in arguments(spec)
    writable = {path for path, mount in mounts.items() if not mount.get("readOnly")}
    assert writable == {"/host/sys", "/host/kubelet/device-plugins"}


def test_the_agent_gets_the_selinux_type_that_is_asked_for(binaries: Binaries) -> None:
    def options(*flags: str) -> object:
        (container,) = pod_specs(render(binaries, *flags))["device-plugin"]["containers"]
        return container["securityContext"].get("seLinuxOptions")

    assert options() is None
    assert options("--set", "devicePlugin.seLinuxType=spc_t") == {"type": "spc_t"}


def test_the_agent_is_told_whom_to_ask(binaries: Binaries) -> None:
    assert "--probe=auto" in arguments(pod_specs(render(binaries))["device-plugin"])
    off = pod_specs(render(binaries, "--set", "devicePlugin.probe=off"))["device-plugin"]
    assert "--probe=off" in arguments(off)


def test_an_agent_gets_nvidias_library_where_it_may_use_it(binaries: Binaries) -> None:
    plain = pod_specs(render(binaries))["device-plugin"]
    assert "--nvml=off" in arguments(plain)
    assert "nvidia" not in {volume["name"] for volume in plain["volumes"]}

    library = "driver/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1"
    values = f"privileged=true,nvml.hostPath=/run/nvidia,nvml.library={library}"
    flags = ",".join(f"devicePlugin.{value}" for value in values.split(","))
    spec = pod_specs(render(binaries, "--set", flags))["device-plugin"]
    assert not [argument for argument in arguments(spec) if argument.startswith("--nvml=")]
    (mount,) = (mount for mount in spec["containers"][0]["volumeMounts"] if mount["name"] == "nvidia")
    assert (mount["readOnly"], mount["mountPropagation"]) == (True, "HostToContainer")
    assert f"--nvml-library={mount['mountPath']}/{library}" in arguments(spec)
    (volume,) = (volume for volume in spec["volumes"] if volume["name"] == "nvidia")
    assert volume["hostPath"] == {"path": "/run/nvidia", "type": "DirectoryOrCreate"}


def test_an_agent_that_may_open_devices_is_privileged_and_nothing_that_kubernetes_refuses_beside_it(
    binaries: Binaries,
) -> None:
    (container,) = pod_specs(render(binaries, "--set", "devicePlugin.privileged=true"))["device-plugin"][
        "containers"
    ]
    context = container["securityContext"]
    assert context["privileged"] is True
    assert context["readOnlyRootFilesystem"] is True
    assert "allowPrivilegeEscalation" not in context, "kube-apiserver refuses false beside privileged"


def test_the_agent_may_ask_for_its_own_daemonset_and_no_other(binaries: Binaries) -> None:
    objects = render(binaries)
    daemonset = named(objects, "DaemonSet")["metadata"]["name"]
    assert f"--daemonset={daemonset}" in arguments(pod_specs(objects)["device-plugin"])
    assert named(objects, "Role", daemonset)["rules"] == [
        {"apiGroups": ["apps"], "resources": ["daemonsets"], "resourceNames": [daemonset], "verbs": ["get"]}
    ]


def cleaning(objects: list[Object]) -> list[Object]:
    return [o for o in objects if o["metadata"]["labels"]["app.kubernetes.io/component"] == "clean-up"]


def test_nothing_of_the_clean_up_is_there_but_during_an_uninstall(binaries: Binaries) -> None:
    """All of it are hooks; only a Job that failed stays a while, for its log."""
    objects = cleaning(render(binaries))
    by_weight: dict[int, set[str]] = {}
    for item in objects:
        annotations = item["metadata"]["annotations"]
        assert annotations[HOOK] == "pre-delete"
        policy = set(annotations[f"{HOOK}-delete-policy"].split(","))
        failed = set() if item["kind"] == "Job" else {"hook-failed"}
        assert policy == {"before-hook-creation", "hook-succeeded"} | failed
        by_weight.setdefault(int(annotations[f"{HOOK}-weight"]), set()).add(item["kind"])
    assert by_weight == {
        -2: {"ServiceAccount", "ClusterRole", "Role"},
        -1: {"ClusterRoleBinding", "RoleBinding"},
        0: {"Job"},
    }
    job = named(objects, "Job")["spec"]
    assert job["ttlSecondsAfterFinished"] <= 3600
    assert job["activeDeadlineSeconds"] < 300, "helm waits no longer, and would not say why"
    others = [o for o in render(binaries) if o not in objects]
    assert not [o for o in others if HOOK in o["metadata"].get("annotations", {})]


def test_the_clean_up_may_do_what_it_does(binaries: Binaries) -> None:
    """That this is enough: test_uninstall.py."""
    objects = cleaning(render(binaries))
    assert named(objects, "ClusterRole")["rules"] == [
        {"apiGroups": [""], "resources": ["nodes"], "verbs": ["list", "patch"]},
        {
            "apiGroups": ["migcompat.io"],
            "resources": ["vfionodes", "migrationcompatibilities"],
            "verbs": ["list", "delete"],
        },
        {"apiGroups": ["migcompat.io"], "resources": ["compatibilitypolicies"], "verbs": ["list"]},
        {
            "apiGroups": ["migcompat.io"],
            "resources": ["compatibilitypolicies"],
            "resourceNames": [f"{names.CATALOGUE_PREFIX}{path.stem}" for path in CATALOGUE],
            "verbs": ["delete"],
        },
    ]
    assert [
        (r["resources"], r.get("resourceNames"), r["verbs"]) for r in named(objects, "Role")["rules"]
    ] == [
        (["daemonsets"], ["migcompat-device-plugin"], ["get", "delete"]),
        (["deployments"], ["migcompat-operator"], ["get", "delete"]),
        (["pods"], None, ["list"]),
    ]


def test_the_clean_up_runs_where_the_operator_may(binaries: Binaries) -> None:
    where = {
        "nodeSelector": {"a": "b"},
        "tolerations": [{"operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
    }
    flags = (x for key, value in where.items() for x in ("--set-json", f"operator.{key}={json.dumps(value)}"))
    objects = render(binaries, *flags, "--set", "operator.nodeSelector.kubernetes\\.io/os=null")
    spec = named(cleaning(objects), "Job")["spec"]["template"]["spec"]
    assert {key: spec[key] for key in where} == where
    (container,) = spec["containers"]
    assert container["securityContext"]["runAsNonRoot"] is True
    result = subprocess.run(
        [Path(sys.executable).parent / "migcompat", "clean-up", "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={"COLUMNS": "400", "TERM": "dumb", "PATH": "/usr/bin"},
    )
    given = {argument.partition("=")[0] for argument in container["args"] if argument.startswith("--")}
    assert given <= set(re.findall(r"--[a-z][a-z-]+", result.stdout))


def test_there_is_never_a_second_agent_on_a_node(binaries: Binaries) -> None:
    strategy = named(render(binaries), "DaemonSet")["spec"]["updateStrategy"]
    assert strategy == {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": "10%"}}


def test_there_is_never_a_second_operator(binaries: Binaries) -> None:
    spec = named(render(binaries), "Deployment", "migcompat-operator")["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})


def test_components_listen_where_they_are_told(binaries: Binaries) -> None:
    for spec in pod_specs(render(binaries, "--set", "bindAddress=$(POD_IP)")).values():
        bound = [a for a in arguments(spec) if "bind=" in a]
        assert bound
        assert all("bind=$(POD_IP):" in a for a in bound)
        assert "POD_IP" in [e["name"] for e in spec["containers"][0]["env"]]


@pytest.mark.parametrize(
    ("value", "component", "flag"),
    [
        ("allowLoosening=true", "device-plugin", "--allow-loosening"),
        ("allowLoosening=true", "operator", "--allow-loosening"),
        ("allowLoosening=true", "extender", "--allow-loosening"),
        ("extender.preemptibleRejections=true", "extender", "--preemptible-rejections"),
        ("webhook.failurePolicy=Fail", "extender", "--fail-closed"),
        ("webhook.maxNames=7", "extender", "--max-names=7"),
        ("resourceDomain=gpu.example.org", "device-plugin", "--resource-domain=gpu.example.org"),
        ("logLevel=debug", "operator", "--log-level=debug"),
    ],
)
def test_a_value_becomes_a_flag(binaries: Binaries, value: str, component: str, flag: str) -> None:
    assert flag not in arguments(pod_specs(render(binaries))[component])
    assert flag in arguments(pod_specs(render(binaries, "--set", value))[component])


def test_the_operator_sees_the_files_of_the_catalogue_that_are_chosen(binaries: Binaries) -> None:
    objects = render(binaries, "--set", "catalogue.policies={xe,vfio-ap}")
    data = named(objects, "ConfigMap", "migcompat-catalogue")["data"]
    assert data == {f"{p.stem}.yaml": p.read_text() for p in CATALOGUE if p.stem in ("xe", "vfio-ap")}
    spec = pod_specs(objects)["operator"]
    (mount,) = spec["containers"][0]["volumeMounts"]
    assert f"--catalogue={mount['mountPath']}" in arguments(spec)
    assert {"name": mount["name"], "configMap": {"name": "migcompat-catalogue"}} in spec["volumes"]
    assert mount["readOnly"] is True


def test_a_catalogue_of_nothing_is_one_so_that_what_was_there_goes(binaries: Binaries) -> None:
    objects = render(binaries, "--set-json", "catalogue.policies=[]")
    assert named(objects, "ConfigMap", "migcompat-catalogue")["data"] == {}
    assert [a for a in arguments(pod_specs(objects)["operator"]) if a.startswith("--catalogue=")]


def test_the_operator_may_change_the_policies_of_the_catalogue_and_no_others(binaries: Binaries) -> None:
    rules = named(render(binaries), "ClusterRole", "migcompat-operator")["rules"]
    writes = {
        verb: rule.get("resourceNames")
        for rule in rules
        if "compatibilitypolicies" in rule["resources"]
        for verb in {"create", "update", "patch", "delete"} & set(rule["verbs"])
    }
    known = [f"{names.CATALOGUE_PREFIX}{path.stem}" for path in CATALOGUE]
    assert writes == {"create": None, "patch": known, "delete": known}


def test_all_that_is_in_the_catalogue_is_named_where_one_chooses() -> None:
    text = (CHART / "values.yaml").read_text()
    (listed,) = re.findall(r"Those that are wanted: (.*?)\.", text)
    assert listed.split(", ") == [path.stem for path in CATALOGUE]


def test_only_target_pods_are_sent_to_the_webhook(binaries: Binaries) -> None:
    (webhook,) = named(render(binaries), "MutatingWebhookConfiguration")["webhooks"]
    assert webhook["objectSelector"] == {
        "matchLabels": {names.LAUNCHER_LABEL: names.LAUNCHER_VALUE},
        "matchExpressions": [{"key": names.MIGRATION_UID, "operator": "Exists"}],
    }
    (rule,) = webhook["rules"]
    assert (rule["resources"], rule["operations"]) == (["pods"], ["CREATE"])
    assert (webhook["failurePolicy"], webhook["timeoutSeconds"], webhook["sideEffects"]) == (
        "Ignore",
        5,
        "None",
    )


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ((), "THE WEBHOOK DENIES"),
        (("--set=devicePlugin.mode=observe",), "THE WEBHOOK DENIES"),
        (("--set=webhook.enabled=false",), "THE GUARD REFUSES"),
        (("--set=webhook.enabled=false", "--set=devicePlugin.mode=observe"), "Unknown"),
        (("--set=devicePlugin.privileged=true",), "THE WEBHOOK DENIES"),
        (("--set=devicePlugin.privileged=true", "--set=devicePlugin.nvml.hostPath=/usr/lib64"), ""),
        (("--set=catalogue.policies={xe}",), ""),
    ],
)
def test_the_notes_warn_of_vgpus_without_nvml(binaries: Binaries, flags: tuple[str, ...], says: str) -> None:
    found = [line for line in notes(binaries, *flags).splitlines() if "WITHOUT NVML" in line]
    assert len(found) == bool(says)
    assert says in "".join(found)


@pytest.mark.parametrize(
    ("values", "address"),
    [
        ("extender.port=8443", "https://<address of Service migcompat-extender>"),
        ("extender.servicePort=8443", "https://<address of Service migcompat-extender>:8443"),
        ("extender.clusterIP=10.96.0.50", "https://10.96.0.50"),
        ("extender.clusterIP=10.96.0.50,extender.servicePort=8443", "https://10.96.0.50:8443"),
        ("extender.clusterIP=fd00::50,extender.servicePort=8443", "https://[fd00::50]:8443"),
        ("extender.url=https://127.0.0.9:9443/,extender.servicePort=8443", "https://127.0.0.9:9443"),
    ],
)
def test_the_notes_say_where_kube_scheduler_finds_the_extender(
    binaries: Binaries, values: str, address: str
) -> None:
    said = [line.split() for line in notes(binaries, "--set", values).splitlines()]
    (url,) = [" ".join(words[1:]) for words in said if words[:1] == ["urlPrefix:"]]
    assert url == address


@pytest.mark.parametrize("seconds", ["0.1", "5", "3600"])
def test_the_scan_interval_is_what_the_flag_takes(binaries: Binaries, seconds: str) -> None:
    spec = pod_specs(render(binaries, "--set-json", f"devicePlugin.scanInterval={seconds}"))["device-plugin"]
    assert f"--scan-interval={seconds}" in arguments(spec)


@pytest.mark.parametrize(("seconds", "why"), [("0.05", "minimum"), ("3600.5", "maximum")])
def test_other_scan_intervals_are_refused(binaries: Binaries, seconds: str, why: str) -> None:
    """As JSON: ``--set`` makes a string of a number with a fraction."""
    said = refusal(binaries, "--set-json", f"devicePlugin.scanInterval={seconds}")
    assert "/devicePlugin/scanInterval" in said
    assert why in said


def certificate(secret: Object, key: str = "tls.crt") -> x509.Certificate:
    import base64

    return x509.load_pem_x509_certificate(base64.b64decode(secret["data"][key]))


def test_the_certificates_belong_together(binaries: Binaries) -> None:
    objects = render(
        binaries,
        "--set",
        "extender.clusterIP=10.96.0.50,extender.url=https://127.0.0.9:8443,tls.extraNames={ext.example.org}",
    )
    authority = named(objects, "Secret", "migcompat-extender-ca")
    server = named(objects, "Secret", "migcompat-extender-tls")
    client = named(objects, "Secret", "migcompat-scheduler-client")
    root = certificate(authority)
    for secret in (server, client):
        certificate(secret).verify_directly_issued_by(root)
        assert secret["data"]["ca.crt"] == authority["data"]["tls.crt"]
        assert "ca.key" not in secret["data"]
    (webhook,) = named(objects, "MutatingWebhookConfiguration")["webhooks"]
    assert webhook["clientConfig"] == {
        "url": "https://127.0.0.9:8443/mutate",
        "caBundle": authority["data"]["tls.crt"],
    }
    good_for = certificate(server).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert f"migcompat-extender.{NAMESPACE}.svc" in good_for.get_values_for_type(x509.DNSName)
    assert "ext.example.org" in good_for.get_values_for_type(x509.DNSName)
    addresses = {str(ip) for ip in good_for.get_values_for_type(x509.IPAddress)}
    assert addresses == {"127.0.0.1", "127.0.0.9", "10.96.0.50"}


def test_certificates_of_somebody_else(binaries: Binaries) -> None:
    pem = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    flags = ("--set", "tls.existingSecret=theirs", "--set-string", f"tls.caBundle={pem}")
    objects = render(binaries, *flags)
    assert not [o for o in objects if o["kind"] == "Secret"]
    (volume,) = pod_specs(objects)["extender"]["volumes"]
    assert volume["secret"]["secretName"] == "theirs"
    (webhook,) = named(objects, "MutatingWebhookConfiguration")["webhooks"]
    assert webhook["clientConfig"]["caBundle"]
    assert webhook["clientConfig"]["service"] == {
        "namespace": NAMESPACE,
        "name": "migcompat-extender",
        "path": "/mutate",
        "port": 443,
    }


def validity(secret: Object) -> int:
    """Days."""
    found = certificate(secret)
    return (found.not_valid_after_utc - found.not_valid_before_utc).days


def test_certificates_last_as_long_as_somebody_renews_them(binaries: Binaries) -> None:
    names = ("migcompat-extender-ca", "migcompat-extender-tls", "migcompat-scheduler-client")

    def days(*flags: str) -> list[int]:
        objects = render(binaries, *flags)
        return [validity(named(objects, "Secret", name)) for name in names]

    assert days() == [3650, 90, 365]
    assert days("--set", "tls.caValidityDays=800,tls.validityDays=30,tls.clientValidityDays=60") == [
        800,
        30,
        60,
    ]
    assert days("--set", "operator.enabled=false") == [3650, 3650, 3650]


KEEPING = (
    "--certificates",
    "--namespace",
    "--server-validity",
    "--client-validity",
    "--ca-validity",
    "--ca-overlap",
)


def test_the_operator_is_told_which_certificates_to_keep_and_how_long(binaries: Binaries) -> None:
    def told(*flags: str, release: str = "migcompat") -> dict[str, str]:
        objects = render(binaries, *flags, release=release)
        said = dict(a.split("=", 1) for a in arguments(pod_specs(objects)["operator"]) if "=" in a)
        secrets = {o["metadata"]["name"] for o in objects if o["kind"] == "Secret"}
        (hook,) = [o["metadata"]["name"] for o in objects if o["kind"] == "MutatingWebhookConfiguration"]
        if name := said.get("--certificates"):
            assert secrets == {f"{name}-extender-ca", f"{name}-extender-tls", f"{name}-scheduler-client"}
            assert hook == f"{name}-extender"
        return {key: value for key, value in said.items() if key in KEEPING}

    day = 24 * 3600
    assert told() == dict(
        zip(
            KEEPING,
            ("migcompat", NAMESPACE, *(str(days * day) for days in (90, 365, 3650, 7))),
            strict=True,
        )
    )
    assert told(release="other")["--certificates"] == "other-migcompat"
    values = "tls.validityDays=1,tls.clientValidityDays=2,tls.caValidityDays=36500,tls.overlapDays=0"
    assert list(told("--set", values).values())[2:] == [str(days * day) for days in (1, 2, 36500, 0)]
    assert told("--set", f"tls.existingSecret=theirs,tls.caBundle={PEM}") == {}


def test_the_operator_may_change_its_own_secrets_and_webhook_by_name(binaries: Binaries) -> None:
    def rights(*flags: str) -> list[tuple[str, list[str], list[str]]]:
        objects = render(binaries, *flags)
        rules = [
            rule
            for o in objects
            if o["kind"] in ("Role", "ClusterRole") and o["metadata"]["name"] == "migcompat-operator"
            for rule in o["rules"]
        ]
        return [
            (rule["resources"][0], rule["resourceNames"], rule["verbs"])
            for rule in rules
            if {"secrets", "mutatingwebhookconfigurations"} & set(rule["resources"])
        ]

    secrets = ["migcompat-extender-ca", "migcompat-extender-tls", "migcompat-scheduler-client"]
    assert rights() == [
        ("mutatingwebhookconfigurations", ["migcompat-extender"], ["get", "patch"]),
        ("secrets", secrets, ["get", "patch"]),
    ]
    assert rights("--set", f"tls.existingSecret=theirs,tls.caBundle={PEM}") == []
    assert rights("--set", "extender.enabled=false,webhook.enabled=false") == []


def test_secrets_that_the_operator_fills_are_the_same_each_time(binaries: Binaries) -> None:
    once, again = (render(binaries, "--set", "tls.madeBy=operator") for _ in range(2))
    assert once == again
    for secret in (o for o in once if o["kind"] == "Secret"):
        assert "data" not in secret, "what a manifest does not hold, nobody puts back"
        assert secret["type"] == "Opaque", "the other type must hold a certificate from the start"
    (webhook,) = named(once, "MutatingWebhookConfiguration")["webhooks"]
    assert "caBundle" not in webhook["clientConfig"]


def test_the_example_for_cert_manager_fits_the_chart(binaries: Binaries, tmp_path: Path) -> None:
    page = (CHART.parents[1] / "docs" / "install.md").read_text()
    section = page.partition("### With cert-manager")[2].partition("\n## ")[0]
    example, values = re.findall(r"```yaml\n(.*?)```", section, flags=re.DOTALL)
    made = list(yaml.safe_load_all(example))
    (tmp_path / "values.yaml").write_text(values)
    objects = render(binaries, "-f", str(tmp_path / "values.yaml"))
    assert not [o for o in objects if o["kind"] == "Secret"]
    hook = named(objects, "MutatingWebhookConfiguration")
    assert "caBundle" not in hook["webhooks"][0]["clientConfig"]
    namespace, _, name = hook["metadata"]["annotations"]["cert-manager.io/inject-ca-from"].partition("/")
    assert {o["metadata"]["namespace"] for o in made} == {namespace} == {NAMESPACE}
    server, client = (
        named(made, "Certificate", name),
        named(made, "Certificate", "migcompat-scheduler-client"),
    )
    (volume,) = pod_specs(objects)["extender"]["volumes"]
    assert volume["secret"]["secretName"] == server["spec"]["secretName"]
    ours = json.loads(
        named(render(binaries), "Secret", "migcompat-extender-tls")["metadata"]["annotations"][
            "migcompat.io/certificate-names"
        ]
    )
    assert sorted(server["spec"]["dnsNames"]) == ours["dns"]
    assert sorted(server["spec"]["ipAddresses"]) == ours["ips"]
    issuer = named(made, "Issuer", server["spec"]["issuerRef"]["name"])
    assert client["spec"]["issuerRef"] == server["spec"]["issuerRef"], "or the extender would refuse it"
    authority = named(made, "Certificate", "migcompat-ca")["spec"]
    assert issuer["spec"]["ca"]["secretName"] == authority["secretName"]
    assert authority["isCA"] is True
    assert ("server auth" in server["spec"]["usages"], "client auth" in client["spec"]["usages"]) == (
        True,
        True,
    )


@pytest.mark.parametrize(
    ("value", "kinds"),
    [
        ("crds.install=false", {"CustomResourceDefinition"}),
        ("cleanUp.enabled=false", {"Job"}),
        ("webhook.enabled=false", {"MutatingWebhookConfiguration"}),
        ("admissionPolicy.enabled=false", {"ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"}),
        ("extender.podDisruptionBudget=false", {"PodDisruptionBudget"}),
        (
            "devicePlugin.enabled=false",
            {"DaemonSet", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"},
        ),
        (
            "extender.enabled=false,webhook.enabled=false",
            {"MutatingWebhookConfiguration", "Secret", "Service", "PodDisruptionBudget"},
        ),
    ],
)
def test_what_can_be_left_out(binaries: Binaries, value: str, kinds: set[str]) -> None:
    before = {o["kind"] for o in render(binaries)}
    after = {o["kind"] for o in render(binaries, "--set", value)}
    assert before - after == kinds


CONTRADICTIONS = {
    "devicePlugin.nvml.hostPath=/usr/lib64": (
        "devicePlugin.nvml.hostPath and devicePlugin.privileged=false: NVML opens /dev/nvidiactl"
    ),
    "bindAddress=127.0.0.1": "bindAddress=127.0.0.1: nobody outside a pod could reach it",
    "bindAddress=localhost": "bindAddress=localhost: nobody outside a pod could reach it",
    "bindAddress=[::1]": "bindAddress=[::1]: nobody outside a pod could reach it",
    f"image.tag=v1,image.digest=sha256:{'0' * 64}": "leave image.tag empty",
    "extender.enabled=false": "set webhook.enabled=false too",
    "webhook.enabled=false,webhook.failurePolicy=Fail": "every target is made unseen",
    "scheduler.enabled=true,extender.enabled=false": "it would know no more than the default scheduler",
    "scheduler.enabled=true,webhook.enabled=false": "the webhook names the scheduler in target pods",
    f"scheduler.enabled=true,scheduler.image.tag=v1,scheduler.image.digest=sha256:{'0' * 64}": (
        "leave scheduler.image.tag empty"
    ),
    f"scheduler.enabled=true,tls.existingSecret=theirs,tls.caBundle={PEM}": (
        "tls.existingSecret without scheduler.clientSecret: the chart makes no client certificate then"
    ),
    "scheduler.enabled=true,scheduler.clientSecret=mine": "the extender takes only client certificates",
    r"scheduler.podLabels.app\.kubernetes\.io/name=mine": "scheduler.podLabels has app.kubernetes.io/name",
    "catalogue.policies={xe,gpu-x}": "catalogue.policies has gpu-x, which the catalogue does not; it has",
    "extender.port=8080": "extender.port and extender.healthPort are both 8080",
    "tls.existingSecret=theirs": "tls.existingSecret without tls.caBundle: kube-apiserver would not trust",
    f"tls.caBundle={PEM}": "tls.caBundle is the CA of the certificate in tls.existingSecret, which is empty",
    f"tls.existingSecret=theirs,tls.caBundle={PEM},tls.extraNames={{a.b}}": "none is generated",
    f"tls.existingSecret=theirs,tls.caBundle={PEM},tls.madeBy=operator": "tls.madeBy=operator and tls.exist",
    "tls.madeBy=operator,operator.enabled=false": "nobody would make the certificates",
    "tls.caValidityDays=30,tls.overlapDays=10": "tls.overlapDays=10 and tls.caValidityDays=30",
    r"operator.podLabels.app\.kubernetes\.io/name=mine": "operator.podLabels has app.kubernetes.io/name",
    r"extender.podLabels.app\.kubernetes\.io/component=mine": "extender.podLabels has app.kubernetes.io/comp",
    r"devicePlugin.podLabels.app\.kubernetes\.io/instance=mine": "devicePlugin.podLabels has app.kubernetes",
}


@pytest.mark.parametrize("values", CONTRADICTIONS)
def test_values_that_contradict_each_other_are_refused(binaries: Binaries, values: str) -> None:
    said = refusal(binaries, "--set", values)
    assert "these values contradict each other:" in said
    assert CONTRADICTIONS[values] in said


def test_all_contradictions_are_told_at_once(binaries: Binaries) -> None:
    said = refusal(binaries, "--set", "extender.enabled=false,bindAddress=127.0.0.1")
    assert "* bindAddress=127.0.0.1" in said
    assert "* webhook.enabled=true and extender.enabled=false" in said


@pytest.mark.parametrize(
    "values",
    [
        "bindAddress=$(POD_IP)",
        "bindAddress=[::]",
        "extender.replicas=1",
        "extender.enabled=false,webhook.enabled=false,extender.port=8080",
        "scheduler.clientSecret=mine,extender.enabled=false,webhook.enabled=false",
        f"scheduler.enabled=true,scheduler.clientSecret=mine,tls.existingSecret=theirs,tls.caBundle={PEM}",
        r"tls.existingSecret=theirs,webhook.annotations.cert-manager\.io/inject-ca-from=a/b",
        "tls.existingSecret=theirs,extender.url=https://ext.example.org",
        "tls.existingSecret=theirs,webhook.enabled=false",
        f"tls.existingSecret=theirs,tls.caBundle={PEM}",
        "tls.caValidityDays=31,tls.overlapDays=10",
        "crds.install=false",
        "crds.install=false,crds.keep=true",
        "devicePlugin.privileged=true,devicePlugin.seLinuxType=spc_t",
        "devicePlugin.privileged=true,devicePlugin.nvml.hostPath=/usr/lib64",
        r"operator.podLabels.app\.kubernetes\.io/team=mine",
    ],
)
def test_values_that_only_seem_to_contradict_each_other_are_taken(binaries: Binaries, values: str) -> None:
    render(binaries, "--set", values)


def test_a_single_replica_does_not_block_the_drain_of_its_node(binaries: Binaries) -> None:
    budget = named(render(binaries, "--set", "extender.replicas=1"), "PodDisruptionBudget")["spec"]
    assert (budget["maxUnavailable"], "minAvailable" in budget) == (1, False)


BAD_VALUES = {
    "devicePlugin.scanInterval=3601": "/devicePlugin/scanInterval",
    "devicePlugin.maxUnavailable=0": "/devicePlugin/maxUnavailable",
    "devicePlugin.privileged=yes": "/devicePlugin/privileged",
    "devicePlugin.probe=false": "/devicePlugin/probe",
    "devicePlugin.nvml.hostPath=lib64": "/devicePlugin/nvml/hostPath",
    "devicePlugin.nvml.library=/usr/lib64/libnvidia-ml.so.1": "/devicePlugin/nvml/library",
    "devicePlugin.maxUnavailabel=1": "additional properties 'maxUnavailabel' not allowed",
    "extender.replicas=two": "/extender/replicas",
    "extender.url=http://insecure": "/extender/url",
    "extender.port=70000": "/extender/port",
    "webhook.failurePolicy=ignore": "/webhook/failurePolicy",
    "webhook.timeoutSeconds=31": "/webhook/timeoutSeconds",
    "webhook.maxNames=1001": "/webhook/maxNames",
    "scheduler.schedulerName=default-scheduler": "/scheduler/schedulerName",
    "scheduler.schedulerName=Mine": "/scheduler/schedulerName",
    "scheduler.replicas=0": "/scheduler/replicas",
    "scheduler.image.digest=latest": "/scheduler/image/digest",
    "scheduler.image.pullPolicy=never": "/scheduler/image/pullPolicy",
    "scheduler.healthPort=0": "/scheduler/healthPort",
    "scheduler.name=mine": "additional properties 'name' not allowed",
    "image.registry=mine": "additional properties 'registry' not allowed",
    "catalogue.policies=xe": "/catalogue/policies",
    "catalogue.policies={xe,xe}": "/catalogue/policies",
    "logLevel=loud": "/logLevel",
    "resourceDomain=kubernetes.io": "/resourceDomain",
    "resourceDomain=Upper.example.org": "/resourceDomain",
    "hostPaths.sys=sys": "/hostPaths/sys",
    "hostPaths.kubelet=/var/lib/kubelet/": "/hostPaths/kubelet",
    "image.digest=latest": "/image/digest",
    "tls.caBundle=garbage": "/tls/caBundle",
    "tls.madeBy=me": "/tls/madeBy",
    "tls.validityDays=0": "/tls/validityDays",
    "tls.overlapDays=-1": "/tls/overlapDays",
    "allowLoosening=maybe": "/allowLoosening",
    "crd.install=false": "additional properties 'crd' not allowed",
}


@pytest.mark.parametrize("value", BAD_VALUES)
def test_a_bad_value_is_refused(binaries: Binaries, value: str) -> None:
    said = refusal(binaries, "--set", value)
    assert BAD_VALUES[value] in said


def test_every_value_is_in_the_schema_and_explained() -> None:
    """A key without a comment, or one that the schema does not know, is a key nobody can use."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    for name, value in values.items():
        properties = schema["properties"][name]
        assert "type" in properties or "allOf" in properties or "enum" in properties
        if isinstance(value, dict) and "properties" in properties:
            assert value.keys() == properties["properties"].keys()
