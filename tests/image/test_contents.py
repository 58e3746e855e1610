"""What the image holds, how large it is, and what it says about itself."""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path

import pytest
from migcompat import __version__

from tests.cluster.binaries.build import cache
from tests.image import build
from tests.image.archive import Archive

SIZE, COMPRESSED = 95e6, 36e6
"""Bytes; docs/reference/image.md states them."""

REPOSITORY = Path(__file__).parents[2]
PROGRAMS = {
    "opt/migcompat/bin/kubectl-migcompat",
    "opt/migcompat/bin/migcompat",
    "opt/migcompat/bin/migcompat-device-plugin",
    "opt/migcompat/bin/migcompat-extender",
    "opt/migcompat/bin/migcompat-operator",
}
PYTHON = re.compile(r"(usr|opt/migcompat)/bin/python3?(\.\d+)?")
LIBRARY = re.compile(r".*\.so(\.\d+)*")


def files(root: Path) -> list[Path]:
    found = [Path(at, name) for at, _, names in os.walk(root) for name in names]
    assert len(found) > 1000
    return found


def relative(root: Path, paths: list[Path]) -> set[str]:
    return {str(path.relative_to(root)) for path in paths}


def test_it_is_as_small_as_the_documentation_says(archive: Archive) -> None:
    layers = archive.layers()
    assert len(layers) == 2
    assert sum(layer.size for layer in layers) < SIZE
    assert sum(layer.compressed for layer in layers) < COMPRESSED
    assert layers[1].compressed < 1e6, "our own code is the smaller layer, the one that changes"
    page = (REPOSITORY / "docs" / "reference" / "image.md").read_text()
    assert f"below {SIZE / 1e6:.0f} MB, {COMPRESSED / 1e6:.0f} MB compressed" in page


def test_it_belongs_to_nobody_and_needs_no_settings(archive: Archive) -> None:
    config = archive.config["config"]
    assert config["User"] == "65532:65532"
    assert sorted(variable.split("=")[0] for variable in config["Env"]) == [
        "PATH",
        "PYTHONDONTWRITEBYTECODE",
        "PYTHONUNBUFFERED",
    ]
    assert config.get("Volumes") is None
    assert archive.tags == [f"docker.io/library/migcompat:{__version__}"]


def test_nothing_can_be_run_in_it_but_python_and_our_commands(root: Path) -> None:
    executable = [
        path for path in files(root) if path.is_symlink() or stat.S_IMODE(path.lstat().st_mode) & 0o111
    ]
    programs = {
        name
        for name in relative(root, executable)
        if not PYTHON.fullmatch(name) and not LIBRARY.fullmatch(name)
    }
    assert programs == PROGRAMS
    for name in PROGRAMS:
        first = (root / name).read_text().splitlines()[0]
        assert first.startswith("#!/opt/migcompat/bin/python")
        assert (root / first.removeprefix("#!/")).is_symlink()


def test_root_owns_everything_and_nobody_can_gain_or_change_anything(root: Path) -> None:
    everything = [root, *(Path(at, n) for at, ds, fs in os.walk(root) for n in (*ds, *fs))]
    writable = []
    for path in everything:
        status = path.lstat()
        assert (status.st_uid, status.st_gid) == (0, 0), path
        assert not status.st_mode & (stat.S_ISUID | stat.S_ISGID), path
        assert stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode), (
            path
        )
        if path != root and not path.is_symlink() and stat.S_IMODE(status.st_mode) & 0o022:
            writable.append(path)
    assert relative(root, writable) == {"tmp"}
    assert stat.S_IMODE((root / "tmp").stat().st_mode) == 0o1777


@pytest.mark.parametrize(
    "name",
    ["pip", "setuptools", "ensurepip", "test", "tests", "unittest", "idlelib", "tkinter", "distutils",
     "include", "locale", "man", "apt", "*.a", "*.h", "*.pyx", "pip.conf", ".netrc", "*.deb"],
)  # fmt: skip
def test_what_only_a_build_needs_is_not_in_it(root: Path, name: str) -> None:
    assert relative(root, list(root.rglob(name))) == set()


def test_modules_are_compiled_and_ours_can_be_read(root: Path) -> None:
    sources = {p for p in files(root) if p.suffix == ".py"}
    ours = {p for p in sources if p.relative_to(root / "opt/migcompat/lib").parts[2].startswith("migcompat")}
    assert relative(root, list(sources - ours)) == set()
    assert len(ours) > 50
    for source in ours:
        assert list((source.parent / "__pycache__").glob(f"{source.stem}.*.pyc")), source


def test_licences_are_in_it(root: Path) -> None:
    own = (root / "usr/share/doc/migcompat/LICENSE").read_text()
    assert own == (REPOSITORY / "LICENSE").read_text()
    for package in ("libc6", "libssl3", "libpython3.11-minimal", "libpython3.11-stdlib"):
        assert (root / "usr/share/doc" / package / "copyright").stat().st_size > 100, package
        assert f"Package: {package}\n" in (root / "var/lib/dpkg/status.d" / package).read_text()
    for metadata in root.glob("opt/migcompat/lib/python3*/site-packages/*.dist-info/METADATA"):
        licensed = re.findall(r"^License-File: (.+)$", metadata.read_text(), re.MULTILINE)
        for name in licensed:
            assert [p for p in metadata.parent.rglob(Path(name).name) if p.is_file()], (metadata, name)


def test_the_packages_are_those_of_the_lock_file(root: Path) -> None:
    lock = (REPOSITORY / "requirements.lock").read_text()
    pinned = dict(re.findall(r"^([\w.-]+)==([\w.]+)(?! ; sys_platform == 'win32')", lock, re.MULTILINE))
    installed = {}
    for metadata in root.glob("opt/migcompat/lib/python3*/site-packages/*.dist-info/METADATA"):
        text = metadata.read_text()
        found = [re.search(rf"^{key}: (.+)$", text, re.MULTILINE) for key in ("Name", "Version")]
        name, version = (match.group(1) for match in found if match)
        installed[re.sub(r"[-_.]+", "-", name).lower()] = version
    assert installed.pop("migcompat") == __version__
    assert installed == {k: v for k, v in pinned.items() if k != "colorama"}


def test_nothing_of_the_machine_that_built_it_is_in_it(archive: Archive, root: Path, tmp_path: Path) -> None:
    settings = tmp_path / "pip"
    build.write_pip_settings(settings)
    values = [
        line.split(" = ", 1)[1] for line in (settings / "pip.conf").read_text().splitlines() if " = " in line
    ]
    proxies = [value for name, value in os.environ.items() if name.lower().endswith("_proxy")]
    told = json.dumps(archive.config)
    secrets = {
        text.encode()
        for text in (*values, *proxies, str(REPOSITORY), str(cache()), str(build.PIP), "index-url")
        if len(text) > 4  # a number of seconds may be anywhere
    }
    assert str(build.PIP).encode() in secrets
    assert [s for s in secrets if s.decode() in told] == []
    found = {
        (path, secret)
        for path in files(root)
        if not path.is_symlink()
        for secret in secrets
        if secret in path.read_bytes()
    }
    assert found == set()
    assert not (root / "etc/ssl").exists()
    assert relative(root, list((root / "etc").iterdir())) == {
        "etc/group", "etc/nsswitch.conf", "etc/passwd",
    } | ({"etc/ld.so.cache"} if (root / "etc/ld.so.cache").exists() else set())  # fmt: skip
