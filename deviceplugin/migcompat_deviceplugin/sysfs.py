"""Reading sysfs without ever being held up by it.

A driver that hangs in one of its attributes hangs whoever reads it, and no signal helps. So each look is
taken in a thread of its own that the process does not wait for, neither here nor when it ends; and where one
hangs, no other goes: that device is unhealthy meanwhile, and the rest of the node is looked at as ever.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import msgspec
from migcompat.api.vfionode import Device as PublishedDevice
from migcompat.nvml.gpus import Nvml
from migcompat.resources.selection import Configuration
from migcompat.sysfs.appearance import Appearance, appearance
from migcompat.sysfs.progress import Progress
from migcompat.sysfs.scan import BUSES, FoundDevice, ScanError, ScanProblem, ScanResult, scan

from migcompat_deviceplugin.config import ConfigFile, Loaded
from migcompat_deviceplugin.devnodes import DevDir
from migcompat_deviceplugin.inventory import Device, Held, Inventory, recalled, take
from migcompat_deviceplugin.problems import Problem, Reason

log = logging.getLogger(__name__)

SCAN_DEADLINE = 20.0
REREAD_DEADLINE = 5.0
PATIENCE = 2.0
"""Seconds that a look may be at one device before it counts as hanging there. Nearly all take less than one
thousandth; one that has to be woken up takes up to a second."""
PATIENCE_LEFT = 0.5
"""The same for the further ones of a look that has hung before: devices of one card hang together."""
SETTLING = 10.0
"""Seconds for which a device that was just asked for counts as held: PodResources names its pod later."""
LEAVING = 0.2
"""Seconds that a look which nobody waits for gets to end, before it counts as hanging."""

T = TypeVar("T")


class SysfsError(Exception):
    """sysfs could not be read as a whole; ``reason`` and text say why."""

    def __init__(self, message: str, reason: Reason = Reason.SCAN_FAILED) -> None:
        super().__init__(message)
        self.reason = reason

    @property
    def problem(self) -> Problem:
        """The same as what the agent's condition says."""
        return Problem(self.reason, str(self))


def threaded(work: Callable[[], T], ended: Callable[[], None] | None = None) -> asyncio.Future[T]:
    """What *work* returns or raises, run in a daemon thread of its own.

    Who cancels the future leaves the thread to itself; unlike one of :func:`asyncio.to_thread` it does not
    keep the process from ending. *ended* is called in the event loop when it has ended, however late.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if ended is not None:
            ended()
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except BaseException as raised:  # handed to the awaiting task, whatever it is
            error = raised
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, daemon=True, name="sysfs").start()
    return future


async def in_thread(work: Callable[[], T], deadline: float, ended: Callable[[], None] | None = None) -> T:
    """As :func:`threaded`. Raises TimeoutError when *work* takes longer than *deadline* seconds."""
    async with asyncio.timeout(deadline):
        return await threaded(work, ended)


Take = Callable[[ScanResult, Inventory, Configuration | None, Held], Inventory]


class Look(NamedTuple):
    """What one look at sysfs and at the configuration file has shown, and how many seconds it took.

    ``appearances``: by device id.
    """

    result: ScanResult
    appearances: dict[str, Appearance]
    loaded: Loaded
    seconds: float


def _merged(whole: Look, names: frozenset[str], part: Look) -> Look:
    """*whole* with what *part* shows of *names*; *whole* itself if that is nothing new."""
    before = {device.id: device for device in whole.result.devices if device.id in names}
    after = {device.id: device for device in part.result.devices}
    others = tuple(p for p in whole.result.problems if p.path.rpartition("/")[2] not in names)
    problems = (*others, *part.result.problems)
    same = all(whole.appearances.get(name) == part.appearances.get(name) for name in names)
    if same and before == after and set(problems) == set(whole.result.problems):
        return whole
    kept = [device for device in whole.result.devices if device.id not in names]
    appearances = {id_: seen for id_, seen in whole.appearances.items() if id_ not in names}
    return Look(
        ScanResult((*kept, *after.values()), problems, whole.result.silent or part.result.silent),
        {**appearances, **part.appearances},
        whole.loaded,
        whole.seconds,
    )


class _Stuck(Exception):
    """A look stays where it is."""


async def _moving(reading: asyncio.Future[Look], progress: Progress, patience: float) -> None:
    """Return when *reading* is over; raises _Stuck when it is at one device for *patience* seconds."""
    loop = asyncio.get_running_loop()
    seen, since = -1, 0.0
    while not (await asyncio.wait({reading}, timeout=patience / 8))[0]:
        if progress.steps != seen or progress.at is None:
            seen, since = progress.steps, loop.time()
        elif loop.time() - since > patience:
            raise _Stuck


class Observer(Protocol):
    """Who sees every scan's devices and adds what it knows of them."""

    def consider(self, inventory: Inventory, appearances: Mapping[str, Appearance]) -> Inventory:
        """*inventory* with more in it; *appearances* has all of its ids."""

    def applied(self, inventory: Inventory) -> Inventory:
        """*inventory*, which it has seen before, with what it knows by now."""


class Sysfs:
    """The node's sysfs below *root*. ``last`` is the newest inventory, ``seconds`` how long its scan took.

    Pools are those of *config*; ``loaded`` is what the newest scan found there. *held*: see
    :data:`~migcompat_deviceplugin.inventory.Held`. *take*: which of the devices found are taken, as
    :func:`~migcompat_deviceplugin.inventory.take` does. *nvml* adds to what NVIDIA's devices show.
    """

    def __init__(
        self,
        root: Path,
        config: ConfigFile | None = None,
        observer: Observer | None = None,
        dev: DevDir | None = None,
        *,
        held: Held | None = None,
        nvml: Nvml | None = None,
        take: Take = take,
    ) -> None:
        self.root = root
        self.dev = dev or DevDir()
        self.last: Inventory = {}
        self.problems: tuple[ScanProblem, ...] = ()
        self.seconds = 0.0
        self.loaded = Loaded()
        self._config = config or ConfigFile()
        self._observer = observer
        self._nvml = nvml
        self._take_from = take
        self._held = held or (lambda _resource, _id: False)
        self._asked_for: dict[str, float] = {}
        self._newest: Look | None = None
        self._busy: asyncio.Lock = asyncio.Lock()
        self._hanging: dict[Progress, Hashable] = {}

    @property
    def silent(self) -> bool:
        """Whether something may be otherwise soon of which the kernel sends no event."""
        asking = self._nvml is not None and self._nvml.asking
        return asking or (self._newest is not None and self._newest.result.silent)

    async def scan(self, deadline: float | None = None) -> Inventory:
        """Look at all devices now. Raises SysfsError when that fails or takes longer than *deadline* seconds.

        After it, :attr:`last` is what was found; after an error it is what it was before. A device in whose
        attributes a look hangs is found as it was, with that as its problem, and read again once that look
        has ended. One look runs at a time, beside those that hang.
        """
        look = await self._read(self._look, SCAN_DEADLINE if deadline is None else deadline)
        self.seconds = look.seconds
        self.loaded = look.loaded
        return self._learn(look)

    async def _read(self, look: Callable[[Progress], Look], deadline: float) -> Look:
        """What *look* returns, without devices where a look hangs. Raises SysfsError."""
        patience = PATIENCE
        try:
            async with asyncio.timeout(deadline):
                while True:
                    # Others have their turn in between: what hangs holds each of them up once at most.
                    async with self._busy:
                        with suppress(_Stuck):
                            return await self._attempt(look, patience)
                    patience = PATIENCE_LEFT
        except TimeoutError:
            raise SysfsError(f"{self.root}: not read within {deadline:g} s") from None
        except SysfsError:
            raise
        except ScanError as error:
            raise SysfsError(f"{error} (hostPaths.sys)", Reason.WRONG_HOST_PATH) from error
        except OSError as error:
            raise SysfsError(f"{self.root} cannot be read: {error}") from error
        except Exception as error:
            # Whatever a tree of files can do to a scan, it must not end the process that guards migrations.
            log.exception("%s: the scan itself failed", self.root)
            raise SysfsError(f"{self.root}: {type(error).__name__}: {error}") from error

    async def _attempt(self, look: Callable[[Progress], Look], patience: float) -> Look:
        """What *look* returns; given up, by _Stuck, when it is at one device for *patience* seconds.

        However it is given up, its thread is left to itself, and nobody goes where it is until it has ended:
        so no more threads hang than places.
        """
        self._hanging = {one: place for one, place in self._hanging.items() if not one.ended}
        if None in self._hanging.values():
            raise SysfsError(f"{self.root}: an earlier scan still hangs in some driver's attribute")
        progress = Progress(frozenset(self._hanging.values()))
        reading = threaded(lambda: progress.watch(look))
        try:
            await _moving(reading, progress, patience)
            return await reading
        except asyncio.CancelledError:
            # Nobody waits any more. If it does not hang, it is over in a moment, and no obstacle to the next.
            progress.abandon()
            for ended in (await asyncio.wait({reading}, timeout=LEAVING))[0]:
                ended.exception()
            raise
        finally:
            if not reading.done():
                self._hanging[progress] = progress.abandon()
            reading.cancel()

    def _learn(self, look: Look) -> Inventory:
        self.problems = look.result.problems
        self._newest = look
        return self._take(look, self.last)

    def recall(self, devices: Sequence[PublishedDevice]) -> Inventory:
        """:attr:`last`, the earlier agent of this node having published *devices*: some may be held."""
        if self._newest is None:
            return self.last
        before = {**self.last, **recalled(self._newest.result, devices)}
        return self._take(self._newest, before)

    async def reread(self, ids: list[str]) -> dict[str, Device]:
        """These devices as they are now; those that are gone are missing. Raises SysfsError.

        Somebody is to have these devices, so none of them changes its pool now.
        """
        self._asked_for.update(dict.fromkeys(ids, time.monotonic()))
        now = await self.glance(ids)
        found = {id_: now[id_] for id_ in ids if id_ in now}
        return found if self._observer is None else dict(self._observer.applied(found))

    async def glance(self, names: Iterable[str], deadline: float | None = None) -> Inventory:
        """Like :meth:`scan`, but with a look at the devices *names* only, and what decides about them."""
        deadline = REREAD_DEADLINE if deadline is None else deadline
        if self._newest is None:
            return await self.scan(deadline)
        only = frozenset(names)
        part = await self._read(lambda progress: self._look(progress, only), deadline)
        look = _merged(self._newest, only, part)
        return self.last if look is self._newest else self._learn(look)

    def named(self, devpaths: Iterable[str]) -> set[str] | None:
        """The devices that paths of the kernel's events name, and those that depend on them.

        None if a path names none. A device that the newest scan found, or an entry of a bus, is meant by the
        last component of the path that is its name.
        """
        named = set()
        for devpath in devpaths:
            parts = reversed(devpath.split("/"))
            name = next((part for part in parts if part and self._is_name(part)), None)
            if name is None:
                return None
            named.add(name)
        groups = {
            group for name in named if name in self.last and (group := self.last[name].found.iommu_group)
        }
        for id_, device in self.last.items():
            found = device.found
            if found.iommu_group in groups or found.physfn in named or found.parent in named:
                named.add(id_)
        return named

    def _is_name(self, part: str) -> bool:
        return part in self.last or any(os.path.lexists(self.root / bus / part) for bus in BUSES)

    def _take(self, look: Look, before: Inventory) -> Inventory:
        recently = time.monotonic() - SETTLING
        self._asked_for = {id_: at for id_, at in self._asked_for.items() if at > recently}
        inventory = self._take_from(look.result, before, look.loaded.configuration, self._may_be_held)
        if self._observer is None:
            self.last = inventory
        else:
            appearances = {id_: look.appearances[id_] for id_ in inventory}
            self.last = self._observer.consider(inventory, appearances)
        return self.last

    def _may_be_held(self, resource: str, id_: str) -> bool:
        return id_ in self._asked_for or self._held(resource, id_)

    def _look(self, progress: Progress, only: frozenset[str] | None = None) -> Look:
        began = time.monotonic()
        result = scan(self.root, only, progress)
        unlisted = [problem for problem in result.problems if problem.path in BUSES]
        if unlisted:
            # No device found is not the same as no device there.
            raise OSError("; ".join(f"{problem.path} {problem.message}" for problem in unlisted))
        found = result.devices
        if self._nvml is not None:
            found = self._nvml.completed(self.root, found, whole=only is None)
        devices = (*map(self.dev.checked, found), *self._kept(result))
        result = msgspec.structs.replace(result, devices=devices)
        appearances = {device.id: appearance(self.root, device.path) for device in devices}
        loaded = self._config.look() if only is None else self.loaded
        return Look(result, appearances, loaded, time.monotonic() - began)

    def _kept(self, result: ScanResult) -> Iterator[FoundDevice]:
        """Devices of the scan before whose entries are there, but unreadable now: they are not gone."""
        found = {device.id for device in result.devices}
        for problem in result.problems:
            before = self.last.get(problem.path.rpartition("/")[2])
            if before is not None and before.id not in found and os.path.lexists(self.root / problem.path):
                yield msgspec.structs.replace(before.found, problem=problem.message)
