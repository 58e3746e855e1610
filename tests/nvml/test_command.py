"""``migcompat scan --nvml``."""

from __future__ import annotations

import json
from pathlib import Path

import typer
from migcompat.cli import scan as scan_command
from typer.testing import CliRunner, Result

from tests.nvml.conftest import OTHER, UUID, VF
from tests.support.nvml import DRIVER, Stub


def run(*arguments: str) -> Result:
    app = typer.Typer()
    app.callback()(lambda: None)
    scan_command.command(app)
    return CliRunner().invoke(app, ["scan", *arguments])


def test_what_nvml_adds_is_listed(sys: Path, stub: Stub) -> None:
    result = run("--sysfs", str(sys), "--nvml", "--nvml-library", str(stub.library), "-o", "json")
    assert result.exit_code == 0
    devices = {device["id"]: device for device in json.loads(result.stdout)["devices"]}
    assert devices[VF]["declaration"]["shown"]["ecc_mode"] == "enabled"
    assert devices[VF]["typeName"] == "NVIDIA H200X-1-18C"
    assert devices[UUID]["declaration"]["shown"]["vgpu_manager_version"] == DRIVER
    assert result.stderr == f"NVML: ecc_mode {OTHER}: Not Supported\n"


def test_without_the_library_everything_else_is(sys: Path) -> None:
    plain = run("--sysfs", str(sys))
    result = run("--sysfs", str(sys), "--nvml", "--nvml-library", "/none/libnvidia-ml.so.1")
    assert (result.exit_code, result.stdout) == (0, plain.stdout)
    assert result.stderr.startswith("NVML: /none/libnvidia-ml.so.1: ")
    assert plain.stderr == ""
    assert "ecc_mode" not in plain.stdout
