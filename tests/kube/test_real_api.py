"""The client against a real kube-apiserver."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from migcompat.api.event import ObjectReference
from migcompat.api.meta import ObjectMeta
from migcompat.api.vfionode import VFIONode, VFIONodeStatus
from migcompat.kube.backoff import Backoff
from migcompat.kube.client import Client
from migcompat.kube.config import Connection, connection
from migcompat.kube.errors import ApiError, BadRequest, Conflict, Forbidden, Gone, NotFound, Unauthorized
from migcompat.kube.events import EventRecorder
from migcompat.kube.kinds import COMPATIBILITIES, EVENTS, NODES, PODS, POLICIES, VFIONODES, Resource
from migcompat.kube.reflector import Reflector

from tests.cluster.controlplane import ControlPlane

pytestmark = pytest.mark.cluster

CRDS = Path(__file__).parents[2] / "charts/migcompat/files/crds"


class ConfigMap(msgspec.Struct, omit_defaults=True):
    """A kind that can be made in numbers; its data are numbers here, so that some do not decode."""

    metadata: ObjectMeta
    data: dict[str, str] = {}


class Numbered(msgspec.Struct):
    metadata: ObjectMeta
    data: dict[str, int] = {}


CONFIGMAPS = Resource("", "v1", "configmaps", "ConfigMap", ConfigMap, namespaced=True)
NUMBERED = Resource("", "v1", "configmaps", "ConfigMap", Numbered, namespaced=True)


@pytest.fixture
async def client(control_plane: ControlPlane) -> AsyncIterator[Client]:
    async with Client(connection(str(control_plane.kubeconfig)), writes_per_second=1000) as opened:
        yield opened


@pytest.fixture
def namespace(control_plane: ControlPlane) -> str:
    """A namespace of the test's own."""
    name = f"kube-{secrets.token_hex(4)}"
    control_plane.kubectl("create", "namespace", name)
    return name


@pytest.fixture
def crds(control_plane: ControlPlane) -> None:
    """Our own kinds, as the chart brings them."""
    control_plane.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(CRDS))
    control_plane.await_kinds()


def config_map(name: str, **data: str) -> ConfigMap:
    return ConfigMap(ObjectMeta(name=name), data)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.02)


async def test_a_list_of_several_pages_is_complete(client: Client, namespace: str) -> None:
    names = [f"c{number:04}" for number in range(1100)]
    for some in range(0, len(names), 50):
        batch = (client.create(CONFIGMAPS, config_map(n), namespace) for n in names[some : some + 50])
        await asyncio.gather(*batch)

    pages = [len(page.items) async for page in client.pages(CONFIGMAPS, namespace)]
    found = await client.list(CONFIGMAPS, namespace, fields="metadata.name!=kube-root-ca.crt")

    assert [m.metadata.name for m in found.items] == names
    assert len(pages) == 3


async def test_what_does_not_decode_is_left_out_and_dropped(client: Client, namespace: str) -> None:
    await client.create(
        CONFIGMAPS, {"metadata": {"name": "text", "labels": {"t": "1"}}, "data": {"a": "b"}}, namespace
    )
    await client.create(CONFIGMAPS, {"metadata": {"name": "empty", "labels": {"t": "1"}}}, namespace)
    listed = await client.list(NUMBERED, namespace, labels="t=1")
    assert [m.metadata.name for m in listed.items] == ["empty"]

    copy: set[str] = set()
    async with reflected(client, NUMBERED, copy, namespace):
        await until(lambda: copy == {"empty"})
        await client.patch(CONFIGMAPS, "empty", {"data": {"a": "no number"}}, namespace)
        await until(lambda: copy == set())
        await client.patch(CONFIGMAPS, "empty", {"data": None}, namespace)
        await until(lambda: copy == {"empty"})


@contextlib.asynccontextmanager
async def reflected(
    client: Client, res: Resource[Any], copy: set[str], namespace: str, *, optional: bool = False
) -> AsyncIterator[None]:
    """*copy* holds the names of the objects labelled t=1."""
    reflector = Reflector(
        client,
        res,
        lambda obj: copy.add(obj.metadata.name),
        lambda ns, name: copy.discard(name),
        labels="t=1",
        namespace=namespace,
        optional=optional,
        backoff=Backoff(0.05, 0.1),
    )
    task = asyncio.create_task(reflector.run())
    try:
        await asyncio.wait_for(reflector.synced.wait(), 30)
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_copy_follows_what_happens(client: Client, namespace: str) -> None:
    copy: set[str] = set()
    labelled = {"metadata": {"name": "a", "labels": {"t": "1"}}}
    async with reflected(client, CONFIGMAPS, copy, namespace):
        await client.create(CONFIGMAPS, labelled, namespace)
        await until(lambda: copy == {"a"})
        await client.patch(CONFIGMAPS, "a", {"metadata": {"labels": {"t": None}}}, namespace)
        await until(lambda: copy == set())
        await client.patch(CONFIGMAPS, "a", {"metadata": {"labels": {"t": "1"}}}, namespace)
        await until(lambda: copy == {"a"})
        await client.delete(CONFIGMAPS, "a", namespace)
        await until(lambda: copy == set())


async def test_an_optional_kind_is_empty_until_its_definition_comes_and_after_it_goes(
    control_plane: ControlPlane, client: Client
) -> None:
    group = f"late-{secrets.token_hex(4)}.example.org"
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    definition = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"comers.{group}"},
        "spec": {
            "group": group,
            "scope": "Cluster",
            "names": {"plural": "comers", "kind": "Comer"},
            "versions": [
                {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
            ],
        },
    }
    comers = Resource(group, "v1", "comers", "Comer", ConfigMap, namespaced=False)
    copy: set[str] = set()
    async with reflected(client, comers, copy, "", optional=True):
        control_plane.apply(definition)
        control_plane.await_kinds()
        comer = {
            "apiVersion": f"{group}/v1",
            "kind": "Comer",
            "metadata": {"name": "a", "labels": {"t": "1"}},
        }
        control_plane.apply(comer)
        await until(lambda: copy == {"a"})
        control_plane.kubectl("delete", "crd", f"comers.{group}")
        await until(lambda: copy == set())


async def test_a_copy_survives_cut_connections(
    control_plane: ControlPlane, client: Client, namespace: str
) -> None:
    host, port = control_plane.url.removeprefix("https://").split(":")
    own = connection(str(control_plane.kubeconfig))
    copy: set[str] = set()
    async with Wire(host, int(port)) as wire:
        through = Connection(f"https://127.0.0.1:{wire.port}", own.tls, tls_server_name="kubernetes")
        async with Client(through) as cut_off, reflected(cut_off, CONFIGMAPS, copy, namespace):
            for number in range(3):
                wire.cut()
                await client.create(
                    CONFIGMAPS, {"metadata": {"name": f"n{number}", "labels": {"t": "1"}}}, namespace
                )
                await until(lambda: len(copy) == number + 1)  # noqa: B023 - awaited before the next round
            assert wire.cuts >= 3


class Wire:
    """A TCP relay on loopback whose connections can be cut."""

    def __init__(self, host: str, port: int) -> None:
        self._to = (host, port)
        self._ends: set[asyncio.StreamWriter] = set()
        self.cuts = 0

    async def __aenter__(self) -> Wire:
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.cut()

    def cut(self) -> None:
        """End all connections, in the middle of whatever they say."""
        for end in self._ends:
            end.transport.abort()
        self.cuts += len(self._ends) // 2
        self._ends.clear()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(*self._to)
        self._ends |= {writer, far_writer}
        await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))

    @staticmethod
    async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()


@pytest.mark.usefixtures("crds")
async def test_a_version_from_long_ago_is_gone(client: Client) -> None:
    # The watch cache of a kind begins where the kind was installed; until it is filled the answer is 429.
    async def ask() -> ApiError:
        try:
            async for event in client.watch(VFIONODES, "1", seconds=5):
                pytest.fail(f"an event instead of an error: {event}")
        except ApiError as error:
            return error
        pytest.fail("no error")

    error = await ask()
    async with asyncio.timeout(60):
        while error.status == 429:
            await asyncio.sleep(0.1)
            error = await ask()
    assert isinstance(error, Gone)
    assert "too old resource version" in error.message


async def test_conflicts_are_told_apart(client: Client, namespace: str) -> None:
    made = await client.create(CONFIGMAPS, config_map("c", a="1"), namespace)
    with pytest.raises(Conflict) as exists:
        await client.create(CONFIGMAPS, config_map("c"), namespace)
    assert exists.value.reason == "AlreadyExists"

    newer = await client.replace(CONFIGMAPS, msgspec.structs.replace(made, data={"a": "2"}), "c", namespace)
    with pytest.raises(Conflict) as stale:
        await client.replace(CONFIGMAPS, made, "c", namespace)
    assert stale.value.reason == "Conflict"
    assert stale.value.method == "PUT"

    with pytest.raises(Conflict):
        await client.delete(CONFIGMAPS, "c", namespace, uid="another")
    await client.delete(CONFIGMAPS, "c", namespace, uid=newer.metadata.uid)
    with pytest.raises(NotFound, match='configmaps "c" not found'):
        await client.get(CONFIGMAPS, "c", namespace)


async def test_apply_owns_its_fields_and_takes_back_what_it_omits(client: Client, namespace: str) -> None:
    async def apply(manager: str, *, force: bool = False, **data: str) -> dict[str, str]:
        applied = await client.apply(
            CONFIGMAPS, {"data": data}, "c", namespace, field_manager=manager, force=force
        )
        return applied.data

    assert await apply("one", a="1", b="1") == {"a": "1", "b": "1"}
    assert await apply("two", c="2") == {"a": "1", "b": "1", "c": "2"}
    assert await apply("one", a="1") == {"a": "1", "c": "2"}
    with pytest.raises(Conflict, match='conflict with "one"'):
        await apply("two", a="9")
    assert await apply("two", force=True, a="9") == {"a": "9"}


@pytest.mark.usefixtures("crds")
async def test_our_kinds_and_their_status(client: Client) -> None:
    name = f"node-{secrets.token_hex(4)}"
    made = await client.create(VFIONODES, VFIONode(ObjectMeta(name=name)))
    status = {"bootID": "b1", "agentVersion": "1"}
    patched = await client.patch(VFIONODES, name, {"status": status}, subresource="status")
    assert patched.status.boot_id == "b1"
    # The main resource does not touch the status, and the status not the labels.
    labelled = await client.patch(
        VFIONODES, name, {"metadata": {"labels": {"a": "b"}}, "status": {"bootID": "b2"}}
    )
    assert (labelled.status.boot_id, labelled.metadata.labels) == ("b1", {"a": "b"})
    labelled.status = VFIONodeStatus(boot_id="b3")
    replaced = await client.replace(VFIONODES, labelled, name, subresource="status")
    assert (replaced.status.boot_id, replaced.status.agent_version) == ("b3", "")
    assert replaced.metadata.generation == made.metadata.generation
    await client.delete(VFIONODES, name)

    assert name not in [n.metadata.name for n in (await client.list(VFIONODES)).items]
    await client.list(POLICIES)
    await client.list(COMPATIBILITIES)


async def test_a_bad_object_is_refused_with_its_field(client: Client, namespace: str) -> None:
    with pytest.raises(BadRequest, match=r"POST .*metadata\.name: Invalid value"):
        await client.create(CONFIGMAPS, config_map("Not A Name"), namespace)


async def test_a_kind_that_is_not_installed_is_not_found(client: Client) -> None:
    absent = Resource("example.com", "v1", "things", "Thing", ConfigMap, namespaced=False)
    with pytest.raises(NotFound, match=r"GET /apis/example\.com/v1/things"):
        await client.list(absent)


async def test_the_token_of_the_moment_counts(
    control_plane: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    control_plane.kubectl("create", "serviceaccount", "reader", "-n", namespace)
    control_plane.kubectl("create", "role", "reader", "--verb=list", "--resource=pods", "-n", namespace)
    account = f"--serviceaccount={namespace}:reader"
    control_plane.kubectl("create", "rolebinding", "reader", "--role=reader", account, "-n", namespace)
    good = control_plane.kubectl("create", "token", "reader", "-n", namespace)
    token = tmp_path / "token"
    token.write_text(good)
    own = connection(str(control_plane.kubeconfig))
    config = tmp_path / "kubeconfig"
    config.write_text(yaml.safe_dump(control_plane.kubeconfig_of({"tokenFile": "token"})))

    async with Client(connection(str(config))) as client:
        assert (await client.list(PODS, namespace)).items == []
        with pytest.raises(Forbidden, match='reader" cannot list resource "nodes"'):
            await client.list(NODES)
        token.write_text("expired")
        with pytest.raises(Unauthorized):
            await client.list(PODS, namespace)
        token.write_text(good)
        assert (await client.list(PODS, namespace)).items == []
    assert own.bearer() == ""


@pytest.fixture
def inline_kubeconfig(control_plane: ControlPlane, tmp_path: Path) -> Path:
    """The administrator's kubeconfig with the certificates in it instead of beside it."""
    parsed = yaml.safe_load(control_plane.kubeconfig.read_text())
    for section in (parsed["clusters"][0]["cluster"], parsed["users"][0]["user"]):
        for key in ("certificate-authority", "client-certificate", "client-key"):
            if key in section:
                inline = base64.b64encode(Path(section.pop(key)).read_bytes())
                section[f"{key}-data"] = inline.decode()
    config = tmp_path / "kubeconfig"
    config.write_text(yaml.safe_dump(parsed))
    return config


async def test_a_kubeconfig_may_hold_its_certificates(inline_kubeconfig: Path) -> None:
    async with Client(connection(str(inline_kubeconfig))) as client:
        await client.list(NODES)


async def test_events_are_one_object_with_a_count(client: Client, namespace: str) -> None:
    now = 0.0
    recorder = EventRecorder(client, "migcompat-test", clock=lambda: now)
    made = await client.create(CONFIGMAPS, config_map("c"), namespace)
    about = ObjectReference("v1", "ConfigMap", "c", namespace, made.metadata.uid)
    for _ in range(3):
        await recorder.record(about, "Warning", "Testing", "said thrice")
        now += 60
    found = await client.list(EVENTS, namespace, fields="reason=Testing")
    assert [(e.count, e.type, e.message) for e in found.items] == [(3, "Warning", "said thrice")]


async def test_writes_wait_for_the_limiter_reads_do_not(control_plane: ControlPlane, namespace: str) -> None:
    waited: list[float] = []

    class Slow(Client):
        def __init__(self, to: Connection) -> None:
            super().__init__(to, writes_per_second=0.5)
            self._writes._sleep = self._note

        async def _note(self, seconds: float) -> None:
            waited.append(seconds)

    async with Slow(connection(str(control_plane.kubeconfig))) as client:
        for _ in range(5):
            await client.list(PODS, namespace)
        assert waited == []
        await client.create(CONFIGMAPS, config_map("a"), namespace)
        assert waited == []
        await client.create(CONFIGMAPS, config_map("b"), namespace)
        assert len(waited) == 1
