"""TLS with certificates that are reloaded when their files change.

Only TLS 1.3 without session tickets: with tickets a client certificate would not be checked again after the
client CA was rotated. Every Kubernetes component speaks it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from cryptography import x509

log = logging.getLogger(__name__)

POLL_SECONDS = 5.0


class Life(msgspec.Struct, frozen=True):
    """From when until when a certificate is valid (seconds since 1970)."""

    begins: float
    ends: float

    def problem(self, now: float) -> str | None:
        """What is wrong with it at *now*."""
        if now < self.begins:
            return f"is not valid before {_utc(self.begins)}"
        return f"expired at {_utc(self.ends)}" if now >= self.ends else None


class Certificates:
    """A server certificate and, when *client_ca* is given, the CA that client certificates must come from.

    :attr:`context` is for the listening socket and stays the same; each handshake uses the files as they were
    last loaded in full, so a half-written pair never shows. Client certificates are asked for but not
    demanded here: which endpoints need one is the application's matter.

    One that has expired, or is not valid yet, is served all the same, and said: this clock may be the wrong
    one, and whoever calls judges by its own. :attr:`lives` tells of ``server`` and ``client-ca`` (of several
    the last to expire).

    Raises OSError (ssl.SSLError is one) when the files cannot be used at first.
    """

    def __init__(self, cert: Path, key: Path, client_ca: Path | None = None) -> None:
        self._cert, self._key, self._client_ca = cert, key, client_ca
        self.lives: dict[str, Life] = {}
        self._said: dict[str, str] = {}
        self._seen = self._signature()
        self._current = self._load()
        self.context = self._load()
        self.context.sni_callback = self._choose

    def reload(self) -> bool:
        """Load the files again if they changed since last time. Returns whether they did.

        Raises OSError when they cannot be used; the ones loaded before stay in use.
        """
        signature = self._signature()
        if signature == self._seen:
            return False
        self._seen = signature
        self._current = self._load()
        return True

    async def watch(self, on_result: Callable[[bool], None], interval: float = POLL_SECONDS) -> None:
        """Reload on changes until cancelled; *on_result* is told whether a change could be loaded."""
        while True:
            self.judge(time.time())
            await asyncio.sleep(interval)
            try:
                changed = self.reload()
            except OSError as error:
                log.error(
                    "%s, %s: changed, but not usable; the ones before stay: %s", self._cert, self._key, error
                )
                on_result(False)
                continue
            if changed:
                log.info("%s: certificate reloaded", self._cert)
                on_result(True)

    def judge(self, now: float) -> dict[str, str]:
        """What is wrong at *now* (seconds since 1970) with which certificate; what is new of it is logged."""
        found = {name: problem for name, life in self.lives.items() if (problem := life.problem(now))}
        for name, problem in found.items():
            if self._said.get(name) != problem:
                log.warning(
                    "%s certificate %s, and this node's clock says %s: handshakes will fail, "
                    "unless that clock is wrong",
                    name,
                    problem,
                    _utc(now),
                )
        self._said = found
        return found

    def _choose(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        connection.context = self._current

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.num_tickets = 0
        context.load_cert_chain(self._cert, self._key)
        if self._client_ca is not None:
            context.load_verify_locations(self._client_ca)
            context.verify_mode = ssl.CERT_OPTIONAL
        self.lives = _lives(self._cert, self._client_ca)
        return context

    def _signature(self) -> tuple[tuple[int, int, int] | None, ...]:
        """Inode, time and size of each file: a mounted Secret changes by swapping a symlink above it."""
        return tuple(_stat(path) for path in (self._cert, self._key, self._client_ca) if path is not None)


def _lives(cert: Path, client_ca: Path | None) -> dict[str, Life]:
    """Of what OpenSSL has just taken; what only this reader does not understand is left out."""
    lives = {}
    try:
        lives["server"] = _life(x509.load_pem_x509_certificates(cert.read_bytes())[0])
        if client_ca is not None:
            authorities = x509.load_pem_x509_certificates(client_ca.read_bytes())
            lives["client-ca"] = max(map(_life, authorities), key=lambda life: life.ends)
    except (OSError, ValueError) as error:
        log.warning("when the certificates expire is not known: %s", error)
    return lives


def _life(certificate: x509.Certificate) -> Life:
    return Life(certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp())


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _stat(path: Path) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
