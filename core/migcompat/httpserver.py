"""Health and metrics over HTTP, the same for every process."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

Check = Callable[[], str | None]
"""None when all is well, else the reason why not, for people."""


def parse_bind(bind: str) -> tuple[str, int]:
    """Host and port of ``host:port`` or ``[v6]:port``. Raises ValueError."""
    host, colon, port = bind.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"{bind!r} is not host:port, for example 0.0.0.0:8080 or [::]:8080")
    return host.removeprefix("[").removesuffix("]"), int(port)


async def serve_health(bind: str, live: Check, ready: Check, registry: CollectorRegistry) -> web.AppRunner:
    """Serve ``/healthz``, ``/readyz`` (200, or 503 and the reason) and ``/metrics`` until ``cleanup()``.

    ``runner.addresses`` says where when *bind* asks for port 0. Raises ValueError for a bad *bind*, OSError
    when the address cannot be used.
    """

    def answer(check: Check) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def handle(_: web.Request) -> web.Response:
            reason = check()
            return web.Response(status=200 if reason is None else 503, text=f"{reason or 'ok'}\n")

        return handle

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.router.add_get("/healthz", answer(live))
    app.router.add_get("/readyz", answer(ready))
    app.router.add_get("/metrics", metrics)
    host, port = parse_bind(bind)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    return runner
