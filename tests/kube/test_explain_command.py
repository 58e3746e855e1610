"""``migcompat explain`` as a process, against an API server with moods of its own.

Against a real kube-apiserver, as kubectl's plugin: tests/extender/test_real_cluster.py.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from aiohttp import web
from aiohttp.test_utils import TestServer
from migcompat.api.compatibilitypolicy import CompatibilityPolicy
from migcompat.api.meta import ObjectMeta
from migcompat.api.names import MODE
from migcompat.cli import explanation_text
from migcompat.cli.explanation_text import printable
from migcompat.fleet.explanation import Explanation, explain
from migcompat.fleet.fleet import Fleet
from rich.console import Console
from rich.text import Text

from tests.kube.fake_api import listing, status
from tests.support.fleets import POOL, declared, node, pod, vfionode, vmi

PROGRAM = Path(sys.executable).with_name("migcompat")
FIXED = ("nodes", "vfionodes", "compatibilitypolicies", "pods")


class Cluster:
    """vm-a on node-1; n2 takes it, n3 is older, n4 takes it and is in use."""

    def __init__(self) -> None:
        held = {"src": ("tenant-a", "virt-launcher-vm-a-src")}
        self.items: dict[str, list[Any]] = {
            "nodes": [node(name) for name in ("node-1", "n2", "n3", "n4", "bare")],
            "vfionodes": [
                vfionode("node-1", {"src": declared("1.1.0")}, allocated=held),
                vfionode("n2", {"n2-0": declared("1.1.0")}),
                vfionode("n3", {"n3-0": declared("1.0.0")}),
                vfionode("n4", {"n4-0": declared("1.1.0")}, allocated={"n4-0": ("other", "pod")}),
            ],
            "compatibilitypolicies": [],
            "virtualmachineinstances": [vmi("vm-a", "node-1"), vmi("plain", "node-1", resources=())],
            "pods": [pod("vm-a", "node-1")],
        }
        self.refuse: dict[str, int] = {}
        self.asked: list[str] = []
        self.selectors: dict[str, str] = {}

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(f"{request.method} {request.path}")
        *_, plural, last = ("", *request.path.split("/"))
        named = plural in self.items
        kind = plural if named else last
        if code := self.refuse.get(kind):
            return web.json_response(status(code, {403: "Forbidden"}.get(code, "NotFound")), status=code)
        if not named:
            self.selectors[kind] = request.query.get("labelSelector", "")
            return listing(*(json.loads(msgspec.json.encode(item)) for item in self.items[kind]))
        namespace = request.path.split("/")[-3]
        for item in self.items[kind]:
            if (item.metadata.namespace, item.metadata.name) == (namespace, last):
                return web.json_response(json.loads(msgspec.json.encode(item)))
        return web.json_response(status(404, "NotFound"), status=404)


@asynccontextmanager
async def serving(cluster: Cluster) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", cluster.answer)
    server = TestServer(app)
    await server.start_server()
    try:
        yield str(server.make_url("")).rstrip("/")
    finally:
        await server.close()


def kubeconfig(file: Path, url: str, namespace: str = "") -> Path:
    """JSON is YAML."""
    context = {"cluster": "c", "user": "u", **({"namespace": namespace} if namespace else {})}
    config = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": context}],
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(config))
    return file


Ended = tuple[int, str, str]


async def run(*arguments: str, **environment: str) -> Ended:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("KUBE", "HOME"))}
    process = await asyncio.create_subprocess_exec(
        PROGRAM,
        "explain",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**clean, "HOME": "/nonexistent", **environment},
    )
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def asked(cluster: Cluster, *arguments: str) -> Ended:
    async with serving(cluster) as url:
        return await run(f"--server={url}", *arguments)


async def test_all_nodes_in_a_table() -> None:
    cluster = Cluster()
    code, out, err = await asked(cluster, "tenant-a/vm-a")
    assert (code, err) == (0, "")
    assert "VM tenant-a/vm-a on node-1, mode enforce" in out
    assert "2 of 3 node(s) accept, 1 of them with devices free" in out
    table = {
        line.split()[0]: line.split()
        for line in out.splitlines()
        if line and line.split()[0] in ("n2", "n3", "n4")
    }
    assert table["n2"][1:4] == ["yes", "yes", "Compatible"]
    assert table["n3"][1:4] == ["no", "-", "VersionMinorOlder"]
    assert table["n4"][1:4] == ["yes", "no", "NoneFree"]
    assert "Note: not known here: " in out
    assert cluster.selectors["pods"] == "kubevirt.io=virt-launcher", "other pods are not read"
    assert all(call.startswith("GET ") for call in cluster.asked), "nothing is written"


async def test_one_node_attribute_by_attribute() -> None:
    code, out, err = await asked(Cluster(), "vm-a", "n3", "-n", "tenant-a")
    assert (code, err) == (1, "")
    assert 'the extender\'s filter: VersionMinorOlder: software_version: source has "1.1.0"' in out
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in out.splitlines() if "§" in line}
    assert rows == {
        "presence": "self Present self Present, compatible Present - - ok §3 stage 1",
        "device_api": "vfio-pci vfio-pci entry equal ok §3 stage 2",
        "type": "GRID-T4-1Q GRID-T4-1Q entry equal ok §3 stage 4",
        "software_version": "1.1.0 1.0.0 entry version, semver refuses §3 stage 5, rule V",
    }


@pytest.mark.parametrize(
    ("where", "code"), [("n2", 0), ("n3", 1), ("n4", 1), ("bare", 1), ("node-1", 1), ("", 0)]
)
@pytest.mark.parametrize("output", ["json", "yaml"])
async def test_for_programs_it_is_what_the_same_objects_give_the_extender(
    where: str, code: int, output: str
) -> None:
    cluster = Cluster()
    ended, out, err = await asked(cluster, "tenant-a/vm-a", *([where] if where else []), "-o", output)
    assert (ended, err) == (code, "")
    found = json.loads(out) if output == "json" else yaml.safe_load(out)
    assert "not known here" in found["notes"].pop()
    if not found["notes"]:
        del found["notes"]
    assert found == json.loads(msgspec.json.encode(explained(cluster, where)))


def explained(cluster: Cluster, where: str = "", **options: bool) -> Explanation:
    fleet = Fleet(**options)
    puts: dict[str, Callable[[Any], object]] = {
        "nodes": fleet.put_node,
        "vfionodes": fleet.put_vfionode,
        "compatibilitypolicies": fleet.put_policy,
        "virtualmachineinstances": fleet.put_vmi,
        "pods": fleet.put_pod,
    }
    for kind, put in puts.items():
        for item in cluster.items[kind]:
            put(item)
    vm = fleet.vmi("tenant-a", "vm-a")
    assert vm is not None
    return explain(fleet, vm, where)


async def test_without_a_node_that_takes_it_now_the_status_is_1() -> None:
    cluster = Cluster()
    cluster.items["nodes"][1] = node("n2", cordoned=True)
    code, out, _ = await asked(cluster, "tenant-a/vm-a")
    assert code == 1
    assert "NodeUnschedulable" in out
    assert "cordoned or not ready" in out


async def test_a_vm_without_such_devices_is_rejected_nowhere() -> None:
    code, out, _ = await asked(Cluster(), "tenant-a/plain")
    assert code == 0
    assert "asks for no device of a known pool" in out
    assert "migcompat rejects no node" in out


async def test_loosening_annotations_count_as_in_the_chart() -> None:
    cluster = Cluster()
    cluster.items["virtualmachineinstances"][0] = vmi("vm-a", "node-1", annotations={MODE: "ignore"})
    _, strict, _ = await asked(cluster, "tenant-a/vm-a", "n3")
    assert "migcompat.io/mode=ignore is not honoured" in strict
    code, lax, _ = await asked(cluster, "tenant-a/vm-a", "n3", "--allow-loosening")
    assert "the extender's filter: passes" in lax
    assert "mode ignore: no node is rejected" in lax
    assert code == 1, "its devices refuse all the same"


async def test_a_policy_that_cannot_be_read_is_named() -> None:
    cluster = Cluster()
    broken = CompatibilityPolicy(ObjectMeta(name="odd"), msgspec.Raw(b'{"crossType": "Maybe"}'))
    cluster.items["compatibilitypolicies"].append(broken)
    _, out, _ = await asked(cluster, "tenant-a/vm-a")
    assert "Note: CompatibilityPolicy odd: spec is not usable" in out


@pytest.mark.parametrize(
    ("refuse", "arguments", "says"),
    [
        ({}, ["tenant-a/vm-x"], "there is no VirtualMachineInstance tenant-a/vm-x: does the VM run?"),
        ({}, ["vm-a"], "there is no VirtualMachineInstance default/vm-a"),
        ({}, ["tenant-a/vm-a", "n9"], "there is no Node n9"),
        ({"virtualmachineinstances": 404}, ["tenant-a/vm-a"], "is KubeVirt installed?"),
        (
            {"vfionodes": 404},
            ["tenant-a/vm-a"],
            "no vfionodes.migcompat.io: its CustomResourceDefinition is missing",
        ),
        ({"pods": 403}, ["tenant-a/vm-a"], "403 Forbidden: because: whoever runs this needs that right"),
        ({"nodes": 500}, ["tenant-a/vm-a"], "GET /api/v1/nodes"),
        ({}, ["a/b/c"], "'a/b/c' is no VM: give VM or NAMESPACE/VM"),
        ({}, ["tenant-a/"], "is no VM"),
        ({}, ["tenant-a/vm-a", "-n", "tenant-b"], "two namespaces are given"),
        ({}, ["tenant-a/vm-a", "--kubeconfig", "x"], "exclude each other"),
    ],
)
async def test_no_answer_says_why_and_is_status_2(
    refuse: dict[str, int], arguments: list[str], says: str
) -> None:
    cluster = Cluster()
    cluster.refuse = refuse
    code, out, err = await asked(cluster, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("Error: ")
    assert says in err
    assert len(err.splitlines()) == 1, "no traceback"


async def test_nobody_there_is_status_2(tmp_path: Path) -> None:
    code, _, err = await run("vm-a", "--server=http://127.0.0.1:1")
    assert (code, "Unreachable" in err) == (2, True)
    code, _, err = await run("vm-a", "--server=ftp://x")
    assert (code, "is not an http(s) URL" in err) == (2, True)
    code, _, err = await run("vm-a", f"--kubeconfig={tmp_path / 'none'}")
    assert (code, "cannot read kubeconfig" in err) == (2, True)
    code, _, err = await run("vm-a")
    assert (code, "no API server: give --kubeconfig" in err) == (2, True)


async def test_the_kubeconfig_is_found_where_kubectl_finds_it_and_its_namespace_counts(
    tmp_path: Path,
) -> None:
    cluster = Cluster()
    async with serving(cluster) as url:
        kubeconfig(tmp_path / ".kube/config", url, "tenant-a")
        other = kubeconfig(tmp_path / "other", url, "tenant-b")
        assert (await run("vm-a", HOME=str(tmp_path)))[0] == 0
        assert "tenant-b/vm-a" in (await run("vm-a", HOME=str(tmp_path), KUBECONFIG=str(other)))[2]
        assert (await run("vm-a", f"--kubeconfig={tmp_path / '.kube/config'}", KUBECONFIG=str(other)))[0] == 0
        assert (await run("vm-a", "-n", "tenant-a", KUBECONFIG=str(other)))[0] == 0


def test_on_a_terminal_it_is_coloured_and_fits() -> None:
    with open(os.devnull, "w") as nowhere:
        console = Console(file=nowhere, force_terminal=True, width=80, record=True, markup=False)
        explanation_text._write(console, explained(Cluster(), "n3"), detailed=True)
    text = console.export_text(styles=True)
    assert "\x1b[" in text
    plain = Text.from_ansi(text).plain
    assert max(map(len, plain.splitlines())) <= 80
    assert "refuses" in plain


def test_what_comes_from_the_cluster_cannot_steer_a_terminal() -> None:
    cluster = Cluster()
    evil = declared("1.1.0", extra={"color": "[red]x[/red]\x1b[2J"})
    cluster.items["vfionodes"][1] = vfionode("n2", {"n2-0": evil})
    with open(os.devnull, "w") as nowhere:
        console = Console(file=nowhere, force_terminal=True, width=200, record=True, markup=False)
        explanation_text._write(console, printable(explained(cluster, "n2")), detailed=True)
    text = console.export_text(styles=True)
    assert "\x1b[2J" not in text
    assert "[red]x[/red]\N{REPLACEMENT CHARACTER}[2J" in text


async def test_nor_where_it_is_written_to_a_file() -> None:
    cluster = Cluster()
    evil = declared("1.1.0", extra={"color": "x\x1b[2J\ny"})
    cluster.items["vfionodes"][1] = vfionode("n2", {"n2-0": evil})
    _, out, _ = await asked(cluster, "tenant-a/vm-a")
    assert "x\N{REPLACEMENT CHARACTER}[2J\N{REPLACEMENT CHARACTER}y" in out


def test_many_nodes_are_few_lines() -> None:
    cluster = Cluster()
    for number in range(300):
        cluster.items["nodes"].append(node(f"m{number:03}"))
        version = "1.1.0" if number % 3 else "1.0.0"
        cluster.items["vfionodes"].append(vfionode(f"m{number:03}", {f"m{number}": declared(version)}))
    with open(os.devnull, "w") as nowhere:
        console = Console(file=nowhere, width=200, record=True, markup=False)
        explanation_text._write(console, explained(cluster), detailed=False)
    text = console.export_text()
    assert len(text.splitlines()) < 40
    assert "and 182 more" in text
    assert "m000, m003, m006, m009, m012 and 96 more" in text
    assert POOL in text
