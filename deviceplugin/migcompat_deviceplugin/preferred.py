"""Steering: which of the free devices a pod should get.

The kubelet does not tell for which pod it asks. So the agent looks which migration targets are bound to this
node and still wait, oldest first as the kubelet admits them, and prefers the devices that accept the source
of the first one. Pods that arrive together are all admitted before PodResources names any of them, so whom
it has steered for is remembered. A wrong guess costs an attempt, nothing more: the guard decides.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence

import msgspec
from migcompat.api.cluster import Pod
from migcompat.api.names import digest
from migcompat.api.vfionode import split
from migcompat.fleet.migrant import Migrant
from migcompat.kube.errors import ApiError

from migcompat_deviceplugin import metrics
from migcompat_deviceplugin.inquiry import Inquiry
from migcompat_deviceplugin.inventory import Device
from migcompat_deviceplugin.state import State
from migcompat_deviceplugin.status import contents

log = logging.getLogger(__name__)

DEADLINE = 4.0
"""Seconds: the kubelet admits no other pod meanwhile."""
REMEMBERED_SECONDS = 600.0
"""How long what was chosen for a pod is remembered, for the count of hits."""
SERVED_SECONDS = 30.0
"""How long a pod that was steered for is skipped: PodResources does not show it as a holder at once."""
PODS_LIMIT = 8


class Preferred:
    """Chooses devices for one node's agent."""

    def __init__(self, state: State, inquiry: Inquiry, clock: Callable[[], float] = time.monotonic) -> None:
        self._state = state
        self._inquiry = inquiry
        self._clock = clock
        self._served: dict[tuple[str, str], float] = {}
        self._steered: dict[tuple[str, str], tuple[float, frozenset[str]]] = {}

    async def choose(
        self, resource: str, available: Sequence[str], must_include: Sequence[str], size: int
    ) -> list[str]:
        """*size* of the *available* ids with all of *must_include*, best first. Never raises."""
        chosen: list[str] = []
        if len(available) > size:
            try:
                async with asyncio.timeout(DEADLINE):
                    chosen = await self._for_target(resource, available, size)
            except (ApiError, TimeoutError) as error:
                why = error if isinstance(error, ApiError) else f"no answer within {DEADLINE:g} s"
                log.warning("%s: choosing without knowing the waiting targets: %s", resource, why)
            except Exception:
                # An error would fail the pod for good; whatever went wrong, any free device will do.
                log.exception("%s: choosing without knowing the waiting targets", resource)
        if not set(must_include) <= set(chosen):
            chosen = []
        order = [*must_include, *chosen, *self._common_first(available)]
        return list(dict.fromkeys(order))[:size]

    async def _for_target(self, resource: str, available: Sequence[str], size: int) -> list[str]:
        """Devices for the first waiting target that they suit, one for each of its VM's; else none."""
        pending = await self._inquiry.pending_targets(resource)
        now = self._clock()
        self._served = {key: at for key, at in self._served.items() if now - at < SERVED_SECONDS}
        recent = now - REMEMBERED_SECONDS
        self._steered = {key: made for key, made in self._steered.items() if made[0] > recent}
        waiting = [pod for pod in pending if self._waits(pod, resource, size)]
        if not waiting:
            return []
        devices = {id_: d for id_ in available if (d := self._state.inventory.get(id_)) is not None}
        rules = await self._inquiry.rules()
        for pod in waiting[:PODS_LIMIT]:
            name = f"{pod.metadata.namespace}/{pod.metadata.name}"
            try:
                fleet, migrant = await self._inquiry.about(pod, rules, contents(devices, {}))
            except ApiError as error:
                log.warning("pod %s: its source is not known: %s", name, error)
                continue
            fit = fleet.fit(_narrowed(migrant, resource), self._inquiry.node_name)
            if fit.compatible and fit.free and fit.assignment:
                chosen = [assigned.id for assigned in sorted(fit.assignment, key=lambda a: a.source)]
                key = (pod.metadata.uid, resource)
                self._served[key] = self._clock()
                self._steered[key] = self._clock(), frozenset(chosen)
                log.info("pod %s: preferring %s of %s", name, ", ".join(chosen), resource)
                return chosen
        return []

    def settle(self, uid: str, resource: str, ids: Sequence[str]) -> None:
        """The pod *uid* has the devices *ids*: count whether they are those that were chosen for it."""
        made = self._steered.pop((uid, resource), None)
        if made is not None:
            metrics.STEERING.labels("Hit" if made[1] >= set(ids) else "Miss").inc()

    def _waits(self, pod: Pod, resource: str, size: int) -> bool:
        """Whether *pod* may be the one that is asked for: it wants *size* devices and has none yet."""
        if (pod.metadata.uid, resource) in self._served or pod.asks().get(resource) != size:
            return False
        key = (pod.metadata.namespace, pod.metadata.name)
        return not any(
            pool == resource and (ref.namespace, ref.name) == key
            for (pool, _), ref in (self._state.allocations or {}).items()
        )

    def _common_first(self, available: Sequence[str]) -> list[str]:
        """*available*, the most frequent kind of device first: rare ones stay for who needs them."""
        kinds = {id_: self._kind(self._state.inventory.get(id_)) for id_ in available}
        counts = Counter(kinds.values())
        return sorted(available, key=lambda id_: (-counts[kinds[id_]], id_))

    @staticmethod
    def _kind(device: Device | None) -> tuple[str, ...]:
        if device is None:
            return ()
        profile, _, acceptance, _, _ = split(device.found.declaration)
        return profile, acceptance, digest(device.found.declaration.shown)


def _narrowed(migrant: Migrant, resource: str) -> Migrant:
    """*migrant* with only its devices of the pool that is being chosen from."""
    return msgspec.structs.replace(
        migrant,
        asks={resource: migrant.asks.get(resource, 0)},
        devices=tuple(device for device in migrant.devices if device.resource == resource),
    )
