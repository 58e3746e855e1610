"""An API server in memory, as far as the agent uses one: objects, selectors, merge patches, outages."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from aiohttp import web
from aiohttp.test_utils import TestServer
from migcompat.kube.client import Client
from migcompat.kube.config import Connection
from migcompat.kube.kinds import Resource

Object = dict[str, Any]
Key = tuple[str, str, str]


class FakeApi:
    """Objects by (plural, namespace, name). ``requests``: all so far. ``broken``, ``hanging``: plurals.

    ``refused``: HTTP status by plural that is answered instead.
    """

    def __init__(self) -> None:
        self.objects: dict[Key, Object] = {}
        self.requests: list[tuple[str, str]] = []
        self.broken: set[str] = set()
        self.hanging: set[str] = set()
        self.refused: dict[str, int] = {}
        self.version = 0
        self.url = ""

    def put(self, resource: Resource[Any], obj: Any) -> None:
        """Add or replace an object given as a Struct or as plain data."""
        self.put_raw(resource.plural, msgspec.to_builtins(obj))

    def put_raw(self, plural: str, obj: Object) -> None:
        """Add or replace an object given as plain data."""
        meta = obj["metadata"]
        self.version += 1
        meta["resourceVersion"] = str(self.version)
        self.objects[(plural, meta.get("namespace", ""), meta["name"])] = obj

    def drop(self, plural: str, name: str, namespace: str = "") -> None:
        del self.objects[(plural, namespace, name)]

    def get(self, plural: str, name: str, namespace: str = "") -> Object:
        return self.objects[(plural, namespace, name)]

    def writes(self, plural: str) -> list[str]:
        """Methods of the writes to a plural so far."""
        return [m for m, path in self.requests if m != "GET" and f"/{plural}" in path]

    async def handle(self, request: web.Request) -> web.Response:
        self.requests.append((request.method, request.path))
        parts = request.path.strip("/").split("/")
        parts = parts[3:] if parts[0] == "apis" else parts[2:]
        namespace = parts[1] if parts[0] == "namespaces" else ""
        plural, *rest = parts[2:] if namespace else parts
        if plural in self.hanging:
            await asyncio.sleep(60)
        if plural in self.broken or "*" in self.broken:
            return _status(503, "ServiceUnavailable", f"{plural} are out of order")
        if plural in self.refused:
            return _status(self.refused[plural], "Refused", f"{plural} are not for you")
        if not rest:
            return await self._collection(request, plural, namespace)
        found = self.objects.get((plural, namespace, rest[0]))
        if found is None:
            return _status(404, "NotFound", f"{plural} {rest[0]} not found")
        body = json.loads(await request.read() or b"null")
        if request.method == "PUT":
            if body["metadata"].get("resourceVersion") != found["metadata"]["resourceVersion"]:
                return _status(409, "Conflict", "the object has been modified")
            self.put_raw(plural, {**found, "status": body["status"]})
        elif request.method == "PATCH":
            _merge(found, body)
            self.put_raw(plural, found)
        return web.json_response(self.objects[(plural, namespace, rest[0])])

    async def _collection(self, request: web.Request, plural: str, namespace: str) -> web.Response:
        if request.method == "POST":
            obj = json.loads(await request.read())
            if (plural, namespace, obj["metadata"]["name"]) in self.objects:
                return _status(409, "AlreadyExists", "it exists already")
            obj.pop("status", None)
            self.put_raw(plural, obj)
            return web.json_response(obj, status=201)
        items = [
            obj
            for (kind, where, _), obj in sorted(self.objects.items())
            if kind == plural
            and namespace in ("", where)
            and _labels_match(obj, request.query.get("labelSelector", ""))
            and _fields_match(obj, request.query.get("fieldSelector", ""))
        ]
        return web.json_response({"metadata": {"resourceVersion": str(self.version)}, "items": items})


def _status(code: int, reason: str, message: str) -> web.Response:
    body = {"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message}
    return web.json_response(body, status=code)


def _merge(target: Object, patch: Object) -> None:
    for key, value in patch.items():
        if value is None:
            target.pop(key, None)
        elif isinstance(value, dict):
            _merge(target.setdefault(key, {}), value)
        else:
            target[key] = value


def _labels_match(obj: Object, selector: str) -> bool:
    labels = obj["metadata"].get("labels") or {}
    for term in filter(None, selector.split(",")):
        key, equals, value = term.partition("=")
        if key not in labels or (equals and labels[key] != value):
            return False
    return True


def _fields_match(obj: Object, selector: str) -> bool:
    for term in filter(None, selector.split(",")):
        path, _, value = term.partition("=")
        found: Any = obj
        for part in path.split("."):
            found = (found or {}).get(part, "")
        if found != value:
            return False
    return True


@asynccontextmanager
async def running_api(api: FakeApi) -> AsyncIterator[Client]:
    """Serve *api* on loopback (``api.url``); yields a client of it."""
    app = web.Application(client_max_size=8 * 1024 * 1024)
    app.router.add_route("*", "/{path:.*}", api.handle)
    server = TestServer(app)
    await server.start_server()
    api.url = str(server.make_url("")).rstrip("/")
    try:
        async with Client(Connection(api.url), writes_per_second=1000) as client:
            yield client
    finally:
        await server.close()
