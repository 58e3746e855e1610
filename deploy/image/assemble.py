"""Puts the image's file system together: one Python, its libraries, and one environment of packages.

    assemble.py ENVIRONMENT TARGET

The Dockerfile runs it with the Python that the virtual environment ENVIRONMENT was made with. TARGET gets
both at their own paths, without what no server needs: there is no shell in it, no package manager, no program
but Python. Where the machine has binutils' strip, debugging information is left out, too.
"""

from __future__ import annotations

import compileall
import fnmatch
import os
import py_compile
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

LEFT_OUT = (
    "__pycache__", "site-packages", "dist-packages", "sitecustomize.py", "EXTERNALLY-MANAGED",
    "*.a", "*.c", "*.h", "*.pxd", "*.pyi", "*.pyx", "config-3*",
    "ensurepip", "venv", "distutils", "lib2to3", "idlelib", "pydoc_data", "turtledemo", "turtle.py",
    "test", "tests", "unittest", "doctest.py", "_test*.so", "_xxtestfuzz*.so", "_ctypes_test*.so",
    "xxlimited*.so", "tkinter", "_tkinter*.so", "curses", "_curses*.so", "readline*.so",
    "sqlite3", "_sqlite3*.so", "dbm", "_dbm*.so", "_gdbm*.so", "nis.*.so", "ossaudiodev*.so", "audioop*.so",
    "_codecs_*.so",
)  # fmt: skip
"""Names of files and directories of the standard library (and of packages) that are not copied."""

LANGUAGES = ("pygments/lexers/[a-z]*.py", "pygments/styles/[a-z]*.py")
"""How Rich would colour source code: typer brings it for tracebacks, and ours are plain."""

LOADED_BY_NAME = ("libgcc_s.so.1",)
"""What glibc opens by itself when a thread is ended (pthread_exit), so that no program names it."""

ACCOUNTS = {
    "etc/passwd": "root:x:0:0:root:/:/sbin/nologin\nmigcompat:x:65532:65532:migcompat:/:/sbin/nologin\n",
    "etc/group": "root:x:0:\nmigcompat:x:65532:\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}

CHECK = (
    "import aiohttp, ctypes, grpc.aio, kopf, msgspec, prometheus_client, pynvml, ssl, typer, yaml; "
    "from cryptography import x509"
)
"""Run inside the target: what is missing there fails the image's build, not a pod."""


class Assembly:
    """A file system that files of this one are copied to."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.copied: set[Path] = set()
        """By their paths here."""

    def path(self, source: Path) -> Path:
        """Where `source` lies in the target."""
        return self.target / source.relative_to("/")

    def copy(self, source: Path) -> None:
        """Copies a file and every link that leads to it, to the same places."""
        for part in (*reversed(source.parents), source):
            if part.is_symlink():
                link = self.path(part)
                link.parent.mkdir(parents=True, exist_ok=True)
                if not link.is_symlink():
                    link.symlink_to(part.readlink())
                onward = os.path.normpath(part.parent / part.readlink() / source.relative_to(part))
                self.copy(Path(onward))
                return
        if source in self.copied or not source.is_file():
            return
        place = self.path(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, place)
        place.chmod(0o755 if is_elf(source) else 0o644)
        self.copied.add(source)

    def copy_all(self, files: Iterable[Path]) -> None:
        """As `copy`, for each."""
        for file in files:
            self.copy(file)


def main(environment: Path, target: Path) -> None:
    """Makes `target`."""
    os.umask(0o022)
    assembly = Assembly(target)
    for directory in {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}:
        assembly.copy_all(wanted(Path(directory)))
    for packages in sorted(environment.glob("lib*/python3*/site-packages")):
        assembly.copy_all(wanted(packages))
    assembly.copy_all([environment / "pyvenv.cfg", *sorted(environment.glob("bin/python*"))])
    programs = [file for file in sorted(assembly.copied) if is_elf(file)]
    assembly.copy_all(libraries(programs))
    assembly.copy(Path("/etc/ld.so.cache"))
    document(assembly)
    if strip := shutil.which("strip"):
        subprocess.run([strip, "--strip-debug", *(assembly.path(p) for p in programs)], check=True)
    for name, text in ACCOUNTS.items():
        (target / name).parent.mkdir(exist_ok=True)
        (target / name).write_text(text)
    (target / "tmp").mkdir()
    (target / "tmp").chmod(0o1777)
    compile_away(target)
    check(environment, target)


def wanted(directory: Path) -> Iterator[Path]:
    """The files below `directory` that are not left out."""
    for at, directories, files in os.walk(directory):
        directories[:] = sorted(d for d in directories if not left_out(Path(at, d)))
        yield from (Path(at, f) for f in sorted(files) if not left_out(Path(at, f)))


def left_out(path: Path) -> bool:
    """Whether `path` is not copied."""
    return any(fnmatch.fnmatch(path.name, p) for p in LEFT_OUT) or any(path.match(p) for p in LANGUAGES)


def is_elf(path: Path) -> bool:
    """Whether `path` is a program or a shared library."""
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def libraries(programs: Iterable[Path]) -> list[Path]:
    """What the dynamic linker loads for `programs`, itself among it, as ldd(1) says.

    Raises:
        SystemExit: a library is missing.
    """
    answer = subprocess.run(["ldd", *programs], capture_output=True, text=True, check=False)
    lines = [line.split(" => ")[-1].split(" (")[0].strip() for line in answer.stdout.splitlines()]
    if missing := [line for line in answer.stdout.splitlines() if "not found" in line]:
        sys.exit(f"ldd: {missing}")
    found = {Path(line) for line in lines if line.startswith("/") and not line.endswith(":")}
    beside = [directory / name for directory in {f.parent for f in found} for name in LOADED_BY_NAME]
    return sorted(found.union(file for file in beside if file.exists()))


def document(assembly: Assembly) -> None:
    """Adds, where this machine is a Debian, the packages' licences and what scanners read of their versions.

    That is /var/lib/dpkg/status.d, as distroless images have it.
    """
    if not shutil.which("dpkg-query"):
        return
    # A package may know a file of /usr/lib by its older path in /lib.
    paths = [str(p).removeprefix("/usr") for p in assembly.copied]
    owners = subprocess.run(
        ["dpkg-query", "--search", *paths, *(f"/usr{p}" for p in paths)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    packages = {line.split(":")[0] for line in owners.stdout.splitlines() if ": /" in line}
    status = assembly.target / "var/lib/dpkg/status.d"
    status.mkdir(parents=True)
    for package in sorted(packages):
        assembly.copy(Path("/usr/share/doc") / package / "copyright")
        with (status / package).open("w") as entry:
            subprocess.run(["dpkg-query", "--status", package], stdout=entry, check=True)


def compile_away(target: Path) -> None:
    """Puts compiled modules in the places of their sources: a traceback still tells file and line.

    Raises:
        SystemExit: one cannot be compiled.
    """
    compiled = compileall.compile_dir(
        target, quiet=1, maxlevels=30, legacy=True, stripdir=str(target), prependdir="/",
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )  # fmt: skip
    if not compiled:
        sys.exit("a module cannot be compiled")
    for source in target.rglob("*.py"):
        source.unlink()


def check(environment: Path, target: Path) -> None:
    """Imports the packages inside `target`.

    Raises:
        subprocess.CalledProcessError: one cannot be imported.
    """

    def enter() -> None:
        os.chroot(target)
        os.chdir("/")

    subprocess.run([environment / "bin/python3", "-c", CHECK], check=True, env={}, preexec_fn=enter)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
