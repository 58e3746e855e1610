"""The benchmark measures what it says, and says when it cannot. Nothing is timed here."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path

import pytest

from tests.bench import agent, drain, filtering, lightnodes, memory, product, run, scanning, scheduling
from tests.bench.figures import BenchError, Row, percentile
from tests.bench.large_fleet import filter_call
from tests.cluster.binaries.build import build_go
from tests.cluster.processes import Process
from tests.node.oracle import UNIQUE, Entry, Mdev
from tests.support.fleets import declared
from tests.support.vfs import make_vfs


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the figures are written, with parts that are modules of this test."""
    path = tmp_path / "build" / "bench.json"
    monkeypatch.setattr(run, "OUTPUT", path)
    return path


def parts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, **bodies: str) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    for name, body in bodies.items():
        source = f"from tests.bench.figures import BenchError, Row\n\n\ndef measure():\n    {body}\n"
        (tmp_path / f"part_{name}.py").write_text(source)
        monkeypatch.delitem(sys.modules, f"part_{name}", raising=False)
    monkeypatch.setattr(run, "PARTS", {name: f"part_{name}" for name in bodies})
    monkeypatch.setattr(sys, "argv", ["bench"])


def test_both_extenders_answer_the_call_alike() -> None:
    null_program = build_go(Path(filtering.__file__).parent / "nullextender", "nullextender")
    ours_command = [sys.executable, "-m", "tests.bench.extender_process"]
    with filtering.extender([null_program]) as null, filtering.extender(ours_command) as ours:
        for connection in (null, ours):
            filtering.check("it", connection.post("/filter", filter_call())[1])
        ours.post("/change", b"")
        filtering.check("ours after a change", ours.post("/filter", filter_call())[1])


def test_an_extender_that_does_not_start_is_an_error() -> None:
    with (
        pytest.raises(BenchError, match="did not start"),
        filtering.extender([sys.executable, "-c", "print('no address')"]),
    ):
        pass


def test_a_wrong_answer_is_an_error() -> None:
    answer = json.dumps({"NodeNames": ["node-0000"], "FailedAndUnresolvableNodes": {}}).encode()
    with pytest.raises(BenchError, match="1 nodes passed and 0 failed where 500 and 4500"):
        filtering.check("it", answer)


def test_the_bare_baseline_sees_every_function(tmp_path: Path) -> None:
    assert scanning.bare(make_vfs(tmp_path, 5)) > 5


def test_memory_of_this_process() -> None:
    found = memory.memory(os.getpid())
    assert set(found) == {"PSS", "RSS"}
    assert 1 < found["PSS"] <= found["RSS"]
    with pytest.raises(BenchError, match="cannot be read"):
        memory.memory(2**22 + 1)


def test_what_this_process_takes() -> None:
    own, mapped = agent.resident(os.getpid())
    assert 1 < own < mapped
    assert 0 < agent.cpu_seconds(os.getpid()) <= time.process_time()
    for measure in (agent.resident, agent.cpu_seconds):
        with pytest.raises(BenchError, match="cannot be read"):
            measure(2**22 + 1)


def test_percentiles() -> None:
    assert percentile(list(range(1, 100)), 50) == 50
    assert percentile(list(range(1, 100)), 99) == 99


def test_all_well(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = 'Row(name="x", value=2.0, unit="ms", baseline="y", ratio=0.5, goal=3)'
    parts(monkeypatch, tmp_path, good=f"return [{row}]")
    assert run.main() == 0
    assert json.loads(output.read_text())["rows"] == [
        {"name": "x", "value": 2.0, "unit": "ms", "baseline": "y", "ratio": 0.5, "goal": 3.0, "met": True}
    ]
    assert "<= 3: met" in capsys.readouterr().out


def test_a_part_that_fails_leaves_the_others_figures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts(
        monkeypatch,
        tmp_path,
        missing='raise BenchError("no Go here; install it")',
        broken="import nothing_of_that_name",
        good='return [Row(name="x", value=1.0, unit="ms")]',
    )
    assert run.main() == 1
    said = json.loads(output.read_text())
    assert [row["name"] for row in said["rows"]] == ["x"]
    assert said["problems"]["missing"] == "no Go here; install it"
    assert said["problems"]["broken"].startswith("ModuleNotFoundError: No module named 'nothing_of")
    assert "bench: part missing failed: no Go here; install it" in capsys.readouterr().err


def test_a_missed_goal_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts(monkeypatch, tmp_path, slow='return [Row(name="scan", value=300.0, unit="ms", goal=250)]')
    assert run.main() == 1
    assert json.loads(output.read_text())["rows"][0]["met"] is False
    assert "goal not met: scan: 300.0 ms, the goal is <= 250" in capsys.readouterr().err


def test_a_value_below_its_floor_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f'Row(name="placed", value={value}, unit="%", floor=95)' for value in ("95.0", "94.9")]
    parts(monkeypatch, tmp_path, drain=f"return [{', '.join(rows)}]")
    assert run.main() == 1
    assert [row["met"] for row in json.loads(output.read_text())["rows"]] == [True, False]
    said = capsys.readouterr()
    assert "goal not met: placed: 94.9 %, the goal is >= 95" in said.err
    assert ">= 95: NOT met" in said.out


def test_a_process_that_ends_is_not_waited_for(tmp_path: Path) -> None:
    process = Process("broken", [sys.executable, "-c", "exit('no such thing')"], log=tmp_path / "log")
    with pytest.raises(BenchError, match=r"(?s)broken ended with 1; the end of its log:.*no such thing"):
        product.await_ready(process, "http://127.0.0.1:9/readyz")
    with pytest.raises(BenchError, match="make venv installs it"):
        product.program("migcompat-nothing")


def test_the_plan_of_the_large_cluster() -> None:
    size = scheduling.Size()
    plans = scheduling.plans(size)
    assert len(plans) == size.nodes
    rare = [plan for plan in plans if plan.declaration == declared(scheduling.RARE)]
    assert [(plan.name, plan.devices, len(plan.vms)) for plan in rare] == [
        (f"node-{size.position}", size.single, 0),
        ("source-rare", size.single, size.single),
    ]
    assert all(plan.devices == len(plan.vms) for plan in plans if plan.vms), "no device of a source is free"
    assert len({vm for plan in plans for vm in plan.vms}) == size.single + size.targets


def test_a_light_node_prefers_a_device_that_accepts() -> None:
    old, new = (Mdev(version, None, (Entry(version),)) for version in ("1.0.0", "1.1.0"))
    node = lightnodes.Light("n", {"a": UNIQUE, "b": old, "c": new})
    assert lightnodes.choose(node, new) == "c"
    assert lightnodes.choose(node, old) == "b"
    assert lightnodes.choose(node, None) == "a"
    node.held = {"b": ("ns", "p"), "c": ("ns", "q")}
    assert lightnodes.choose(node, old) == "a", "the kubelet gives what is free; the guard refuses"
    node.held["a"] = ("ns", "r")
    assert lightnodes.choose(node, old) is None


@pytest.mark.cluster
def test_a_small_cluster_is_scheduled_in_each_way() -> None:
    size = scheduling.Size(nodes=20, position=11, single=2, targets=4, others=8, rounds=1)
    rows = asyncio.run(scheduling.run(size))
    first = [row for row in rows if row.name.endswith("bound at the first attempt")]
    assert [row.floor for row in first] == [100.0, 100.0, None]
    assert [row.value for row in first] == [100.0, 100.0, 100.0], "of 20 nodes an extender sees all"
    rates = [row for row in rows if row.unit == "1/s"]
    assert len(rates) == 4
    assert all(row.value > 0 for row in rates)


@pytest.mark.cluster
def test_a_small_drain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drain, "COPYING_SECONDS", 0.1)
    rows = drain.run(drain.Size(nodes=10, drained=2, vms=4, movable=1, rounds=1))
    found = {row.name.rpartition(": ")[2]: row.value for row in rows}
    assert found["movable in truth"] + found["stranded in truth"] == 4
    assert found["VMs whose MIGRATABLE says otherwise"] == 0
    assert found["started on a refusing device"] == 0
    assert rows[-1].name == "drain until 1 movable VMs are elsewhere, with 3 hopeless to without"


def test_an_unknown_part_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", "filte"])
    assert run.main() == 2
    said = capsys.readouterr().err
    assert "no part named filte; there are filter, scan, verdicts, memory, agent, scheduling, drain" in said


def test_a_row_without_a_goal_has_neither_met_nor_missed_it() -> None:
    assert Row(name="x", value=1, unit="ms").met is None
