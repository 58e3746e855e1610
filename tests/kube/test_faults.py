"""What the client makes of answers that are wrong, late, cut or missing."""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing

import pytest
from aiohttp import web
from migcompat.kube.answers import EventType
from migcompat.kube.client import Client
from migcompat.kube.config import Connection
from migcompat.kube.errors import (
    ApiError,
    BadRequest,
    Conflict,
    Forbidden,
    Gone,
    NotFound,
    Unauthorized,
    Unreachable,
)
from migcompat.kube.kinds import NODES, PODS
from migcompat.kube.limiter import Limiter

from tests.kube.fake_api import api, line, listing, node, status, stream


@pytest.mark.parametrize(
    ("code", "reason", "kind"),
    [
        (400, "BadRequest", BadRequest),
        (401, "Unauthorized", Unauthorized),
        (403, "Forbidden", Forbidden),
        (404, "NotFound", NotFound),
        (409, "Conflict", Conflict),
        (410, "Expired", Gone),
        (422, "Invalid", BadRequest),
        (429, "TooManyRequests", ApiError),
        (500, "InternalError", ApiError),
    ],
)
async def test_an_error_says_what_was_asked_and_answered(
    code: int, reason: str, kind: type[ApiError]
) -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.json_response(status(code, reason, "no such luck"), status=code)

    async with api(handler) as client:
        with pytest.raises(kind) as caught:
            await client.get(PODS, "p", "ns")
    error = caught.value
    assert (error.status, error.reason, error.message) == (code, reason, "no such luck")
    assert str(error) == f"GET /api/v1/namespaces/ns/pods/p: {code} {reason}: no such luck"


async def test_an_error_without_a_status_body_keeps_its_text() -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(status=502, text="bad gateway")

    async with api(handler) as client:
        with pytest.raises(ApiError, match="502 Unknown: bad gateway"):
            await client.get(NODES, "n")


async def test_a_server_that_hangs_runs_into_the_deadline() -> None:
    async def handler(_: web.Request) -> web.Response:
        await asyncio.sleep(60)
        return web.Response()

    async with api(handler, deadline=0.1) as client:
        with pytest.raises(Unreachable, match=r"/nodes/n: Unreachable: no \(whole\) answer within 0.1 s"):
            await client.get(NODES, "n")


async def test_a_watch_that_hangs_runs_into_its_deadline() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        answer = await stream(request, line("ADDED", node("n")))
        await asyncio.sleep(60)
        return answer

    seen = []
    async with api(handler, deadline=0.2) as client:
        with pytest.raises(Unreachable, match="answer within"):
            async for event in client.watch(NODES, "1", seconds=0):
                seen.append(event.name)
    assert seen == ["n"]


async def test_no_server_at_all_is_unreachable() -> None:
    async with Client(Connection("http://127.0.0.1:1")) as client:
        with pytest.raises(Unreachable, match="GET /api/v1/nodes: Unreachable: ClientConnectorError"):
            await client.list(NODES)


async def test_an_answer_that_is_not_json_is_unreachable() -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(text="<html>a captive portal</html>")

    async with api(handler) as client:
        with pytest.raises(Unreachable, match="not a list"):
            await client.list(NODES)


async def test_an_object_of_another_shape_is_an_error_with_the_path() -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.json_response({"metadata": {"name": 5}})

    async with api(handler) as client:
        with pytest.raises(ApiError, match=r"Undecodable.*\$\.metadata\.name"):
            await client.get(NODES, "n")


async def test_a_listed_item_that_does_not_decode_is_left_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bad = {"metadata": {"name": "bad", "labels": {"a": 1}}}

    async def handler(_: web.Request) -> web.Response:
        return listing(node("good"), bad, {"metadata": "nonsense"}, node("fine"))

    async with api(handler) as client:
        with caplog.at_level(logging.WARNING):
            found = await client.list(NODES)
    assert [n.metadata.name for n in found.items] == ["good", "fine"]
    assert "/bad does not fit its type" in caplog.text
    assert "$.metadata.labels" in caplog.text


@pytest.mark.parametrize("depth", [900, 100_000])
async def test_an_answer_nested_too_deeply_is_an_error_and_not_the_end(depth: int) -> None:
    deep = '{"metadata": {"name": "n"}, "x": ' + "[" * depth + "]" * depth + "}"

    async def handler(request: web.Request) -> web.Response:
        text = deep if request.path.endswith("/n") else '{"metadata": {}, "items": [' + deep + "]}"
        return web.json_response(text=text)

    async with api(handler) as client:
        if depth < 1000:
            assert [n.metadata.name for n in (await client.list(NODES)).items] == ["n"]
            return
        with pytest.raises(Unreachable, match="recursion"):
            await client.list(NODES)
        with pytest.raises(ApiError, match="recursion"):
            await client.get(NODES, "n")


async def test_null_items_are_an_empty_list() -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.json_response({"metadata": {"resourceVersion": "7"}, "items": None})

    async with api(handler) as client:
        assert await client.list(NODES) == ([], "7")


async def test_pages_follow_the_continue_token() -> None:
    asked = []

    async def handler(request: web.Request) -> web.Response:
        asked.append((request.query.get("limit"), request.query.get("continue")))
        return listing(node("a"), more="next") if len(asked) == 1 else listing(node("b"), version=2)

    async with api(handler) as client:
        found = await client.list(NODES)
    assert [n.metadata.name for n in found.items] == ["a", "b"]
    assert found.resource_version == "2"
    assert asked == [("500", None), ("500", "next")]


async def test_a_watch_delivers_changes_however_the_bytes_arrive() -> None:
    whole = line("ADDED", node("a", 1)) + line("MODIFIED", node("a", 2)) + line("DELETED", node("a", 3))
    whole += line("BOOKMARK", {"kind": "Node", "metadata": {"resourceVersion": "9"}})

    async def handler(request: web.Request) -> web.StreamResponse:
        return await stream(request, whole[:10], whole[10:100], whole[100:])

    async with api(handler) as client:
        events = [e async for e in client.watch(NODES, "0")]
    assert [(e.type.value, e.name, e.resource_version, e.object is None) for e in events] == [
        ("ADDED", "a", "1", False),
        ("MODIFIED", "a", "2", False),
        ("DELETED", "a", "3", False),
        ("BOOKMARK", "", "9", True),
    ]


async def test_a_watched_item_that_does_not_decode_is_named() -> None:
    bad = {"metadata": {"name": "bad", "resourceVersion": "4", "labels": 3}}

    async def handler(request: web.Request) -> web.StreamResponse:
        return await stream(
            request, line("MODIFIED", bad), line("ADDED", {"metadata": {}}), line("DELETED", bad)
        )

    async with api(handler) as client:
        events = [e async for e in client.watch(NODES, "0")]
    assert [(e.type, e.name, e.resource_version) for e in events] == [
        (EventType.UNDECODABLE, "bad", "4"),
        (EventType.DELETED, "bad", "4"),
    ]


@pytest.mark.parametrize("cut", [True, False])
async def test_a_watch_that_ends_within_a_line_is_unreachable(cut: bool) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return await stream(request, line("ADDED", node("a")), line("ADDED", node("b"))[:30], cut=cut)

    seen = []
    async with api(handler) as client:
        with pytest.raises(Unreachable):
            async for event in client.watch(NODES, "0"):
                seen.append(event.name)
    assert seen == ["a"]


@pytest.mark.parametrize("text", [b'{"type": "ADDED", "o\n', b"nonsense\n", b"[]\n", b'{"type": "ADDED"}\n'])
async def test_a_line_that_is_no_event_is_unreachable(text: bytes) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return await stream(request, text)

    async with api(handler) as client:
        with pytest.raises(Unreachable, match="not an event"):
            _ = [e async for e in client.watch(NODES, "0")]


async def test_gone_in_the_stream_is_gone() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return await stream(request, line("ERROR", status(410, "Expired", "too old resource version")))

    async with api(handler) as client:
        with pytest.raises(Gone, match="410 Expired: too old"):
            _ = [e async for e in client.watch(NODES, "0")]


@pytest.mark.parametrize("body", [b'"text"', b'{"code": "x"}', b"{}"])
async def test_an_error_event_of_unknown_content_is_an_error(body: bytes) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return await stream(request, b'{"type": "ERROR", "object": ' + body + b"}\n")

    async with api(handler) as client:
        with pytest.raises(ApiError):
            _ = [e async for e in client.watch(NODES, "0")]


async def test_leaving_a_watch_early_closes_its_connection() -> None:
    closed = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        try:
            answer = await stream(request, line("ADDED", node("a")))
            while True:
                await answer.write(line("MODIFIED", node("a")))
                await asyncio.sleep(0.01)
        except (ConnectionError, asyncio.CancelledError):
            closed.set()
            raise

    async with api(handler) as client:
        async with aclosing(client.watch(NODES, "0")) as events:
            await anext(events)
        await asyncio.wait_for(closed.wait(), 10)


async def test_bodies_carry_version_and_kind_and_deletes_their_precondition() -> None:
    bodies = []

    async def handler(request: web.Request) -> web.Response:
        bodies.append((request.method, request.path_qs, request.content_type, await request.json()))
        return web.json_response(node("n"))

    async with api(handler) as client:
        await client.create(NODES, {"metadata": {"name": "n"}})
        await client.apply(
            NODES, {"metadata": {"labels": {"a": "b"}}}, "n", field_manager="me", subresource="status"
        )
        await client.patch(NODES, "n", {"metadata": {"labels": {"a": None}}}, field_manager="me")
        await client.delete(NODES, "n", uid="u1")
    whole = {"apiVersion": "v1", "kind": "Node"}
    assert bodies == [
        ("POST", "/api/v1/nodes", "application/json", {"metadata": {"name": "n"}, **whole}),
        (
            "PATCH",
            "/api/v1/nodes/n/status?fieldManager=me&force=true",
            "application/apply-patch+yaml",
            {"metadata": {"labels": {"a": "b"}, "name": "n"}, **whole},
        ),
        (
            "PATCH",
            "/api/v1/nodes/n?fieldManager=me",
            "application/merge-patch+json",
            {"metadata": {"labels": {"a": None}}},
        ),
        (
            "DELETE",
            "/api/v1/nodes/n",
            "application/json",
            {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": "u1"}},
        ),
    ]


async def test_a_namespaced_object_needs_its_namespace() -> None:
    with pytest.raises(ValueError, match="pods p: the resource is namespaced"):
        PODS.path("p")


async def test_redirects_are_not_followed() -> None:
    """Whoever could redirect us would be sent our token."""
    asked = []

    async def handler(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.Response(status=302, headers={"Location": "/elsewhere"})

    async with api(handler) as client:
        with pytest.raises(ApiError) as caught:
            await client.get(NODES, "n")
    assert caught.value.status == 302
    assert asked == ["/api/v1/nodes/n"]


async def test_only_writes_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    waited = []

    async def handler(_: web.Request) -> web.Response:
        return web.json_response(node("n"))

    async def wait(_: Limiter) -> None:
        waited.append("token")

    monkeypatch.setattr(Limiter, "wait", wait)
    async with api(handler) as client:
        await client.get(NODES, "n")
        assert waited == []
        await client.create(NODES, node("n"))
        await client.patch(NODES, "n", {})
        await client.delete(NODES, "n")
    assert len(waited) == 3


async def test_watches_ask_for_bookmarks_and_for_an_end() -> None:
    asked: dict[str, str] = {}

    async def handler(request: web.Request) -> web.StreamResponse:
        asked.update(request.query)
        return await stream(request)

    async with api(handler) as client, aclosing(client.watch(NODES, "7", seconds=5)) as events:
        assert [event async for event in events] == []
    assert asked == {
        "watch": "true",
        "allowWatchBookmarks": "true",
        "resourceVersion": "7",
        "timeoutSeconds": "5",
    }
