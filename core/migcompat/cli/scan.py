"""``migcompat scan``: what VFIO devices are there, as what, and what each says about itself."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
import yaml

from migcompat.engine.declaration import Acceptance, Declaration, Presence
from migcompat.engine.declaration import Kind as DeviceKind
from migcompat.sysfs.resources import resource_name
from migcompat.sysfs.scan import FoundDevice, ScanError, ScanResult
from migcompat.sysfs.scan import scan as scan_tree

EXIT_UNUSABLE_ARGUMENTS = 2

_HEADER = ("DEVICE", "KIND", "TYPE", "DRIVER", "PARENT", "NUMA", "GROUP", "VFIO-DEV", "RESOURCE", "DECLARES")

_NAMED = 3
"""Devices that are named of those that show the same."""


class Output(enum.StrEnum):
    """How the result is written."""

    TEXT = "text"
    JSON = "json"
    YAML = "yaml"


def command(app: typer.Typer) -> None:
    """Add ``scan`` to *app*."""
    app.command("scan")(scan)


def scan(
    sysfs: Annotated[Path, typer.Option(help="Where sysfs is mounted.")] = Path("/sys"),
    output: Annotated[Output, typer.Option("--output", "-o", help="Output format.")] = Output.TEXT,
) -> None:
    """List the VFIO devices of this machine and what each says about its migration."""
    try:
        result = scan_tree(sysfs)
    except (ScanError, OSError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(EXIT_UNUSABLE_ARGUMENTS) from error
    if output is Output.JSON:
        document = msgspec.json.format(msgspec.json.encode(as_plain(sysfs, result)), indent=2)
        typer.echo(document.decode())
    elif output is Output.YAML:
        typer.echo(yaml.safe_dump(as_plain(sysfs, result), sort_keys=False), nl=False)
    else:
        typer.echo(as_text(sysfs, result))


def as_plain(sysfs: Path, result: ScanResult) -> dict[str, Any]:
    """The result as JSON has it: every field of every device, and its default resource name."""
    return {
        "sysfs": str(sysfs),
        "devices": [
            {**msgspec.to_builtins(device), "resource": resource_name(device)} for device in result.devices
        ],
        "problems": msgspec.to_builtins(result.problems),
    }


def as_text(sysfs: Path, result: ScanResult) -> str:
    """The result for people: a table, then in full what the devices declare and show, then problems."""
    physical = sum(device.kind is DeviceKind.PHYSICAL for device in result.devices)
    lines = [
        f"{_count(len(result.devices), 'VFIO device')} in {sysfs}:"
        f" {physical} physical, {len(result.devices) - physical} mediated"
    ]
    if result.devices:
        lines += ["", *_columns([_HEADER, *(_row(device) for device in result.devices)])]
    for device in result.devices:
        if device.declaration.layout:
            lines += ["", *_declared(device)]
    if any(device.declaration.shown for device in result.devices):
        lines += ["", "Shown without being declared:", *_shown(result.devices)]
    unusable = [device for device in result.devices if device.problem]
    if unusable:
        lines += ["", "Found, but not usable:", *(f"  {device.id}: {device.problem}" for device in unusable)]
    if result.problems:
        lines += ["", "Could not be read:", *(f"  {item.path}: {item.message}" for item in result.problems)]
    return "\n".join(lines)


def _row(device: FoundDevice) -> tuple[str, ...]:
    kind = "mdev" if device.kind is DeviceKind.MDEV else "VF" if device.is_vf else "function"
    return (
        device.id,
        kind,
        device.type or device.pci_id,
        f"{device.driver} {device.driver_version}".strip(),
        device.parent,
        "" if device.numa_node is None else str(device.numa_node),
        device.iommu_group,
        device.vfio_dev,
        resource_name(device),
        _summary(device.declaration),
    )


def _summary(declaration: Declaration) -> str:
    if not declaration.layout:
        return "nothing"
    own = declaration.self.attributes.get("software_version") or f"self {declaration.self.presence.value}"
    if declaration.accepts.presence is not Presence.PRESENT:
        return f"{own}, compatible {declaration.accepts.presence.value}"
    return f"{own}, accepts {_count(len(declaration.accepts.entries), 'entry', 'entries')}"


def _declared(device: FoundDevice) -> list[str]:
    own = device.declaration.self
    present = own.presence is Presence.PRESENT
    said = _attributes(own.attributes) if present else _absence(own.presence, own.problem)
    title = f"{device.id} ({device.declaration.layout})"
    return [title, f"  self: {said}", *_accepted(device.declaration.accepts)]


def _shown(devices: Sequence[FoundDevice]) -> Iterator[str]:
    """What devices show, those that show the same together."""
    groups: dict[str, list[str]] = {}
    for device in devices:
        if device.declaration.shown:
            groups.setdefault(_attributes(device.declaration.shown), []).append(device.id)
    for attributes, ids in groups.items():
        more = f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
        yield f"  {', '.join(ids[:_NAMED])}{more}"
        yield f"    {attributes}"


def _accepted(accepts: Acceptance) -> list[str]:
    if accepts.presence is not Presence.PRESENT:
        return [f"  compatible: {_absence(accepts.presence, accepts.problem)}"]
    return [
        f"  compatible[{index}]: "
        + (f"Malformed: {entry.problem}" if entry.problem else _attributes(entry.attributes))
        for index, entry in enumerate(accepts.entries)
    ]


def _absence(presence: Presence, problem: str) -> str:
    return f"{presence.value}: {problem}" if problem else presence.value


def _attributes(attributes: dict[str, str]) -> str:
    return " ".join(f"{name}={value}" for name, value in sorted(attributes.items())) or "(empty)"


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join((cell or "-").ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
