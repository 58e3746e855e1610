"""Stands in for kube-proxy: each Service's cluster IP is a loopback address, served here by a forwarder.

Endpoint slices may not hold loopback addresses, so pods are taken by the Service's selector directly.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from typing import Any

from tests.cluster.api import Cache, Object

log = logging.getLogger(__name__)

_DIAL = 5.0


class ServiceProxy:
    """Forwards TCP connections to cluster IPs to ready pods."""

    def __init__(self, pods: Cache) -> None:
        self._pods = pods
        self._servers: dict[tuple[str, int], asyncio.Server] = {}
        self._services: dict[tuple[str, int], tuple[Object, Object]] = {}
        self._opening: set[asyncio.Task[None]] = set()
        self.problems: list[str] = []
        """Addresses that could not be served."""

    def see(self, kind: str, service: Object) -> None:
        """A Service has changed."""
        spec = service["spec"]
        address = spec.get("clusterIP", "None")
        if not spec.get("selector") or address in ("", "None"):
            return
        wanted = {(address, p["port"]): p for p in spec["ports"] if p.get("protocol", "TCP") == "TCP"}
        for place in [p for p in self._services if p[0] == address]:
            if kind == "DELETED" or place not in wanted:
                del self._services[place]
                server = self._servers.pop(place, None)
                if server is not None:
                    server.close()
        if kind == "DELETED":
            return
        for place, port in wanted.items():
            known = place in self._services
            self._services[place] = (service, port)
            if not known:
                task = asyncio.create_task(self._open(place))
                self._opening.add(task)
                task.add_done_callback(self._opening.discard)

    async def close(self) -> None:
        """Stops listening."""
        for server in self._servers.values():
            server.close()
        self._servers.clear()

    async def _open(self, place: tuple[str, int]) -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._forward(place, reader, writer)

        try:
            self._servers[place] = await asyncio.start_server(serve, *place)
        except OSError as error:
            hint = ""
            if isinstance(error, PermissionError):
                hint = " (ports below 1024 need root, or net.ipv4.ip_unprivileged_port_start=0)"
            self.problems.append(f"service address {place[0]}:{place[1]}: {error}{hint}")
            log.error("%s", self.problems[-1])

    async def _forward(
        self, place: tuple[str, int], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        backend = self._backend(place)
        try:
            if backend is None:
                writer.transport.abort()  # a reset, as an iptables REJECT rule gives
                return
            async with asyncio.timeout(_DIAL):
                upstream_reader, upstream = await asyncio.open_connection(*backend)
        except (OSError, TimeoutError):
            writer.transport.abort()
            return
        try:
            await asyncio.gather(_pump(reader, upstream), _pump(upstream_reader, writer))
        finally:
            upstream.close()
            writer.close()

    def _backend(self, place: tuple[str, int]) -> tuple[str, int] | None:
        """Address of a ready pod, chosen at random."""
        found = self._services.get(place)
        if found is None:
            return None
        service, port = found
        selector = service["spec"]["selector"].items()
        candidates = []
        for pod in self._pods.all():
            meta, status = pod["metadata"], pod.get("status", {})
            ready = any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions", ()))
            if (
                meta["namespace"] == service["metadata"]["namespace"]
                and selector <= (meta.get("labels") or {}).items()
                and ready
                and "deletionTimestamp" not in meta
            ):
                candidates.append((status["podIP"], _port(pod, port.get("targetPort") or port["port"])))
        return random.choice(candidates) if candidates else None


def _port(pod: Object, wanted: Any) -> int:
    if isinstance(wanted, int):
        return wanted
    for container in pod["spec"]["containers"]:
        for port in container.get("ports", ()):
            if port.get("name") == wanted:
                number: int = port["containerPort"]
                return number
    raise LookupError(f"pod {pod['metadata']['name']} has no port {wanted}")


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
