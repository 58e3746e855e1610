"""TLS: who needs a client certificate, and certificates that change under the running server."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from migcompat_extender.server import make_app
from migcompat_extender.settings import Settings
from migcompat_extender.tls import Certificates

from tests.extender.certificates import Authority
from tests.extender.world import all_well, args, review, target, world

EXPLAIN = "/explain?namespace=tenant-a&vmi=vm-a"


@asynccontextmanager
async def listening(certificates: Certificates, app: web.Application) -> AsyncIterator[TestServer]:
    server = TestServer(app, scheme="https")
    await server.start_server(ssl=certificates.context)
    try:
        yield server
    finally:
        await server.close()


def app() -> web.Application:
    return make_app(world({"n2": "1.1.0"}), all_well, Settings(client_certificates=True))


async def ask(
    server: TestServer, path: str, tls: ssl.SSLContext, body: bytes | None = None, host: str = "127.0.0.1"
) -> tuple[int, str]:
    """One request over a connection of its own."""
    url = server.make_url(path).with_host(host)
    connector = aiohttp.TCPConnector(ssl=tls, force_close=True)
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.request("POST" if body else "GET", url, data=body) as answer,
    ):
        return answer.status, await answer.text()


async def test_client_certificates(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "ca")
    clients, strangers = Authority(tmp_path, "client-ca"), Authority(tmp_path, "other-ca")
    certificates = Certificates(*authority.issue("server"), clients.file)
    known = authority.client(clients.issue("kube-scheduler"))
    async with listening(certificates, app()) as server:
        for path, body in (("/filter", args(["n2"])), ("/prioritize", args(["n2"])), (EXPLAIN, None)):
            assert (await ask(server, path, known, body))[0] == 200
            status, text = await ask(server, path, authority.client(), body)
            assert status == 403
            assert "client certificate" in text
        assert (await ask(server, "/mutate", authority.client(), review(target())))[0] == 200
        assert (await ask(server, "/mutate", known, review(target())))[0] == 200
        unknown = authority.client(strangers.issue("stranger"))
        with pytest.raises((aiohttp.ClientError, ssl.SSLError, ConnectionError)):
            await ask(server, "/filter", unknown, args(["n2"]))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_rotation_reaches_new_connections(tmp_path: Path, host: str) -> None:
    old, new = Authority(tmp_path, "old-ca"), Authority(tmp_path, "new-ca")
    cert, key, ca = tmp_path / "tls.crt", tmp_path / "tls.key", tmp_path / "ca.crt"

    def install(authority: Authority, name: str) -> None:
        issued = authority.issue(name)
        shutil.copy(issued[0], cert)
        shutil.copy(issued[1], key)
        shutil.copy(authority.file, ca)

    install(old, "server-1")
    certificates = Certificates(cert, key, ca)
    before, after = old.client(old.issue("client-1")), new.client(new.issue("client-2"))
    both = old.client(new.issue("client-3"))
    both.load_verify_locations(str(new.file))
    async with listening(certificates, app()) as server:
        assert (await ask(server, "/filter", before, args(["n2"]), host))[0] == 200
        assert certificates.reload() is False
        with pytest.raises((aiohttp.ClientError, ssl.SSLError, ConnectionError)):
            await ask(server, "/filter", both, args(["n2"]), host)
        install(new, "server-2")
        assert certificates.reload() is True
        assert (await ask(server, "/filter", after, args(["n2"]), host))[0] == 200
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await ask(server, "/filter", before, args(["n2"]), host)
        stale_client = new.client(old.issue("client-4"))
        with pytest.raises((aiohttp.ClientError, ssl.SSLError, ConnectionError)):
            await ask(server, "/filter", stale_client, args(["n2"]), host)


async def test_a_client_ca_that_alone_changes_is_reloaded(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "ca")
    old, new = Authority(tmp_path, "old-ca"), Authority(tmp_path, "new-ca")
    ca = tmp_path / "client-ca.crt"
    shutil.copy(old.file, ca)
    certificates = Certificates(*authority.issue("server"), ca)
    before, after = authority.client(old.issue("client-1")), authority.client(new.issue("client-2"))
    async with listening(certificates, app()) as server:
        assert (await ask(server, "/filter", before, args(["n2"])))[0] == 200
        shutil.copy(new.file, ca)
        assert certificates.reload() is True
        assert (await ask(server, "/filter", after, args(["n2"])))[0] == 200
        with pytest.raises((aiohttp.ClientError, ssl.SSLError, ConnectionError)):
            await ask(server, "/filter", before, args(["n2"]))


async def test_sessions_cannot_be_resumed(tmp_path: Path) -> None:
    """A resumed session would not show its client certificate again after the client CA was rotated."""
    authority = Authority(tmp_path, "ca")
    async with listening(Certificates(*authority.issue("server")), app()) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port, ssl=authority.client())
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert await reader.read()
        assert not writer.get_extra_info("ssl_object").session.has_ticket
        writer.close()


async def test_a_half_written_pair_keeps_the_one_before(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "ca")
    cert, key = authority.issue("server")
    certificates = Certificates(cert, key)
    shutil.copy(authority.issue("next")[0], cert)
    with pytest.raises(ssl.SSLError):
        certificates.reload()
    assert certificates.reload() is False, "each change is told of once"
    plain = make_app(world({"n2": "1.1.0"}), all_well)
    async with listening(certificates, plain) as server:
        assert (await ask(server, "/filter", authority.client(), args(["n2"])))[0] == 200
        shutil.copy(tmp_path / "next.key", key)
        assert certificates.reload() is True
        assert (await ask(server, "/filter", authority.client(), args(["n2"])))[0] == 200
        key.unlink()
        with pytest.raises(FileNotFoundError):
            certificates.reload()
        assert (await ask(server, "/filter", authority.client(), args(["n2"])))[0] == 200


async def test_watch_tells_what_came_of_a_change(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "ca")
    cert, key = authority.issue("server")
    certificates = Certificates(cert, key)
    results: list[bool] = []

    class Enough(Exception):
        pass

    def note(ok: bool) -> None:
        results.append(ok)
        if ok:
            raise Enough
        shutil.copy(tmp_path / "next.key", key)

    shutil.copy(authority.issue("next")[0], cert)
    with pytest.raises(Enough):
        await certificates.watch(note, interval=0.01)
    assert results == [False, True]


def test_unusable_files_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        Certificates(tmp_path / "tls.crt", tmp_path / "tls.key")


async def test_old_protocol_versions_are_refused(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "ca")
    old = authority.client()
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    async with listening(Certificates(*authority.issue("server")), app()) as server:
        with pytest.raises((aiohttp.ClientError, ssl.SSLError)):
            await ask(server, "/mutate", old, review(target()))


@pytest.mark.parametrize(
    ("shift", "words"), [(-5, "expired at"), (5, "is not valid before")], ids=["expired", "not yet valid"]
)
async def test_a_certificate_at_the_wrong_time_is_served_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, shift: int, words: str
) -> None:
    """This clock may be the wrong one: whoever calls judges, and who does not would get the answer."""
    authority = Authority(tmp_path, "ca")
    certificates = Certificates(*authority.issue("server", timedelta(hours=shift)), authority.file)
    client = authority.client(authority.issue("client"))
    now = time.time()
    assert words in certificates.judge(now)["server"]
    assert caplog.messages[0].startswith(f"server certificate {words}")
    certificates.judge(now)
    assert len(caplog.messages) == 1, "once"
    assert "server" not in certificates.judge(now + shift * 3600), "by that clock it would be valid"
    async with listening(certificates, app()) as server:
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await ask(server, "/filter", client, args(["n2"]))
        client.check_hostname = False
        client.verify_mode = ssl.CERT_NONE
        assert (await ask(server, "/filter", client, args(["n2"])))[0] == 200


async def test_a_client_certificate_at_the_wrong_time_is_refused(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "ca")
    async with listening(Certificates(*authority.issue("server"), authority.file), app()) as server:
        for hours in (-5, 5):
            client = authority.client(authority.issue(f"client{hours}", timedelta(hours=hours)))
            with pytest.raises((aiohttp.ClientError, ssl.SSLError, ConnectionError)):
                await ask(server, "/filter", client, args(["n2"]))
        assert (await ask(server, "/filter", authority.client(authority.issue("c")), args(["n2"])))[0] == 200


def test_lives_are_those_of_the_files_that_are_used(tmp_path: Path) -> None:
    authority, other = Authority(tmp_path, "ca"), Authority(tmp_path, "other")
    cert, key = authority.issue("server")
    certificates = Certificates(cert, key, authority.file)
    before = certificates.lives
    assert before["server"].begins < time.time() < before["server"].ends
    assert before.keys() == {"server", "client-ca"}
    shutil.copy(other.issue("next", timedelta(hours=1))[0], cert)
    with pytest.raises(ssl.SSLError):
        certificates.reload()
    assert certificates.lives == before, "a pair that does not fit is not used"
    shutil.copy(tmp_path / "next.key", key)
    certificates.reload()
    assert certificates.lives["server"].ends > before["server"].ends
