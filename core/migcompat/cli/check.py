"""``migcompat check``: may the state of one device migrate to another (semantics §7)."""

from __future__ import annotations

import enum
import json
import os
from pathlib import Path
from typing import Annotated

import msgspec
import typer
import yaml

from migcompat.engine.declaration import Declaration
from migcompat.engine.policy import DEFAULT_POLICY, Policy, PolicyError, parse_policy, supply
from migcompat.engine.verdict import Verdict, decide, entry_problems
from migcompat.sysfs.declaration import read_declaration

EXIT_COMPATIBLE = 0
EXIT_NOT_COMPATIBLE = 1
EXIT_UNUSABLE_ARGUMENTS = 2

MAX_POLICY = 1024 * 1024
"""A policy file, in bytes; an object of the cluster cannot be larger either (etcd's limit is 1.5 MiB)."""


class Output(enum.StrEnum):
    """How the verdict is written."""

    TEXT = "text"
    JSON = "json"


class ArgumentError(ValueError):
    """An argument that cannot be used: what, and what to do."""


def command(app: typer.Typer) -> None:
    """Add ``check`` to *app*."""
    app.command("check")(check)


def check(
    source: Annotated[Path, typer.Argument(help="Device directory that the state comes from.")],
    target: Annotated[Path, typer.Argument(help="Device directory that is to take it over.")],
    policy: Annotated[Path | None, typer.Option(help="YAML file with the policy's keys.")] = None,
    output: Annotated[Output, typer.Option("--output", "-o", help="Output format.")] = Output.TEXT,
) -> None:
    """Tell whether TARGET accepts the state of SOURCE.

    Exit status: 0 compatible, 1 not compatible, 2 unusable arguments.
    """
    try:
        rules = _read_policy(policy)
        ours, theirs = _read_device("SOURCE", source, rules), _read_device("TARGET", target, rules)
    except ArgumentError as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(EXIT_UNUSABLE_ARGUMENTS) from error
    verdict = decide(ours, theirs, rules)
    for index, problem in entry_problems(theirs.accepts, rules).items():
        typer.echo(f"Warning: compatible entry {index} of TARGET is skipped: {problem}", err=True)
    typer.echo(as_json(verdict) if output is Output.JSON else as_text(verdict))
    raise typer.Exit(EXIT_COMPATIBLE if verdict.compatible else EXIT_NOT_COMPATIBLE)


def as_json(verdict: Verdict) -> str:
    """The verdict object of semantics §4."""
    return json.dumps(msgspec.to_builtins(verdict), indent=2)


def as_text(verdict: Verdict) -> str:
    """The verdict for people."""
    lines = [f"{'Compatible' if verdict.compatible else 'Not compatible'}: {verdict.reason.value}"]
    lines.append(f"  {verdict.message}")
    if verdict.entry is not None:
        lines.append(f"  {'matched' if verdict.compatible else 'nearest'}: compatible entry {verdict.entry}")
    lines += [f"  template variable {name} = {value}" for name, value in verdict.bindings.items()]
    lines += [
        f"  before hand-over, write {value} to {name} of the target"
        for name, value in verdict.obligations.items()
    ]
    return "\n".join(lines)


def _read_device(name: str, place: Path, policy: Policy) -> Declaration:
    if not os.path.isdir(place):
        what = "is not a directory" if os.path.lexists(place) else "does not exist"
        raise ArgumentError(f"{name} {place} {what}; give the sysfs directory of a device")
    return supply(read_declaration(place), policy)


def _read_policy(place: Path | None) -> Policy:
    if place is None:
        return DEFAULT_POLICY
    try:
        with place.open("rb") as file:
            text = file.read(MAX_POLICY + 1)
    except OSError as error:
        raise ArgumentError(f"policy file {place} cannot be read: {error.strerror}") from error
    if len(text) > MAX_POLICY:
        raise ArgumentError(f"policy file {place} is longer than {MAX_POLICY} bytes")
    try:
        return parse_policy(yaml.load(text, Loader=_UniqueKeyLoader))  # noqa: S506 (derived from SafeLoader)
    except PolicyError as error:
        raise ArgumentError(f"policy file {place}: {error}") from error
    except RecursionError as error:
        raise ArgumentError(f"policy file {place} is nested too deeply") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: what YAML takes for a date and is none
        raise ArgumentError(f"policy file {place} is not YAML: {' '.join(str(error).split())}") from error


class _UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a key that is given twice, of which YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
        seen = set()
        for key in (key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is given twice", node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)
