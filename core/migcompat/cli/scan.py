"""``migcompat scan``: what VFIO devices are there, as what, and what each says about itself."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
import yaml

from migcompat.api.names import RESOURCE_DOMAIN
from migcompat.engine.declaration import Acceptance, Declaration, Kind, Presence
from migcompat.nvml.gpus import Nvml
from migcompat.resources.file import ConfigurationError, load
from migcompat.resources.naming import check_domain
from migcompat.resources.selection import Configuration, DeviceKind, device_kind
from migcompat.sysfs.scan import FoundDevice, ScanError, ScanResult
from migcompat.sysfs.scan import scan as scan_tree

EXIT_UNUSABLE_ARGUMENTS = 2

NVML_PATIENCE = 60.0
"""Seconds in which NVML has answered, or its deadlines have passed."""

_HEADER = ("DEVICE", "KIND", "TYPE", "DRIVER", "PARENT", "NUMA", "GROUP", "VFIO-DEV", "RESOURCE", "DECLARES")
_KINDS = {DeviceKind.MDEV: "mdev", DeviceKind.VF: "VF", DeviceKind.FUNCTION: "function"}

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


def scan(  # noqa: PLR0917 - typer makes flags of them
    sysfs: Annotated[Path, typer.Option(help="Where sysfs is mounted.")] = Path("/sys"),
    output: Annotated[Output, typer.Option("--output", "-o", help="Output format.")] = Output.TEXT,
    config: Annotated[
        Path | None, typer.Option(help="File that says which resource takes which device; default: none.")
    ] = None,
    resource_domain: Annotated[str, typer.Option(help="Domain of the resources' names.")] = RESOURCE_DOMAIN,
    nvml: Annotated[bool, typer.Option("--nvml", help="Ask NVIDIA's library about GPUs, too.")] = False,
    nvml_library: Annotated[
        str, typer.Option(help="Path of libnvidia-ml.so.1; default: where the dynamic linker finds it.")
    ] = "",
) -> None:
    """List the VFIO devices of this machine and what each says about its migration."""
    try:
        check_domain(resource_domain)
        configuration = Configuration(resource_domain) if config is None else load(config, resource_domain)
        result = scan_tree(sysfs)
    except ConfigurationError as error:
        for line in error.lines:
            typer.echo(f"Error: {line}", err=True)
        raise typer.Exit(EXIT_UNUSABLE_ARGUMENTS) from error
    except (ScanError, OSError, ValueError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(EXIT_UNUSABLE_ARGUMENTS) from error
    if nvml:
        result = _with_nvml(sysfs, result, Nvml(nvml_library))
    if output is Output.JSON:
        document = msgspec.json.format(msgspec.json.encode(as_plain(sysfs, result, configuration)), indent=2)
        typer.echo(document.decode())
    elif output is Output.YAML:
        typer.echo(yaml.safe_dump(as_plain(sysfs, result, configuration), sort_keys=False), nl=False)
    else:
        typer.echo(as_text(sysfs, result, configuration))


def _with_nvml(sysfs: Path, result: ScanResult, nvml: Nvml) -> ScanResult:
    """*result* with what NVML adds; what it cannot say goes to stderr."""
    devices = nvml.completed(sysfs, result.devices, NVML_PATIENCE)
    for problem in nvml.problems:
        typer.echo(f"NVML: {problem}", err=True)
    return msgspec.structs.replace(result, devices=devices)


def as_plain(sysfs: Path, result: ScanResult, configuration: Configuration) -> dict[str, Any]:
    """The result as JSON has it: every field of every device, and the resource under which it is advertised.

    That is empty for a device that is ignored. ``alsoSelectedBy``: resources that select it, too.
    """
    devices = []
    for device in result.devices:
        choice = configuration.choose(device)
        devices.append(
            {
                **msgspec.to_builtins(device),
                "resource": choice.resource,
                "alsoSelectedBy": list(choice.also),
            }
        )
    return {
        "sysfs": str(sysfs),
        "devices": devices,
        "problems": msgspec.to_builtins(result.problems),
    }


def as_text(sysfs: Path, result: ScanResult, configuration: Configuration) -> str:
    """The result for people: a table, then in full what the devices declare and show, then problems."""
    physical = sum(device.kind is Kind.PHYSICAL for device in result.devices)
    lines = [
        f"{_count(len(result.devices), 'VFIO device')} in {sysfs}:"
        f" {physical} physical, {len(result.devices) - physical} mediated"
    ]
    if result.devices:
        rows = (_row(device, configuration.choose(device).resource) for device in result.devices)
        lines += ["", *_columns([_HEADER, *rows])]
    for device in result.devices:
        if device.declaration.layout:
            lines += ["", *_declared(device)]
    if any(device.declaration.shown for device in result.devices):
        lines += ["", "Shown without being declared:", *_shown(result.devices)]
    contended = list(_contended(result, configuration))
    if contended:
        lines += ["", "Selected by several resources, of which the first has it:", *contended]
    unusable = [device for device in result.devices if device.problem]
    if unusable:
        lines += ["", "Found, but not usable:", *(f"  {device.id}: {device.problem}" for device in unusable)]
    if result.problems:
        lines += ["", "Could not be read:", *(f"  {item.path}: {item.message}" for item in result.problems)]
    return "\n".join(lines)


def _contended(result: ScanResult, configuration: Configuration) -> Iterator[str]:
    """Devices that several resources select, with these in their order."""
    for device in result.devices:
        choice = configuration.choose(device)
        if choice.also:
            yield f"  {device.id}: {', '.join((choice.resource, *choice.also))}"


def _row(device: FoundDevice, resource: str) -> tuple[str, ...]:
    return (
        device.id,
        _KINDS[device_kind(device)],
        device.type or device.pci_id,
        f"{device.driver} {device.driver_version}".strip(),
        device.parent,
        "" if device.numa_node is None else str(device.numa_node),
        device.iommu_group,
        device.vfio_dev,
        resource or "ignored",
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
