"""Does the agent leave its node for good, or does it make room for its successor?

SIGTERM says neither. The agent's own DaemonSet does: where it is gone or going, nobody comes after. Only that
counts. An answer that is missing proves nothing (an upgrade may take rights away, the token of a pod that was
deleted by force is refused); nor does a DaemonSet that was never seen (its name may be wrong).
"""

from __future__ import annotations

import asyncio
import logging

from migcompat.kube.backoff import Backoff
from migcompat.kube.client import Client
from migcompat.kube.errors import ApiError, NotFound
from migcompat.kube.kinds import DAEMONSETS

log = logging.getLogger(__name__)

DEADLINE = 2.0
"""Seconds at the end, of the 30 that the kubelet gives a pod."""


class Departure:
    """Knows the DaemonSet *daemonset* of *namespace*; without a name it knows nothing, and says so."""

    def __init__(self, client: Client, namespace: str, daemonset: str) -> None:
        self._client = client
        self._namespace = namespace
        self._name = daemonset
        self._seen = False

    async def run(self) -> None:
        """See the DaemonSet once: what has been there can be gone."""
        backoff = Backoff(1.0, 300.0)
        told = False
        while self._name and not self._seen:
            try:
                await self._client.get(DAEMONSETS, self._name, self._namespace)
                self._seen = True
            except ApiError as error:
                if not told:
                    log.warning(
                        "whether this agent leaves for good cannot be found out at its end, trying again: %s",
                        error,
                    )
                told = True
                await asyncio.sleep(backoff.delay())

    async def is_for_good(self) -> bool:
        """Whether nobody comes after. Answers within :data:`DEADLINE`; never raises."""
        if not self._seen:
            return False
        try:
            async with asyncio.timeout(DEADLINE):
                found = await self._client.get(DAEMONSETS, self._name, self._namespace)
        except NotFound:
            log.info("DaemonSet %s/%s is gone: leaving for good", self._namespace, self._name)
            return True
        except (ApiError, TimeoutError) as error:
            why = error if isinstance(error, ApiError) else f"no answer within {DEADLINE:g} s"
            log.info("not known whether another agent comes after this one, so not leaving for good: %s", why)
            return False
        if found.metadata.deletion_timestamp is not None:
            log.info("DaemonSet %s/%s is being deleted: leaving for good", self._namespace, self._name)
            return True
        return False
