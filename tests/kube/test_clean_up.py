"""The command that takes out of a cluster what migcompat wrote, against an API server with moods of its own.

What it does to a real cluster: tests/chart/test_clean_up.py.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from migcompat.api import names
from migcompat.cli import clean_up
from migcompat.kube.errors import Forbidden, Unreachable

from tests.kube.fake_api import api, listing, node, status

OURS = {"migcompat.io/managed": "true", "type.migcompat.io/t": "true", "offers.migcompat.io/p": "true"}
FOREIGN = {"zone": "a", "migcompat.io/other": "kept", "type.example.org/t": "true"}
Object = dict[str, Any]


@dataclass
class Cluster:
    """Two Nodes, three VFIONodes, what people and the operator asked, and policies."""

    nodes: dict[str, dict[str, str]] = field(
        default_factory=lambda: {"a": {**OURS, **FOREIGN}, "b": dict(FOREIGN)}
    )
    vfionodes: list[str] = field(default_factory=lambda: ["a", "b", "c"])
    questions: dict[str, Object] = field(default_factory=dict)
    policies: dict[str, Object] = field(default_factory=dict)
    workloads: dict[str, int] = field(default_factory=dict)
    """By name, how often they are still seen after their deletion."""
    answers: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    """Statuses to answer next, by method and last part of the path."""
    asked: Counter[tuple[str, str]] = field(default_factory=Counter)
    bodies: list[Object] = field(default_factory=list)

    async def handle(self, request: web.Request) -> web.Response:
        what = request.path.rpartition("/")[2]
        self.asked[request.method, what] += 1
        told = self.answers.get((request.method, what))
        if told:
            code = told.pop(0)
            return web.json_response(status(code, f"Mood{code}"), status=code)
        if request.method in ("DELETE", "PATCH"):
            self.bodies.append(json.loads(await request.read()))
        if what in ("nodes", "vfionodes", "migrationcompatibilities", "compatibilitypolicies", "pods"):
            return listing(*self._all(what))
        if "/nodes/" in request.path:
            self.nodes[what] = {
                k: v for k, v in self.nodes[what].items() if k not in self.bodies[-1]["metadata"]["labels"]
            }
            return web.json_response(node(what))
        if "/vfionodes/" in request.path:
            self.vfionodes.remove(what)
        elif "/migrationcompatibilities/" in request.path:
            del self.questions[what]
        elif "/compatibilitypolicies/" in request.path:
            del self.policies[what]
        elif self.workloads.get(what, -1) < 0:
            return web.json_response(status(404, "NotFound"), status=404)
        elif request.method == "GET":
            self.workloads[what] -= 1
        return web.json_response({"metadata": {"name": what}})

    def _all(self, what: str) -> Iterator[Object]:
        if what == "nodes":
            yield from ({"metadata": {"name": name, "labels": labels}} for name, labels in self.nodes.items())
        elif what == "vfionodes":
            yield from ({"metadata": {"name": name}} for name in self.vfionodes)
        elif what == "migrationcompatibilities":
            yield from self.questions.values()
        elif what == "compatibilitypolicies":
            yield from self.policies.values()
        else:
            yield {"metadata": {"name": "m-device-plugin-x"}, "spec": {"nodeName": "dead"}}


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clean_up, "POLL", 0.01)
    monkeypatch.setattr(clean_up, "PAUSE", 0.01)


async def run(cluster: Cluster, deadline: float = 10.0) -> str:
    async with api(cluster.handle) as client:
        return await clean_up._run(client, "ns", "m", deadline)


def question(name: str, *, labels: Object | None = None, owner: str = "") -> Object:
    owners = [{"apiVersion": "v1", "kind": owner, "name": name, "uid": "1"}] if owner else []
    meta = {"name": name, "namespace": "t", "uid": f"uid-{name}", "labels": labels or {}}
    return {"metadata": {**meta, "ownerReferences": owners}, "spec": {}}


async def test_what_migcompat_wrote_goes_and_nothing_else() -> None:
    cluster = Cluster()
    by_operator = {names.MANAGED_BY: names.OPERATOR}
    cluster.questions = {
        "made": question("made", labels=by_operator, owner=names.VMI_KIND),
        "asked": question("asked"),
        "labelled-by-somebody": question("labelled-by-somebody", labels=by_operator),
    }
    cluster.policies = {
        "catalogue-xe": question("catalogue-xe", labels=by_operator),
        "catalogue-of-theirs": question("catalogue-of-theirs"),
        "a-copy": question("a-copy", labels=by_operator),
    }
    assert await run(cluster) == ""
    assert set(cluster.policies) == {"catalogue-of-theirs", "a-copy"}
    assert {"uid": "uid-catalogue-xe"} in [body.get("preconditions") for body in cluster.bodies]
    assert cluster.nodes == {"a": FOREIGN, "b": FOREIGN}
    assert cluster.vfionodes == []
    assert set(cluster.questions) == {"asked", "labelled-by-somebody"}
    assert cluster.asked["PATCH", "b"] == 0
    assert {"uid": "uid-made"} in [body.get("preconditions") for body in cluster.bodies]


async def test_writers_are_stopped_with_all_they_own_and_waited_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    cluster = Cluster(workloads={"m-device-plugin": 3, "m-operator": 1})
    assert await run(cluster) == ""
    foreground = [body for body in cluster.bodies if body.get("propagationPolicy") == "Foreground"]
    assert len(foreground) == 2
    assert cluster.workloads == {"m-device-plugin": -1, "m-operator": -1}
    assert (
        "stopping DaemonSet ns/m-device-plugin\nstopping Deployment ns/m-operator" in capsys.readouterr().out
    )


async def test_a_node_that_does_not_answer_keeps_nobody_else(capsys: pytest.CaptureFixture[str]) -> None:
    cluster = Cluster(workloads={"m-device-plugin": 10**9})
    assert await run(cluster, deadline=1.0) == ""
    assert "m-device-plugin-x on dead left" in capsys.readouterr().out
    assert (cluster.nodes["a"], cluster.vfionodes) == (FOREIGN, [])


async def test_done_again_it_finds_nothing_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    cluster = Cluster()
    assert await run(cluster) == ""
    capsys.readouterr()
    assert await run(cluster) == ""
    assert "removed from 0 Node(s)\n0 VFIONode(s) deleted" in capsys.readouterr().out


async def test_definitions_that_are_gone_are_no_problem() -> None:
    cluster = Cluster(
        answers={
            ("GET", "vfionodes"): [404],
            ("GET", "migrationcompatibilities"): [404],
            ("GET", "compatibilitypolicies"): [404],
        },
    )
    assert await run(cluster) == ""
    assert cluster.nodes["a"] == FOREIGN


async def test_what_goes_meanwhile_is_no_problem() -> None:
    cluster = Cluster(answers={("PATCH", "a"): [404], ("DELETE", "b"): [404]})
    assert await run(cluster) == ""


async def test_what_fails_is_tried_again_and_keeps_nothing_else_from_being_done() -> None:
    cluster = Cluster(answers={("PATCH", "a"): [503, 500], ("DELETE", "b"): [409]})
    assert await run(cluster) == ""
    assert cluster.asked["PATCH", "a"] == 3
    assert (cluster.nodes["a"], cluster.vfionodes) == (FOREIGN, [])


async def test_the_deadline_ends_it_and_the_last_problem_is_said() -> None:
    cluster = Cluster(answers={("PATCH", "a"): [503] * 10**5})
    said = await run(cluster, deadline=0.5)
    assert said.startswith("not done within 0.5 s: ")
    assert "/api/v1/nodes/a: 503 Mood503" in said


@pytest.mark.parametrize("code", [401, 403])
async def test_a_missing_right_is_said_at_once(code: int) -> None:
    cluster = Cluster(answers={("PATCH", "a"): [code] * 10**5})
    said = await run(cluster)
    assert "PATCH /api/v1/nodes/a" in said
    assert said.endswith("whoever runs this needs that right")
    assert cluster.asked["PATCH", "a"] == 1


async def test_of_many_problems_a_few_are_named() -> None:
    labels = {f"n{i}": dict(OURS) for i in range(9)}
    cluster = Cluster(nodes=labels, answers={("PATCH", name): [503] for name in labels})
    async with api(cluster.handle) as client:
        with pytest.raises(Unreachable) as raised:
            await clean_up.CleanUp(client, lambda _: None).remove()
    assert str(raised.value).count("Mood503") == clean_up.TOLD
    assert "and 4 more" in str(raised.value)


async def test_a_missing_right_to_list_is_raised() -> None:
    cluster = Cluster(answers={("GET", "nodes"): [403]})
    async with api(cluster.handle) as client:
        with pytest.raises(Forbidden):
            await clean_up.CleanUp(client, lambda _: None).remove()
