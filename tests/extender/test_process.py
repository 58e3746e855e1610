"""The real process: start, readiness, an orderly end, and refusals to start."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.extender.certificates import Authority
from tests.extender.test_caches import Api, objects
from tests.extender.world import args

COMMAND = [sys.executable, "-c", "from migcompat_extender.cli import main; main()"]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@asynccontextmanager
async def apiserver(handler: Api) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler.answer)
    server = TestServer(app)
    await server.start_server()
    try:
        yield str(server.make_url("")).rstrip("/")
    finally:
        await server.close()


def kubeconfig(folder: Path, url: str) -> Path:
    """JSON is YAML."""
    file = folder / "kubeconfig"
    file.write_text(
        json.dumps(
            {
                "current-context": "c",
                "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                "clusters": [{"name": "c", "cluster": {"server": url}}],
                "users": [{"name": "u", "user": {"token": "t"}}],
            }
        )
    )
    return file


async def says(session: aiohttp.ClientSession, url: str, text: str) -> None:
    """Wait until *url* answers *text*."""
    while True:
        try:
            async with session.get(url) as answer:
                if await answer.text() == text:
                    return
        except aiohttp.ClientConnectionError:
            pass
        await asyncio.sleep(0.02)


async def test_life(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "ca")
    cert, key = authority.issue("server")
    port, health = free_port(), f"127.0.0.1:{free_port()}"
    tls = authority.client(authority.issue("client"))
    async with apiserver(Api(objects())) as url:
        process = await asyncio.create_subprocess_exec(
            *COMMAND,
            f"--bind=127.0.0.1:{port}",
            f"--health-bind={health}",
            f"--tls-cert={cert}",
            f"--tls-key={key}",
            f"--client-ca={authority.file}",
            f"--kubeconfig={kubeconfig(tmp_path, url)}",
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(60), aiohttp.ClientSession() as session:
                await says(session, f"http://{health}/readyz", "ok\n")
                async with session.post(
                    f"https://localhost:{port}/filter", data=args(["n2", "node-9"]), ssl=tls
                ) as answer:
                    assert (await answer.json())["NodeNames"] == ["n2"]
                async with session.get(f"http://{health}/metrics") as answer:
                    text = await answer.text()
                assert 'migcompat_extender_filtered_nodes_total{verdict="passed"} 1.0' in text
                assert "migcompat_extender_caches_ready 1.0" in text
                for certificate in ("server", "client-ca"):
                    for about in ("expiry", "start"):
                        name = f"migcompat_extender_certificate_{about}_timestamp_seconds"
                        assert f'{name}{{certificate="{certificate}"}} 1.' in text
                process.send_signal(signal.SIGTERM)
                await says(session, f"http://{health}/readyz", "stopping\n")
                async with session.post(
                    f"https://localhost:{port}/filter", data=args(["n2"]), ssl=tls
                ) as answer:
                    assert answer.status == 200, "callers that have not noticed yet are still served"
                _, errors = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    assert process.returncode == 0, errors.decode()
    assert b"Traceback" not in errors
    assert errors.rstrip().endswith(b"stopped")


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--tls-cert=/nowhere/tls.crt"], "No such file or directory"),
        (["--bind=8443"], "is not host:port"),
        (["--health-bind=nonsense"], "is not host:port"),
        (["--kubeconfig=/nowhere/config"], "/nowhere/config"),
        (["--log-level=loud"], "log level 'loud' is not one of"),
    ],
)
async def test_refusals_to_start_say_why(tmp_path: Path, flags: list[str], reason: str) -> None:
    cert, key = Authority(tmp_path, "ca").issue("server")
    process = await asyncio.create_subprocess_exec(
        *COMMAND,
        f"--tls-cert={cert}",
        f"--tls-key={key}",
        "--bind=127.0.0.1:0",
        "--health-bind=127.0.0.1:0",
        f"--kubeconfig={kubeconfig(tmp_path, 'http://127.0.0.1:1')}",
        *flags,
        stderr=asyncio.subprocess.PIPE,
    )
    _, errors = await process.communicate()
    assert process.returncode == 2
    assert b"Traceback" not in errors
    assert reason in errors.decode()
    assert errors.decode().splitlines()[-1].startswith("migcompat-extender: cannot run: ")
