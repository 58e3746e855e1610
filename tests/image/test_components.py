"""Every command starts in the image with only what it needs: its user, no capability, a read-only root."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.cluster.certificates import Authority
from tests.image.conftest import Start
from tests.image.container import Container, Volume
from tests.support import nvml
from tests.support.sysfs import add_migration, unpack

HEALTH = "127.0.0.1:8080"
NOBODY = 65532
ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
POD = {
    "KUBERNETES_SERVICE_HOST": "127.0.0.1",
    "KUBERNETES_SERVICE_PORT": "6443",
    "NODE_NAME": "node-1",
    "POD_IP": "127.0.0.1",
    "POD_NAME": "pod-1",
    "POD_NAMESPACE": "migcompat-system",
}
"""The environment of a pod whose API server does not answer."""

PATIENCE = 60.0
"""Seconds for a process to come up or to end; generous, because the machine may be busy."""

WHO = """
import json, os, pathlib, socket
def refused(do):
    try:
        do()
    except OSError as error:
        return error.strerror
    return "allowed"
status = dict(line.split(":", 1) for line in pathlib.Path("/proc/self/status").read_text().splitlines())
print(json.dumps({
    "ids": [os.getpid(), *os.getresuid(), *os.getresgid(), *os.getgroups()],
    "capabilities": [int(status[f"Cap{kind}"], 16) for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")],
    "gains": status["NoNewPrivs"].strip(),
    "write": refused(lambda: pathlib.Path("/tmp/x").touch()),
    "network": [name for _, name in socket.if_nameindex()],
    "outside": refused(lambda: socket.create_connection(("192.0.2.1", 1), 5)),
}))
"""

BREAK = """
import importlib, sys
async def broken(*_):
    raise ZeroDivisionError("nobody foresaw this")
cli = importlib.import_module(sys.argv.pop(1) + ".cli")
cli.run = broken
cli.main()
"""


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def account(shared: Path, authority: Authority) -> Mapping[str, Volume]:
    """What Kubernetes mounts into every pod."""
    directory = shared / "account"
    directory.mkdir()
    (directory / "ca.crt").write_bytes(authority.certificate.read_bytes())
    (directory / "token").write_text("a token")
    return {ACCOUNT: Volume(directory)}


@pytest.fixture
def sysfs(shared: Path) -> Path:
    """A recorded tree of a real kernel with mdevs."""
    return unpack("linux-6.12-debian13-cdev", "2-vfio-mdev", shared)


def until(check: Callable[[], bool], container: Container, what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not check():
        assert time.monotonic() < deadline, f"not within {PATIENCE:.0f} s: {what}\n{container.output()}"
        time.sleep(0.1)


def serves_until_it_is_told(container: Container, *, why_not_ready: str) -> None:
    """Alive, not ready for a reason that it says, ends by SIGTERM though it is process 1."""
    until(lambda: container.get(f"http://{HEALTH}/healthz")[0] == 200, container, "/healthz")

    def says_why() -> bool:
        status, body = container.get(f"http://{HEALTH}/readyz")
        assert status == 503
        return why_not_ready in body

    until(says_why, container, f"/readyz: {why_not_ready}")
    assert container.get(f"http://{HEALTH}/metrics")[0] == 200
    until(
        lambda: "Connect call failed ('127.0.0.1', 6443)" in container.output(),
        container,
        "the API's address",
    )
    container.terminate()
    assert container.wait(PATIENCE) == 0, container.output()
    assert "Traceback" not in container.output()


@pytest.mark.parametrize("uid", [NOBODY, 0])
def test_these_tests_confine_what_they_start(start: Start, uid: int) -> None:
    container = start("python3", "-c", WHO, uid=uid)
    assert container.wait(PATIENCE) == 0, container.output()
    found = json.loads(container.output())
    assert found["ids"] == [1, *[uid] * 6]
    assert found["capabilities"] == [0] * 5
    assert found["gains"] == "1"
    assert found["write"] == "Read-only file system"
    assert found["network"] == ["lo"]
    assert found["outside"] == "Network is unreachable"


def test_it_starts_as_nobody_unless_the_pod_says_otherwise(start: Start) -> None:
    container = start("python3", "-c", WHO)
    assert container.wait(PATIENCE) == 0, container.output()
    assert json.loads(container.output())["ids"][1] == NOBODY


@pytest.mark.parametrize(
    "command",
    ["migcompat", "kubectl-migcompat", "migcompat-device-plugin", "migcompat-operator", "migcompat-extender"],
)
def test_every_command_explains_itself(start: Start, command: str) -> None:
    container = start(command, "--help")
    assert container.wait(PATIENCE) == 0, container.output()
    assert "Usage" in container.output()
    assert "Traceback" not in container.output()


def test_scan(start: Start, sysfs: Path) -> None:
    container = start(
        "migcompat", "scan", "--sysfs", "/host/sys", "-o", "json", volumes={"/host/sys": Volume(sysfs)}
    )
    assert container.wait(PATIENCE) == 0, container.output()
    devices = json.loads(container.output())["devices"]
    assert {device["kind"] for device in devices} == {"mdev", "physical"}
    needs_nothing_of(container, "grpc", "kopf", "prometheus_client", "cryptography")


def test_check(start: Start, sysfs: Path) -> None:
    mdevs = sysfs / "bus/mdev/devices"
    same = sorted(d for d in mdevs.iterdir() if (d / "mdev_type").resolve().name == "mtty-1")[:2]
    for device in same:
        said = {"device_api": "vfio-pci", "type": "mtty-1", "software_version": "1.0.0"}
        add_migration(device, said, [said])
    source, target = (f"/host/sys/bus/mdev/devices/{device.name}" for device in same)
    volumes = {"/host/sys": Volume(sysfs)}
    container = start("migcompat", "check", source, target, "-o", "json", volumes=volumes)
    assert container.wait(PATIENCE) == 0, container.output()
    verdict = json.loads(container.output())
    assert (verdict["compatible"], verdict["reason"]) == (True, "Compatible")
    needs_nothing_of(container, "grpc", "kopf", "prometheus_client", "cryptography")


def test_device_plugin(start: Start, account: Mapping[str, Volume], sysfs: Path, shared: Path) -> None:
    """As root, because the kubelet's directories and sysfs's attributes are root's; with no capability."""
    for name in ("dev", "device-plugins", "pod-resources"):
        (shared / name).mkdir()
    (shared / "boot_id").write_text("0c4b2d8e-6a0f-4b0e-9d4e-1f1d5f3b7a01\n")
    container = start(
        "migcompat-device-plugin",
        "--sysfs-root=/host/sys",
        "--dev-root=/host/dev",
        "--boot-id-file=/host/boot_id",
        "--kubelet-dir=/host/kubelet",
        f"--health-bind={HEALTH}",
        volumes={
            **account,
            "/host/sys": Volume(sysfs, writable=True),
            "/host/dev": Volume(shared / "dev"),
            "/host/boot_id": Volume(shared / "boot_id"),
            "/host/kubelet/device-plugins": Volume(shared / "device-plugins", writable=True),
            "/host/kubelet/pod-resources": Volume(shared / "pod-resources"),
        },
        environment=POD,
        uid=0,
    )
    serves_until_it_is_told(
        container, why_not_ready="/host/kubelet/pod-resources/kubelet.sock does not exist"
    )
    needs_nothing_of(container, "kopf", "yaml", "cryptography")
    assert "grpc" in container.imported()


def test_operator(start: Start, account: Mapping[str, Volume]) -> None:
    container = start("migcompat-operator", f"--health-bind={HEALTH}", volumes=account, environment=POD)
    serves_until_it_is_told(container, why_not_ready="cannot list")
    needs_nothing_of(container, "grpc", "google")
    assert "kopf" in container.imported()


def test_extender(start: Start, account: Mapping[str, Volume], authority: Authority, shared: Path) -> None:
    pair = authority.issue("extender", hosts=("127.0.0.1",))
    tls = shared / "tls"
    tls.mkdir()
    for name, file in (
        ("tls.crt", pair.certificate),
        ("tls.key", pair.key),
        ("ca.crt", authority.certificate),
    ):
        (tls / name).write_bytes(file.read_bytes())
    container = start(
        "migcompat-extender",
        "--bind=127.0.0.1:8443",
        f"--health-bind={HEALTH}",
        "--tls-cert=/etc/migcompat/tls/tls.crt",
        "--tls-key=/etc/migcompat/tls/tls.key",
        "--client-ca=/etc/migcompat/tls/ca.crt",
        volumes={**account, "/etc/migcompat/tls": Volume(tls)},
        environment=POD,
    )
    serves_until_it_is_told(container, why_not_ready="not listed yet")
    needs_nothing_of(container, "grpc", "google", "kopf", "yaml")


@pytest.mark.parametrize("command", ["migcompat-operator", "migcompat-device-plugin"])
def test_outside_of_a_pod_it_says_what_is_missing(start: Start, command: str) -> None:
    container = start(command, environment={"NODE_NAME": "node-1"})
    assert container.wait(PATIENCE) != 0
    assert "no API server: give --kubeconfig or $KUBECONFIG, or run in a pod" in container.output()
    assert "Traceback" not in container.output()


@pytest.mark.parametrize(
    ("package", "arguments"),
    [
        ("migcompat_deviceplugin", ["--node-name=n"]),
        ("migcompat_operator", []),
        ("migcompat_extender", ["--tls-cert=x", "--tls-key=x"]),
    ],
)
def test_an_error_that_nobody_foresaw_is_told_plainly(
    start: Start, package: str, arguments: list[str]
) -> None:
    container = start("python3", "-c", BREAK, package, *arguments)
    assert container.wait(PATIENCE) == 1
    assert container.output().startswith("Traceback (most recent call last):\n")
    assert container.output().endswith("\nZeroDivisionError: nobody foresaw this\n")
    assert "excepthook" not in container.output()


def needs_nothing_of(container: Container, *packages: str) -> None:
    """A package that another component brought is not even looked for."""
    imported = {name.split(".")[0] for name in container.imported()}
    assert {"migcompat", "msgspec"} <= imported
    assert imported & set(packages) == set()


def test_nvidias_library_of_a_host_can_be_asked(start: Start, shared: Path) -> None:
    """By the Python package of the image."""
    stub = nvml.Stub(shared, nvml.build(shared))
    container = start(
        *("python3", "-P", "-m", "migcompat.nvml.program"),
        *(f"/host/nvidia/{nvml.NAME}", json.dumps([["driver_version"], ["vgpu_versions"]])),
        volumes={"/host/nvidia": Volume(shared)},
        environment={"NVML_STUB": f"/host/nvidia/{stub.file.name}"},
    )
    assert container.wait(PATIENCE) == 0, container.output()
    answers = [json.loads(line) for line in container.output().splitlines()]
    versions = [list(nvml.SUPPORTED)] * 2
    assert answers == [{"value": None}, {"value": nvml.DRIVER}, {"value": versions}]
