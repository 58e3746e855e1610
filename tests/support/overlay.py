"""Whether a directory's file system carries overlayfs."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from tests.support import longrun


def mounts(directory: Path) -> bool:
    """Whether overlayfs can be mounted with its layers below `directory`. It needs root; no mount stays."""
    with tempfile.TemporaryDirectory(dir=directory, prefix=".overlay-") as name:
        layers = {part: Path(name, part) for part in ("lowerdir", "upperdir", "workdir", "merged")}
        for layer in layers.values():
            layer.mkdir()
        merged = layers.pop("merged")
        options = ",".join(f"{option}={layer}" for option, layer in layers.items())
        mount = [*longrun.NAMESPACES, "mount", "-t", "overlay", "overlay", "-o", options, str(merged)]
        return subprocess.run(mount, capture_output=True, timeout=60, check=False).returncode == 0
