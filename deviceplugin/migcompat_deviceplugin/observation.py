"""Observe mode at work: asking what other plugins offer, and remembering whose each device was."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Protocol

from migcompat.api.vfionode import Device as PublishedDevice
from migcompat.kubelet.connection import KubeletError
from migcompat.kubelet.podresources import Allocations, Offers
from migcompat.resources.selection import Configuration
from migcompat.sysfs.appearance import Appearance

from migcompat_deviceplugin import metrics
from migcompat_deviceplugin.allocations import unanswered
from migcompat_deviceplugin.foreign import Seen
from migcompat_deviceplugin.inventory import Inventory
from migcompat_deviceplugin.observing import NOT_OFFERED, observed
from migcompat_deviceplugin.state import Signal, State

log = logging.getLogger(__name__)

INTERVAL = 10.0
"""Seconds between two calls. With each list of devices that a plugin sends, the kubelet replaces its
checkpoint (``genericDeviceUpdateCallback`` in pkg/kubelet/cm/devicemanager/manager.go), which is heard; that
a plugin is gone shows nowhere else."""
FAILING = 1.0
"""The same while the kubelet does not answer."""
CONSEQUENCE = "meanwhile devices are published as they were known before"


class Asked(Protocol):
    """The kubelet that is asked."""

    async def offers(self) -> Offers:
        """What plugins offer. Raises KubeletError."""


class OffersPoller:
    """Keeps ``state.offers`` current."""

    def __init__(self, kubelet: Asked, state: State) -> None:
        self._kubelet = kubelet
        self._state = state
        self._due = Signal()

    async def run(self) -> None:
        """Ask until cancelled."""
        while True:
            try:
                self._state.set_offers(await self._kubelet.offers())
            except KubeletError as error:
                metrics.POD_RESOURCES_FAILURES.inc()
                problem = unanswered(error, CONSEQUENCE)
                before = self._state.offers_problem
                if before is None or before.reason is not problem.reason:
                    log.warning("what plugins offer is not known: %s", problem)
                self._state.set_offers_problem(problem)
            await self._due.wait(INTERVAL if self._state.offers_problem is None else FAILING)

    def stir(self) -> None:
        """Something about the kubelet's plugins may have changed: ask at once."""
        self._due.set()


class Observation:
    """What is seen of other plugins' devices (:func:`.observing.observed`), with what was seen before."""

    def __init__(self) -> None:
        self._former: dict[str, str] = {}

    def see(
        self,
        inventory: Inventory,
        allocations: Allocations | None,
        offers: Offers | None,
        configuration: Configuration | None,
    ) -> Seen:
        """The devices of a scan in their plugins' pools."""
        seen = observed(inventory, allocations, offers, configuration, self._former)
        places = {id_: d.resource for id_, d in seen.inventory.items() if d.resource != NOT_OFFERED}
        self._former = {id_: r for id_, r in self._former.items() if id_ in inventory} | places
        return seen

    def recall(self, devices: Sequence[PublishedDevice]) -> None:
        """An earlier agent of this boot has published *devices* in this mode."""
        earlier = {d.id: d.resource for d in devices if d.resource != NOT_OFFERED}
        self._former = earlier | self._former


class Unasked:
    """In place of the probes: devices that others hand out at any moment must not be opened."""

    def consider(self, inventory: Inventory, appearances: Mapping[str, Appearance]) -> Inventory:
        """*inventory* as it is."""
        return inventory

    def applied(self, inventory: Inventory) -> Inventory:
        """*inventory* as it is."""
        return inventory

    async def grace(self) -> None:
        """Nothing is waited for."""

    async def let_go(self, ids: Sequence[str]) -> None:
        """Nothing is open."""
