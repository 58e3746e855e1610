"""Asking each device, once and before it is advertised, whether it can migrate.

Whoever opens a device keeps all others from it, so a device is asked only while nobody can get it: it has not
been advertised since it appeared, PodResources has just said that no pod holds it or another of its IOMMU
group, and no Allocate has come for it. What cannot be asked is advertised all the same: then it is not known.
The answer holds for one appearance of the device with one driver. While a question hangs, the device may be
open: it is not advertised, and nobody gets it.
"""

from __future__ import annotations

import asyncio
import enum
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec
from migcompat.api.vfionode import Device as PublishedDevice
from migcompat.api.vfionode import Migration
from migcompat.kubelet.connection import KubeletError
from migcompat.kubelet.podresources import Allocations
from migcompat.sysfs.appearance import Appearance, appearance
from migcompat.sysfs.scan import FoundDevice
from migcompat.sysfs.tree import Tree
from migcompat.vfio.calls import Calls
from migcompat.vfio.probe import Handle, NotKnown, Why, forbidden, probe

from migcompat_deviceplugin import metrics
from migcompat_deviceplugin.allocate import Refused
from migcompat_deviceplugin.foreign import held_ids
from migcompat_deviceplugin.inventory import Device, Inventory
from migcompat_deviceplugin.state import Signal
from migcompat_deviceplugin.sysfs import in_thread

log = logging.getLogger(__name__)

PROBE_DEADLINE = 5.0
"""Seconds for one device. Opening a PCI function resets it, which takes 0.1 s and, with some, seconds."""
PARALLEL = 16
"""Groups of devices asked at the same time; each takes a thread."""
HOLDERS_PATIENCE = 5.0
"""Seconds for PodResources to answer where it does not; then devices are advertised unasked."""
HOLDERS_PAUSE = 0.5
GRACE = 0.5
"""Seconds that devices which have just appeared get before they are published as not asked yet: nearly all
answer in less, and then a restarted agent publishes nothing that it has to take back."""

TELL_PAUSE = 0.02
"""Seconds in which what devices answer is told together."""

NVIDIA = frozenset({"nvidia", "nvidia-vgpu-vfio"})
"""Drivers of NVIDIA's vGPUs: whoever opens one has the vGPU manager start a process for it."""

Answer = Migration | NotKnown


class Whom(enum.StrEnum):
    """Which devices are asked. ``AUTO``: all but those of drivers that do much when a device is opened."""

    AUTO = "auto"
    OFF = "off"
    ALL = "all"


class Holders(Protocol):
    """Who tells which pod holds which device."""

    async def holders(self) -> Allocations:
        """The allocations now, and those that may not be over. Raises KubeletError."""


class Asker:
    """Asks devices of the sysfs at *sysfs_root*, through nodes below *dev_root*. May block."""

    def __init__(self, sysfs_root: Path, dev_root: Path, calls: Calls | None = None) -> None:
        self._sysfs_root = sysfs_root
        self._dev_root = dev_root
        self._calls = calls

    def forbidden(self) -> NotKnown | None:
        """Why no device at all may be opened, or None."""
        return forbidden(self._dev_root, self._calls)

    def ask(self, found: FoundDevice) -> tuple[Appearance, Answer]:
        """The answer, and whose it is: names of groups and nodes are read anew, they may have gone on."""
        root, path = self._sysfs_root, found.path
        tree = Tree(str(root))
        asked = appearance(root, path)
        if tree.link(f"{path}/virtfn0", []):
            return asked, NotKnown(Why.FAILED, "it has VFs, which opening it would reset")
        handle = Handle(found.id, tree.link(f"{path}/iommu_group", []), tree.vfio_dev(path, []))
        answer = probe(handle, self._dev_root, self._calls)
        if appearance(root, path) != asked:
            answer = NotKnown(Why.NO_NODE, "it went away while it was asked")
        return asked, answer


@dataclass
class _Record:
    """One device as it appeared. ``settled``: it is asked no more; ``in_use``: because it was not free."""

    appearance: Appearance
    driver: str
    settled: bool = False
    in_use: bool = False
    migration: Migration | None = None


class Probes:
    """Who has been asked, and what they said. *changed* is called when more is known."""

    def __init__(
        self, holders: Holders, asker: Asker, changed: Callable[[], None], whom: Whom = Whom.ALL
    ) -> None:
        self._holders = holders
        self._asker = asker
        self._changed = changed
        self._whom = whom
        self._inventory: Inventory = {}
        self._units: dict[str, list[Device]] = {}
        self._records: dict[str, _Record] = {}
        self._earlier: dict[str, PublishedDevice] = {}
        self._recent: set[str] = set()
        self._under_way: set[str] = set()
        self._open: dict[str, asyncio.Event] = {}
        self._hanging: set[str] = set()
        self._to_ask = Signal()
        self._settled = Signal()
        self._slots = asyncio.Semaphore(PARALLEL)
        self._told = False
        self._to_tell: asyncio.TimerHandle | None = None

    def consider(self, inventory: Inventory, appearances: Mapping[str, Appearance]) -> Inventory:
        """*inventory*, as just read, with what is known; devices that have to be asked first wait."""
        for id_ in self._records.keys() - inventory.keys():
            self._forget(id_)
        for id_, device in inventory.items():
            self._meet(id_, device.found.driver, appearances[id_])
        self._inventory, self._units = inventory, {}
        for device in inventory.values():
            self._units.setdefault(_unit(device), []).append(device)
        if any(self._waits(device) for device in inventory.values()):
            self._to_ask.set()
        return self.applied(inventory)

    def applied(self, inventory: Inventory) -> Inventory:
        """*inventory* with what is known by now."""
        return {id_: self._known(device) for id_, device in inventory.items()}

    async def run(self) -> None:
        """Ask devices that wait, until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                await self._to_ask.wait()
                waiting = self._waiting()
                if waiting:
                    self._under_way.update(*waiting)
                    ban = await self._ban()
                    held = await self._held(0.0 if ban else HOLDERS_PATIENCE)
                    for ids in waiting:
                        group.create_task(self._settle_unit(ids, held, ban))

    async def grace(self) -> None:
        """Return when the devices that have just appeared are settled, after ``GRACE`` in any case."""
        recent, self._recent = self._recent, set()
        with suppress(TimeoutError):
            async with asyncio.timeout(GRACE):
                while recent := {id_ for id_ in recent if self._is_waiting(id_)}:
                    await self._settled.wait()

    async def let_go(self, ids: Sequence[str]) -> None:
        """Somebody gets the devices *ids*: return when none of them is open, and ask none from now on.

        Raises Refused when a question to one of them hangs: it is waited for no longer than its deadline.
        """
        events = []
        for id_ in ids:
            record, device = self._records.get(id_), self._inventory.get(id_)
            if record is None or device is None:
                continue
            if not record.settled:
                self._settle(id_, record, NotKnown(Why.IN_USE, "it was allocated"))
            if (event := self._open.get(_unit(device))) is not None:
                events.append(event)
        try:
            async with asyncio.timeout(PROBE_DEADLINE):
                for event in events:
                    await event.wait()
        except TimeoutError:
            why = "the question whether it can migrate hangs in its driver, so it is still open"
            raise Refused(f"device {', '.join(ids)}: {why}") from None

    def recall(self, devices: Sequence[PublishedDevice]) -> None:
        """Take over what this boot's earlier agent published of *devices*, where they are in use now."""
        self._earlier = {device.id: device for device in devices if device.id in self._records}
        for id_, record in self._records.items():
            self._take_over(id_, record)
        self._changed()

    # -- what is known ------------------------------------------------------------------------------------

    def _meet(self, id_: str, driver: str, seen: Appearance) -> None:
        """A scan has seen a device."""
        record = self._records.get(id_)
        if record is not None and record.appearance == seen and record.driver == driver:
            return
        if record is None:
            self._records[id_] = _Record(seen, driver)
        elif driver not in ("", record.driver) and record.settled:
            self._records[id_] = _Record(seen, driver, settled=True)
        else:
            self._records[id_] = _Record(seen, driver or record.driver)
        if record is not None:
            self._earlier.pop(id_, None)
        self._recent.add(id_)

    def _forget(self, id_: str) -> None:
        del self._records[id_]
        self._earlier.pop(id_, None)

    def _waits(self, device: Device) -> bool:
        """Whether the device is fit to be advertised but for the question."""
        record = self._records.get(device.id)
        return record is not None and not record.settled and device.served and not device.found.problem

    def _is_waiting(self, id_: str) -> bool:
        device = self._inventory.get(id_)
        return device is not None and self._waits(device)

    def _known(self, device: Device) -> Device:
        record = self._records.get(device.id)
        migration = None if record is None else record.migration
        waiting = self._waits(device) or _unit(device) in self._hanging
        return msgspec.structs.replace(device, migration=migration, waiting=waiting)

    def _settle(self, id_: str, record: _Record, answer: Answer) -> None:
        record.settled = True
        if isinstance(answer, Migration):
            record.migration = answer
            metrics.PROBES.labels("Supported" if answer.supported else "Unsupported").inc()
            states = f" ({', '.join(answer.states)})" if answer.states else ""
            log.info("%s: %s migrate%s", id_, "can" if answer.supported else "cannot", states)
        else:
            metrics.PROBES.labels(answer.why.value).inc()
            record.in_use = answer.why is Why.IN_USE
            self._take_over(id_, record)
            self._tell(id_, answer)
        self._settled.set()
        self._tell_soon()

    def _tell_soon(self) -> None:
        if self._to_tell is None:
            self._to_tell = asyncio.get_running_loop().call_later(TELL_PAUSE, self._tell_changed)

    def _tell_changed(self) -> None:
        self._to_tell = None
        self._changed()

    def _tell(self, id_: str, answer: NotKnown) -> None:
        if answer.why is Why.NOT_ASKED:
            return
        if answer.why is not Why.NOT_ALLOWED:
            unforeseen = answer.why in (Why.FAILED, Why.TIMED_OUT)
            level = logging.WARNING if unforeseen else logging.INFO
            log.log(level, "%s: not known whether it can migrate: %s", id_, answer.message)
        elif not self._told:
            self._told = True
            log.info(
                "not allowed to open devices (%s), so it is not known whether they can migrate; they are"
                " served all the same (chart value devicePlugin.privileged)",
                answer.message,
            )

    def _take_over(self, id_: str, record: _Record) -> None:
        earlier = self._earlier.get(id_)
        if record.in_use and record.migration is None and earlier and earlier.driver == record.driver:
            record.migration = earlier.migration

    # -- asking -------------------------------------------------------------------------------------------

    def _waiting(self) -> list[list[str]]:
        """Devices to be asked, those of one IOMMU group together: only one process can open a group."""
        units: dict[str, list[str]] = {}
        for id_, device in self._inventory.items():
            if self._waits(device) and id_ not in self._under_way:
                units.setdefault(_unit(device), []).append(id_)
        return list(units.values())

    async def _ban(self) -> NotKnown | None:
        """Why there is no point in asking anybody, or None."""
        if self._whom is Whom.OFF:
            return NotKnown(Why.NOT_ASKED, "no device is asked (--probe)")
        try:
            return await in_thread(self._asker.forbidden, PROBE_DEADLINE)
        except TimeoutError:
            return NotKnown(Why.TIMED_OUT, f"/dev/vfio/vfio does not open within {PROBE_DEADLINE:g} s")

    async def _held(self, patience: float) -> set[str] | None:
        """The devices that pods hold at this moment; None when PodResources goes on not to say so."""
        loop = asyncio.get_running_loop()
        end = loop.time() + patience
        while True:
            try:
                return held_ids(await self._holders.holders(), self._inventory)
            except KubeletError:
                if loop.time() >= end:
                    return None
            await asyncio.sleep(HOLDERS_PAUSE)

    async def _settle_unit(self, ids: list[str], held: set[str] | None, ban: NotKnown | None) -> None:
        """Ask the devices *ids* of one group one after the other, or find that they must not be asked."""
        records = {id_: record for id_ in ids if (record := self._records.get(id_)) is not None}
        answers = {}
        async with self._slots:
            for id_, record in records.items():
                answer = self._obstacle(id_, held, ban) or await self._put(id_, record)
                if answer is not None:
                    answers[id_] = answer
        self._under_way.difference_update(ids)
        for id_, record in records.items():
            if self._records.get(id_) is not record:
                self._to_ask.set()
            elif id_ in answers and not (record.settled and isinstance(answers[id_], NotKnown)):
                self._settle(id_, record, answers[id_])

    def _obstacle(self, id_: str, held: set[str] | None, ban: NotKnown | None) -> NotKnown | None:
        """Why the device must not, or cannot, be opened now; None when it may be."""
        device = self._inventory.get(id_)
        if device is None:
            return NotKnown(Why.NO_NODE, "it is gone")
        unit = _unit(device)
        for other in self._units[unit]:
            if held is not None and other.id in held:
                return NotKnown(Why.IN_USE, f"a pod holds {other.id}")
            if self._records[other.id].settled and not other.found.problem:
                return NotKnown(Why.IN_USE, f"{other.id} of its IOMMU group is advertised")
        if ban is not None:
            return ban
        if self._whom is Whom.AUTO and device.found.driver in NVIDIA:
            return NotKnown(Why.NOT_ASKED, f"devices of the driver {device.found.driver} are not (--probe)")
        if held is None:
            return NotKnown(Why.IN_USE, "PodResources does not say whether it is in use")
        if unit in self._open:
            return NotKnown(Why.TIMED_OUT, "an earlier question to it, or to its group, still hangs")
        return None

    async def _put(self, id_: str, record: _Record) -> Answer | None:
        """Ask one device; None when another appearance of it answered, so that it is to be asked again."""
        device = self._inventory[id_]
        unit, closed = _unit(device), asyncio.Event()

        def end() -> None:
            del self._open[unit]
            closed.set()
            if unit in self._hanging:
                self._hanging.discard(unit)
                self._tell_soon()

        self._open[unit] = closed
        try:
            asked, answer = await in_thread(lambda: self._asker.ask(device.found), PROBE_DEADLINE, end)
        except TimeoutError:
            self._hanging.add(unit)
            why = f"no answer within {PROBE_DEADLINE:g} s; until it has ended nobody gets the device"
            return NotKnown(Why.TIMED_OUT, why)
        except Exception as error:  # whatever a device does, the agent goes on
            log.exception("%s: asking it failed", id_)
            return NotKnown(Why.FAILED, f"{type(error).__name__}: {error}")
        return answer if asked == record.appearance else None


def _unit(device: Device) -> str:
    """Devices with the same unit can only be opened together."""
    return f"group {device.found.iommu_group}" if device.found.iommu_group else device.id
