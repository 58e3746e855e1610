"""The keeper of certificates against a real API server.

What it decides: test_rotation.py; with the chart and its rights: tests/chart/test_release.py.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from cryptography import x509
from migcompat.kube.client import Client
from migcompat.kube.errors import ApiError
from migcompat_operator.keeper import CONFIGURATIONS, SECRETS, Keeper
from migcompat_operator.metrics import Metrics
from migcompat_operator.rotation import NAMES, Times

from tests.operator.conftest import eventually

if TYPE_CHECKING:
    from tests.cluster.controlplane import ControlPlane

pytestmark = pytest.mark.cluster

NAMESPACE = "tenant-a"
TIMES = Times(*(timedelta(days=days) for days in (90, 365, 3650, 7)))
SECRET_NAMES = ("m-extender-ca", "m-extender-tls", "m-scheduler-client")


@pytest.fixture(autouse=True)
async def _empty(client: Client) -> AsyncIterator[None]:
    """The chart's objects with ``tls.madeBy=operator``."""
    names = json.dumps({"dns": ["localhost"], "ips": ["127.0.0.1"]})
    for name in SECRET_NAMES:
        meta = {"name": name, "annotations": {NAMES: names} if name.endswith("-tls") else {}}
        await client.create(SECRETS, {"metadata": meta}, NAMESPACE)
    hooks = [
        {
            "name": f"{name}.migcompat.io",
            "admissionReviewVersions": ["v1"],
            "sideEffects": "None",
            "clientConfig": {"url": "https://127.0.0.1:1/mutate"},
        }
        for name in ("other", "targets")
    ]
    await client.create(CONFIGURATIONS, {"metadata": {"name": "m-extender"}, "webhooks": hooks})
    yield
    for name in SECRET_NAMES:
        await client.delete(SECRETS, name, NAMESPACE)
    await client.delete(CONFIGURATIONS, "m-extender")


async def held(client: Client, name: str) -> dict[str, bytes]:
    data = (await client.get(SECRETS, name, NAMESPACE)).data or {}
    return {key: base64.b64decode(value) for key, value in data.items()}


async def settled(client: Client) -> x509.Certificate:
    """The authority, once all of it belongs together."""
    authority = x509.load_pem_x509_certificate((await held(client, SECRET_NAMES[0]))["tls.crt"])
    for name in SECRET_NAMES[1:]:
        found = await held(client, name)
        x509.load_pem_x509_certificate(found["tls.crt"]).verify_directly_issued_by(authority)
        assert x509.load_pem_x509_certificates(found["ca.crt"]) == [authority]
    hooks = (await client.get(CONFIGURATIONS, "m-extender")).webhooks or []
    bundles = {hook.name: base64.b64decode(hook.client_config.ca_bundle) for hook in hooks}
    assert bundles["other.migcompat.io"] == b"", "another webhook beside ours is not ours"
    assert x509.load_pem_x509_certificates(bundles["targets.migcompat.io"]) == [authority]
    return authority


def keeper(client: Client, metrics: Metrics | None = None, **more: Any) -> Keeper:
    return Keeper(client, NAMESPACE, "m", TIMES, metrics or Metrics(), **more)


async def test_it_fills_what_is_empty_counts_and_then_writes_nothing(client: Client) -> None:
    metrics = Metrics()
    await keeper(client, metrics).pass_once()
    await settled(client)
    sample = metrics.registry.get_sample_value
    for certificate in ("authority", "server", "client"):
        label = {"certificate": certificate}
        assert sample("migcompat_operator_certificate_renewals_total", label) == 1
        assert sample("migcompat_operator_certificate_problems", label) == 0
        expiry = sample("migcompat_operator_certificate_expiry_timestamp_seconds", label)
        assert expiry is not None
        assert expiry > time.time() + 89 * 24 * 3600
    versions = [
        (await client.get(SECRETS, name, NAMESPACE)).metadata.resource_version for name in SECRET_NAMES
    ]
    await keeper(client).pass_once()
    assert versions == [
        (await client.get(SECRETS, name, NAMESPACE)).metadata.resource_version for name in SECRET_NAMES
    ]


async def test_two_at_a_time_come_to_one_authority(client: Client) -> None:
    await asyncio.gather(*(keeper(client).pass_once() for _ in range(4)))
    await settled(client)


async def test_what_has_changed_since_it_was_read_is_read_again(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Before each of its writes somebody else changes the object."""
    caplog.set_level("INFO")
    patch = client.patch
    touched: set[str] = set()

    async def raced(res: Any, name: str, *arguments: Any, **more: Any) -> Any:
        if name not in touched:
            touched.add(name)
            note = {"metadata": {"annotations": {"somebody": "else"}}}
            await patch(res, name, note, *([NAMESPACE] if res is SECRETS else []))
        return await patch(res, name, *arguments, **more)

    monkeypatch.setattr(client, "patch", raced)
    await keeper(client).pass_once()
    await settled(client)
    assert touched == {*SECRET_NAMES, "m-extender"}
    assert len([text for text in caplog.messages if "has changed meanwhile" in text]) == len(touched)
    assert (await client.get(SECRETS, SECRET_NAMES[0], NAMESPACE)).metadata.annotations == {
        "somebody": "else"
    }


@pytest.mark.parametrize("writes", range(1, 4))
async def test_killed_between_two_writes_it_goes_on(
    client: Client, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    class Killed(Exception):
        pass

    patch = client.patch
    left = writes

    async def until_killed(*arguments: Any, **more: Any) -> Any:
        nonlocal left
        if left == 0:
            raise Killed
        left -= 1
        return await patch(*arguments, **more)

    with monkeypatch.context() as context:
        context.setattr(client, "patch", until_killed)
        with pytest.raises(Killed):
            await keeper(client).pass_once()
    before = await held(client, SECRET_NAMES[0])
    await keeper(client).pass_once()
    await settled(client)
    assert await held(client, SECRET_NAMES[0]) == before


@pytest.mark.parametrize("years", [-20, 20])
async def test_a_clock_that_is_wrong_makes_no_wrong_certificate(
    client: Client, caplog: pytest.LogCaptureFixture, years: int
) -> None:
    metrics = Metrics()
    wrong = keeper(client, metrics, clock=lambda: time.time() + years * 365 * 24 * 3600)
    await wrong.pass_once()
    await wrong.pass_once()
    authority = await settled(client)
    now = datetime.now(UTC)
    assert now - timedelta(hours=2) < authority.not_valid_before_utc < now
    (said,) = [text for text in caplog.messages if "clock" in text]
    assert ("ahead of" if years > 0 else "behind") in said
    skew = metrics.registry.get_sample_value("migcompat_operator_clock_skew_seconds")
    assert skew == pytest.approx(years * 365 * 24 * 3600, abs=60)


async def test_without_rights_it_says_so_once_and_goes_on_when_it_has_them(
    plane: ControlPlane, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    plane.kubectl("create", "serviceaccount", "keeper", "-n", NAMESPACE)
    token = plane.kubectl("create", "token", "keeper", "-n", NAMESPACE).strip()
    path = plane.directory / "keeper.kubeconfig"
    path.write_text(yaml.safe_dump(plane.kubeconfig_of({"token": token})))
    metrics = Metrics()

    def failures() -> float:
        return metrics.registry.get_sample_value("migcompat_operator_certificate_failures_total") or 0

    async def failed_twice() -> bool:
        return failures() >= 2

    async def filled() -> bool:
        return "ca.crt" in await held(client, SECRET_NAMES[2])

    async with Client.from_environment(str(path)) as unprivileged:
        with pytest.raises(ApiError, match="403"):
            await keeper(unprivileged).pass_once()
        running = asyncio.create_task(keeper(unprivileged, metrics).run())
        try:
            await eventually(failed_twice, "two attempts")
            plane.kubectl(
                *("create", "clusterrolebinding", "keeper", "--clusterrole=cluster-admin"),
                f"--serviceaccount={NAMESPACE}:keeper",
            )
            await eventually(filled, "it goes on")
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            plane.kubectl("delete", "clusterrolebinding", "keeper")
            plane.kubectl("delete", "serviceaccount", "keeper", "-n", NAMESPACE)
    (said,) = [text for text in caplog.messages if "trying again" in text]
    assert "m-extender-ca" in said
    assert "forbidden" in said
