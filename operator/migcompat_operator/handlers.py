"""kopf's event handlers: decode, hand on to the mirror.

Only ``on.event``: kopf's indices cost quadratic time at start, and its persistent handlers write annotations
and finalizers, which we want on nobody's objects.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

import kopf
import msgspec
from migcompat.kube.config import in_cluster_server
from migcompat.kube.kinds import Resource

from migcompat_operator.metrics import Metrics
from migcompat_operator.mirror import Mirror
from migcompat_operator.resync import LAUNCHERS

log = logging.getLogger(__name__)

WATCH_SECONDS = 300
INACTIVITY = 90.0
CONNECT = 10.0
REQUEST = 30.0
BACKOFFS = (1.0, 1.0, 2.0, 3.0, 5.0, *[10.0] * 1000)
"""Seconds between attempts; kopf ends when they are used up, and an API server may be away for an hour."""


Relisted = Callable[[Resource[Any]], None]
"""Told of each object that kopf got from a list, because a list says nothing of what has gone."""


def registry(mirror: Mirror, metrics: Metrics, relisted: Relisted) -> kopf.OperatorRegistry:
    """Handlers for every kind the mirror keeps, and the login."""
    found = kopf.OperatorRegistry()
    kopf.on.login(registry=found)(login)
    for resource in mirror.resources:
        _register(found, resource, mirror, metrics, relisted)
    return found


def settings() -> kopf.OperatorSettings:
    """How kopf behaves: posts nothing, and no wait of its is without a deadline.

    Its observation of CRDs stays on (RBAC: list and watch customresourcedefinitions): KubeVirt may be
    installed after us.
    """
    chosen = kopf.OperatorSettings()
    chosen.posting.enabled = False
    chosen.peering.standalone = True
    chosen.watching.server_timeout = WATCH_SECONDS
    chosen.watching.inactivity_timeout = INACTIVITY
    chosen.watching.connect_timeout = CONNECT
    chosen.watching.chunk_size = 500
    chosen.watching.label_selectors["", "v1", "pods"] = LAUNCHERS
    chosen.networking.connect_timeout = CONNECT
    chosen.networking.request_timeout = REQUEST
    chosen.networking.error_backoffs = BACKOFFS
    chosen.queueing.exit_timeout = 1.0
    return chosen


def take(
    event: Mapping[str, Any],
    resource: Resource[Any],
    mirror: Mirror,
    metrics: Metrics,
    relisted: Relisted,
) -> None:
    """One event of a watch (type None: from a list). What does not decode counts as absent."""
    if event["type"] is None:
        relisted(resource)
    body = event["object"]
    meta = body.get("metadata") or {}
    key = (str(meta.get("namespace") or ""), str(meta.get("name") or ""))
    version = str(meta.get("resourceVersion") or "")
    if event["type"] == "DELETED":
        mirror.drop(resource, key, version)
        return
    try:
        item = resource.decode(msgspec.json.encode(body))
    except (msgspec.DecodeError, RecursionError) as problem:
        metrics.undecodable.labels(resource.plural).inc()
        log.warning(
            "%r %s does not fit its type and counts as absent until it is corrected: %s",
            resource,
            "/".join(filter(None, key)),
            problem,
        )
        mirror.drop(resource, key, version)
        return
    mirror.put(resource, item)


def login(**given: Any) -> kopf.ConnectionInfo | None:
    """As ``$KUBECONFIG`` says, else as the pod's service account. Raises ConfigError.

    kopf would look for ``kubernetes.default.svc``, and so wait for the cluster's DNS.
    """
    if os.environ.get("KUBECONFIG"):
        return kopf.login_with_kubeconfig(**given)
    found = kopf.login_with_service_account(**given)
    return None if found is None else dataclasses.replace(found, server=in_cluster_server())


def _register(
    found: kopf.OperatorRegistry,
    resource: Resource[Any],
    mirror: Mirror,
    metrics: Metrics,
    relisted: Relisted,
) -> None:
    async def handle(event: Mapping[str, Any], **_: Any) -> None:
        take(event, resource, mirror, metrics, relisted)

    kopf.on.event(resource.group, resource.version, resource.plural, id=resource.plural, registry=found)(
        handle
    )
