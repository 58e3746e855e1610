"""An explanation for people: tables, in colour on a terminal."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import msgspec
import typer
from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from migcompat.engine.trace import EntryTrace, Finding, Row, Trace
from migcompat.fleet.explanation import Explanation, NodeView, Pairing

MOST_NODES = 20
"""Accepting nodes that have a line each."""
MOST_NAMED = 5
"""Nodes that are named of those that refuse for one reason."""
UNBOUNDED = 100_000
"""Columns where nobody looks at a terminal: nothing is broken or cut there."""

_COLOURS = {
    Finding.OK: "green",
    Finding.REFUSES: "bold red",
    Finding.OBLIGATION: "cyan",
    Finding.UNKNOWN: "yellow",
    Finding.IGNORED: "dim",
    Finding.NOT_REACHED: "dim",
}


def write(found: Explanation, *, detailed: bool) -> None:
    """Print *found* to standard output; *detailed*: its one node with all that was compared."""
    found = printable(found)
    console = Console(markup=False, highlight=False)
    if console.is_terminal:
        _write(console, found, detailed=detailed)
        return
    text = io.StringIO()
    _write(Console(file=text, markup=False, highlight=False, width=UNBOUNDED), found, detailed=detailed)
    for line in text.getvalue().splitlines():
        typer.echo(line.rstrip())


def printable(found: Explanation) -> Explanation:
    """*found* without control characters: nodes write what is shown here, and a terminal would obey them."""
    return msgspec.convert(_printable(msgspec.to_builtins(found)), Explanation)


def _printable(value: Any) -> Any:
    if isinstance(value, str):
        return "".join(
            character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in value
        )
    if isinstance(value, dict):
        return {_printable(key): _printable(inner) for key, inner in value.items()}
    return [_printable(inner) for inner in value] if isinstance(value, list | tuple) else value


def _write(console: Console, found: Explanation, *, detailed: bool) -> None:
    for line in _head(found):
        console.print(Text(line))
    if detailed:
        _write_node(console, found.nodes[0])
    elif found.nodes:
        console.print(_nodes(found.nodes, console))
    for note in found.notes:
        console.print(Text(f"Note: {note}", style="yellow"))


def _head(found: Explanation) -> Iterator[str]:
    where = found.node or "no node"
    yield f"VM {found.namespace}/{found.vmi} on {where}, mode {found.mode}"
    asked = [f"{count} of {resource}" for resource, count in sorted(found.asks.items())]
    yield f"  asks for {', '.join(asked) or 'no device of a known pool'}"
    for device in found.devices:
        policy = f" (policy {device.policy})" if device.policy else ""
        yield f"  has {device.id}{policy}: {_attributes(device.attributes)}"
    if found.problem:
        yield f"  {found.problem}"
    if found.require_return_path:
        yield "  the way back must match too"
    if found.cross_type:
        yield f"  other types: {found.cross_type}"
    yield f"{found.compatible} of {found.total} node(s) accept, {found.free} of them with devices free"


def _nodes(views: list[NodeView], console: Console) -> Table:
    table = _table(console, "NODE", "ACCEPTS", "FREE", "REASON", "WHY")
    accepting = [view for view in views if view.compatible]
    for view in accepting[:MOST_NODES]:
        table.add_row(view.node, *_verdict(view), "; ".join(_why(view)))
    if len(accepting) > MOST_NODES:
        table.add_row(f"and {len(accepting) - MOST_NODES} more", "yes", "", "", "-o json names them")
    groups: dict[tuple[str, str], list[NodeView]] = {}
    for view in views:
        if not view.compatible:
            groups.setdefault((view.reason, view.message), []).append(view)
    for group in sorted(groups.values(), key=len, reverse=True):
        named = ", ".join(view.node for view in group[:MOST_NAMED])
        more = f" and {len(group) - MOST_NAMED} more" if len(group) > MOST_NAMED else ""
        table.add_row(named + more, *_verdict(group[0]), group[0].message)
    return table


def _verdict(view: NodeView) -> tuple[Text, Text, str]:
    free = "-" if not view.compatible else "yes" if view.free else "no"
    colour = {"yes": "green", "no": "yellow"}.get(free, "")
    accepts = Text("yes", "green") if view.compatible else Text("no", "red")
    return accepts, Text(free, colour), view.reason


def _why(view: NodeView) -> Iterator[str]:
    if view.message:
        yield view.message
    if view.promised:
        named = ", ".join(view.promised_to)
        yield f"{view.promised} device(s) promised to pods on their way: {named}"
    if not view.takes_pods:
        yield "the node is cordoned or not ready"
    if view.avoided:
        yield view.avoided
    for name, value in view.obligations.items():
        yield f"{value} is to be written to {name}"


def _write_node(console: Console, view: NodeView) -> None:
    accepts = Text("accepts", "green") if view.compatible else Text("refuses", "red")
    free = "" if not view.compatible else ", free" if view.free else ", not free"
    console.print(Text.assemble(f"Node {view.node} ", accepts, f"{free}: {view.reason}"))
    for why in _why(view):
        console.print(Text(f"  {why}"))
    console.print(Text(f"  the extender's filter: {view.rejection or 'passes'}"))
    for source, target in view.assignment.items():
        console.print(Text(f"  {source} would go to {target}"))
    for pairing in view.pairings or ():
        _write_pairing(console, pairing)
    if view.pairings_left_out:
        console.print(Text(f"and {view.pairings_left_out} pairing(s) more"))


def _write_pairing(console: Console, pairing: Pairing) -> None:
    verdict = pairing.trace.verdict
    named = ", ".join(pairing.targets)
    more = pairing.count - len(pairing.targets)
    named += f" and {more} more equal ones" if more > 0 else ""
    policy = pairing.policy or "none, the defaults hold"
    if pairing.tied:
        policy += f" (equally specific: {', '.join(pairing.tied)})"
    console.print()
    console.print(Text(f"{pairing.source or 'unknown source'} → {named}: {verdict.reason}", style="bold"))
    console.print(Text(f"  {verdict.message}"))
    console.print(Text(f"  {pairing.free} of {pairing.count} free; policy: {policy}"))
    _write_trace(console, pairing.trace)
    if pairing.entries_left_out:
        console.print(Text(f"  and {pairing.entries_left_out} compatible entries more"))
    if pairing.trace.back is not None:
        console.print(Text(f"  the way back: {pairing.trace.back.verdict.reason}", style="bold"))
        _write_trace(console, pairing.trace.back)


def _write_trace(console: Console, trace: Trace) -> None:
    """The entry that counts row by row, of each other entry what it came to."""
    counts = trace.verdict.entry
    rows = [trace.presence]
    for entry in trace.entries:
        if entry.index == counts:
            word = "matched" if trace.verdict.compatible else "nearest"
            console.print(Text(f"  compatible entry {entry.index} ({word}):"))
            rows += entry.rows
        else:
            console.print(Text(f"  compatible entry {entry.index}: {_outcome(entry)}"))
    table = _table(console, "ATTRIBUTE", "SOURCE", "TARGET", "RULE", "COMPARED", "VERDICT", "SEMANTICS")
    for row in rows:
        table.add_row(*_cells(row))
    console.print(Padding(table, (0, 0, 0, 2)))
    for row in rows:
        if row.message and row.message != trace.verdict.message:
            console.print(Text(f"  {row.attribute}: {row.message.removeprefix(f'{row.attribute}: ')}"))


def _outcome(entry: EntryTrace) -> str:
    if entry.problem:
        return f"malformed: {entry.problem}"
    return f"{entry.reason}: {entry.message}" if entry.reason else "not looked at, an earlier one matched"


def _cells(row: Row) -> tuple[str | Text, ...]:
    return (
        Text(row.attribute),
        Text("-" if row.source is None else row.source),
        Text("-" if row.target is None else row.target),
        row.rule or "-",
        row.how or "-",
        Text(row.finding, _COLOURS[row.finding]),
        row.section,
    )


def _table(console: Console, *columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD if console.is_terminal else None, pad_edge=False, padding=(0, 1))
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column in {"ATTRIBUTE", "VERDICT"})
    return table


def _attributes(attributes: dict[str, str]) -> str:
    return " ".join(f"{name}={value}" for name, value in sorted(attributes.items())) or "(nothing)"
