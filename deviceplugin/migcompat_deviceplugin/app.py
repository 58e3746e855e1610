"""What runs beside what, from start to SIGTERM."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from migcompat.api.names import RESOURCE_DOMAIN
from migcompat.api.vfionode import Device as PublishedDevice
from migcompat.api.vfionode import Mode
from migcompat.httpserver import serve_health
from migcompat.kube.client import Client
from migcompat.kubelet.directories import Directories
from migcompat.kubelet.podresources import PodResources
from migcompat.nvml.gpus import Nvml
from migcompat.sysfs.uevents import Listener, listen, tell_of
from migcompat.vfio.calls import Calls

from migcompat_deviceplugin import flaws, metrics, observation, observing
from migcompat_deviceplugin.allocations import SERVING, AllocationsPoller
from migcompat_deviceplugin.bootid import learn_boot_id
from migcompat_deviceplugin.config import ConfigFile, Loaded
from migcompat_deviceplugin.departure import Departure
from migcompat_deviceplugin.devnodes import DevDir
from migcompat_deviceplugin.files import KubeletFiles
from migcompat_deviceplugin.guard import Guard
from migcompat_deviceplugin.inquiry import Inquiry
from migcompat_deviceplugin.inventory import Inventory, take
from migcompat_deviceplugin.manager import Manager
from migcompat_deviceplugin.preferred import Preferred
from migcompat_deviceplugin.probes import Asker, Probes, Whom
from migcompat_deviceplugin.publisher import Publisher
from migcompat_deviceplugin.server import ResourceServer
from migcompat_deviceplugin.state import State
from migcompat_deviceplugin.status import consequence
from migcompat_deviceplugin.sysfs import Sysfs, SysfsError
from migcompat_deviceplugin.wakeups import News, Wakeups

log = logging.getLogger(__name__)

WRITES_PER_SECOND = 2.0
"""Of one agent: a cluster has one on every node."""
SWEEP = 12
"""Intervals without an event between two scans, where events tell of all that makes a device, and all are
well: what sends no event is an attribute, and who hands a device out reads it again."""
CHECKPOINT = "kubelet_internal_checkpoint"
"""``kubeletDeviceManagerCheckpoint`` in pkg/kubelet/cm/devicemanager/manager.go."""
GLANCED = 64
"""Devices that events may name for a look at these alone; else all are looked at."""
CALMED = 0.3
"""Seconds without an event after which all devices are looked at: what was heard is a hint, not the truth."""
GLANCES = 1.0
"""Seconds after which they are in any case."""
TOLD = 10
"""Devices whose problems one scan logs."""


class Settings(msgspec.Struct, frozen=True):
    """The flags of the command; see docs/reference/device-plugin.md."""

    node_name: str
    mode: Mode = Mode.SERVE
    boot_id_file: Path = Path("/proc/sys/kernel/random/boot_id")
    namespace: str = ""
    daemonset: str = ""
    sysfs_root: Path = Path("/sys")
    dev: DevDir = DevDir()
    kubelet_dir: Path = Path("/var/lib/kubelet")
    resource_domain: str = RESOURCE_DOMAIN
    config: Path | None = None
    scan_interval: float = 5.0
    health_bind: str = "0.0.0.0:8080"
    allow_loosening: bool = False
    probe: Whom = Whom.AUTO
    nvml: bool = False
    nvml_library: str = ""


class Agent:
    """One node's agent. *listen* opens what tells of the kernel's device events, *calls* open devices.

    *told* says whether these events are about the tree that is scanned.
    """

    def __init__(
        self,
        settings: Settings,
        client: Client,
        *,
        listen: Callable[[], Listener] = listen,
        told: Callable[[Path], bool] = tell_of,
        calls: Calls | None = None,
    ) -> None:
        self.settings = settings
        self._listen = listen
        self._told = told
        self._observes = settings.mode is Mode.OBSERVE
        self._observation = observation.Observation()
        self.state = State(self._observation.see if self._observes else None)
        plugins = settings.kubelet_dir / "device-plugins"
        pod_resources = settings.kubelet_dir / "pod-resources"
        self._pod_resources = PodResources(pod_resources / "kubelet.sock")
        self.poller = AllocationsPoller(
            self._pod_resources,
            self.state,
            checkpoint=plugins / CHECKPOINT,
            consequence=observation.CONSEQUENCE if self._observes else SERVING,
        )
        self._offers = observation.OffersPoller(self._pod_resources, self.state)
        self._files = KubeletFiles(Directories((plugins, pod_resources)), self._kubelet_changed)
        asker = Asker(settings.sysfs_root, settings.dev.root, calls)
        self._asking = Probes(self.poller, asker, self._amend, settings.probe)
        self._probes = observation.Unasked() if self._observes else self._asking
        self._config = ConfigFile(settings.config, settings.resource_domain)
        self.sysfs = Sysfs(
            settings.sysfs_root,
            self._config,
            self._probes,
            settings.dev,
            held=self.state.may_be_held,
            nvml=Nvml(settings.nvml_library) if settings.nvml else None,
            take=observing.take if self._observes else take,
        )
        inquiry = Inquiry(client, settings.node_name, allow_loosening=settings.allow_loosening)
        self._preferred = Preferred(self.state, inquiry)
        self._guard = Guard(self.poller, inquiry, self.sysfs, self._probes, self._preferred.settle)
        self._departure = Departure(client, settings.namespace, settings.daemonset)
        self.publisher = Publisher(client, settings.node_name, self.state, recall=self._recall)
        self.manager = Manager(plugins, self.state, self._make_server, lambda: self._files.watched)

    async def run(self) -> None:
        """Run until cancelled; then stop serving, without telling the kubelet that devices are gone."""
        metrics.FIGURES.state = self.state
        health = await serve_health(self.settings.health_bind, lambda: None, self._ready, metrics.REGISTRY)
        name, mode = self.settings.node_name, self.settings.mode.value
        log.info("agent of node %s, mode %s; health on %s", name, mode, health.addresses)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(learn_boot_id(self.settings.boot_id_file, self.state), name="boot id")
                group.create_task(self._scan(), name="scan")
                group.create_task(self._files.run(), name="the kubelet's files")
                group.create_task(self.poller.run(), name="allocations")
                group.create_task(self.publisher.run(), name="publisher")
                if self._observes:
                    group.create_task(self._offers.run(), name="offers")
                else:
                    group.create_task(self._asking.run(), name="probes")
                    group.create_task(self.manager.run(), name="manager")
                    group.create_task(self._departure.run(), name="departure")
        finally:
            await self.manager.stop()
            await self._pod_resources.close()
            await health.cleanup()

    async def leave(self) -> None:
        """The process is to end: the kubelet is told that the devices are gone if nobody comes after us.

        Takes at most 4 s. :meth:`run` still has to be cancelled.
        """
        if not self._observes and await self._departure.is_for_good():
            await self.manager.leave_for_good()

    async def _scan(self) -> None:
        """Look at all devices when the kernel tells of a change, and every ``scan_interval``.

        Listening begins before the first look, so that no change falls between the two.
        """
        wakeups = Wakeups(self._listener())
        wakeups.start()
        try:
            await self._scan_when(wakeups)
        finally:
            wakeups.stop()

    def _listener(self) -> Listener | None:
        try:
            return self._listen()
        except OSError as error:
            log.warning(
                "the kernel's device events cannot be heard (%s): changes are seen only every %g s;"
                " let the process open netlink sockets (seccomp, SELinux), or lower --scan-interval",
                error,
                self.settings.scan_interval,
            )
            return None

    async def _scan_when(self, wakeups: Wakeups) -> None:
        told: tuple[object, ...] = ()
        unusable: dict[str, str] = {}
        barred: dict[str, str] = {}
        flawed: dict[str, str] = {}
        ambiguous: dict[str, str] = {}
        event: float | None = None
        while True:
            try:
                await self.sysfs.scan()
                await self._probes.grace()
                inventory = self.sysfs.last
                if self.state.scan_problem is not None:
                    log.info("%s can be read again", self.sysfs.root)
                _tell_configuration(self.sysfs.loaded, self.state.loaded)
                self.state.set_loaded(self.sysfs.loaded)
                self._take_inventory(event)
                problems = {id_: d.found.problem for id_, d in inventory.items() if d.found.problem}
                unusable = _tell("unhealthy", problems, unusable, inventory, "healthy again")
                if self.state.kubelet_asked:
                    bars = {id_: d.barred for id_, d in self.state.inventory.items() if d.barred}
                    barred = _tell("not to be had", bars, barred, inventory, "to be had again")
                found = flaws.find(inventory).problems
                flawed = _tell("flawed declaration", found, flawed, inventory, "understood again")
                several = {id_: ", ".join(d.claims) for id_, d in inventory.items() if d.claims}
                ambiguous = _tell(
                    "selected by several resources", several, ambiguous, inventory, "selected by one"
                )
            except SysfsError as error:
                metrics.SCAN_FAILURES.inc()
                if error.problem != self.state.scan_problem:
                    log.warning("scan failed, keeping what is known: %s", error)
                self.state.set_scan_problem(error.problem)
            else:
                metrics.SCAN_SECONDS.observe(self.sysfs.seconds)
                if event is not None:
                    metrics.UEVENT_LAG_SECONDS.observe(asyncio.get_running_loop().time() - event)
                    event = None
                if self.sysfs.problems != told:
                    told = self.sysfs.problems
                    for problem in self.sysfs.problems:
                        log.warning("%s/%s: %s", self.sysfs.root, problem.path, problem.message)
            news = await self._news(wakeups)
            unseen = None if news is None else await self._glances(news, wakeups)
            event = unseen if event is None else event

    async def _glances(self, news: News, wakeups: Wakeups) -> float | None:
        """Look at what events name, and only that, until no more come; a scan of all has to follow.

        Returns the loop's time of the first event whose devices have not been looked at.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + GLANCES
        while True:
            named = self.sysfs.named(news.devpaths)
            if not named or len(named) > GLANCED:
                return news.at
            try:
                await self.sysfs.glance(named)
                await self._probes.grace()
            except SysfsError:
                return news.at
            self._take_inventory(news.at)
            metrics.UEVENT_LAG_SECONDS.observe(loop.time() - news.at)
            more = await wakeups.wait(CALMED)
            if more is None:
                return None
            news = more
            if loop.time() > end:
                return news.at

    def _take_inventory(self, event: float | None) -> None:
        """What the newest look has shown is known now; *event*: the loop's time of what brought it about."""
        self.state.set_inventory(self._probes.applied(self.sysfs.last), self.sysfs.problems, event)

    async def _news(self, wakeups: Wakeups) -> News | None:
        """Return when a scan is due, with the events that say so, if any do."""
        allocations = self.state.allocations
        for _ in range(self.intervals(listening=wakeups.listening)):
            event = await wakeups.wait(self.settings.scan_interval)
            # Who is no longer held may change its pool.
            freed = self.settings.config is not None and self.state.allocations is not allocations
            if event is not None or freed or self._config.changed():
                return event
        return None

    def intervals(self, *, listening: bool) -> int:
        """After how many intervals without an event a scan is due: one, unless all is well and heard of."""
        state = self.state
        troubled = (
            state.scan_problem
            or state.unreadable
            or self.sysfs.silent
            or any(d.found.problem or d.waiting for d in state.inventory.values())
        )
        return SWEEP if listening and not troubled and self._told(self.settings.sysfs_root) else 1

    def _kubelet_changed(self) -> None:
        self.poller.look()
        self._offers.stir()
        self.state.to_serve.set()

    def _amend(self) -> None:
        self.state.amend(self._probes.applied(self.state.inventory))

    def _recall(self, devices: Sequence[PublishedDevice]) -> None:
        """What an earlier agent published of this node counts before anything of ours is published."""
        if self._observes:
            self._observation.recall(devices)
            self.state.look_again()
            return
        self.state.amend(self._asking.applied(self.sysfs.recall(devices)))
        self._asking.recall(devices)

    def _ready(self) -> str | None:
        return self.state.problem()

    def _make_server(self, resource: str, socket: Path) -> ResourceServer:
        return ResourceServer(
            resource,
            socket,
            sysfs=self.sysfs,
            dev=self.settings.dev,
            probes=self._probes,
            preferred=self._preferred,
            guard=self._guard,
            allocated=self.poller.stir,
            ended=self.state.to_serve.set,
        )


def _tell_configuration(now: Loaded, before: Loaded) -> None:
    """Log what has changed about the configuration file."""
    if now == before:
        return
    if now.problem:
        log.error("%s; %s", now.problem, consequence(now))
    elif now.configuration is not None and now.path is not None:
        names = ", ".join(resource.name for resource in now.configuration.resources)
        log.info("%s is in force: %s", now.path, names or "default resources")


def _tell(
    what: str, problems: dict[str, str], before: dict[str, str], inventory: Inventory, mended: str
) -> dict[str, str]:
    """Log which *problems*, by device id, are others than *before*; returns *problems*."""
    news = [f"{id_}: {problem}" for id_, problem in problems.items() if before.get(id_) != problem]
    for text in news[:TOLD]:
        log.warning("%s: %s", what, text)
    if len(news) > TOLD:
        log.warning("%s: and %d more, see the VFIONode", what, len(news) - TOLD)
    recovered = [id_ for id_ in before if id_ not in problems and id_ in inventory]
    if recovered:
        log.info("%d device(s) are %s: %s", len(recovered), mended, ", ".join(recovered[:TOLD]))
    return problems


async def run(settings: Settings, kubeconfig: str | None = None) -> None:
    """Run the agent until SIGTERM or SIGINT. Raises ConfigError when there is no API server to be found."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with Client.from_environment(kubeconfig, WRITES_PER_SECOND) as client:
        agent = Agent(settings, client)
        running = asyncio.create_task(agent.run(), name="agent")
        stopping = asyncio.create_task(stop.wait(), name="stop")
        await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not running.done():
            log.info("stopping")
            await agent.leave()
            running.cancel()
        try:
            await running
        except asyncio.CancelledError:
            log.info("stopped")
