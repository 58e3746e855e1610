"""The process: watches, the TLS port, the health port, and an orderly end."""

from __future__ import annotations

import asyncio
import logging
import signal
import ssl
from pathlib import Path

import msgspec
from aiohttp import web
from migcompat.fleet.fleet import Fleet
from migcompat.httpserver import parse_bind, serve_health
from migcompat.kube.client import Client

from migcompat_extender.caches import Caches
from migcompat_extender.metrics import Metrics
from migcompat_extender.refusals import Refusals
from migcompat_extender.server import make_app
from migcompat_extender.settings import Settings
from migcompat_extender.tls import Certificates

log = logging.getLogger(__name__)

KEEP_ALIVE_SECONDS = 120.0
"""Longer than Go clients keep idle connections (90 s), so that they never write to one we just closed."""
HANDSHAKE_SECONDS = 5.0
LINGER_SECONDS = 2.0
"""How long a refused body is read on, so that the client gets to read the refusal."""
DRAIN_SECONDS = 3.0
"""From being told to stop (not ready any more) to closing the port: callers need time to notice."""
SHUTDOWN_SECONDS = 5.0


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How the process is to run (docs/reference/extender.md describes each)."""

    bind: str
    health_bind: str
    tls_cert: Path
    tls_key: Path
    client_ca: Path | None
    kubeconfig: str | None
    stale_after: float
    settings: Settings


async def run(options: Options) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises ValueError for an unusable address, OSError when a port or certificate cannot be used, and
    migcompat.kube.config.ConfigError when there is no way to the API server.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    certificates = Certificates(options.tls_cert, options.tls_key, options.client_ca)
    if options.client_ca is None:
        log.warning("without --client-ca anyone who reaches %s may use /filter and /explain", options.bind)
    fleet = Fleet(allow_loosening=options.settings.allow_loosening)
    metrics = Metrics()

    def show() -> None:
        for name, life in certificates.lives.items():
            metrics.expiry.labels(name).set(life.ends)
            metrics.start.labels(name).set(life.begins)

    def reloaded(ok: bool) -> None:
        metrics.reloads.labels("ok" if ok else "error").inc()
        show()

    show()
    async with Client.from_environment(options.kubeconfig) as client:
        refusals = Refusals()
        caches = Caches(client, fleet, refusals, stale_after=options.stale_after)
        metrics.ready.set_function(lambda: float(caches.problem() is None))
        app = make_app(fleet, caches.problem, options.settings, metrics, refusals)
        health = await serve_health(
            options.health_bind,
            lambda: None,
            lambda: "stopping" if stop.is_set() else caches.problem(),
            metrics.registry,
        )
        try:
            runner, server = await _serve(app, options.bind, certificates.context)
            background = asyncio.gather(
                caches.run(),
                certificates.watch(reloaded),
            )
            log.info("serving on %s, health on %s", options.bind, options.health_bind)
            await _until(stop, background)
            log.info("told to stop: closing in %g s", DRAIN_SECONDS)
            await asyncio.sleep(DRAIN_SECONDS)
            server.close()
            await runner.cleanup()
            background.cancel()
            await asyncio.gather(background, return_exceptions=True)
        finally:
            await health.cleanup()
    log.info("stopped")


async def _until(stop: asyncio.Event, background: asyncio.Future[tuple[None, None]]) -> None:
    """Wait for *stop*; raise what *background*, which never ends by itself, failed with."""
    waiting = asyncio.ensure_future(stop.wait())
    await asyncio.wait((waiting, background), return_when=asyncio.FIRST_COMPLETED)
    if background.done():
        waiting.cancel()
        background.result()


async def _serve(
    app: web.Application, bind: str, context: ssl.SSLContext
) -> tuple[web.AppRunner, asyncio.Server]:
    """Listen with deadlines on the handshake, which aiohttp's own sites leave at a minute."""
    runner = web.AppRunner(
        app,
        access_log=None,
        keepalive_timeout=KEEP_ALIVE_SECONDS,
        lingering_time=LINGER_SECONDS,
        shutdown_timeout=SHUTDOWN_SECONDS,
    )
    await runner.setup()
    host, port = parse_bind(bind)
    assert runner.server is not None  # noqa: S101 - setup() made it
    server = await asyncio.get_running_loop().create_server(
        runner.server,
        host,
        port,
        ssl=context,
        ssl_handshake_timeout=HANDSHAKE_SECONDS,
        ssl_shutdown_timeout=HANDSHAKE_SECONDS,
    )
    return runner, server
