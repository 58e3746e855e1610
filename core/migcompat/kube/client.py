"""Requests to the API server."""

from __future__ import annotations

import logging
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar

import aiohttp
import msgspec

from migcompat.kube.answers import Listing, Page, WatchEvent, decode_item, error_of, event_of, lines_of
from migcompat.kube.config import ConfigError, Connection, connection
from migcompat.kube.errors import ApiError, Unreachable
from migcompat.kube.kinds import Resource
from migcompat.kube.limiter import Limiter

log = logging.getLogger(__name__)

T = TypeVar("T")

DEADLINE = 10.0
"""Seconds that one request may take, from asking for a connection to the last byte of its answer."""
LIST_DEADLINE = 30.0
"""The same for one page of a list (500 Nodes can be 20 MiB)."""
PAGE = 500
WATCH_SECONDS = 60
"""Seconds after which the server ends a watch, to be resumed: so a dead connection is soon noticed."""

MERGE_PATCH = "application/merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"

Body = msgspec.Struct | Mapping[str, Any]


DEEPEST = 12_000
"""The API server takes JSON nested 10,000 deep, Python 1,000 unless told; a level costs 130 B of stack."""


class Client:
    """A session with the API server; use as an async context manager.

    Every request has a deadline. Only writes are rate limited. All errors are :class:`ApiError`.
    """

    def __init__(
        self, connection: Connection, *, writes_per_second: float = 20.0, deadline: float = DEADLINE
    ) -> None:
        self._connection = connection
        self._deadline = deadline
        self._writes = Limiter(writes_per_second, burst=max(1.0, 2 * writes_per_second))
        self._open: aiohttp.ClientSession | None = None

    @classmethod
    def from_environment(cls, kubeconfig: str | None = None, writes_per_second: float = 20.0) -> Client:
        """Connect as *kubeconfig*, ``$KUBECONFIG`` or the pod's service account say. Raises ConfigError.

        Lets this process read JSON as deeply nested as objects may be: a tenant can make such ones.
        """
        sys.setrecursionlimit(max(sys.getrecursionlimit(), DEEPEST))
        return cls(connection(kubeconfig), writes_per_second=writes_per_second)

    async def __aenter__(self) -> Client:
        self._open = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=self._connection.tls or True),
            # Compression costs both sides more CPU than a cluster's network needs to be spared.
            headers={"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "migcompat"},
            raise_for_status=False,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._open is not None:
            await self._open.close()
            self._open = None

    async def get(self, res: Resource[T], name: str, namespace: str = "") -> T:
        """One object. Raises NotFound."""
        return self._decode(res, "GET", path := res.path(name, namespace), await self._send("GET", path))

    async def list(
        self, res: Resource[T], namespace: str = "", labels: str = "", fields: str = ""
    ) -> Listing[T]:
        """All objects (no namespace: of all); ones that do not decode are logged and left out."""
        items: list[T] = []
        version = ""
        async for page in self.pages(res, namespace, labels, fields):
            items += page.items
            version = page.resource_version
        return Listing(items, version)

    async def pages(
        self, res: Resource[T], namespace: str = "", labels: str = "", fields: str = ""
    ) -> AsyncGenerator[Listing[T]]:
        """:meth:`list` page by page, so that not all need be in memory. Raises Gone when it took too long."""
        path = res.path(namespace=namespace)
        query = _query(labelSelector=labels, fieldSelector=fields, limit=str(PAGE))
        while True:
            raw = await self._send("GET", path, query=query, deadline=max(LIST_DEADLINE, self._deadline))
            try:
                page = msgspec.json.decode(raw, type=Page)
            except (msgspec.DecodeError, RecursionError) as problem:
                raise Unreachable(f"the answer is not a list: {problem}", "GET", path) from problem
            found = (decode_item(res, item) for item in page.items or ())
            yield Listing([item for item in found if item is not None], page.metadata.resource_version)
            if not page.metadata.continue_:
                return
            query["continue"] = page.metadata.continue_

    async def create(self, res: Resource[T], obj: Body, namespace: str = "") -> T:
        """Create *obj*. Raises Conflict (reason AlreadyExists) if its name is taken."""
        path = res.path(namespace=namespace)
        return self._decode(res, "POST", path, await self._send("POST", path, _whole(res, obj)))

    async def replace(
        self, res: Resource[T], obj: Body, name: str, namespace: str = "", subresource: str = ""
    ) -> T:
        """Replace all of the object, or of its *subresource*. Raises Conflict if its resource version is old.

        For types of our own only: what a partial view (Node, Pod) does not hold would be lost.
        """
        path = res.path(name, namespace, subresource)
        return self._decode(res, "PUT", path, await self._send("PUT", path, _whole(res, obj)))

    async def patch(
        self,
        res: Resource[T],
        name: str,
        patch: Body | Sequence[Mapping[str, Any]],
        namespace: str = "",
        *,
        subresource: str = "",
        field_manager: str = "",
        content_type: str = MERGE_PATCH,
    ) -> T:
        """Change parts. In a merge patch None removes a field; a Struct's defaults are not sent."""
        path = res.path(name, namespace, subresource)
        raw = await self._send(
            "PATCH",
            path,
            msgspec.json.encode(patch),
            query=_query(fieldManager=field_manager),
            content_type=content_type,
        )
        return self._decode(res, "PATCH", path, raw)

    async def apply(
        self,
        res: Resource[T],
        obj: Body,
        name: str,
        namespace: str = "",
        *,
        field_manager: str,
        subresource: str = "",
        force: bool = True,
    ) -> T:
        """Server-side apply: *obj* is all that *field_manager* wants; what it omits of earlier wishes goes.

        Creates the object if there is none. Raises Conflict for fields of other managers unless *force*.
        """
        path = res.path(name, namespace, subresource)
        query = _query(fieldManager=field_manager, force="true" if force else "false")
        fields = msgspec.json.decode(_whole(res, obj), type=dict[str, Any])
        # The API server wants the name in the body too ("the name of the object … was undeterminable").
        fields["metadata"] = {**fields.get("metadata", {}), "name": name}
        body = msgspec.json.encode(fields)
        raw = await self._send("PATCH", path, body, query=query, content_type=APPLY_PATCH)
        return self._decode(res, "PATCH", path, raw)

    async def delete(
        self, res: Resource[T], name: str, namespace: str = "", uid: str = "", propagation: str = ""
    ) -> None:
        """Delete the object; with *uid* only if it still is that one, else Conflict. Raises NotFound.

        *propagation*: what happens to what it owns (API conventions, "Garbage collection"); with
        ``Foreground`` the object stays until all of that has gone.
        """
        options: dict[str, Any] = {"apiVersion": "v1", "kind": "DeleteOptions"}
        if uid:
            options["preconditions"] = {"uid": uid}
        if propagation:
            options["propagationPolicy"] = propagation
        await self._send("DELETE", res.path(name, namespace), msgspec.json.encode(options))

    async def watch(
        self,
        res: Resource[T],
        resource_version: str,
        *,
        namespace: str = "",
        labels: str = "",
        fields: str = "",
        seconds: int = WATCH_SECONDS,
    ) -> AsyncGenerator[WatchEvent[T]]:
        """Changes after *resource_version*, with bookmarks, for about *seconds*; then it ends normally.

        Raises Gone when the version is too old, Unreachable when the connection broke.
        """
        path = res.path(namespace=namespace)
        query = _query(
            watch="true",
            allowWatchBookmarks="true",
            resourceVersion=resource_version,
            timeoutSeconds=str(seconds),
            labelSelector=labels,
            fieldSelector=fields,
        )
        try:
            async with self._request("GET", path, query=query, deadline=seconds + self._deadline) as answer:
                if answer.status != 200:
                    raise error_of(answer.status, await answer.read(), "GET", path)
                async for line in lines_of(answer.content, path):
                    event = event_of(res, line, path)
                    if event is not None:
                        yield event
        except (aiohttp.ClientError, TimeoutError, OSError) as problem:
            raise Unreachable(_say(problem, seconds + self._deadline), "GET", path) from problem

    def _request(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        query: Mapping[str, str],
        content_type: str = "",
        deadline: float,
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        if self._open is None:
            raise RuntimeError("the client is not open: use it in 'async with'")
        headers = {"Content-Type": content_type} if body is not None else {}
        try:
            token = self._connection.bearer()
        except ConfigError as problem:
            raise Unreachable(str(problem), method, path) from problem
        if token:
            headers["Authorization"] = f"Bearer {token}"
        return self._open.request(
            method,
            self._connection.server + path,
            params=query,
            data=body,
            headers=headers,
            server_hostname=self._connection.tls_server_name or None,
            timeout=aiohttp.ClientTimeout(total=deadline),
            allow_redirects=False,
        )

    async def _send(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        query: Mapping[str, str] | None = None,
        content_type: str = "application/json",
        deadline: float | None = None,
    ) -> bytes:
        if method != "GET":
            await self._writes.wait()
        limit = deadline or self._deadline
        try:
            async with self._request(
                method, path, body=body, query=query or {}, content_type=content_type, deadline=limit
            ) as answer:
                raw: bytes = await answer.read()
                if answer.status >= 300:
                    raise error_of(answer.status, raw, method, path)
                return raw
        except (aiohttp.ClientError, TimeoutError, OSError) as problem:
            raise Unreachable(_say(problem, limit), method, path) from problem

    @staticmethod
    def _decode(res: Resource[T], method: str, path: str, raw: bytes) -> T:
        try:
            return res.decode(raw)
        except (msgspec.DecodeError, RecursionError) as problem:
            raise ApiError(
                200, "Undecodable", f"the object does not fit its type: {problem}", method, path
            ) from problem


def _query(**values: str) -> dict[str, str]:
    return {key: value for key, value in values.items() if value}


def _whole(res: Resource[T], obj: Body) -> bytes:
    """JSON of *obj* with the apiVersion and kind that a Struct leaves out as defaults."""
    fields = msgspec.json.decode(msgspec.json.encode(obj), type=dict[str, msgspec.Raw])
    return msgspec.json.encode({**fields, "apiVersion": res.api_version, "kind": res.kind})


def _say(problem: BaseException, deadline: float) -> str:
    if isinstance(problem, TimeoutError):
        return f"no (whole) answer within {deadline:g} s"
    return f"{type(problem).__name__}: {problem}"
