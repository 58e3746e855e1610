"""The catalogue's files become CompatibilityPolicies, and nobody else's are touched."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import yaml
from aiohttp import web
from migcompat.api import names
from migcompat.api.compatibilitypolicy import CompatibilityPolicy, CompatibilityPolicySpec
from migcompat.kube.client import Client
from migcompat.kube.kinds import POLICIES
from migcompat_operator import catalogue
from migcompat_operator.catalogue import Catalogue, read_shelf
from migcompat_operator.metrics import Metrics

from tests.kube.fake_api import api, listing, status
from tests.operator.conftest import Operator, eventually
from tests.support.catalogue import CATALOGUE, raw

if TYPE_CHECKING:
    from tests.cluster.controlplane import ControlPlane

Object = dict[str, Any]
NAMES = sorted(path.stem for path in CATALOGUE.glob("*.yaml"))


def put(directory: Path, name: str, **changes: object) -> None:
    """A file of the catalogue, with other keys in its spec."""
    whole = raw("mtty")
    whole["metadata"]["name"] = f"catalogue-{name}"
    whole["spec"].update(changes)
    (directory / f"{name}.yaml").write_text(yaml.safe_dump(whole))


# --- files ------------------------------------------------------------------------------------------------


def test_the_charts_own_files_are_all_good() -> None:
    shelf = read_shelf(str(CATALOGUE))
    assert shelf.problems == {}
    assert sorted(shelf.entries) == [f"catalogue-{name}" for name in NAMES]


def test_a_mounted_configmap_is_read(tmp_path: Path) -> None:
    """The kubelet's links: ``x.yaml -> ..data/x.yaml``, ``..data -> ..2026_01_01``."""
    real = tmp_path / "..2026_01_01"
    real.mkdir()
    put(real, "x")
    (tmp_path / "..data").symlink_to(real.name)
    (tmp_path / "x.yaml").symlink_to("..data/x.yaml")
    assert sorted(read_shelf(str(tmp_path)).entries) == ["catalogue-x"]


BAD_FILES: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "Expected `object`, got `null`"),
    "no YAML": (b"a: [", "while parsing"),
    "no UTF-8": (b"\xff\xfe", "utf-8"),
    "no object": (b"[]", "Expected `object`, got `array`"),
    "a control character": (b"a: \x07", "unacceptable character"),
    "another kind": (
        b"{apiVersion: v1, kind: Pod, metadata: {name: catalogue-bad}, spec: {}}",
        "is a Pod of v1, not a CompatibilityPolicy",
    ),
    "another name": (
        b"{apiVersion: migcompat.io/v1alpha1, kind: CompatibilityPolicy, metadata: {name: mine}, spec: {}}",
        "metadata.name is 'mine', which for this file must be 'catalogue-bad'",
    ),
    "labels": (
        b"{apiVersion: migcompat.io/v1alpha1, kind: CompatibilityPolicy,"
        b" metadata: {name: catalogue-bad, labels: {}}, spec: {}}",
        "unknown field `labels`",
    ),
    "an unknown key": (
        b"{apiVersion: migcompat.io/v1alpha1, kind: CompatibilityPolicy,"
        b" metadata: {name: catalogue-bad}, spec: {colour: red}}",
        "spec: Object contains unknown field `colour`",
    ),
    "an unquoted off": (
        b"{apiVersion: migcompat.io/v1alpha1, kind: CompatibilityPolicy,"
        b" metadata: {name: catalogue-bad}, spec: {self: {pv_mode: off}}}",
        "Expected `str`, got `bool`",
    ),
    "a template in self": (
        b"{apiVersion: migcompat.io/v1alpha1, kind: CompatibilityPolicy,"
        b" metadata: {name: catalogue-bad}, spec: {self: {type: '{x}'}}}",
        "spec: self: ",
    ),
    "too large": (b"#" * (catalogue.MOST_BYTES + 1), "is larger than 65536 bytes"),
    "nested without end": (b"[" * 20_000, ""),
}


@pytest.mark.parametrize("flaw", BAD_FILES)
def test_a_bad_file_is_named_and_harms_only_itself(tmp_path: Path, flaw: str) -> None:
    content, words = BAD_FILES[flaw]
    put(tmp_path, "good")
    (tmp_path / "bad.yaml").write_bytes(content)
    shelf = read_shelf(str(tmp_path))
    assert list(shelf.entries) == ["catalogue-good"]
    (problem,) = shelf.problems.values()
    assert problem.startswith(f"{tmp_path}/bad.yaml: ")
    assert words in problem
    assert "\n" not in problem


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.yaml")
    (tmp_path / "directory.yaml").mkdir()
    (tmp_path / "gone.yaml").symlink_to("nowhere")
    (tmp_path / "README").write_text("not YAML: [")
    (tmp_path / ".x.yaml").write_text("an editor's: [")
    problems = read_shelf(str(tmp_path)).problems
    assert sorted(problems) == ["catalogue-directory", "catalogue-fifo", "catalogue-gone"]
    assert all("is no regular file" in text for text in problems.values())


def test_there_is_an_end_to_the_number_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "MOST_FILES", 2)
    for name in "abc":
        put(tmp_path, name)
    shelf = read_shelf(str(tmp_path))
    assert (sorted(shelf.entries), sorted(shelf.problems)) == (
        ["catalogue-a", "catalogue-b"],
        ["catalogue-c"],
    )


# --- an API server with moods -----------------------------------------------------------------------------


class Server:
    """Policies by name.

    ``moods``: statuses to answer next, by method and last part of the path. ``sticky``: keys that another
    field manager has put into every spec.
    """

    def __init__(self) -> None:
        self.sticky: Object = {}
        self.items: dict[str, Object] = {}
        self.moods: dict[tuple[str, str], list[int]] = {}
        self.asked: list[tuple[str, str]] = []
        self._generation = iter(range(1, 1000))

    async def handle(self, request: web.Request) -> web.Response:
        what = request.path.rpartition("/")[2]
        mood = self.moods.get((request.method, what))
        if mood:
            code = mood.pop(0)
            return web.json_response(status(code, f"Mood{code}"), status=code)
        if request.method == "GET":
            return listing(*self.items.values())
        self.asked.append((request.method, what))
        if request.method == "PATCH":
            assert request.headers["Content-Type"] == "application/apply-patch+yaml"
            assert request.query["fieldManager"] == catalogue.FIELD_MANAGER
            body = json.loads(await request.read())
            uid = self.items.get(what, {}).get("metadata", {}).get("uid", f"uid-{what}")
            assert body["metadata"].pop("uid", uid) == uid
            assert request.query["force"] == ("true" if what in self.items else "false")
            body["spec"] |= self.sticky
            body["metadata"].update(uid=uid, generation=next(self._generation))
            self.items[what] = body
            return web.json_response(body)
        options = json.loads(await request.read())
        assert options["preconditions"] == {"uid": self.items[what]["metadata"]["uid"]}
        del self.items[what]
        return web.json_response({"kind": "Status", "status": "Success"})


def somebodys(name: str, *, labels: Object | None = None) -> Object:
    return {"metadata": {"name": name, "uid": "theirs", "generation": 1, "labels": labels or {}}, "spec": {}}


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


def counted(metrics: Metrics) -> dict[str, float]:
    """The gauge's states that are not 0."""
    (family,) = metrics.catalogue.collect()
    return {sample.labels["state"]: sample.value for sample in family.samples if sample.value}


async def test_is_applied_once_and_again_when_it_differs(
    tmp_path: Path, server: Server, metrics: Metrics
) -> None:
    put(tmp_path, "x")
    async with api(server.handle) as client:
        kept = Catalogue(client, str(tmp_path), metrics)
        for _ in range(2):
            assert await kept.pass_once()
        assert server.asked == [("PATCH", "catalogue-x")]
        assert server.items["catalogue-x"]["metadata"]["labels"] == {names.MANAGED_BY: names.OPERATOR}
        assert server.items["catalogue-x"]["spec"] == raw("mtty")["spec"]
        server.items["catalogue-x"]["spec"] = {"unknown": "Allow"}
        server.items["catalogue-x"]["metadata"]["generation"] = 500
        assert await kept.pass_once()
        assert server.items["catalogue-x"]["spec"] == raw("mtty")["spec"]
        put(tmp_path, "x", unknown="Allow")
        assert await kept.pass_once()
        assert server.items["catalogue-x"]["spec"]["unknown"] == "Allow"
        assert len(server.asked) == 3
    assert counted(metrics) == {"in-force": 1}


async def test_a_new_process_writes_nothing_that_is_there(
    tmp_path: Path, server: Server, metrics: Metrics
) -> None:
    put(tmp_path, "x")
    async with api(server.handle) as client:
        for _ in range(2):
            assert await Catalogue(client, str(tmp_path), metrics).pass_once()
    assert len(server.asked) == 1


async def test_what_others_add_is_not_fought_over(tmp_path: Path, server: Server, metrics: Metrics) -> None:
    """Keys of other field managers stay in spite of an apply: it is done once, not for ever."""
    put(tmp_path, "x")
    async with api(server.handle) as client:
        kept = Catalogue(client, str(tmp_path), metrics)
        assert await kept.pass_once()
        server.sticky = {"requireReturnPath": True}
        server.items["catalogue-x"]["spec"] |= server.sticky
        server.items["catalogue-x"]["metadata"]["generation"] = 500
        for _ in range(3):
            assert await kept.pass_once()
    assert server.asked == [("PATCH", "catalogue-x")] * 2


async def test_what_is_not_chosen_any_more_goes_and_nothing_else(
    tmp_path: Path, server: Server, metrics: Metrics
) -> None:
    put(tmp_path, "x")
    put(tmp_path, "y")
    ours = {names.MANAGED_BY: names.OPERATOR}
    server.items["mine"] = somebodys("mine", labels=ours)
    server.items["catalogue-z"] = somebodys("catalogue-z")
    async with api(server.handle) as client:
        kept = Catalogue(client, str(tmp_path), metrics)
        assert await kept.pass_once()
        (tmp_path / "x.yaml").unlink()
        (tmp_path / "y.yaml").write_text("a: [")
        assert await kept.pass_once()
        assert ("DELETE", "catalogue-x") in server.asked
        assert sorted(server.items) == ["catalogue-y", "catalogue-z", "mine"], (
            "a bad file is no wish to delete"
        )
        assert counted(metrics) == {"bad-file": 1}
        (tmp_path / "y.yaml").unlink()
        assert await kept.pass_once()
    assert sorted(server.items) == ["catalogue-z", "mine"]


async def test_what_is_chosen_again_is_judged_by_what_is_there_now(
    tmp_path: Path, server: Server, metrics: Metrics
) -> None:
    """A restored backup may have the generation of the one that was deleted."""
    put(tmp_path, "x")
    async with api(server.handle) as client:
        kept = Catalogue(client, str(tmp_path), metrics)
        assert await kept.pass_once()
        former = server.items["catalogue-x"]
        (tmp_path / "x.yaml").unlink()
        assert await kept.pass_once()
        assert not server.items
        server.items["catalogue-x"] = {**former, "spec": {}}
        put(tmp_path, "x")
        assert await kept.pass_once()
    assert server.items["catalogue-x"]["spec"] == raw("mtty")["spec"]


async def test_somebody_elses_of_the_same_name_is_left_and_told_once(
    tmp_path: Path, server: Server, metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path, "x")
    put(tmp_path, "y")
    server.items["catalogue-x"] = somebodys("catalogue-x")
    async with api(server.handle) as client:
        kept = Catalogue(client, str(tmp_path), metrics)
        for _ in range(2):
            assert await kept.pass_once()
        assert server.items["catalogue-x"] == somebodys("catalogue-x")
        assert counted(metrics) == {"in-force": 1, "foreign": 1}
        told = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
        assert len(told) == 1
        assert "catalogue-x that the operator has not made: it is left as it is" in told[0]
        del server.items["catalogue-x"]
        assert await kept.pass_once()
    assert server.items["catalogue-x"]["metadata"]["labels"]


async def test_a_failure_is_tried_again_and_does_not_keep_the_others(
    tmp_path: Path, server: Server, metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path, "x")
    put(tmp_path, "y")
    server.moods = {("PATCH", "catalogue-x"): [500, 403]}
    async with api(server.handle) as client:
        kept = Catalogue(client, str(tmp_path), metrics)
        assert not await kept.pass_once()
        assert sorted(server.items) == ["catalogue-y"]
        assert counted(metrics) == {"in-force": 1, "failed": 1}
        assert not await kept.pass_once()
        assert await kept.pass_once()
    assert "Mood403" in caplog.text
    assert counted(metrics) == {"in-force": 2}


@pytest.mark.parametrize("code", [404, 500])
async def test_without_a_list_nothing_is_written(
    tmp_path: Path, server: Server, metrics: Metrics, code: int
) -> None:
    put(tmp_path, "x")
    server.moods = {("GET", "compatibilitypolicies"): [code]}
    async with api(server.handle) as client:
        kept = Catalogue(client, str(tmp_path), metrics)
        assert not await kept.pass_once()
        assert server.asked == []
        assert await kept.pass_once()
    assert server.asked == [("PATCH", "catalogue-x")]


async def test_a_directory_that_is_not_there_is_no_wish_to_delete(
    tmp_path: Path, server: Server, metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    ours = {names.MANAGED_BY: names.OPERATOR}
    server.items["catalogue-x"] = somebodys("catalogue-x", labels=ours)
    async with api(server.handle) as client:
        assert not await Catalogue(client, str(tmp_path / "none"), metrics).pass_once()
    assert (sorted(server.items), server.asked) == (["catalogue-x"], [])
    assert "the catalogue cannot be read, and nothing is changed" in caplog.text


async def test_one_that_is_being_deleted_is_waited_for(
    tmp_path: Path, server: Server, metrics: Metrics
) -> None:
    put(tmp_path, "x")
    leaving = somebodys("catalogue-x", labels={names.MANAGED_BY: names.OPERATOR})
    leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    server.items["catalogue-x"] = leaving
    async with api(server.handle) as client:
        assert await Catalogue(client, str(tmp_path), metrics).pass_once()
    assert server.asked == []


async def test_it_looks_again_by_itself(
    tmp_path: Path, server: Server, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue, "EVERY", 0.01)
    monkeypatch.setattr(catalogue, "BACKOFF_FIRST", 0.01)
    server.moods = {("GET", "compatibilitypolicies"): [500, 500]}
    async with api(server.handle) as client:
        task = asyncio.create_task(Catalogue(client, str(tmp_path), metrics).run())
        put(tmp_path, "x")
        try:

            async def there() -> bool:
                return "catalogue-x" in server.items

            await eventually(there, "applied")
            del server.items["catalogue-x"]
            await eventually(there, "applied again")
        finally:
            task.cancel()


# --- the real API server ----------------------------------------------------------------------------------


@pytest.fixture
def chosen(tmp_path: Path) -> Path:
    """The chart's catalogue, all of it, as a directory that a test may change."""
    directory = tmp_path / "catalogue"
    directory.mkdir()
    for path in CATALOGUE.glob("*.yaml"):
        (directory / path.name).write_text(path.read_text())
    return directory


async def policies(client: Client) -> dict[str, CompatibilityPolicy]:
    return {item.metadata.name: item for item in (await client.list(POLICIES)).items}


@pytest.fixture
def _clean(plane: ControlPlane) -> Iterator[None]:
    yield
    plane.kubectl("delete", "compatpolicy", "--all")


@pytest.mark.cluster
@pytest.mark.usefixtures("_clean")
async def test_the_real_definitions_take_the_catalogue(client: Client, chosen: Path) -> None:
    metrics = Metrics()
    kept = Catalogue(client, str(chosen), metrics)
    assert await kept.pass_once()
    found = await policies(client)
    assert sorted(found) == [f"catalogue-{name}" for name in NAMES]
    shelf = read_shelf(str(chosen))
    for name, item in found.items():
        assert (
            msgspec.json.decode(bytes(item.spec), type=CompatibilityPolicySpec) == shelf.entries[name].meaning
        )
    versions = {name: item.metadata.resource_version for name, item in found.items()}
    assert await kept.pass_once()
    assert await Catalogue(client, str(chosen), metrics).pass_once()
    assert {n: i.metadata.resource_version for n, i in (await policies(client)).items()} == versions


@pytest.mark.cluster
@pytest.mark.usefixtures("_clean")
async def test_what_somebody_changes_is_put_back_and_what_they_add_stays(
    plane: ControlPlane, client: Client, chosen: Path
) -> None:
    kept = Catalogue(client, str(chosen), Metrics())
    assert await kept.pass_once()
    change = '{"spec": {"compatible": [{"type": "x"}], "requireReturnPath": true}}'
    await asyncio.to_thread(
        plane.kubectl, "patch", "compatpolicy", "catalogue-xe", "--type=merge", "-p", change
    )
    assert await kept.pass_once()
    item = await client.get(POLICIES, "catalogue-xe")
    spec = json.loads(bytes(item.spec))
    assert spec == {**raw("xe")["spec"], "requireReturnPath": True}
    assert await kept.pass_once()
    again = await client.get(POLICIES, "catalogue-xe")
    assert again.metadata.resource_version == item.metadata.resource_version


@pytest.mark.cluster
@pytest.mark.usefixtures("_clean")
async def test_the_process_keeps_the_catalogue(
    plane: ControlPlane, operator: Operator, client: Client, chosen: Path
) -> None:
    theirs = {"apiVersion": names.API_VERSION, "kind": "CompatibilityPolicy", "spec": {"unknown": "Allow"}}
    for name in ("mine", "catalogue-xe"):
        await asyncio.to_thread(
            plane.kubectl, "create", "-f", "-", stdin=json.dumps({**theirs, "metadata": {"name": name}})
        )
    (chosen / "qat.yaml").write_text("spec: [")
    await operator.start(f"--catalogue={chosen}")
    expected = {"mine", *(f"catalogue-{name}" for name in NAMES)} - {"catalogue-qat"}

    async def applied() -> bool:
        return set(await policies(client)) == expected

    await eventually(applied, operator.log.read_text)
    untouched = (await policies(client))["catalogue-xe"]
    assert (json.loads(bytes(untouched.spec)), untouched.metadata.labels) == ({"unknown": "Allow"}, None)

    async def said() -> bool:
        log = operator.log.read_text()
        return "catalogue-xe that the operator has not made" in log and "qat.yaml: " in log

    await eventually(said, operator.log.read_text)
    assert 'migcompat_operator_catalogue_policies{state="foreign"} 1.0' in operator.get("/metrics")
    assert operator.stop() == 0
    empty = chosen.with_name("empty")
    empty.mkdir()
    await operator.start(f"--catalogue={empty}")

    async def only_theirs() -> bool:
        return set(await policies(client)) == {"mine", "catalogue-xe"}

    await eventually(only_theirs, operator.log.read_text)
    assert operator.stop() == 0


@pytest.mark.cluster
@pytest.mark.usefixtures("_clean")
async def test_a_process_without_a_catalogue_leaves_it_alone(
    operator: Operator, client: Client, chosen: Path
) -> None:
    assert await Catalogue(client, str(chosen), Metrics()).pass_once()
    await operator.start()
    await asyncio.sleep(1)  # longer than it would take
    assert len(await policies(client)) == len(NAMES)
