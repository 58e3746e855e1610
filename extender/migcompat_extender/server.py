"""The HTTP application. TLS and ports are the caller's matter, so that benchmarks can use it as it is."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import msgspec
from aiohttp import ClientPayloadError, web
from aiohttp.typedefs import Handler, Middleware
from migcompat.fleet.fleet import Fleet

from migcompat_extender.admission import Admission
from migcompat_extender.explain import Explain, NotExplainable
from migcompat_extender.filter import Filter, error_answer
from migcompat_extender.metrics import Metrics
from migcompat_extender.prioritize import Prioritize
from migcompat_extender.refusals import Refusals
from migcompat_extender.settings import Settings
from migcompat_extender.table import Tables
from migcompat_extender.wire import WireError

log = logging.getLogger(__name__)

_NOT_UNDERSTOOD = web.RequestKey("not_understood", bool)

MAX_REVIEW_BYTES = 8 * 1024 * 1024
"""An AdmissionReview holds at most two objects of 1.5 MiB (etcd's limit); anyone may reach ``/mutate``."""


class _Refused(Exception):
    """A request that is answered with an HTTP error and one sentence."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Endpoints:
    """The four handlers over one fleet."""

    def __init__(
        self,
        fleet: Fleet,
        problem: Callable[[], str | None],
        settings: Settings,
        metrics: Metrics,
        refusals: Refusals,
    ) -> None:
        tables = Tables(fleet)
        self._settings = settings
        self._metrics = metrics
        self._filter = Filter(fleet, tables, problem, settings, refusals)
        self._prioritize = Prioritize(fleet, problem)
        self._admission = Admission(fleet, tables, problem, settings, refusals)
        self._explain = Explain(fleet, problem, refusals)
        self._passed = metrics.nodes.labels("passed")
        self._rejected = metrics.nodes.labels("rejected")

    async def filter(self, request: web.Request) -> web.Response:
        try:
            body = await self._body(request, self._settings.max_request_bytes)
            with self._metrics.seconds.labels("filter").time():
                answer, passed, rejected = self._filter.answer(body)
        except WireError as error:
            log.warning("filter call from %s cannot be understood: %s", request.remote, error)
            request[_NOT_UNDERSTOOD] = True
            return _json(error_answer(error))
        self._passed.inc(passed)
        self._rejected.inc(rejected)
        return _json(answer)

    async def prioritize(self, request: web.Request) -> web.Response:
        body = await self._body(request, self._settings.max_request_bytes)
        with self._metrics.seconds.labels("prioritize").time():
            return _json(self._prioritize.answer(body))

    async def mutate(self, request: web.Request) -> web.Response:
        body = await self._body(request, min(MAX_REVIEW_BYTES, self._settings.max_request_bytes))
        with self._metrics.seconds.labels("mutate").time():
            answer, outcome = self._admission.answer(body)
        if outcome:
            self._metrics.admissions.labels(outcome).inc()
        return _json(answer)

    async def explain(self, request: web.Request) -> web.Response:
        query = request.query
        with self._metrics.seconds.labels("explain").time():
            return _json(
                self._explain.answer(query.get("namespace", ""), query.get("vmi", ""), query.get("node", ""))
            )

    async def _body(self, request: web.Request, limit: int) -> bytes:
        """The whole body, within the bounds on bytes and time.

        Raises _Refused (413, 408), or WireError when the caller stops in the middle.
        """
        too_large = _Refused(413, f"request body is larger than {limit} bytes (--max-request-bytes)")
        if (request.content_length or 0) > limit:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self._settings.read_seconds):
                async for chunk in request.content.iter_any():
                    body += chunk
                    if len(body) > limit:
                        raise too_large
        except TimeoutError:
            raise _Refused(408, f"request body did not arrive in {self._settings.read_seconds:g} s") from None
        except (ClientPayloadError, web.PayloadAccessError, web.RequestPayloadError) as error:
            raise WireError(f"request body was cut short or is not what its headers say: {error}") from error
        return bytes(body)


def make_app(
    fleet: Fleet,
    problem: Callable[[], str | None],
    settings: Settings | None = None,
    metrics: Metrics | None = None,
    refusals: Refusals | None = None,
) -> web.Application:
    """The application over *fleet*; *problem* says why the fleet cannot be trusted now, or None.

    *refusals*: what guards have refused of late.
    """
    settings, metrics = settings or Settings(), metrics or Metrics()
    endpoints = _Endpoints(fleet, problem, settings, metrics, refusals or Refusals())
    app = web.Application(middlewares=[_outermost(settings, metrics)])
    app.router.add_post("/filter", endpoints.filter)
    app.router.add_post("/prioritize", endpoints.prioritize)
    app.router.add_post("/mutate", endpoints.mutate)
    app.router.add_get("/explain", endpoints.explain)
    return app


def _outermost(settings: Settings, metrics: Metrics) -> Middleware:
    known = {"/filter", "/prioritize", "/mutate", "/explain"}

    @web.middleware
    async def outermost(request: web.Request, handler: Handler) -> web.StreamResponse:
        """Demand client certificates, turn every failure into a clear JSON answer, and count."""
        try:
            if settings.client_certificates and request.path != "/mutate":
                _demand_certificate(request)
            response = await handler(request)
        except (_Refused, NotExplainable) as refused:
            response = _error(request, refused.status, str(refused))
        except WireError as error:
            response = _error(request, 400, str(error))
        except web.HTTPException as error:
            response = _error(request, error.status, f"{request.method} {request.path}: {error.reason}")
        except Exception:
            log.exception("%s %s from %s failed", request.method, request.path, request.remote)
            response = _error(request, 500, "internal error; the extender's log says what happened")
        endpoint = request.path.removeprefix("/") if request.path in known else "other"
        error_flag = "true" if response.status >= 400 or request.get(_NOT_UNDERSTOOD) else "false"
        metrics.responses.labels(endpoint, str(response.status), error_flag).inc()
        return response

    return outermost


def _demand_certificate(request: web.Request) -> None:
    """The handshake verified what was shown; here something must have been shown."""
    transport = request.transport
    if transport is None or not transport.get_extra_info("peercert"):
        raise _Refused(403, f"{request.path} needs a client certificate of the CA given by --client-ca")


def _error(request: web.Request, status: int, message: str) -> web.Response:
    """A JSON error: for ``/filter`` in the form of its answers, else ``{"error": …}``."""
    if status != 404:
        log.warning("%s %s from %s: %d %s", request.method, request.path, request.remote, status, message)
    body = error_answer(message) if request.path == "/filter" else msgspec.json.encode({"error": message})
    response = _json(body, status)
    if status in (408, 413):
        response.force_close()
    return response


def _json(body: bytes, status: int = 200) -> web.Response:
    return web.Response(body=body, status=status, content_type="application/json")
