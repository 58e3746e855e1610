"""Events aggregate, and never get in the way."""

from __future__ import annotations

from typing import Any

from aiohttp import web
from migcompat.api.event import ObjectReference
from migcompat.kube.events import MESSAGE_LIMIT, REPEAT_AFTER, EventRecorder

from tests.kube.fake_api import Handler, api, status

VMI = ObjectReference("kubevirt.io/v1", "VirtualMachineInstance", "vm", "ns", "u1")


class Events:
    """An API server for events only."""

    def __init__(self) -> None:
        self.stored: dict[str, dict[str, Any]] = {}
        self.requests: list[str] = []
        self.now = 0.0

    def clock(self) -> float:
        return self.now

    @property
    def handler(self) -> Handler:
        return self._handle

    async def _handle(self, request: web.Request) -> web.Response:
        self.requests.append(request.method)
        body = await request.json()
        if request.method == "POST":
            self.stored[body["metadata"]["name"]] = body
            return web.json_response(body)
        name = request.path.rsplit("/", 1)[-1]
        if name not in self.stored:
            return web.json_response(status(404, "NotFound"), status=404)
        self.stored[name].update(body)
        return web.json_response(self.stored[name])


async def test_the_same_event_is_one_object_with_a_count() -> None:
    events = Events()
    async with api(events.handler) as client:
        recorder = EventRecorder(client, "migcompat-operator", clock=events.clock)
        for _ in range(5):
            await recorder.record(VMI, "Warning", "NoTarget", "0 of 7 nodes")
        assert events.requests == ["POST"]
        events.now = REPEAT_AFTER
        await recorder.record(VMI, "Warning", "NoTarget", "0 of 7 nodes")
    assert events.requests == ["POST", "PATCH"]
    (event,) = events.stored.values()
    assert event["count"] == 6
    assert event["involvedObject"]["uid"] == "u1"
    assert event["source"] == {"component": "migcompat-operator"}
    assert event["metadata"]["namespace"] == "ns"
    assert (event["type"], event["reason"], event["message"]) == ("Warning", "NoTarget", "0 of 7 nodes")
    assert event["firstTimestamp"].endswith("Z")


async def test_the_objects_version_does_not_make_another_event() -> None:
    events = Events()
    async with api(events.handler) as client:
        recorder = EventRecorder(client, "c", clock=events.clock)
        for version in ("1", "2"):
            about = ObjectReference("v1", "Node", "n", resource_version=version)
            await recorder.record(about, "Normal", "R", "m")
    assert len(events.stored) == 1


async def test_an_expired_event_is_written_anew_with_its_count() -> None:
    events = Events()
    async with api(events.handler) as client:
        recorder = EventRecorder(client, "c", clock=events.clock)
        await recorder.record(VMI, "Normal", "R", "m")
        first = next(iter(events.stored.values()))["firstTimestamp"]
        events.stored.clear()
        events.now = REPEAT_AFTER
        await recorder.record(VMI, "Normal", "R", "m")
    assert events.requests == ["POST", "PATCH", "POST"]
    (event,) = events.stored.values()
    assert (event["count"], event["firstTimestamp"]) == (2, first)


async def test_a_cluster_scoped_object_has_its_events_in_default_and_long_texts_are_cut() -> None:
    events = Events()
    async with api(events.handler) as client:
        await EventRecorder(client, "c").record(ObjectReference("v1", "Node", "n"), "Normal", "R", "ä" * 2000)
    (event,) = events.stored.values()
    assert event["metadata"]["namespace"] == "default"
    assert len(event["message"].encode()) <= MESSAGE_LIMIT


async def test_a_flood_is_dropped_and_said() -> None:
    events = Events()
    async with api(events.handler) as client:
        recorder = EventRecorder(client, "c", clock=events.clock)
        for number in range(60):
            assert await recorder.record(VMI, "Normal", "R", f"message {number}") is (number < 50)
        assert len(events.stored) == 50
        events.now = 1.0
        await recorder.record(VMI, "Normal", "R", "later")
        assert len(events.stored) == 51


async def test_a_refused_event_is_only_logged() -> None:
    async def refuse(_: web.Request) -> web.Response:
        return web.json_response(status(403, "Forbidden", "no create on events"), status=403)

    async with api(refuse) as client:
        assert not await EventRecorder(client, "c").record(VMI, "Normal", "R", "m")


async def test_what_was_not_said_is_told_to_the_caller_and_can_be_said_at_once() -> None:
    events = Events()
    away = False

    async def handle(request: web.Request) -> web.StreamResponse:
        if away:
            return web.json_response(status(500, "InternalError"), status=500)
        return await events.handler(request)

    async with api(handle) as client:
        recorder = EventRecorder(client, "c", clock=events.clock)
        assert await recorder.record(VMI, "Normal", "R", "m")
        assert await recorder.record(VMI, "Normal", "R", "m"), "counted: said"
        away, events.now = True, REPEAT_AFTER
        assert not await recorder.record(VMI, "Normal", "R", "m")
        away = False
        assert await recorder.record(VMI, "Normal", "R", "m")
        assert events.requests == ["POST", "PATCH"], "a failure is no reason to wait"
