"""Health, metrics and logs of every process."""

from __future__ import annotations

import logging

import aiohttp
import pytest
from migcompat import logs
from migcompat.httpserver import parse_bind, serve_health
from prometheus_client import CollectorRegistry, Gauge


async def test_health_readiness_and_metrics() -> None:
    registry = CollectorRegistry()
    Gauge("migcompat_things", "Things.", registry=registry).set(3)
    runner = await serve_health("127.0.0.1:0", lambda: None, lambda: "nodes: not listed yet", registry)
    base = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        async with aiohttp.ClientSession() as session:
            answers = {}
            for path in ("healthz", "readyz", "metrics"):
                async with session.get(f"{base}/{path}") as answer:
                    answers[path] = (answer.status, await answer.text())
    finally:
        await runner.cleanup()
    assert answers["healthz"] == (200, "ok\n")
    assert answers["readyz"] == (503, "nodes: not listed yet\n")
    assert "migcompat_things 3.0" in answers["metrics"][1]


def test_addresses() -> None:
    assert parse_bind("0.0.0.0:8080") == ("0.0.0.0", 8080)
    assert parse_bind("[::1]:1") == ("::1", 1)
    for bad in ("8080", "host:", "host:http", "host:70000"):
        with pytest.raises(ValueError, match="is not host:port"):
            parse_bind(bad)


def test_a_log_entry_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    root.handlers = []
    try:
        logs.set_up("info")
        logging.getLogger("x").debug("hidden")
        try:
            raise KeyError("k")
        except KeyError:
            logging.getLogger("x").exception("node n1: cannot\nwork")
    finally:
        root.handlers = before
        root.setLevel(level)
    text = capsys.readouterr().err
    assert len(text.splitlines()) == 1
    assert "Z ERROR x node n1: cannot | work | Traceback" in text
    assert text.endswith("KeyError: 'k'\n")


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(ValueError, match="'loud' is not one of debug, info, warning, error"):
        logs.set_up("loud")
