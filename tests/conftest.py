"""Fixtures that several test directories share: the control plane's programs, and clusters made of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Protocol

import pytest

from tests.cluster.binaries import build

if TYPE_CHECKING:
    from tests.cluster.cluster import Cluster
    from tests.cluster.controlplane import ControlPlane
    from tests.cluster.kubevirt.timing import Timing


class MakeCluster(Protocol):
    """Makes a cluster that ends with the test."""

    def __call__(self, *, timing: Timing | None = None) -> Cluster: ...


_BUILD_PROBLEM = pytest.StashKey[str]()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Builds the programs before the first test that needs them: no test's time limit runs meanwhile."""
    needed = any("binaries" in getattr(item, "fixturenames", ()) for item in session.items)
    if not needed or session.config.option.collectonly:
        return
    capture = session.config.pluginmanager.getplugin("capturemanager")
    assert capture is not None
    with capture.global_and_fixture_disabled():
        try:
            build.binaries()
        except build.BuildError as error:
            session.config.stash[_BUILD_PROBLEM] = str(error)


@pytest.fixture(scope="session")
def binaries(pytestconfig: pytest.Config) -> build.Binaries:
    """The control plane's programs, kubectl and helm; where they cannot be had, tests fail and say why."""
    problem = pytestconfig.stash.get(_BUILD_PROBLEM, "")
    if problem:
        pytest.fail(problem, pytrace=False)
    return build.binaries()


@pytest.fixture(scope="session")
def control_plane(binaries: build.Binaries) -> Iterator[ControlPlane]:
    """A running control plane that tests share: each test keeps to a namespace and names of its own."""
    from tests.cluster.controlplane import ControlPlane  # cryptography is slow to import

    with ControlPlane(binaries) as plane:
        yield plane


@pytest.fixture
def cluster(binaries: build.Binaries) -> Iterator[MakeCluster]:
    """Makes whole clusters (control plane, stand-ins for nodes and KubeVirt) that end with the test."""
    from tests.cluster.cluster import Cluster
    from tests.cluster.controlplane import ControlPlane

    with ExitStack() as stack:

        def make(*, timing: Timing | None = None) -> Cluster:
            plane = stack.enter_context(ControlPlane(binaries))
            return stack.enter_context(Cluster(plane, timing=timing))

        yield make
