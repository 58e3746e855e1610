"""What the agent knows at this moment, and who wants to hear when that changes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

from migcompat.api.vfionode import Mode
from migcompat.kubelet.podresources import Allocations, Offers
from migcompat.resources.selection import Configuration
from migcompat.sysfs.scan import ScanProblem

from migcompat_deviceplugin.config import Loaded
from migcompat_deviceplugin.foreign import Seen, serving
from migcompat_deviceplugin.inventory import Inventory, pools
from migcompat_deviceplugin.problems import NOT_YET, Problem, Reason


class Signal:
    """Wakes one waiting task; set any number of times in between, it wakes it once."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def set(self) -> None:
        """Wake the waiting task, or the next one that waits."""
        self._event.set()

    def is_set(self) -> bool:
        """Whether a wake-up has not been taken yet."""
        return self._event.is_set()

    async def wait(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109 - the point of it
        """Wait for :meth:`set`, at most *timeout* seconds; whether it came."""
        try:
            async with asyncio.timeout(timeout):
                await self._event.wait()
        except TimeoutError:
            return False
        self._event.clear()
        return True


Observe = Callable[[Inventory, Allocations | None, Offers | None, Configuration | None], Seen]
"""What is seen of devices that another plugin serves (:func:`.observing.observed`, which remembers)."""


class State:
    """Shared by the tasks of one process, in one event loop.

    ``boot_id``: of the running kernel, empty while it is not known; ``boot_problem``: why it is not, or why
    it does not count. ``inventory``: the newest scan, ``unreadable``: what it could not take for a device.
    ``scan_problem``: why the newest look at sysfs failed (then the inventory is an older one). ``scanned``:
    whether there was any. ``event``: the loop's time of the first event of the kernel that brought about what
    is not published yet. ``allocations``: the newest PodResources answer, None before the first;
    ``allocations_problem`` why the newest call failed. ``holders``: the same by the pools and ids of the
    inventory, which other plugins' may not be. ``loaded``: the configuration file. ``published``:
    devices whose publication the API server has confirmed, with their resources. ``registrations``: None for
    each resource that is registered with the kubelet, or why it is not; ``served``: all that ever were.

    With *observe* the devices are another plugin's (mode ``observe``). ``offers``: what plugins offer, None
    before the first answer; ``offers_problem`` why the newest call failed; ``doubts``: what cannot be told of
    their ids.

    ``to_publish`` and ``to_serve`` wake the publisher and the manager.
    """

    def __init__(self, observe: Observe | None = None) -> None:
        self.mode = Mode.SERVE if observe is None else Mode.OBSERVE
        self._observe = observe
        self._found: Inventory = {}
        self.boot_id = ""
        self.boot_problem: Problem | None = None
        self.inventory: Inventory = {}
        self.unreadable: tuple[ScanProblem, ...] = ()
        self.scanned = False
        self.scan_problem: Problem | None = None
        self.event: float | None = None
        self.allocations: Allocations | None = None
        self.allocations_problem: Problem | None = None
        self.holders: Allocations | None = None
        self.offers: Offers | None = None
        self.offers_problem: Problem | None = None
        self.doubts: tuple[str, ...] = ()
        self.loaded = Loaded()
        self.published: frozenset[tuple[str, str]] = frozenset()
        self.publish_problem = "nothing has been published yet"
        self.registrations: dict[str, Problem | None] = {}
        self.served: set[str] = set()
        self.to_publish = Signal()
        self.to_serve = Signal()

    def set_boot_id(self, boot_id: str) -> None:
        """The boot id is known."""
        self.boot_id, self.boot_problem = boot_id, None
        self.to_publish.set()

    def set_boot_problem(self, problem: Problem | None) -> None:
        """The boot id cannot be known, or is not the Node's; None: it is."""
        if problem != self.boot_problem:
            self.boot_problem = problem
            self.to_publish.set()

    def set_inventory(
        self, inventory: Inventory, unreadable: tuple[ScanProblem, ...] = (), event: float | None = None
    ) -> None:
        """A scan went well; *event*: the loop's time of the kernel's event that brought it about."""
        changed = self._look(inventory) or self.scan_problem or not self.scanned
        self.scan_problem, self.scanned = None, True
        if changed:
            self.to_serve.set()
            self.event = event if self.event is None else self.event
        if changed or unreadable != self.unreadable:
            self.unreadable = unreadable
            self.to_publish.set()

    def amend(self, inventory: Inventory) -> None:
        """More is known about the devices of the newest scan."""
        if self.scanned and self._look(inventory):
            self.to_publish.set()
            self.to_serve.set()

    def look_again(self) -> None:
        """Devices are as the newest scan has shown them, but may be another plugin's by now, or nobody's."""
        self.amend(self._found)

    def _look(self, found: Inventory) -> bool:
        """Put devices, holders and offers together; whether that is something new."""
        self._found = found
        if self._observe is None:
            seen = serving(found, self.allocations)
        else:
            seen = self._observe(found, self.allocations, self.offers, self.loaded.configuration)
        before = Seen(self.inventory, self.holders, self.doubts)
        self.inventory, self.holders, self.doubts = seen
        return seen != before

    def set_scan_problem(self, problem: Problem) -> None:
        """A scan failed; the inventory stays."""
        if problem != self.scan_problem:
            self.scan_problem = problem
            self.to_publish.set()

    def set_allocations(self, allocations: Allocations) -> None:
        """PodResources answered."""
        if allocations != self.allocations or self.allocations_problem:
            self.allocations, self.allocations_problem = allocations, None
            self.to_publish.set()
            if self._look(self._found):
                self.to_serve.set()

    def set_allocations_problem(self, problem: Problem) -> None:
        """PodResources did not answer; the allocations stay."""
        if problem != self.allocations_problem:
            self.allocations_problem = problem
            self.to_publish.set()

    def set_offers(self, offers: Offers) -> None:
        """The kubelet told what plugins offer."""
        if offers != self.offers or self.offers_problem:
            self.offers, self.offers_problem = offers, None
            self._look(self._found)
            self.to_publish.set()

    def set_offers_problem(self, problem: Problem) -> None:
        """The kubelet did not tell what plugins offer; the offers stay."""
        if problem != self.offers_problem:
            self.offers_problem = problem
            self.to_publish.set()

    def may_be_held(self, resource: str, id_: str) -> bool:
        """Whether a pod holds the device, or may: PodResources does not say otherwise."""
        if self.holders is None or self.allocations_problem is not None:
            return True
        # As the kubelet has it, too: who holds a device in a pool that it is to leave keeps it there.
        return (resource, id_) in self.holders or (resource, id_) in (self.allocations or {})

    @property
    def kubelet_asked(self) -> bool:
        """Whether the kubelet has answered all that is asked in this mode, or it is known why not."""
        offers = self._observe is None or self.offers is not None or self.offers_problem is not None
        return offers and (self.allocations is not None or self.allocations_problem is not None)

    def set_loaded(self, loaded: Loaded) -> None:
        """The configuration file was looked at."""
        if loaded != self.loaded:
            self.loaded = loaded
            self.to_publish.set()

    def set_published(self, devices: frozenset[tuple[str, str]]) -> None:
        """The API server holds a VFIONode with these (resource, device id)."""
        self.publish_problem = ""
        if devices != self.published:
            self.published = devices
            self.to_serve.set()

    def set_registrations(self, registrations: dict[str, Problem | None]) -> None:
        """Resources that are to be registered, each with the reason why it is not."""
        self.served |= registrations.keys()
        if registrations != self.registrations:
            self.registrations = registrations
            self.to_publish.set()

    def problems(self) -> Iterator[Problem]:
        """What keeps the agent from its work, the gravest first."""
        yield from self._blind()
        yield from self._unregistered()

    def problem(self) -> str | None:
        """Why the agent is not ready, or None."""
        for problem in self._blind():
            return str(problem)
        if not self.scanned:
            return "no scan has ended yet"
        if self.publish_problem:
            return self.publish_problem
        for problem in self._unregistered():
            return str(problem)
        return None

    def _blind(self) -> Iterator[Problem]:
        """What it cannot find out."""
        configuration = None
        if self.loaded.configuration is None and self.loaded.problem:
            configuration = Problem(Reason.CONFIGURATION_INVALID, self.loaded.problem)
        kubelet = self.allocations_problem, self.offers_problem
        yield from filter(None, (self.boot_problem, self.scan_problem, configuration, *kubelet))

    def _unregistered(self) -> Iterator[Problem]:
        """Resources that the kubelet has not taken (yet)."""
        for resource in sorted(pools(self.inventory)):
            problem = self.registrations.get(resource, NOT_YET)
            if problem is not None:
                yield Problem(problem.reason, f"{resource}: {problem}")
