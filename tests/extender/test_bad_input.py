"""Bodies and objects that nobody should send: each gets a clear message, and nothing else suffers."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import logging
import random
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from migcompat.api import names
from migcompat.fleet import stamp
from migcompat_extender import app as process
from migcompat_extender.admission import Admission
from migcompat_extender.filter import Filter
from migcompat_extender.prioritize import Prioritize
from migcompat_extender.server import make_app
from migcompat_extender.settings import Settings
from migcompat_extender.table import Tables
from migcompat_extender.tls import Certificates
from migcompat_extender.wire import WireError

from tests.extender.certificates import Authority
from tests.extender.world import (
    admitted,
    all_well,
    args,
    built,
    patched,
    required_terms,
    review,
    serving,
    target,
    world,
)
from tests.support.fleets import POOL, vmi

DEEP = 100_000


def nested(head: bytes) -> bytes:
    return head + b"[" * DEEP + b"]" * DEEP + b"}" * head.count(b"{")


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(nested(b'{"x":'), id="beside what is read"),
        pytest.param(nested(b'{"request":{"object":'), id="the object"),
        pytest.param(nested(b'{"request":{"object":{"spec":{"affinity":'), id="the affinity"),
        pytest.param(nested(b'{"Pod":{"metadata":{"annotations":'), id="a pod of kube-scheduler"),
        pytest.param(b'{"x":' * DEEP, id="and cut short"),
    ],
)
@pytest.mark.parametrize("path", ["/mutate", "/filter", "/prioritize"])
async def test_bodies_nested_too_deeply(path: str, body: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(make_app(world({"n2": "1.1.0"}), all_well)) as client:
        answer = await client.post(path, data=body)
        said = await answer.json()
        assert answer.status == (200 if path == "/filter" else 400)
        assert "request is not " in said.get("error", said.get("Error"))
        assert (await (await client.post("/filter", data=args(["n2"]))).json())["NodeNames"] == ["n2"]
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]


def edited(change: Callable[[dict[str, Any]], object]) -> bytes:
    document = json.loads(review(target()))
    change(document)
    return json.dumps(document).encode()


MANY = {f"key-{i}": "value" for i in range(200_000)}


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(edited(lambda d: d.update(MANY)), id="of the review"),
        pytest.param(edited(lambda d: d["request"].update(MANY)), id="of the request"),
        pytest.param(edited(lambda d: d["request"]["object"]["spec"].update(MANY)), id="of the spec"),
        pytest.param(b'{"uid":"x",' + review(target())[1:], id="a stray one"),
        pytest.param(review(target())[:-2] + b',"uid":"review-1"}}', id="the same one twice"),
        pytest.param(b'{"kind":"Nonsense",' + review(target())[1:], id="the last one counts"),
        pytest.param(
            edited(lambda d: d["request"].update(OPERATION="DELETE", Uid="x")), id="of another case"
        ),
        pytest.param(
            edited(lambda d: d["request"].update(dryRun=None, options={"x": 1e308})), id="null, big"
        ),
    ],
)
def test_absurd_keys_beside_what_is_read_change_nothing(body: bytes) -> None:
    assert required_terms(patched(target(), admitted(world({"n2": "1.1.0"}), body)))


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (review(target()).replace(b'"review-1"', b"NaN"), "malformed"),
        (review(target()).replace(b'"review-1"', b"Infinity"), "malformed"),
        (review(target()).replace(b'"review-1"', b"12"), "Expected `str`, got `int` - at `$.request.uid`"),
        (review(target()).replace(b'"review-1"', b'"\xff"'), "utf-8"),
        (review(target()).replace(b'"review-1"', b'"\\ud800"'), "request is not an AdmissionReview"),
        (review(target()).replace(b'"request"', b'"Request"'), "has no request"),
        (review(target()).replace(b'"uid": "review-1"', b'"UID": "x"'), "missing required field `uid`"),
        (b"\xef\xbb\xbf" + review(target()), "malformed"),
        (b"[" + review(target()) + b"]", "Expected `object`, got `array`"),
        (review(target()) + review(target()), "malformed"),
    ],
)
def test_what_is_no_review_is_told_apart(body: bytes, says: str) -> None:
    with pytest.raises(
        WireError, match=r"request is not an AdmissionReview|AdmissionReview has no"
    ) as refused:
        admitted(world({"n2": "1.1.0"}), body)
    assert says in str(refused.value)


@pytest.mark.parametrize(
    "changes",
    [
        {
            "operation": "CONNECT",
            "subResource": "exec",
            "kind": {"group": "", "version": "v1", "kind": "PodExecOptions"},
            "object": {"command": ["sh"]},
        },
        {"subResource": "binding", "kind": {"group": "", "version": "v1", "kind": "Binding"}},
        {"subResource": "eviction", "kind": {"group": "policy", "version": "v1", "kind": "Eviction"}},
        {"subResource": "ephemeralcontainers", "operation": "UPDATE"},
        {"kind": {"group": "", "version": "v1", "kind": "pod"}},
        {"operation": "create"},
        {"operation": "DELETE", "object": None, "dryRun": True},
    ],
)
def test_other_operations_and_sub_resources_pass_with_a_warning(changes: dict[str, Any]) -> None:
    """Whatever the object is: it is not even looked at."""
    response = admitted(world({}), review(target(), **changes), fail_closed=True)
    assert (response["allowed"], "patch" in response) == (True, False)
    assert response["warnings"] == [
        "migcompat: only the creation of pods is looked at; check the webhook's rules"
    ]


@pytest.mark.parametrize("quantity", ["999999999999999999", "9" * 5000, 10**18, "\u0661\u0662", "1e30", "-1"])
def test_absurd_quantities(quantity: Any) -> None:
    """Anyone may make a pod that looks like a target and asks for a billion devices."""
    pod = built(target())
    pod["spec"]["containers"][0]["resources"]["limits"] = {POOL: quantity}
    fleet = world({"n2": "1.1.0"})
    for known in (True, False):
        if not known:
            fleet.drop_vmi("tenant-a", "vm-a")
        response = admitted(fleet, review(pod))
        if not response["allowed"]:
            assert "1 NotEnoughDevices (fewer than" in response["status"]["message"]
    assert required_terms(patched(target(), admitted(world({"n2": "1.1.0"}), review(target()))))


def test_a_fraction_of_a_device_is_no_pod() -> None:
    pod = built(target())
    pod["spec"]["containers"][0]["resources"]["limits"] = {POOL: 1.5}
    with pytest.raises(WireError, match=r"not a Pod: Expected `int \| str`, got `float`"):
        admitted(world({"n2": "1.1.0"}), review(pod))


# -- what tenants may write --------------------------------------------------------------------------------

GARBAGE = {
    names.MODE: "ενφόρσε\n" + "x" * 100_000,
    names.REQUIRE_RETURN_PATH: "\x00\ufffd",
    names.CROSS_TYPE: '{"deny": [',
    "example.org/кириллица": "\U0001f4a5" * 1000,
    "": "",
}


def test_garbage_in_a_vms_annotations_enforces_and_is_kept() -> None:
    fleet = world({"n2": "1.2.0", "n3": "1.0.0", "n4": "1.0.0"}, allow_loosening=True)
    fleet.put_vmi(vmi("vm-a", "node-1", annotations=GARBAGE))
    before = target(annotations=GARBAGE)
    response = admitted(fleet, review(before), allow_loosening=True)
    assert response["allowed"] is False, "an unknown require-return-path asks for it"
    text = response["status"]["message"]
    assert "1 ReturnPath (" in text
    assert text.isascii()
    fleet.put_vmi(vmi("vm-a", "node-1", annotations={**GARBAGE, names.REQUIRE_RETURN_PATH: "false"}))
    after = patched(before, admitted(fleet, review(before), allow_loosening=True))
    kept = {k: v for k, v in after["metadata"]["annotations"].items() if k != names.SOURCE}
    assert kept == built(before)["metadata"]["annotations"]
    assert len(required_terms(after)) == 1


@pytest.mark.parametrize("excess", [0, 1])
def test_annotations_that_leave_no_room_for_a_stamp_do_not_stop_the_vm(excess: int) -> None:
    """With more than 262,144 bytes in all keys and values kube-apiserver would refuse the pod."""
    fleet = world({"n2": "1.1.0"})
    stamped = patched(target(), admitted(fleet, review(target())))["metadata"]["annotations"]
    left = stamp.ALL_ANNOTATIONS - sum(len(key) + len(value) for key, value in stamped.items())
    size = left - len("x") + excess
    before = target(annotations={"x": "é" * (size // 2) + "y" * (size % 2), names.SOURCE: "forged"})
    after = patched(before, admitted(fleet, review(before)))
    assert after["metadata"]["annotations"].get(names.SOURCE) == (None if excess else stamped[names.SOURCE])
    assert required_terms(after)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda labels: labels.pop(names.NODE_NAME), id="no label with the source node"),
        pytest.param(lambda labels: labels.update({names.MIGRATION_UID: ""}), id="an empty migration"),
    ],
)
def test_the_vmi_tells_what_the_pods_labels_do_not(change: Callable[[dict[str, str]], object]) -> None:
    pod = built(target())
    change(pod["metadata"]["labels"])
    assert required_terms(patched(pod, admitted(world({"n2": "1.1.0"}), review(pod))))


def test_a_vmi_that_was_made_anew_is_not_the_pods() -> None:
    fleet = world({"n2": "1.1.0"})
    reborn = vmi("vm-a", "node-1")
    reborn.metadata.uid = "another"
    fleet.put_vmi(reborn)
    response = admitted(fleet, review(target()))
    assert (
        "1 Unknown (the VirtualMachineInstance of the target pod is not known)"
        in response["status"]["message"]
    )


# -- any body at all ---------------------------------------------------------------------------------------

VALUES: list[Any] = [
    None, True, -1, 10**30, 0.5, "", "x", "\u0000", "\U0001f4a5", "x" * 5000, [], {}, [[]], [None],
    {"": None}, {"metadata": {}}, ["a", 1, None], {"values": [1]},
]  # fmt: skip


def spots(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = document.items() if isinstance(document, dict) else enumerate(document)
    found = []
    for key, value in inner:
        found.append((*path, key))
        if isinstance(value, dict | list):
            found += spots(value, (*path, key))
    return found


def mutated(document: Any, dice: random.Random) -> Any:
    """*document* with one to three of its values replaced, removed or moved."""
    result = copy.deepcopy(document)
    for _ in range(dice.randint(1, 3)):
        *parents, last = dice.choice(spots(result))
        holder = result
        for key in parents:
            holder = holder[key]
        match dice.randrange(4):
            case 0:
                del holder[last]
            case 1 if isinstance(holder, dict):
                holder[str(last).swapcase()] = holder.pop(last)
            case _:
                holder[last] = copy.deepcopy(dice.choice(VALUES))
        if not result:
            break
    return result


def with_affinity() -> dict[str, Any]:
    pod = built(target(annotations={names.SOURCE: "forged"}))
    term = {
        "matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}],
        "matchFields": [{"key": "metadata.name", "operator": "NotIn", "values": ["c"]}],
    }
    required = {"nodeSelectorTerms": [term]}
    pod["spec"]["affinity"] = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}
    pod["spec"]["nodeSelector"] = {"a": "b"}
    result: dict[str, Any] = pod
    return result


def _outcome(reviews: Admission, body: bytes) -> str:
    try:
        response = json.loads(reviews.answer(body)[0])["response"]
    except WireError as refused:
        return "no reason" if len(str(refused)) < 20 else "refused"
    return "allowed" if response["allowed"] else "denied"


@pytest.mark.parametrize("seed", range(8))
def test_whatever_is_sent_is_answered_or_refused_with_a_reason(seed: int) -> None:
    """The seed is the test's parameter. Nothing but WireError may come out, and every answer is one."""
    dice = random.Random(seed)
    fleet = world({"n2": "1.1.0", "n3": "1.1.0", "n4": "1.2.0", "old": "1.0.0"}, allow_loosening=True)
    tables = Tables(fleet)
    settings = Settings(max_names=1, allow_loosening=True, fail_closed=seed % 2 == 1)
    reviews = Admission(fleet, tables, all_well if seed % 4 < 3 else lambda: "stale", settings)
    filters, ranks = Filter(fleet, tables, all_well, settings), Prioritize(fleet, all_well)
    asked, called = json.loads(review(with_affinity())), json.loads(args(["n2", "old"], with_affinity()))
    outcomes = Counter[str]()
    for _ in range(400):
        body = json.dumps(mutated(asked, dice)).encode()
        call = json.dumps(mutated(called, dice)).encode()
        outcomes[_outcome(reviews, body)] += 1
        for answer in (filters.answer, ranks.answer):
            with contextlib.suppress(WireError):
                answer(call)
    assert outcomes.keys() >= {"allowed", "refused"}, outcomes
    assert not outcomes["no reason"]


# -- slow clients ------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def listening(authority: Authority, settings: Settings) -> AsyncIterator[int]:
    """The extender's own TLS port."""
    certificates = Certificates(*authority.issue("server"), None)
    web_app = make_app(world({"n2": "1.1.0"}), all_well, settings)
    runner, server = await process._serve(web_app, "127.0.0.1:0", certificates.context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await runner.cleanup()


HEAD = b"POST /mutate HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"
SLOW = {
    "nothing at all": (False, b""),
    "half a handshake": (False, b"\x16\x03\x01\x02\x00\x01\x00"),
    "no request": (True, b""),
    "half a head": (True, HEAD[:20]),
    "half a body": (True, HEAD + b"{"),
}


async def test_two_hundred_slow_clients_do_not_keep_others_waiting(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "ca")
    tls = authority.client()
    async with listening(authority, Settings(read_seconds=3.0)) as port:

        async def slow(secure: bool, start: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls if secure else None)
            writer.write(start)
            await writer.drain()
            return reader, writer

        held = await asyncio.gather(*(slow(*how) for _ in range(40) for how in SLOW.values()))
        assert len(held) == 200
        try:
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls)) as session:
                for _ in range(20):
                    async with session.post(
                        f"https://127.0.0.1:{port}/mutate", data=review(target())
                    ) as answer:
                        assert (await answer.json())["response"]["allowed"] is True
            assert not any(reader.at_eof() for reader, _ in held[4::5]), "they were slow all the while"
            for reader, _ in held[4::5]:
                async with asyncio.timeout(60):
                    assert (await reader.readuntil(b'"}')).startswith(b"HTTP/1.1 408 ")
            for reader, _ in (*held[0::5], *held[1::5]):
                async with asyncio.timeout(60):
                    with contextlib.suppress(ConnectionError, ssl.SSLError):
                        await reader.read()
        finally:
            for _, writer in held:
                writer.transport.abort()
