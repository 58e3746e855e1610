"""Keeps the extender's certificates: reads what is there, and writes what :mod:`rotation` says is next.

The time is kube-apiserver's, not this node's: a clock that goes wrong here must not make certificates that
are valid nowhere else, nor put good ones aside.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import msgspec
from migcompat.api.meta import ObjectMeta
from migcompat.kube.backoff import Backoff
from migcompat.kube.client import Client
from migcompat.kube.errors import ApiError, Conflict, NotFound
from migcompat.kube.kinds import Resource

from migcompat_operator.metrics import Metrics
from migcompat_operator.rotation import CA, Held, Place, Plan, Times, Write, plan

log = logging.getLogger(__name__)

EVERY = 60.0
"""Seconds between two looks; less where a certificate lives for less than half an hour."""
BACKOFF_FIRST = 1.0
BACKOFF_LIMIT = 60.0
MOST_STEPS = 20
"""Writes in a row; replacing everything at once takes eight."""
SKEW = 60.0
"""Seconds between this clock and kube-apiserver's that are worth a warning."""
WEBHOOK = "targets.migcompat.io"


class Secret(msgspec.Struct, omit_defaults=True):
    """The part of a Secret that we read."""

    metadata: ObjectMeta
    data: dict[str, str] | None = None


class ClientConfig(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """How kube-apiserver reaches a webhook."""

    ca_bundle: str = ""


class Webhook(msgspec.Struct, omit_defaults=True, rename="camel"):
    """One webhook of a configuration."""

    name: str
    client_config: ClientConfig = ClientConfig()


class WebhookConfiguration(msgspec.Struct, omit_defaults=True):
    """The part of a MutatingWebhookConfiguration that we read."""

    metadata: ObjectMeta
    webhooks: list[Webhook] | None = None


class Review(msgspec.Struct, frozen=True, omit_defaults=True):
    """A SelfSubjectReview; kube-apiserver stamps it with its time."""

    metadata: ObjectMeta = msgspec.field(default_factory=ObjectMeta)


SECRETS = Resource("", "v1", "secrets", "Secret", Secret, namespaced=True)
CONFIGURATIONS = Resource(
    "admissionregistration.k8s.io",
    "v1",
    "mutatingwebhookconfigurations",
    "MutatingWebhookConfiguration",
    WebhookConfiguration,
    namespaced=False,
)
REVIEWS = Resource(
    "authentication.k8s.io", "v1", "selfsubjectreviews", "SelfSubjectReview", Review, namespaced=False
)


class _Seen(msgspec.Struct):
    """What the places hold, and what a write to them is based on."""

    held: dict[Place, Held] = {}
    versions: dict[Place, str] = {}
    webhook: int = 0
    """Which of the configuration's webhooks is ours."""


class Keeper:
    """Keeps the certificates of the release whose objects' names begin with *name*, in *namespace*."""

    def __init__(
        self,
        client: Client,
        namespace: str,
        name: str,
        times: Times,
        metrics: Metrics,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._client = client
        self._namespace = namespace
        self._name = name
        self._times = times
        self._metrics = metrics
        self._clock = clock
        shortest = min(times.server, times.client, times.authority).total_seconds()
        self._every = min(EVERY, shortest / 30)
        self._secrets = {
            Place.AUTHORITY: f"{name}-extender-ca",
            Place.SERVER: f"{name}-extender-tls",
            Place.CLIENT: f"{name}-scheduler-client",
        }
        self._told: dict[str, str] = {}
        self._skewed = False

    async def run(self) -> None:
        """Look for ever; after a failure sooner."""
        backoff = Backoff(BACKOFF_FIRST, BACKOFF_LIMIT)
        while True:
            try:
                await self.pass_once()
            except ApiError as error:
                self._metrics.certificate_failures.inc()
                self._tell({"": f"cannot be looked after, trying again: {error}"})
                await asyncio.sleep(backoff.delay())
                continue
            backoff.reset()
            await asyncio.sleep(self._every)

    async def pass_once(self) -> None:
        """Write until there is nothing to write. Raises ApiError; what was written by then is good."""
        for _ in range(MOST_STEPS):
            now = await self._now()
            seen = await self._look()
            step = plan(seen.held, self._times, self._name, now)
            self._report(step)
            if step.write is None:
                return
            try:
                await self._carry_out(step.write, seen)
            except (Conflict, NotFound) as error:
                log.info("%s has changed meanwhile, looking again: %s", step.write.place, error)
                continue
            log.info("certificates, %s: %s", step.write.place, step.write.what)
            self._metrics.written.labels("certificate").inc()
            if step.write.renewed:
                self._metrics.certificate_renewals.labels(step.write.place).inc()
        raise ApiError(0, "Unsettled", f"the certificates do not settle after {MOST_STEPS} writes")

    async def _now(self) -> datetime:
        """kube-apiserver's time. Raises ApiError."""
        said = (await self._client.create(REVIEWS, Review())).metadata.creation_timestamp
        if said is None:
            raise ApiError(0, "NoTime", "kube-apiserver does not say its time in a SelfSubjectReview")
        now = datetime.fromisoformat(said)
        apart = self._clock() - now.timestamp()
        self._metrics.clock_skew.set(apart)
        skewed = abs(apart) > SKEW
        if skewed and not self._skewed:
            side = "ahead of" if apart > 0 else "behind"
            log.warning(
                "this node's clock is %.0f s %s kube-apiserver's, whose time counts", abs(apart), side
            )
        self._skewed = skewed
        return now

    async def _look(self) -> _Seen:
        """Raises ApiError."""
        seen = _Seen()
        for place, name in self._secrets.items():
            try:
                secret = await self._client.get(SECRETS, name, self._namespace)
            except NotFound:
                continue
            data = {key: _decoded(value) for key, value in (secret.data or {}).items()}
            seen.held[place] = Held(data, secret.metadata.annotations or {})
            seen.versions[place] = secret.metadata.resource_version
        try:
            configuration = await self._client.get(CONFIGURATIONS, self._configuration)
        except NotFound:
            return seen
        for index, webhook in enumerate(configuration.webhooks or ()):
            if webhook.name == WEBHOOK:
                seen.held[Place.WEBHOOK] = Held({CA: _decoded(webhook.client_config.ca_bundle)})
                seen.versions[Place.WEBHOOK] = configuration.metadata.resource_version
                seen.webhook = index
        return seen

    @property
    def _configuration(self) -> str:
        return f"{self._name}-extender"

    async def _carry_out(self, write: Write, seen: _Seen) -> None:
        """Raises Conflict when the object is not as it was seen, and other ApiErrors."""
        version = seen.versions[write.place]
        data = {key: _encoded(value) for key, value in write.data.items()}
        if write.place is Place.WEBHOOK:
            operations: list[dict[str, Any]] = [
                # To replace it by what it is fails with a conflict where it is not.
                {"op": "replace", "path": "/metadata/resourceVersion", "value": version},
                {
                    "op": "add",
                    "path": f"/webhooks/{seen.webhook}/clientConfig/caBundle",
                    "value": data[CA],
                },
            ]
            await self._client.patch(
                CONFIGURATIONS, self._configuration, operations, content_type="application/json-patch+json"
            )
            return
        patch: dict[str, Any] = {"metadata": {"resourceVersion": version}}
        if write.annotations:
            patch["metadata"]["annotations"] = write.annotations
        if data:
            patch["data"] = data
        await self._client.patch(SECRETS, self._secrets[write.place], patch, self._namespace)

    def _report(self, step: Plan) -> None:
        for place in Place:
            wrong = place in step.problems
            self._metrics.certificate_problems.labels(place).set(wrong)
            if place in step.expiry:
                self._metrics.certificate_expiry.labels(place).set(step.expiry[place].timestamp())
        if step.write is None:
            self._tell({str(place): text for place, text in step.problems.items()})

    def _tell(self, problems: Mapping[str, str]) -> None:
        """Say each problem once, as long as it stays the same."""
        for name, text in problems.items():
            if self._told.get(name) != text:
                log.warning("certificates%s: %s", f", {name}" if name else "", text)
        self._told = dict(problems)


def _decoded(text: str) -> bytes:
    """What kube-apiserver has is base64; what is not counts as empty of certificates."""
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        return b"\0"


def _encoded(content: bytes | None) -> str | None:
    return None if content is None else base64.b64encode(content).decode()
