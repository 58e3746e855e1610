"""The operator replaces all certificates under the real kube-apiserver, and every target pod is admitted."""

from __future__ import annotations

import base64
import os
import shutil
import ssl
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from migcompat_operator import certificates
from migcompat_operator.certificates import Names, Profile, Usage

from tests.cluster.binaries import build
from tests.cluster.controlplane import ClusterError, ControlPlane
from tests.cluster.processes import Process
from tests.extender.certificates import Authority
from tests.extender.test_process import free_port
from tests.extender.test_real_cluster import Site, eventually
from tests.extender.world import args

NAMESPACE = "kube-system"
AUTHORITY, SERVER, CLIENT = "migcompat-extender-ca", "migcompat-extender-tls", "migcompat-scheduler-client"
HOOK = "migcompat-extender"
OVERLAP = 25
"""Seconds; the extender looks at its files every five."""
LOCAL = Names(("localhost",), ("127.0.0.1",))
ENOUGH = 10


class Release:
    """Secrets as of long ago: the authority and the certificates are due."""

    def __init__(self, site: Site) -> None:
        self._plane = site.plane
        self._site = site
        now = datetime.now(UTC)
        pair = certificates.make_authority("old", now - timedelta(days=70), timedelta(days=100))
        self.old = pair.certificate
        week_ago, life = now - timedelta(days=7), timedelta(days=9)
        leaves = {
            SERVER: certificates.issue(pair, Profile("server", Usage.SERVER, LOCAL), week_ago, life),
            CLIENT: certificates.issue(pair, Profile("kube-scheduler", Usage.CLIENT), week_ago, life),
        }
        self._apply(AUTHORITY, *pair.pem())
        for name, leaf in leaves.items():
            self._apply(name, *leaf.pem(), certificates.write(self.old))

    def _apply(self, name: str, crt: bytes, key: bytes, ca: bytes | None = None) -> None:
        content = {"tls.crt": crt, "tls.key": key} | ({"ca.crt": ca} if ca else {})
        self._plane.apply(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "type": "kubernetes.io/tls",
                "metadata": {"name": name, "namespace": NAMESPACE},
                "data": {key: base64.b64encode(value).decode() for key, value in content.items()},
            }
        )

    def read(self, name: str) -> dict[str, bytes]:
        data = self._plane.get("secret", name, "-n", NAMESPACE)["data"]
        return {key: base64.b64decode(value) for key, value in data.items()}

    def leaf(self, name: str) -> x509.Certificate:
        return x509.load_pem_x509_certificates(self.read(name)["tls.crt"])[0]

    def mount(self) -> None:
        """What kubelets do: the files of the extender and of kube-scheduler become those of the Secrets."""
        folder = self._site.authority.file.parent
        server, client = self.read(SERVER), self.read(CLIENT)
        for file, content in (
            (self._site.authority.file, server["ca.crt"]),
            (folder / "server.crt", server["tls.crt"]),
            (folder / "server.key", server["tls.key"]),
            (folder / "client-ca.crt", client["ca.crt"]),
            (self._site.client[0], client["tls.crt"]),
            (self._site.client[1], client["tls.key"]),
        ):
            if not file.exists() or file.read_bytes() != content:
                half = file.with_suffix(".half")
                half.write_bytes(content)
                half.rename(file)

    def context(self) -> ssl.SSLContext:
        """kube-scheduler, as its files are now."""
        context = ssl.create_default_context(cafile=str(self._site.authority.file.parent / "client-ca.crt"))
        context.load_cert_chain(*self._site.client)
        return context

    def served(self) -> x509.Certificate:
        """What the extender shows."""
        text = ssl.get_server_certificate(("127.0.0.1", self._site.port), timeout=10)
        return x509.load_pem_x509_certificate(text.encode())

    def webhook(self) -> None:
        """The site's webhook, as the chart names it, without a bundle: the operator fills that in."""
        self._site.webhook(on=True)
        item = self._plane.get("mutatingwebhookconfiguration", "migcompat")
        self._site.webhook(on=False)
        del item["webhooks"][0]["clientConfig"]["caBundle"]
        self._plane.apply({**item, "metadata": {"name": HOOK}})

    def trusted(self) -> list[x509.Certificate]:
        """kube-apiserver's bundle."""
        hook = self._plane.get("mutatingwebhookconfiguration", HOOK)["webhooks"][0]
        return list(certificates.read(base64.b64decode(hook["clientConfig"].get("caBundle", ""))))


@contextmanager
def again_and_again(*actions: Callable[[], Any]) -> Iterator[tuple[list[int], list[str]]]:
    """Each action in a thread of its own; how often it was done, and what went wrong."""
    ended = threading.Event()
    done, wrong = [0] * len(actions), list[str]()

    def run(number: int) -> None:
        while not ended.wait(0.1):
            try:
                actions[number]()
                done[number] += 1
            except Exception as error:
                wrong.append(f"{datetime.now(UTC)}: {error!r}")

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(actions))]
    for thread in threads:
        thread.start()
    try:
        yield done, wrong
    finally:
        ended.set()
        for thread in threads:
            thread.join()


@pytest.fixture
def site(binaries: build.Binaries, tmp_path: Path) -> Iterator[Site]:
    with ControlPlane(binaries) as plane:
        made = Site(plane, tmp_path)
        try:
            yield made
        finally:
            made.process.stop()


@contextmanager
def operator(plane: ControlPlane, log: Path) -> Iterator[None]:
    process = Process(
        "operator",
        [
            str(Path(sys.executable).with_name("migcompat-operator")),
            f"--health-bind=127.0.0.1:{free_port()}",
            f"--kubeconfig={plane.kubeconfig}",
            "--certificates=migcompat",
            f"--namespace={NAMESPACE}",
            "--server-validity=900",
            f"--ca-overlap={OVERLAP}",
        ],
        log=log,
        environment=dict(os.environ),
    )
    try:
        yield
    finally:
        process.stop()


@pytest.mark.cluster
def test_every_target_is_admitted_while_the_operator_replaces_everything(site: Site, tmp_path: Path) -> None:
    """Fail closed: one handshake that fails is a pod that is not made."""
    release = Release(site)
    release.mount()
    eventually(lambda: certificates.is_issued_by(release.served(), release.old), until=bool)
    release.webhook()
    with pytest.raises(ClusterError, match="certificate"):
        site.create_target("--dry-run=server")

    def create() -> None:
        made = site.create_target("--dry-run=server")
        assert "affinity" in made["spec"]

    def ask() -> None:
        url = f"https://localhost:{site.port}/filter"
        request = urllib.request.Request(url, data=args(["n2"]))
        with urllib.request.urlopen(request, context=release.context(), timeout=10) as answer:
            assert answer.status == 200

    log = tmp_path / "operator.log"
    with operator(site.plane, log):
        eventually(lambda: release.old in release.trusted() and _works(create), until=bool)
        # The bundles come first; it is only after the overlap that anything is signed by the next authority.
        with again_and_again(create, ask, release.mount) as (done, wrong):
            eventually(lambda: len(release.trusted()), until=lambda count: count == 2)
            assert certificates.is_issued_by(release.served(), release.old)

            def gone_over() -> bool:
                return not certificates.is_issued_by(release.served(), release.old)

            eventually(gone_over, until=bool)
            (current,) = certificates.read(release.read(AUTHORITY)["tls.crt"])
            assert current != release.old
            assert certificates.is_issued_by(release.served(), current)
            before = list(done)
            assert min(before) > 0, "while it was being replaced"
            eventually(
                lambda: [now - then for now, then in zip(done, before, strict=True)],
                until=lambda more: min(more) >= ENOUGH,
            )
    assert wrong == [], log.read_text()
    assert certificates.is_issued_by(release.leaf(CLIENT), current)
    assert "certificates, authority: the next authority signs" in log.read_text()


@pytest.mark.cluster
def test_kube_scheduler_reads_its_certificate_anew_for_each_connection(site: Site, tmp_path: Path) -> None:
    """A renewed copy in the same place is enough (docs/install.md); of its authorities that is not so."""
    element = site.extender(by_name=True)
    element["tlsConfig"]["caFile"] = str(tmp_path / "trusted.crt")
    shutil.copy(site.authority.file, tmp_path / "trusted.crt")
    site.plane.restart_scheduler([element])
    (tmp_path / "other").mkdir()
    other = Authority(tmp_path / "other", "other")
    shutil.copy(other.file, site.authority.file)
    for new, place in zip(other.issue("kube-scheduler"), site.client, strict=True):
        shutil.copy(new, place)
    eventually(
        lambda: _metrics(site), until=lambda text: 'certificate_reloads_total{result="ok"} 1.0' in text
    )
    assert site.placed(site.create_target()) == "n2"


def _metrics(site: Site) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{site.health}/metrics", timeout=5) as answer:
        text: str = answer.read().decode()
        return text


def _works(action: Callable[[], None]) -> bool:
    try:
        action()
    except (ClusterError, AssertionError):
        return False
    return True
