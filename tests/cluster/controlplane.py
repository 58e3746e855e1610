"""A real control plane on loopback: etcd, kube-apiserver, kube-controller-manager and kube-scheduler.

``python -m tests.cluster.controlplane`` starts one by hand and says which kubeconfig to use.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from ipaddress import ip_network
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import yaml

from tests.cluster.binaries.build import Binaries, binaries
from tests.cluster.certificates import Authority, signing_key
from tests.cluster.loopback import LoopbackRange
from tests.cluster.processes import Process

_READY_DEADLINE = 90.0
_CONTROLLERS = (
    "clusterrole-aggregation-controller",
    "daemonset-controller",
    "deployment-controller",
    "garbage-collector-controller",
    "job-controller",
    "namespace-controller",
    "replicaset-controller",
    "root-ca-certificate-publisher-controller",
    "serviceaccount-controller",
    "serviceaccount-token-controller",
    "validatingadmissionpolicy-status-controller",
)
"""Those that a chart's objects need. No endpoints: slices may not hold loopback addresses."""


class ClusterError(RuntimeError):
    """A part of the control plane does not run, or a command failed."""


class Addresses(Protocol):
    """Where a cluster lives; see `LoopbackRange` for what the members are."""

    @property
    def control_plane(self) -> str: ...

    @property
    def services(self) -> str: ...

    def service(self, number: int) -> str: ...

    def free_port(self, address: str) -> int: ...

    def release(self) -> None: ...


class ControlPlane:
    """One control plane; a context manager.

    Every process listens on the control plane's own address only, logs into `directory`/logs, and dies with
    this process.
    """

    controllers: tuple[str, ...] = _CONTROLLERS
    """Those that kube-controller-manager runs."""

    def __init__(
        self,
        programs: Binaries | None = None,
        addresses: Addresses | None = None,
        parent: Path = Path("/tmp"),
    ) -> None:
        """Nothing runs until `start`.

        Args:
            programs: None: `tests.cluster.binaries.build.binaries()`.
            addresses: None: a `LoopbackRange`. Given back by `stop`.
            parent: where `directory` is made.
        """
        self.binaries = programs or binaries()
        self.addresses: Addresses = addresses or LoopbackRange()
        self.directory = Path(tempfile.mkdtemp(prefix="mc-", dir=parent))
        """Short, because sockets with their 107 characters of path lie below it. Removed by `stop`."""
        for name in ("pki", "logs", "home"):
            (self.directory / name).mkdir()
        address = self.addresses.control_plane
        self.authority = Authority(self.directory / "pki")
        service = str(next(ip_network(self.addresses.services).hosts()))
        self._serving = self.authority.issue(
            "serving", hosts=(address, service, "localhost", "kubernetes", "kubernetes.default.svc")
        )
        self._admin = self.authority.issue("admin", organization="system:masters")
        signing_key(self.directory / "pki" / "accounts.key")
        self.url = f"https://{address}:{self.addresses.free_port(address)}"
        """Of kube-apiserver."""
        self.kubeconfig = self.directory / "kubeconfig"
        """Of the administrator (group system:masters), with the certificates in files beside it."""
        self.kubeconfig.write_text(
            yaml.safe_dump(
                self.kubeconfig_of(
                    {
                        "client-certificate": str(self._admin.certificate),
                        "client-key": str(self._admin.key),
                    }
                )
            )
        )
        self.kubeconfig.chmod(0o600)
        self._processes: dict[str, Process] = {}

    def kubeconfig_of(self, user: Mapping[str, str], namespace: str = "default") -> dict[str, Any]:
        """A kubeconfig for this cluster; `user` as in ``users[].user``, e.g. ``{"token": …}``."""
        cluster = {"server": self.url, "certificate-authority": str(self.authority.certificate)}
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": "user", "user": dict(user)}],
            "contexts": [
                {"name": "test", "context": {"cluster": "test", "user": "user", "namespace": namespace}}
            ],
            "current-context": "test",
        }

    def start(self) -> None:
        """Starts everything and waits until it is ready (4 s on a quiet machine).

        Raises:
            ClusterError: a part ended or was not ready in time; the text holds the end of its log.
        """
        try:
            self._start_etcd()
            self._start_apiserver()
            self._start_controllers()
            self.start_scheduler()
            self._await_default_namespace()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Ends the processes that `start` started, and removes the directory."""
        last = ("kube-scheduler", "kube-controller-manager", "kube-apiserver", "etcd")
        for name in (*(name for name in self._processes if name not in last), *last):
            process = self._processes.pop(name, None)
            if process:
                # etcd has nothing to save, and kube-apiserver would wait a minute for open watches.
                process.stop(0.0 if name in ("etcd", "kube-apiserver") else 2.0)
        self.addresses.release()
        shutil.rmtree(self.directory, ignore_errors=True)

    def node_flags(self) -> tuple[str, ...]:
        """Flags of kube-apiserver that depend on whether there are real nodes; here there are none."""
        return (
            "--authorization-mode=RBAC",
            # No node lifecycle controller runs that would take its taint off again.
            "--disable-admission-plugins=TaintNodesByCondition",
            "--endpoint-reconciler-type=none",
        )

    def start_scheduler(
        self,
        extenders: Sequence[Mapping[str, Any]] = (),
        *,
        name: str = "kube-scheduler",
        settings: Mapping[str, Any] | None = None,
        flags: Sequence[str] = (),
    ) -> None:
        """Starts a kube-scheduler with these elements of ``KubeSchedulerConfiguration.extenders``.

        Args:
            extenders: the elements.
            name: of the process, its log and its configuration; another one runs beside the first.
            settings: further keys of the configuration, or other values for the usual ones.
            flags: further flags.
        """
        configuration = {
            "apiVersion": "kubescheduler.config.k8s.io/v1",
            "kind": "KubeSchedulerConfiguration",
            "clientConnection": {"kubeconfig": str(self.kubeconfig), "qps": 200, "burst": 400},
            "leaderElection": {"leaderElect": False},
            "extenders": [dict(e) for e in extenders],
            **(settings or {}),
        }
        path = self.directory / f"{name}.yaml"
        path.write_text(yaml.safe_dump(configuration))
        port = self.addresses.free_port(self.addresses.control_plane)
        self._run(
            name,
            self.binaries.kube_scheduler,
            f"--config={path}",
            "--authentication-skip-lookup=true",
            *flags,
            *self._secure(port),
        )
        self._await(name, f"https://{self.addresses.control_plane}:{port}/readyz")

    def stop_scheduler(self, name: str = "kube-scheduler") -> None:
        """Ends the kube-scheduler of that name."""
        process = self._processes.pop(name, None)
        if process:
            process.stop(2.0)

    def restart_scheduler(self, extenders: Sequence[Mapping[str, Any]] = ()) -> None:
        """Replaces the running kube-scheduler by one with these extenders (none: without)."""
        self.stop_scheduler()
        self.start_scheduler(extenders)

    def kubectl(self, *arguments: str, stdin: str = "", timeout: float = 60.0) -> str:
        """The output of kubectl as the administrator.

        Raises:
            ClusterError: it failed or took longer than `timeout` seconds; with what it said.
        """
        return self._command(self.binaries.kubectl, arguments, stdin, timeout)

    def helm(self, *arguments: str, timeout: float = 180.0) -> str:
        """The output of helm as the administrator; its own state lies in the cluster's directory."""
        return self._command(self.binaries.helm, arguments, "", timeout)

    def apply(self, *objects: Mapping[str, Any]) -> None:
        """Creates or changes objects (server-side apply as the administrator)."""
        text = yaml.safe_dump_all([dict(o) for o in objects])
        self.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=text)

    def get(self, *arguments: str) -> dict[str, Any]:
        """``kubectl get … -o json`` as an object."""
        result: dict[str, Any] = json.loads(self.kubectl("get", *arguments, "-o", "json"))
        return result

    def await_kinds(self, within: float = 60.0) -> None:
        """Until the API server serves every kind of its CustomResourceDefinitions. Raises ClusterError.

        ``kubectl wait`` gives up at once on a definition that has no conditions yet.
        """
        deadline = time.monotonic() + within
        while waiting := [
            crd["metadata"]["name"]
            for crd in self.get("customresourcedefinitions")["items"]
            if ("Established", "True")
            not in [(c["type"], c["status"]) for c in crd.get("status", {}).get("conditions") or ()]
        ]:
            if time.monotonic() > deadline:
                raise ClusterError(f"not served after {within:g} s: {', '.join(waiting)}")
            time.sleep(0.2)

    def log(self, name: str) -> Path:
        """The log file of a part, e.g. ``kube-scheduler``."""
        return self.directory / "logs" / f"{name}.log"

    def pids(self) -> dict[str, int]:
        """Process ids of the running parts."""
        return {name: process.pid for name, process in self._processes.items()}

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _start_etcd(self) -> None:
        address = self.addresses.control_plane
        self._etcd = f"http://{address}:{self.addresses.free_port(address)}"
        peer = f"http://{address}:{self.addresses.free_port(address)}"
        self._run(
            "etcd",
            self.binaries.etcd,
            f"--data-dir={self.directory / 'etcd'}",
            f"--listen-client-urls={self._etcd}",
            f"--advertise-client-urls={self._etcd}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",
            "--log-level=warn",
        )
        self._await("etcd", f"{self._etcd}/health")

    def _start_apiserver(self) -> None:
        pki = self.directory / "pki"
        self._run(
            "kube-apiserver",
            self.binaries.kube_apiserver,
            f"--etcd-servers={self._etcd}",
            f"--client-ca-file={self.authority.certificate}",
            "--anonymous-auth=false",
            "--allow-privileged=true",
            f"--advertise-address={self.addresses.control_plane}",
            f"--service-cluster-ip-range={self.addresses.services}",
            f"--service-account-issuer={self.url}",
            f"--service-account-key-file={pki / 'accounts.key'}",
            f"--service-account-signing-key-file={pki / 'accounts.key'}",
            *self.node_flags(),
            *self._secure(int(self.url.rpartition(":")[2])),
        )
        self._await("kube-apiserver", f"{self.url}/readyz")

    def _start_controllers(self) -> None:
        port = self.addresses.free_port(self.addresses.control_plane)
        self._run(
            "kube-controller-manager",
            self.binaries.kube_controller_manager,
            f"--kubeconfig={self.kubeconfig}",
            "--leader-elect=false",
            f"--controllers={','.join(self.controllers)}",
            f"--root-ca-file={self.authority.certificate}",
            f"--service-account-private-key-file={self.directory / 'pki' / 'accounts.key'}",
            "--kube-api-qps=200",
            "--kube-api-burst=400",
            "--authentication-skip-lookup=true",
            *self._secure(port),
        )
        self._await("kube-controller-manager", f"https://{self.addresses.control_plane}:{port}/healthz")

    def _secure(self, port: int) -> tuple[str, ...]:
        return (
            f"--bind-address={self.addresses.control_plane}",
            f"--secure-port={port}",
            f"--tls-cert-file={self._serving.certificate}",
            f"--tls-private-key-file={self._serving.key}",
        )

    def _run(self, name: str, program: Path, *flags: str) -> None:
        environment = {"PATH": os.environ.get("PATH", ""), "HOME": str(self.directory / "home")}
        self._processes[name] = Process(
            name, [str(program), *flags], log=self.log(name), environment=environment
        )

    def _await(self, name: str, url: str) -> None:
        """Polls `url` until it answers 200; a process that ends or is late is an error with its log."""
        process = self._processes[name]
        context = ssl.create_default_context(cafile=str(self.authority.certificate))
        context.load_cert_chain(self._admin.certificate, self._admin.key)
        deadline = time.monotonic() + _READY_DEADLINE
        problem = "no answer"
        while time.monotonic() < deadline:
            code = process.exit_code()
            if code is not None:
                raise ClusterError(f"{name} ended with {code}; the end of its log:\n{process.tail()}")
            try:
                secure = context if url.startswith("https") else None
                with urllib.request.urlopen(url, timeout=5, context=secure):
                    return
            except urllib.error.HTTPError as error:
                problem = f"{error.code} {error.read(2000).decode(errors='replace')}"
            except OSError as error:
                problem = str(error)
            time.sleep(0.1)
        raise ClusterError(
            f"{name} was not ready at {url} within {_READY_DEADLINE:.0f} s ({problem});"
            f" the end of its log:\n{process.tail()}"
        )

    def _await_default_namespace(self) -> None:
        """Pods need the default service account, which a controller makes a moment after the start."""
        deadline = time.monotonic() + _READY_DEADLINE
        while time.monotonic() < deadline:
            if "default" in self.kubectl("get", "serviceaccounts", "-n", "default", "-o", "name"):
                return
            time.sleep(0.1)
        log = self._processes["kube-controller-manager"].tail()
        raise ClusterError(f"no default service account; the end of kube-controller-manager's log:\n{log}")

    def _command(self, program: Path, arguments: Sequence[str], stdin: str, timeout: float) -> str:
        home = str(self.directory / "home")
        environment = {
            "PATH": os.environ.get("PATH", ""),
            "HOME": home,
            "KUBECONFIG": str(self.kubeconfig),
            "HELM_CACHE_HOME": home,
            "HELM_CONFIG_HOME": home,
            "HELM_DATA_HOME": home,
        }
        try:
            result = subprocess.run(
                [program, *arguments],
                input=stdin,
                capture_output=True,
                text=True,
                timeout=timeout,
                env=environment,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise ClusterError(f"`{program.name} {' '.join(arguments)}` took over {timeout:.0f} s") from error
        if result.returncode:
            raise ClusterError(
                f"`{program.name} {' '.join(arguments)}` failed ({result.returncode}):"
                f" {result.stderr.strip()} {result.stdout.strip()[-2000:]}"
            )
        return result.stdout


def main() -> None:
    """Runs a control plane until Ctrl-C or SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with ControlPlane() as plane:
        print(f"export KUBECONFIG={plane.kubeconfig}", flush=True)
        try:
            while True:
                signal.pause()
        except KeyboardInterrupt:
            print("stopping", flush=True)


if __name__ == "__main__":
    main()
