"""Objects of the API as plain dictionaries, for the stand-ins: requests, and caches kept by watches.

Deliberately not the product's own client: what tests the product should not share its mistakes.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import logging
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import yaml

log = logging.getLogger(__name__)

Object = dict[str, Any]

MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
APPLY = "application/apply-patch+yaml"

_TIMEOUT = aiohttp.ClientTimeout(total=30)
_WATCH_SECONDS = 240
_RETRY = 0.5
_LONGEST_OBJECT = 4 << 20


class ApiError(Exception):
    """The API server said no."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message


class Api:
    """Requests to the API server; an async context manager, used in one event loop."""

    def __init__(self, kubeconfig: Path) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        self.server: str = cluster["server"]
        self._tls = ssl.create_default_context(cafile=cluster["certificate-authority"])
        if "client-certificate" in user:
            self._tls.load_cert_chain(user["client-certificate"], user["client-key"])
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Api:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=self._tls, limit=0), read_bufsize=_LONGEST_OBJECT
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._session is not None
        await self._session.close()

    async def request(
        self,
        method: str,
        path: str,
        body: Object | None = None,
        *,
        content_type: str = "application/json",
        params: Mapping[str, str] | None = None,
    ) -> Object:
        """One call; raises ApiError for any answer but 2xx."""
        assert self._session is not None
        async with self._session.request(
            method,
            self.server + path,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": content_type},
            params=params,
            timeout=_TIMEOUT,
        ) as response:
            answer: Object = await response.json(content_type=None)
            if response.status >= 300:
                raise ApiError(response.status, answer.get("reason", ""), answer.get("message", ""))
            return answer

    async def get(self, path: str) -> Object:
        """The object at `path`, e.g. ``/api/v1/nodes/a``."""
        return await self.request("GET", path)

    async def find(self, path: str) -> Object | None:
        """The object at `path`, or None when there is none."""
        try:
            return await self.get(path)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def create(self, path: str, body: Object) -> Object:
        """Creates an object in the collection at `path`."""
        return await self.request("POST", path, body)

    async def patch(self, path: str, body: Object, content_type: str = MERGE) -> Object:
        """Changes the object at `path`."""
        return await self.request("PATCH", path, body, content_type=content_type)

    async def apply(self, path: str, body: Object) -> Object:
        """Creates or changes the object at `path` (server-side apply)."""
        return await self.request(
            "PATCH",
            path,
            body,
            content_type=APPLY,
            params={"fieldManager": "standin", "force": "true"},
        )

    async def delete(self, path: str, *, uid: str = "", grace: int | None = None) -> None:
        """Deletes the object at `path` if it is there (and is the one with `uid`)."""
        options: Object = {"apiVersion": "v1", "kind": "DeleteOptions"}
        if uid:
            options["preconditions"] = {"uid": uid}
        if grace is not None:
            options["gracePeriodSeconds"] = grace
        try:
            await self.request("DELETE", path, options)
        except ApiError as error:
            if error.status not in (404, 409):
                raise

    async def stream(self, path: str, version: str, on_line: Callable[[Object], None]) -> None:
        """One watch request; returns when the server ends it."""
        assert self._session is not None
        params = {
            "watch": "true",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(_WATCH_SECONDS),
        }
        timeout = aiohttp.ClientTimeout(total=_WATCH_SECONDS + 30, connect=10)
        async with self._session.get(self.server + path, params=params, timeout=timeout) as response:
            if response.status != 200:
                raise ApiError(response.status, "", await response.text())
            async for line in response.content:
                on_line(json.loads(line))


class Cache:
    """All objects of one collection, kept by a watch for as long as `run` runs."""

    def __init__(self, api: Api, path: str, on_change: Callable[[str, Object], None] | None = None) -> None:
        """`on_change` gets ``ADDED``, ``MODIFIED`` or ``DELETED`` and the object, in the event loop."""
        self._api = api
        self._path = path
        self._on_change = on_change
        self._objects: dict[tuple[str, str], Object] = {}
        self._version = ""
        self.synced = asyncio.Event()

    def get(self, name: str, namespace: str = "") -> Object | None:
        """The object of that name."""
        return self._objects.get((namespace, name))

    def all(self) -> list[Object]:
        """Every object."""
        return list(self._objects.values())

    async def run(self) -> None:
        """Lists, then watches, for ever."""
        while True:
            try:
                await self._list()
                while True:
                    await self._api.stream(self._path, self._version, self._take)
            except (ApiError, aiohttp.ClientError, TimeoutError, OSError, _Gone) as error:
                log.debug("watch of %s: %s", self._path, error)
            await asyncio.sleep(_RETRY)

    async def _list(self) -> None:
        answer = await self._api.get(self._path)
        kind = answer["kind"].removesuffix("List")
        found: dict[tuple[str, str], Object] = {}
        for item in answer["items"]:
            item.setdefault("kind", kind)
            item.setdefault("apiVersion", answer["apiVersion"])
            found[_key(item)] = item
        former, self._objects = self._objects, found
        self._version = answer["metadata"]["resourceVersion"]
        for key, item in former.items():
            if key not in found or found[key]["metadata"]["uid"] != item["metadata"]["uid"]:
                self._tell("DELETED", item)
        for key, item in found.items():
            self._tell("MODIFIED" if key in former else "ADDED", item)
        self.synced.set()

    def _take(self, event: Object) -> None:
        kind, item = event["type"], event["object"]
        if kind == "ERROR":
            raise _Gone(item.get("message", ""))
        self._version = item["metadata"]["resourceVersion"]
        if kind == "BOOKMARK":
            return
        if kind == "DELETED":
            self._objects.pop(_key(item), None)
        else:
            self._objects[_key(item)] = item
        self._tell(kind, item)

    def _tell(self, kind: str, item: Object) -> None:
        if self._on_change is not None:
            self._on_change(kind, item)


class _Gone(Exception):
    """The watch cannot go on from its version: list again."""


def _key(item: Object) -> tuple[str, str]:
    return item["metadata"].get("namespace", ""), item["metadata"]["name"]


def path_of(item: Object, plural: str) -> str:
    """``/api/v1/namespaces/x/pods/y`` of an object."""
    version, meta = item["apiVersion"], item["metadata"]
    root = f"/api/{version}" if "/" not in version else f"/apis/{version}"
    scope = f"/namespaces/{meta['namespace']}" if meta.get("namespace") else ""
    return f"{root}{scope}/{plural}/{meta['name']}"


def now() -> str:
    """The time as the API writes it."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
