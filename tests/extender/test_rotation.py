"""Certificates and authorities change under load, step by step, and every request is answered."""

from __future__ import annotations

import asyncio
import shutil
import ssl
from collections.abc import Callable
from pathlib import Path

import aiohttp
from aiohttp.test_utils import TestServer
from migcompat_extender.tls import Certificates

from tests.extender.certificates import Authority
from tests.extender.test_tls import app, listening
from tests.extender.world import args

ENOUGH = 20
"""Requests of each caller between two steps."""


class Files:
    """The three files of a Secret."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.cert, self.key, self.ca = folder / "tls.crt", folder / "tls.key", folder / "ca.crt"

    def show(self, issued: tuple[Path, Path]) -> None:
        """The pair is replaced."""
        shutil.copy(issued[0], self.cert)
        shutil.copy(issued[1], self.key)

    def trust(self, *authorities: Authority) -> None:
        """The bundle is replaced."""
        self.ca.write_bytes(b"".join(authority.file.read_bytes() for authority in authorities))

    def context(self) -> ssl.SSLContext:
        """A client that uses them as they are now."""
        context = ssl.create_default_context(cafile=str(self.ca))
        context.load_cert_chain(self.cert, self.key)
        return context


class Caller:
    """Calls the filter without a pause, and keeps what it was answered."""

    def __init__(self, server: TestServer, context: Callable[[], ssl.SSLContext], *, keeps: bool) -> None:
        self._url = server.make_url("/filter")
        self._context = context
        self._keeps = keeps
        self.answers: list[int] = []
        self.connections = 0

    async def run(self) -> None:
        """Until cancelled. With *keeps* over one connection, else each time over a new one."""
        while True:
            connector = aiohttp.TCPConnector(ssl=self._context())
            self.connections += 1
            async with aiohttp.ClientSession(connector=connector) as session:
                while True:
                    async with session.post(self._url, data=args(["n2"])) as answer:
                        assert b'"n2"' in await answer.read()
                        self.answers.append(answer.status)
                    if not self._keeps:
                        break


async def test_every_request_is_answered_while_everything_is_replaced(tmp_path: Path) -> None:
    old, new = Authority(tmp_path, "old-ca"), Authority(tmp_path, "new-ca")
    server_files, client_files = Files(tmp_path / "server"), Files(tmp_path / "client")
    server_files.show(old.issue("server-0"))
    client_files.show(old.issue("client-0"))
    for files in (server_files, client_files):
        files.trust(old)
    certificates = Certificates(server_files.cert, server_files.key, server_files.ca)
    late = [client_files.context()]
    steps: list[Callable[[], None]] = [
        lambda: server_files.show(old.issue("server-1")),
        lambda: client_files.show(old.issue("client-1")),
        lambda: server_files.trust(new, old),
        lambda: client_files.trust(new, old),
        # All have loaded the bundle that holds both; from here on the new authority signs.
        lambda: late.append(client_files.context()),
        lambda: server_files.show(new.issue("server-2")),
        lambda: client_files.show(new.issue("client-2")),
        lambda: late.append(client_files.context()),
        lambda: server_files.trust(new),
        lambda: client_files.trust(new),
    ]
    async with listening(certificates, app()) as server:
        callers = [
            Caller(server, client_files.context, keeps=True),
            Caller(server, client_files.context, keeps=False),
            Caller(server, lambda: late[-1], keeps=False),
        ]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(caller.run()) for caller in callers]
            for step in steps:
                step()
                certificates.reload()
                before = [len(caller.answers) for caller in callers]
                while any(
                    len(caller.answers) < count + ENOUGH
                    for caller, count in zip(callers, before, strict=True)
                ):
                    await asyncio.sleep(0.005)
            for task in tasks:
                task.cancel()
    for caller in callers:
        assert set(caller.answers) == {200}
        assert len(caller.answers) >= ENOUGH * len(steps)
    assert callers[0].connections == 1, "a connection outlives the certificates that it began with"
    assert callers[1].connections >= ENOUGH * len(steps)
