"""The guard: no container of a migration target starts with a device that refuses its source.

PreStartContainer is the only call in which it can be known whom the devices are for: PodResources names the
pod by then, but neither GetPreferredAllocation nor Allocate is told. What cannot be found out is refused;
the kubelet asks again every 10 to 12 s.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from migcompat.api.cluster import Pod
from migcompat.api.vfionode import PodRef
from migcompat.engine.dynamic import may_be_dynamic
from migcompat.fleet.intent import intent
from migcompat.fleet.migrant import Mode
from migcompat.fleet.refusal import GUARD_MARK
from migcompat.kube.errors import ApiError
from migcompat.kubelet.connection import KubeletError
from migcompat.kubelet.podresources import Allocations

from migcompat_deviceplugin import metrics
from migcompat_deviceplugin.allocate import Refused
from migcompat_deviceplugin.inquiry import Inquiry
from migcompat_deviceplugin.inventory import Device
from migcompat_deviceplugin.obligations import ObligationError, fulfil
from migcompat_deviceplugin.server import Asking, GuardRefusedError
from migcompat_deviceplugin.status import contents
from migcompat_deviceplugin.sysfs import Sysfs, SysfsError, in_thread

log = logging.getLogger(__name__)

DEADLINE = 25.0
"""Seconds; the kubelet gives up after 30 and would then show its own text instead of ours."""
WRITE_DEADLINE = 5.0
HOLDER_TRIES = 4
HOLDER_PAUSE = 0.5
HOLDER_PATIENCE = 12.0
"""Seconds for PodResources; what is left of the deadline is for the API server."""


class Holders(Protocol):
    """Who tells which pod holds which device."""

    async def refresh(self) -> Allocations:
        """The allocations now. Raises KubeletError."""


class Refusal(Exception):
    """Why the container must not start: one of the reasons of fleet and engine, or of this module."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.message = message


class _NotTold(Refusal):
    """PodResources does not tell which pod the devices are for."""

    def __init__(self, message: str) -> None:
        super().__init__("PodResourcesUnavailable", message)


class Guard:
    """Checks the devices of a pod against the VM that is to arrive in it.

    *steered* is told which devices of a resource a target has: the pod's uid, the resource, the ids.
    """

    def __init__(
        self,
        holders: Holders,
        inquiry: Inquiry,
        sysfs: Sysfs,
        probes: Asking,
        steered: Callable[[str, str, Sequence[str]], None],
    ) -> None:
        self._holders = holders
        self._inquiry = inquiry
        self._sysfs = sysfs
        self._probes = probes
        self._steered = steered
        self._written: set[str] = set()

    async def check(self, resource: str, ids: Sequence[str]) -> None:
        """Returns when a container may start with the devices *ids*; raises GuardRefusedError."""
        try:
            async with asyncio.timeout(DEADLINE):
                await self._check(resource, ids)
        except TimeoutError:
            refusal = Refusal("DeadlineExceeded", f"no answer within {DEADLINE:g} s")
        except Refusal as known:
            refusal = known
        else:
            return
        metrics.GUARD_REFUSALS.labels(refusal.reason).inc()
        log.warning("guard refuses %s of %s: %s", ", ".join(ids), resource, refusal)
        raise GuardRefusedError(f"{GUARD_MARK} {refusal}")

    async def _check(self, resource: str, ids: Sequence[str]) -> None:
        try:
            allocations, holder = await self._holder(resource, ids)
        except _NotTold as silence:
            await self._check_blindly(resource, ids, silence)
            return
        try:
            pod = await self._inquiry.pod(holder)
        except ApiError as error:
            raise Refusal("PodUnknown", f"the pod cannot be read: {error}") from error
        if not pod.is_migration_target:
            return
        self._steered(pod.metadata.uid, resource, ids)
        held = [key for key, ref in allocations.items() if ref == holder]
        name = f"pod {holder.namespace}/{holder.name}"
        try:
            await self._judge(pod, resource, ids, held)
        except Refusal as refusal:
            wish = intent(pod.metadata.annotations, allow_loosening=self._inquiry.allow_loosening)
            if wish.mode is not Mode.IGNORE:
                raise
            log.warning("%s: mode ignore lets it start, although %s", name, refusal)
        metrics.GUARD_PASSES.inc()
        log.info("%s: may start with %s of %s", name, ", ".join(ids), resource)

    async def _holder(self, resource: str, ids: Sequence[str]) -> tuple[Allocations, PodRef]:
        """All allocations, and the one pod that holds *ids*; asks again when the kubelet is late with it."""
        problem: Refusal = _NotTold(f"no answer within {HOLDER_PATIENCE:g} s")
        until = asyncio.get_running_loop().time() + HOLDER_PATIENCE
        for attempt in range(HOLDER_TRIES):
            await asyncio.sleep(HOLDER_PAUSE if attempt else 0)
            try:
                async with asyncio.timeout_at(until):
                    allocations = await self._holders.refresh()
            except KubeletError as error:
                problem = _NotTold(str(error))
                continue
            except TimeoutError:
                break
            holders = {allocations.get((resource, id_)) for id_ in ids}
            if len(holders) == 1 and (holder := holders.pop()) is not None:
                return allocations, holder
            problem = Refusal("PodUnknown", "PodResources names no pod, or several, for the devices")
        raise problem

    async def _check_blindly(self, resource: str, ids: Sequence[str], silence: Refusal) -> None:
        """Without PodResources: a first start, if no migration target of this node waits for such devices."""
        try:
            targets = await self._inquiry.targets_to_start(resource)
        except ApiError as error:
            raise Refusal(silence.reason, f"{silence.message}; {error}") from error
        if targets:
            name = f"{targets[0].metadata.namespace}/{targets[0].metadata.name}"
            raise Refusal(silence.reason, f"{silence.message}; it may be for the migration target {name}")
        log.warning(
            "%s of %s: may start, as no migration target waits; %s", ", ".join(ids), resource, silence
        )

    async def _judge(
        self, pod: Pod, resource: str, ids: Sequence[str], held: Sequence[tuple[str, str]]
    ) -> None:
        """The verdict over all devices of ours that the pod holds, as they are now; obligations of *ids*."""
        devices = await self._reread(resource, held)
        try:
            rules = await self._inquiry.rules()
            fleet, migrant = await self._inquiry.about(pod, rules, contents(devices, {}))
        except ApiError as error:
            raise Refusal("SourceUnknown", f"the source of the VM cannot be found out: {error}") from error
        fit = fleet.fit(migrant, self._inquiry.node_name)
        if not fit.compatible or not fit.free:
            raise Refusal(fit.reason, fit.message)
        for assigned in fit.assignment:
            if assigned.id in ids and assigned.obligations:
                await self._fulfil(devices[assigned.id], assigned.obligations)

    async def _reread(self, resource: str, held: Sequence[tuple[str, str]]) -> dict[str, Device]:
        before = self._sysfs.last
        try:
            await self._probes.let_go([id_ for _, id_ in held])
            now = await self._sysfs.reread([id_ for _, id_ in held])
        except SysfsError as error:
            raise Refusal("ScanFailed", str(error)) from error
        except Refused as error:
            raise Refusal("DeviceUnhealthy", str(error)) from error
        ours = {resource} | {device.resource for device in before.values()}
        devices = {}
        for pool, id_ in held:
            device = now.get(id_)
            if pool not in ours:
                continue
            if device is None or device.resource != pool:
                raise Refusal("DeviceGone", f"a device of {pool} is gone")
            if device.found.problem:
                raise Refusal("DeviceUnhealthy", device.found.problem)
            devices[id_] = device
        return devices

    async def _fulfil(self, device: Device, obligations: dict[str, str]) -> None:
        forbidden = sorted(name for name in obligations if not may_be_dynamic(name))
        if forbidden:
            raise Refusal("ObligationFailed", f"{', '.join(forbidden)} must never be written")
        if device.id in self._written:
            raise Refusal("ObligationFailed", f"an earlier write to {device.id} still hangs in its driver")
        self._written.add(device.id)
        try:
            await in_thread(
                lambda: fulfil(self._sysfs.root / device.found.path, obligations),
                WRITE_DEADLINE,
                lambda: self._written.discard(device.id),
            )
        except ObligationError as error:
            raise Refusal("ObligationFailed", str(error)) from error
        except TimeoutError:
            text = f"{', '.join(sorted(obligations))} not written within {WRITE_DEADLINE:g} s"
            raise Refusal("ObligationFailed", text) from None
