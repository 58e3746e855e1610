"""What is sent to the API server: only what was planned, and only for the very object it was planned for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from migcompat_operator import announcement as say
from migcompat_operator.announcement import Announcement
from migcompat_operator.metrics import Metrics
from migcompat_operator.mirror import Dirty, Mirror
from migcompat_operator.reconcile import Plan, reconcile
from migcompat_operator.targets import TargetPlan
from migcompat_operator.writer import Writer

from tests.kube.fake_api import api, status
from tests.operator.test_reconcile import NOW, fleet_of, of, stored
from tests.support.fleets import declared, pod, vfionode

KEY = ("tenant-a", "vm-a")


class Api:
    """Takes everything; ``asked``: method, last part of the path, body. ``gone``: Conflict."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, dict[str, Any]]] = []
        self.gone = False

    async def answer(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.asked.append((request.method, request.path.rpartition("/")[2], body))
        if self.gone:
            return web.json_response(status(409, "Conflict"), status=409)
        meta = {"name": "vm-a", "namespace": "tenant-a", "resourceVersion": "9"}
        if request.method == "POST":
            return web.json_response({**body, "metadata": meta})
        return web.json_response({"metadata": meta, "spec": {}})


@asynccontextmanager
async def writing() -> AsyncIterator[tuple[Writer, Api]]:
    server = Api()
    async with api(server.answer) as client:
        yield Writer(client, Mirror(fleet_of({}), Dirty(lambda: None)), Metrics()), server


async def test_deletions_and_stamps_name_the_object_that_was_looked_at() -> None:
    target = pod("vm-a", source="node-1", suffix="dst", phase="Pending")
    item = stored(reconcile(fleet := fleet_of({}), None, of(fleet), now=NOW))
    async with writing() as (writer, server):
        await writer.question(KEY, item, Plan(delete=True))
        await writer.target(target, TargetPlan(delete=True))
        await writer.target(target, TargetPlan(stamp="text"))
    assert [(method, name) for method, name, _ in server.asked] == [
        ("DELETE", "vm-a"),
        ("DELETE", "virt-launcher-vm-a-dst"),
        ("PATCH", "virt-launcher-vm-a-dst"),
    ]
    first, second, stamped = (body for _, _, body in server.asked)
    assert first["preconditions"] == {"uid": "mc-uid"}
    assert second["preconditions"] == {"uid": "pod-vm-a-dst"}
    assert stamped == {"metadata": {"uid": "pod-vm-a-dst", "annotations": {"migcompat.io/source": "text"}}}


async def test_the_first_status_is_written_whole_and_the_next_as_a_difference() -> None:
    fleet = fleet_of({"n2": [declared("1.1.0")]})
    used = vfionode("n2", {"n2-0": declared("1.1.0")}, allocated={"n2-0": ("x", "y")})
    fleet.put_vfionode(used)
    first = reconcile(fleet, None, of(fleet), now=NOW)
    item = stored(first)
    fleet.put_vfionode(vfionode("n2", {"n2-0": declared("1.1.0")}))
    second = reconcile(fleet, item, of(fleet), now=NOW)
    async with writing() as (writer, server):
        await writer.question(KEY, None, first)
        await writer.question(KEY, item, second)
    (_, _, _), (_, _, whole), (_, _, difference) = server.asked
    assert (whole["status"]["compatible"], whole["status"]["free"]) == (1, 0), "zeroes too"
    assert difference["status"].keys() == {"free", "conditions"}


async def test_what_changed_meanwhile_is_no_failure() -> None:
    async with writing() as (writer, server):
        server.gone = True
        item = stored(reconcile(fleet := fleet_of({}), None, of(fleet), now=NOW))
        await writer.question(KEY, item, Plan(delete=True))
        await writer.target(pod("vm-a", source="node-1"), TargetPlan(delete=True))
    assert len(server.asked) == 2


async def test_the_same_cause_is_said_once() -> None:
    about = say.about_pod(pod("vm-a", source="node-1"))
    told = [Announcement(about, say.WARNING, "R", f"{count} nodes", "why") for count in (1, 2)]
    async with writing() as (writer, server):
        for one in told:
            await writer.say((one,))
        await writer.say((Announcement(about, say.WARNING, "R", "3 nodes", "why else"),))
    assert [body["message"] for _, _, body in server.asked] == ["1 nodes", "3 nodes"]
