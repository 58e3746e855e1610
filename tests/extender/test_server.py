"""The HTTP application: bounds on size and time, and a clear answer to everything."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from migcompat_extender.metrics import Metrics
from migcompat_extender.server import make_app
from migcompat_extender.settings import Settings

from tests.extender.world import all_well, args, review, serving, target, world


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(f"migcompat_extender_{name}", labels) or 0.0


async def test_the_four_endpoints() -> None:
    metrics = Metrics()
    app = make_app(world({"n2": "1.1.0", "n3": "1.0.0"}), all_well, metrics=metrics)
    async with serving(app) as client:
        answer = await client.post("/filter", data=args(["n2", "n3"]))
        assert answer.content_type == "application/json"
        assert (await answer.json())["NodeNames"] == ["n2"]
        assert [h["Score"] for h in await (await client.post("/prioritize", data=args(["n2"]))).json()] == [
            10
        ]
        reviewed = await (await client.post("/mutate", data=review(target()))).json()
        assert reviewed["response"]["allowed"] is True
        explained = await (await client.get("/explain?namespace=tenant-a&vmi=vm-a")).json()
        assert explained["compatible"] == 1
    assert value(metrics, "filtered_nodes_total", verdict="passed") == 1
    assert value(metrics, "filtered_nodes_total", verdict="rejected") == 1
    assert value(metrics, "admissions_total", outcome="steered") == 1
    assert value(metrics, "responses_total", endpoint="filter", code="200", error="false") == 1
    assert value(metrics, "request_seconds_count", endpoint="mutate") == 1


@pytest.mark.parametrize("body", [b"", b"no json", args(["n2"])[:-9], b'{"Pod": 1}', args(None)])
async def test_a_filter_call_that_cannot_be_understood_is_an_error_with_status_200(body: bytes) -> None:
    metrics = Metrics()
    async with serving(make_app(world({"n2": "1.1.0"}), all_well, metrics=metrics)) as client:
        answer = await client.post("/filter", data=body)
        said = await answer.json()
        assert answer.status == 200, "kube-scheduler drops the text of any other status"
        assert said["Error"].startswith("migcompat: request is not ExtenderArgs")
        assert said["NodeNames"] is said["Nodes"] is None
        again = await client.post("/filter", data=args(["n2"]))
        assert (await again.json())["NodeNames"] == ["n2"], "everything else goes on"
    assert value(metrics, "responses_total", endpoint="filter", code="200", error="true") == 1


@pytest.mark.parametrize("path", ["/mutate", "/prioritize"])
async def test_other_calls_that_cannot_be_understood_get_400(path: str) -> None:
    async with serving(make_app(world({"n2": "1.1.0"}), all_well)) as client:
        answer = await client.post(path, data=b'{"x"')
        assert answer.status == 400
        assert "is not" in (await answer.json())["error"]


@pytest.mark.parametrize("path", ["/filter", "/mutate", "/prioritize"])
@pytest.mark.parametrize("chunked", [False, True])
async def test_bodies_above_the_bound(path: str, chunked: bool) -> None:
    async def pieces() -> Any:
        for _ in range(40):
            yield b" " * 1000

    app = make_app(world({"n2": "1.1.0"}), all_well, Settings(max_request_bytes=20_000))
    async with serving(app) as client:
        answer = await client.post(path, data=pieces() if chunked else b" " * 40_000)
        said = await answer.json()
        assert answer.status == 413
        assert (
            "larger than 20000 bytes (--max-request-bytes)" in said["Error" if path == "/filter" else "error"]
        )
        assert (await client.post("/filter", data=args(["n2"]))).status == 200


async def test_large_bodies_below_the_bound_are_served() -> None:
    items = [{"metadata": {"name": f"n{i}", "annotations": {"x": "y" * 3000}}} for i in range(1000)]
    async with serving(make_app(world({"n2": "1.1.0"}), all_well)) as client:
        answer = await client.post("/filter", data=args(None, nodes={"metadata": {}, "items": items}))
        said = await answer.json()
        assert [item["metadata"]["name"] for item in said["Nodes"]["items"]] == ["n2"]
        assert len(said["FailedAndUnresolvableNodes"]) == 999


async def raw(app: Any, *parts: bytes) -> bytes:
    """What the server says to *parts* (up to the end of a JSON object), over a connection that stays open."""
    async with serving(app) as client:
        reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
        try:
            for part in parts:
                writer.write(part)
                await writer.drain()
            async with asyncio.timeout(30):
                return await reader.readuntil(b'"}')
        finally:
            writer.close()


HEAD = b"POST /filter HTTP/1.1\r\nHost: x\r\n"


async def test_a_body_that_never_arrives_does_not_hold_the_server() -> None:
    app = make_app(world({}), all_well, Settings(read_seconds=0.2))
    said = await raw(app, HEAD + b"Content-Length: 1000\r\n\r\n", b"{")
    assert said.startswith(b"HTTP/1.1 408 ")
    assert b"did not arrive in 0.2 s" in said


async def test_a_connection_cut_in_the_body_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(make_app(world({"n2": "1.1.0"}), all_well)) as client:
        _, writer = await asyncio.open_connection("127.0.0.1", client.port)
        writer.write(HEAD + b"Content-Length: 1000\r\n\r\n{")
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        assert (await client.post("/filter", data=args(["n2"]))).status == 200
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]


async def test_a_body_that_is_not_what_its_headers_say() -> None:
    async with serving(make_app(world({}), all_well)) as client:
        answer = await client.post("/filter", data=b"no gzip", headers={"Content-Encoding": "gzip"})
        assert answer.status in (200, 400)
        assert (await answer.json())["Error"].startswith("migcompat: ")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/filter", 405),
        ("POST", "/explain", 405),
        ("GET", "/", 404),
        ("GET", "/metrics", 404),
        ("GET", "/explain", 400),
        ("GET", "/explain?namespace=tenant-a&vmi=nobody", 404),
    ],
)
async def test_every_refusal_is_json(method: str, path: str, status: int) -> None:
    async with serving(make_app(world({}), all_well)) as client:
        answer = await client.request(method, path)
        assert answer.status == status
        said = await answer.json()
        assert said.get("error") or said.get("Error")


async def test_without_caches_explain_says_why() -> None:
    async with serving(make_app(world({}), lambda: "not listed yet: pods")) as client:
        answer = await client.get("/explain?namespace=tenant-a&vmi=vm-a")
        assert answer.status == 503
        assert (await answer.json()) == {"error": "CachesNotReady: not listed yet: pods"}


async def test_a_fault_of_ours_is_logged_and_answered(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> str | None:
        raise RuntimeError("broken on purpose")

    async with serving(make_app(world({}), broken)) as client:
        answer = await client.post("/mutate", data=review(target()))
        assert answer.status == 500
        assert "internal error" in (await answer.json())["error"]
    assert "broken on purpose" in caplog.text
    assert "/mutate" in caplog.text
