"""One operator process: who talks to whom."""

from __future__ import annotations

import asyncio
import logging
import signal

import kopf
import msgspec
from migcompat.fleet.fleet import Fleet
from migcompat.httpserver import serve_health
from migcompat.kube.client import Client

from migcompat_operator.catalogue import Catalogue
from migcompat_operator.handlers import registry, settings
from migcompat_operator.keeper import Keeper
from migcompat_operator.metrics import Metrics
from migcompat_operator.mirror import Dirty, Mirror
from migcompat_operator.resync import Resync
from migcompat_operator.rotation import Times
from migcompat_operator.worker import COUNT_DELAY, STUCK, Worker
from migcompat_operator.writer import Writer

log = logging.getLogger(__name__)


class Options(msgspec.Struct, frozen=True):
    """What the command line says.

    ``count_delay``: seconds for which mere counts may wait. ``catalogue``: directory of the catalogue's
    files; empty: its policies are left alone. ``certificates``: what the names of the
    release's objects begin with, whose certificates in ``namespace`` are kept, made to last for ``times``;
    empty: nobody's are.
    """

    health_bind: str = "0.0.0.0:8080"
    kubeconfig: str | None = None
    allow_loosening: bool = False
    count_delay: float = COUNT_DELAY
    catalogue: str = ""
    certificates: str = ""
    namespace: str = ""
    times: Times | None = None


class StartError(Exception):
    """The process cannot start as the command line asks; the message says why."""


async def run(options: Options) -> None:
    """Run until SIGTERM or SIGINT (which kopf handles once it runs), or until a part fails: that is raised.

    Nothing is kept over a restart but what the cluster itself holds, so failing is safe.
    """
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    metrics = Metrics()
    wake = asyncio.Event()
    fleet = Fleet(allow_loosening=options.allow_loosening)
    mirror = Mirror(fleet, Dirty(wake.set))
    async with Client.from_environment(options.kubeconfig) as client:
        resync = Resync(client, mirror)
        worker = Worker(
            mirror,
            Writer(client, mirror, metrics),
            metrics,
            wake,
            allow_loosening=options.allow_loosening,
            count_delay=options.count_delay,
        )

        def live() -> str | None:
            silence = worker.silence()
            return f"no pass for {silence:.0f} s" if resync.synced and silence > STUCK else None

        def ready() -> str | None:
            return None if resync.synced else resync.problem

        try:
            health = await serve_health(options.health_bind, live, ready, metrics.registry)
        except (ValueError, OSError) as problem:
            raise StartError(f"--health-bind {options.health_bind}: {problem}") from problem
        try:
            # Process 1 of a container ignores what it does not handle: also while there is no API server.
            await _until_first_ends(
                asyncio.create_task(resync.prime(), name="list"),
                asyncio.create_task(_told(stop), name="stop"),
            )
            if stop.is_set():
                return
            log.info("everything listed; answering")
            catalogue = Catalogue(client, options.catalogue, metrics) if options.catalogue else None
            keeper = (
                Keeper(client, options.namespace, options.certificates, options.times, metrics)
                if options.certificates and options.times
                else None
            )
            await _until_first_ends(
                asyncio.create_task(_told(stop), name="stop"),
                asyncio.create_task(worker.run(), name="worker"),
                asyncio.create_task(resync.run(), name="resync"),
                asyncio.create_task(
                    kopf.operator(
                        registry=registry(mirror, metrics, resync.relisted),
                        settings=settings(),
                        clusterwide=True,
                        standalone=True,
                    ),
                    name="kopf",
                ),
                *([asyncio.create_task(catalogue.run(), name="catalogue")] if catalogue else []),
                *([asyncio.create_task(keeper.run(), name="certificates")] if keeper else []),
            )
        finally:
            await health.cleanup()


async def _told(stop: asyncio.Event) -> None:
    await stop.wait()


async def _until_first_ends(*tasks: asyncio.Task[None]) -> None:
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    await asyncio.wait(pending, timeout=10)
    for task in done:
        task.result()
