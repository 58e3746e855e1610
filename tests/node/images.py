"""Images that only the tests need, written without any tool.

Run as a program (``python -m tests.node.images``) it prints where the archive is.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path

from tests.cluster.binaries import build

LAUNCHER = "docker.io/migcompat-test/launcher:1"
"""Image of launcher-shaped pods; containers may also name it ``migcompat-test/launcher:1``."""

PAUSE = "docker.io/migcompat-test/pause:1"
"""The same program as image of the pods' sandboxes (containerd: ``sandbox_image``)."""

SCHEDULER = f"registry.k8s.io/kube-scheduler:{build.VERSION}"
"""The image that the chart takes for a cluster of this version."""

_HERE = Path(__file__).parent
_LAUNCHERS = {
    tag: {"Entrypoint": entrypoint, "WorkingDir": "/"}
    for tag, entrypoint in ((LAUNCHER, ["/launcher"]), (PAUSE, ["/launcher", "pause"]))
}


def launcher() -> Path:
    """A docker-archive with the images LAUNCHER and PAUSE: `launcher/main.go`, static, and nothing else.

    Built once into the cache.

    Raises:
        tests.cluster.binaries.build.BuildError: no Go toolchain, or the build failed.
    """
    program = build.build_go(_HERE / "launcher", "launcher")
    content = program.read_bytes()
    version = hashlib.sha256(content + Path(__file__).read_bytes()).hexdigest()[:16]
    archive = program.parent / f"launcher-{version}.tar"
    if not archive.exists():
        scratch = archive.with_suffix(f".{os.getpid()}")
        _write(scratch, "launcher", content, _architecture(program), _LAUNCHERS)
        scratch.rename(archive)
    return archive


def scheduler(program: Path, archive: Path) -> None:
    """Writes a docker-archive with the image SCHEDULER: the program, where the stock image has it."""
    config = {"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], "WorkingDir": "/"}
    place = f"usr/local/bin/{program.name}"
    _write(archive, place, program.read_bytes(), _architecture(program), {SCHEDULER: config})


def _write(
    archive: Path, place: str, program: bytes, architecture: str, images: Mapping[str, object]
) -> None:
    """Images of one program at *place*, by tag, with their configuration."""
    layer = _tar({place: program}, mode=0o755)
    digest = hashlib.sha256(layer).hexdigest()
    files = {f"{digest}.tar": layer}
    manifest = []
    for tag, configuration in images.items():
        config = json.dumps(
            {
                "created": "1970-01-01T00:00:00Z",
                "architecture": architecture,
                "os": "linux",
                "config": configuration,
                "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
                "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "tests/node/images.py"}],
            }
        ).encode()
        name = f"{hashlib.sha256(config).hexdigest()}.json"
        files[name] = config
        manifest.append({"Config": name, "RepoTags": [tag], "Layers": [f"{digest}.tar"]})
    files["manifest.json"] = json.dumps(manifest).encode()
    archive.write_bytes(_tar(files, mode=0o644))


def _tar(files: dict[str, bytes], *, mode: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            member.mode = mode
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def _architecture(program: Path) -> str:
    """In Go's words, from the ELF header: the program is for this machine, whatever Go built it."""
    machine = int.from_bytes(program.read_bytes()[18:20], "little")
    known = {0x3E: "amd64", 0xB7: "arm64"}
    if machine not in known:
        raise build.BuildError(f"{program}: is for the ELF machine {machine:#x}; not made an image of")
    return known[machine]


def main() -> None:
    """Prints where the archive is."""
    try:
        print(launcher())
    except build.BuildError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
