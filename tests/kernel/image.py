"""What the booted kernel is made of: its image, and Python packages; each is built once into the cache.

Run as a program (``python -m tests.kernel.image``) it builds what is missing and prints where everything is.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.binaries import build
from tests.support import longrun

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

SUITE = "trixie"
"""Of Debian. Its kernel (6.12) has mtty with migration, and its Python is :data:`PYTHON`."""
PYTHON = "3.13"
SITE = "/mnt/site"
"""Where the guest sees its Python packages."""
GLIBC = 41
"""Minor version of the suite's glibc: the newest manylinux that runs there."""
TEST_PACKAGES = (
    "pytest",
    "pytest-asyncio",
    "pytest-timeout",
    "iniconfig",
    "packaging",
    "pluggy",
)
"""What the guest needs beyond the product's own dependencies, as requirements-dev.lock has it."""

_IMAGE_DEADLINE = 900.0
_SITE_DEADLINE = 300.0
_COMPILE_DEADLINE = 120.0
_APT_DEADLINE = 60.0
_SECONDS = ".seconds"
"""File in each part: how long building it took."""
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_RELEASES = re.compile(r"'(?P<mirror>[^']+)/dists/(?P<suite>[^/']+)/InRelease'")
_NAMES = {"stable", "oldstable", "testing", "unstable", "sid"}
_TOOLS = {
    "apt-get": "apt",
    "dpkg-deb": "dpkg",
    "unshare": "util-linux",
    "chroot": "coreutils",
    "tar": "tar",
    "xz": "xz-utils",
}
"""Commands that image.sh runs on this machine, and the Debian packages that hold them."""


class ImageError(RuntimeError):
    """The image could not be had; the text says what is missing, and what to do."""


@dataclass(frozen=True)
class Image:
    """Where the parts are. ``seconds``: how long building them took, whenever that was.

    ``root`` is a Debian tree with QEMU and Python in it, ``site`` holds Python packages for the guest.
    """

    vmlinuz: Path
    initrd: Path
    root: Path
    site: Path
    seconds: float

    def versions(self) -> dict[str, str]:
        """Debian packages that were unpacked, with their versions."""
        lines = (self.vmlinuz.parent / "packages.txt").read_text(encoding="ascii").splitlines()
        return dict(line.split(" ", 1) for line in lines)


def image() -> Image:
    """The image, built if the cache has none of this kind; progress goes to stderr.

    The key is a digest of all files and constants that decide about the content. Versions of Debian's
    packages are those of the day when it was built (``packages.txt`` beside it); to renew it, delete the
    cache's directory ``kernel``.

    Raises:
        ImageError: not root, no Debian tools, no mirror, or a step failed (with the end of its output).
    """
    scripts = [(HERE / name).read_text(encoding="utf-8") for name in ("image.sh", "init")]
    try:
        home = _once("image", _digest(SUITE, *scripts), _make_image)
        made_of = _digest(PYTHON, str(GLIBC), SITE, *_requirements())
        site = _once("site", made_of, lambda directory: _make_site(directory, home / "root"))
    except longrun.LongRunError as error:
        raise ImageError(f"the kernel's image could not be built: {error}") from error
    seconds = sum(float((part / _SECONDS).read_text(encoding="ascii")) for part in (home, site))
    return Image(home / "vmlinuz", home / "initrd.cpio", home / "root", site, seconds)


def program(root: Path, name: str) -> list[str]:
    """The command that runs a program of the image's tree *root* here, with that tree's own libraries."""
    libraries = root / "usr/lib/x86_64-linux-gnu"
    loader = root / "usr/lib64/ld-linux-x86-64.so.2"
    return [str(loader), "--library-path", str(libraries), str(root / "usr/bin" / name)]


def compile_all(root: Path, directory: Path, seen_at: str) -> None:
    """Compiles the Python files of *directory* for the guest, where it is *seen_at*: compiling is slow there.

    Raises:
        LongRunError: a file is no Python.
    """
    python = [*program(root, f"python{PYTHON}"), "-m", "compileall", "-q"]
    where = ["-s", str(directory), "-p", seen_at, "--invalidation-mode=unchecked-hash", str(directory)]
    environment = {**os.environ, "PYTHONHOME": str(root / "usr")}
    longrun.run("kernel: compiling", [*python, *where], deadline=_COMPILE_DEADLINE, environment=environment)


def _once(name: str, key: str, make: Callable[[Path], None]) -> Path:
    """The cached directory, filled by *make* if it is not there. It appears whole or not at all."""
    parent = build.cache() / "kernel"
    home = parent / f"{name}-{key}"
    if home.is_dir():
        return home
    with longrun.locked(parent / f"{name}.lock", f"kernel {name}"):
        if home.is_dir():
            return home
        for remains in parent.glob(
            f".{name}-*"
        ):  # of runs that were killed: we hold the lock, so nobody uses them
            shutil.rmtree(remains)
        scratch = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=parent))
        start = time.monotonic()
        try:
            make(scratch)
            (scratch / _SECONDS).write_text(f"{time.monotonic() - start:.1f}\n", encoding="ascii")
            scratch.chmod(0o755)
            scratch.rename(home)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return home


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


# -- the image ------------------------------------------------------------------------------------------


def _make_image(directory: Path) -> None:
    missing = [f"{tool} (package {package})" for tool, package in _TOOLS.items() if not shutil.which(tool)]
    if missing:
        raise ImageError(
            f"the kernel's image is made of Debian packages, and this machine has no {', '.join(missing)}."
            " Run it on Debian, or install what is missing."
        )
    if os.geteuid() != 0:
        raise ImageError(
            "building the kernel's image needs root (chroot, a mount namespace). Run it once as root, with"
            f" XDG_CACHE_HOME={build.cache().parent}: it is kept there, and booting it needs no root."
        )
    if not _KEYRING.exists():
        raise ImageError(f"{_KEYRING} is missing (package debian-archive-keyring)")
    longrun.say(f"kernel image: building (once; kept in {build.cache() / 'kernel'})")
    alone = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    told = longrun.run(
        "kernel image",
        [*alone, "bash", str(HERE / "image.sh"), str(directory), _mirror(), SUITE],
        deadline=_IMAGE_DEADLINE,
    )
    for line in told.splitlines():
        if line.startswith("STEP "):
            longrun.say(f"kernel image: {line.removeprefix('STEP ')}")


def _mirror() -> str:
    """The Debian archive that this machine's apt uses. Raises ImageError."""
    told = longrun.run("mirror", ["apt-get", "--print-uris", "update"], deadline=_APT_DEADLINE)
    names = _NAMES | {_codename()}
    for found in _RELEASES.finditer(told):
        if found["suite"] in names:
            return found["mirror"]
    others = {found["mirror"] for found in _RELEASES.finditer(told)}
    raise ImageError(
        f"apt has no source of Debian itself (like `deb MIRROR bookworm main`), so there is no mirror to take"
        f" {SUITE} from; its sources are: {', '.join(sorted(others)) or 'none'}"
    )


def _codename() -> str:
    for line in Path("/etc/os-release").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition("=")
        if name == "VERSION_CODENAME":
            return value.strip('"')
    return ""


# -- Python packages ------------------------------------------------------------------------------------


def _requirements() -> tuple[str, str]:
    """What pip installs, with hashes: the product's lock file, and the test packages' lines of the other."""
    product = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    return product, "".join(
        _locked(TEST_PACKAGES, (ROOT / "requirements-dev.lock").read_text(encoding="utf-8"))
    )


def _locked(names: Iterable[str], lock: str) -> list[str]:
    entries = {entry.partition("==")[0]: entry for entry in re.split(r"^(?=\S)", lock, flags=re.MULTILINE)}
    return [entries[name] for name in names]


def _make_site(directory: Path, root: Path) -> None:
    longrun.say(f"kernel: fetching the guest's Python packages (once; kept in {build.cache() / 'kernel'})")
    platforms = [f"--platform=manylinux_2_{minor}_x86_64" for minor in range(GLIBC, 16, -1)]
    with tempfile.TemporaryDirectory(prefix="mc-") as scratch:
        files = []
        for number, text in enumerate(_requirements()):
            files.append(Path(scratch) / f"{number}.txt")
            files[-1].write_text(text, encoding="utf-8")
        pip = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--no-compile",
        ]
        wanted = [f"--target={directory}", f"--python-version={PYTHON}", "--implementation=cp"]
        wanted += [f"--abi=cp{PYTHON.replace('.', '')}", *platforms, "--platform=manylinux2014_x86_64"]
        exact = [
            "--only-binary=:all:",
            "--no-deps",
            "--require-hashes",
            *(f"--requirement={file}" for file in files),
        ]
        longrun.run("kernel: Python packages", [*pip, *wanted, *exact], deadline=_SITE_DEADLINE)
    compile_all(root, directory, SITE)


def main() -> None:
    """Builds everything and prints where it is."""
    try:
        made = image()
    except ImageError as error:
        sys.exit(f"error: {error}")
    for name, value in vars(made).items():
        print(f"{name}: {value}")
    for package in ("linux-image-amd64", "qemu-system-x86", "python3"):
        print(f"{package}: {made.versions()[package]}")


if __name__ == "__main__":
    main()
