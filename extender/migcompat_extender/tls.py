"""TLS with certificates that are reloaded when their files change.

Only TLS 1.3 without session tickets: with tickets a client certificate would not be checked again after the
client CA was rotated. Every Kubernetes component speaks it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger(__name__)

POLL_SECONDS = 5.0


class Certificates:
    """A server certificate and, when *client_ca* is given, the CA that client certificates must come from.

    :attr:`context` is for the listening socket and stays the same; each handshake uses the files as they were
    last loaded in full, so a half-written pair never shows. Client certificates are asked for but not
    demanded here: which endpoints need one is the application's matter.

    Raises OSError (ssl.SSLError is one) when the files cannot be used at first.
    """

    def __init__(self, cert: Path, key: Path, client_ca: Path | None = None) -> None:
        self._cert, self._key, self._client_ca = cert, key, client_ca
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
        return context

    def _signature(self) -> tuple[tuple[int, int, int] | None, ...]:
        """Inode, time and size of each file: a mounted Secret changes by swapping a symlink above it."""
        return tuple(_stat(path) for path in (self._cert, self._key, self._client_ca) if path is not None)


def _stat(path: Path) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
