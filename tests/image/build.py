"""The product's image, built from its Dockerfile without a container engine, once, into the cache.

Run as a program (``python -m tests.image.build``) it builds what is missing, says how large it is, and prints
where the archive is.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from migcompat import __version__

from tests.cluster.binaries import build
from tests.image import base
from tests.image.archive import Archive
from tests.node import debian
from tests.support import longrun, overlay

IMAGE = f"docker.io/library/migcompat:{__version__}"
"""Its name; the chart's ``migcompat`` with the chart's version means the same."""

_REPOSITORY = Path(__file__).parents[2]
_BASE = "localhost/migcompat-base"
_DEPENDENCIES = "localhost/migcompat-dependencies"
_DEADLINE = 900.0
_KEPT = 3
"""Archives that stay in the cache: other runs may be reading them."""

PIP = Path("/etc/xdg/pip")
"""Where pip looks for settings of the whole machine, and nothing of the image lies."""

_PIP_SETTINGS = ("index-url", "extra-index-url", "trusted-host", "proxy", "timeout", "retries")


def image() -> Path:
    """A docker-archive with the image IMAGE, built from the working tree's Dockerfile.

    Built once: as long as neither the sources nor the lock files nor the Dockerfile change, the next call
    returns at once. Changed sources take seconds, changed lock files a minute. Progress goes to stderr; two
    processes that ask at the same time build once.

    Raises:
        tests.cluster.binaries.build.BuildError: the build failed, with the end of its output.
        tests.node.debian.DebianError: not root, or what it needs of Debian cannot be had.
    """
    home = build.cache() / "image"
    with longrun.locked(home / "lock", "image"), _scratch(home) as scratch:
        context = scratch / "context"
        _copy_context(context)
        archive = home / f"migcompat-{_digest(context)}.tar"
        if not archive.exists():
            _Builder(home, scratch).build(context, scratch / archive.name)
            (scratch / archive.name).rename(archive)
        archive.touch()
        for old in sorted(home.glob("migcompat-*.tar"), key=lambda p: p.stat().st_mtime)[:-_KEPT]:
            old.unlink()
    return archive


@contextlib.contextmanager
def _scratch(home: Path) -> Iterator[Path]:
    """A directory for what is needed only now; those of killed runs go, too."""
    for left in home.glob(".scratch-*"):
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(dir=home, prefix=".scratch-") as name:
        yield Path(name)


class _Builder:
    """buildah, with a storage of our own, so that nothing on the machine knows of its images.

    Each command runs in a mount and a process namespace of its own: however it ends, no mount is left.
    """

    def __init__(self, home: Path, scratch: Path) -> None:
        if os.geteuid() != 0:
            raise debian.DebianError(
                "only root can build the image without a container engine (with one: docker build .)"
            )
        debian.need({"buildah": "buildah", "unshare": "util-linux"})
        self._scratch = scratch
        # Builds with overlayfs are three times as fast as those with copies (vfs).
        driver = "overlay" if overlay.mounts(scratch) else "vfs"
        self._storage = home / driver
        self._buildah = [
            "buildah", "--storage-driver", driver,
            "--root", str(self._storage), "--runroot", str(scratch / "run"),
        ]  # fmt: skip

    def build(self, context: Path, archive: Path) -> None:
        """Builds the Dockerfile in `context` and writes `archive`."""
        self._run("containers of interrupted builds", "rm", "--all")
        based_on = self._base()
        settings = self._scratch / "pip"
        write_pip_settings(settings)
        # The dependencies get a name, so that pruning spares them.
        for name, selection in ((_DEPENDENCIES, ("--target", "dependencies")), (IMAGE, ())):
            self._run(
                "image", "build", "--layers", "--isolation", "chroot", "--network", "host", "--pull-never",
                "--volume", f"{settings}:{PIP}:ro", "--build-arg", f"BASE={based_on}", "--timestamp", "0",
                "--tag", name, *selection, str(context),
            )  # fmt: skip
        self._run("image", "push", IMAGE, f"docker-archive:{archive}")
        self._run("image: what is no longer used", "rmi", "--prune")

    def _base(self) -> str:
        name = f"{_BASE}:{hashlib.sha256(base.RECIPE.encode()).hexdigest()[:16]}"
        known = self._run("base image", "images", "--format", "{{.Name}}:{{.Tag}}")
        if name not in known.split():
            tar = self._scratch / "base.tar"
            base.make(tar, self._scratch)
            container = self._run("base image", "from", "scratch").split()[-1]
            self._run("base image", "add", container, str(tar), "/")
            self._run("base image", "commit", "--rm", container, name)
            tar.unlink()
            others = [n for n in known.split() if n.startswith(f"{_BASE}:")]
            if others:
                self._run("base image: older ones", "rmi", *others)
        return name

    def _run(self, name: str, *arguments: str) -> str:
        environment = {**os.environ, "TMPDIR": str(self._scratch)}
        command = [*longrun.NAMESPACES, *self._buildah, *arguments]
        try:
            return longrun.run(name, command, deadline=_DEADLINE, environment=environment)
        except build.BuildError as error:
            raise build.BuildError(f"{error}\nTo begin anew: rm -r {self._storage}") from error


def _copy_context(context: Path) -> None:
    """Copies what .dockerignore lets through, so that nobody changes it meanwhile; and no umask matters."""
    names = [
        line[1:] for line in (_REPOSITORY / ".dockerignore").read_text().splitlines() if line.startswith("!")
    ]
    for name in ("Dockerfile", ".dockerignore", *names):
        source, target = _REPOSITORY / name, context / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    for path in context.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def _digest(context: Path) -> str:
    """Of everything that the image is made of."""
    digest = hashlib.sha256()
    for part in (base.RECIPE, IMAGE, Path(__file__).read_text()):
        digest.update(part.encode() + b"\0")
    for file in sorted(p for p in context.rglob("*") if p.is_file()):
        digest.update(f"{file.relative_to(context)}\0{file.stat().st_size}\0".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def write_pip_settings(directory: Path) -> None:
    """Writes this machine's package index and certificates for the pip inside the build.

    They are mounted into the build and so become part of nothing.
    """
    directory.mkdir(mode=0o700)
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    found = dict(line.split("=", 1) for line in listed.stdout.splitlines() if "=" in line)
    # Keys as in "global.index-url" and ":env:.index-url".
    values = {key.rsplit(".", 1)[-1]: ast.literal_eval(value) for key, value in found.items()}
    lines = [f"{name} = {values[name]}" for name in _PIP_SETTINGS if name in values]
    certificates = _certificates(values.get("cert"))
    if certificates:
        shutil.copy(certificates, directory / "ca.crt")
        lines.append(f"cert = {PIP}/ca.crt")
    (directory / "pip.conf").write_text("\n".join(["[global]", *lines, ""]))


def _certificates(configured: str | None) -> Path | None:
    """The certificate authorities that this machine's pip trusts; None: those that pip brings."""
    candidates: Sequence[str | None] = (
        configured,
        os.environ.get("REQUESTS_CA_BUNDLE"),
        os.environ.get("SSL_CERT_FILE"),
        "/etc/ssl/certs/ca-certificates.crt",
    )
    return next((Path(c) for c in candidates if c and Path(c).is_file()), None)


def main() -> None:
    """Builds the image; says how large it is, and where."""
    longrun.interruptible()
    try:
        path = image()
    except (build.BuildError, debian.DebianError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.stderr.write("image: interrupted, everything is ended and removed\n")
        sys.exit(130)
    layers = Archive(path).layers()
    for name, unpacked, compressed in (
        *((f"layer {number}", layer.size, layer.compressed) for number, layer in enumerate(layers, 1)),
        ("image", sum(layer.size for layer in layers), sum(layer.compressed for layer in layers)),
    ):
        sys.stderr.write(f"{name}: {unpacked / 1e6:5.1f} MB, compressed {compressed / 1e6:5.1f} MB\n")
    sys.stderr.flush()
    print(path)


if __name__ == "__main__":
    main()
