"""An API server that misbehaves on purpose: one handler decides what each request gets."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer
from migcompat.kube.client import Client
from migcompat.kube.config import Connection

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def api(handler: Handler, *, deadline: float = 10.0) -> AsyncIterator[Client]:
    """A client of a server on loopback that answers every request by *handler*."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    server = TestServer(app)
    await server.start_server()
    try:
        async with Client(Connection(str(server.make_url("")).rstrip("/")), deadline=deadline) as client:
            yield client
    finally:
        await server.close()


def node(name: str, version: int = 1, **labels: str) -> dict[str, Any]:
    """A Node as the API gives it."""
    return {"metadata": {"name": name, "resourceVersion": str(version), "labels": labels}}


def listing(*items: dict[str, Any], version: int = 1, more: str = "") -> web.Response:
    """A list's answer; *more* is its continue token."""
    return web.json_response(
        {"metadata": {"resourceVersion": str(version), "continue": more}, "items": list(items)}
    )


def status(code: int, reason: str, message: str = "because") -> dict[str, Any]:
    """A Status object."""
    return {"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message}


def line(type_: str, obj: dict[str, Any]) -> bytes:
    """One line of a watch."""
    return json.dumps({"type": type_, "object": obj}).encode() + b"\n"


async def stream(request: web.Request, *parts: bytes, cut: bool = False) -> web.StreamResponse:
    """A watch's answer that ends after *parts*, or is cut without a proper end."""
    answer = web.StreamResponse()
    await answer.prepare(request)
    for part in parts:
        await answer.write(part)
    if cut and request.transport is not None:
        request.transport.close()
    return answer
