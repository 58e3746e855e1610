"""Clusters of real nodes for the tests, and the figures that the tests measure."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.node import needs, run
from tests.node.addresses import BridgeNetwork
from tests.node.cluster import NodeCluster
from tests.node.controlplane import NodeControlPlane
from tests.node.devices import prepare_accepting, prepare_source
from tests.node.figures import Figures
from tests.node.network import make_bridge
from tests.scenario.story import RETRY_LATE

_FIGURES = pytest.StashKey[Figures]()


def pytest_configure(config: pytest.Config) -> None:
    """The figures live as long as the session."""
    config.stash[_FIGURES] = Figures()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Prints what was measured, and writes it to build/node.json."""
    figures = config.stash[_FIGURES]
    if figures.rows:
        terminalreporter.section("figures of the real nodes")
        terminalreporter.write_line(figures.table())
        figures.write()


@pytest.fixture(scope="session")
def figures(pytestconfig: pytest.Config) -> Figures:
    """Where tests put what they measured; printed at the end."""
    return pytestconfig.stash[_FIGURES]


@pytest.fixture(scope="session")
def bridge() -> BridgeNetwork:
    """The run's network: this process must be in a run's namespaces (`make test-node`)."""
    run.place()
    network = BridgeNetwork()
    make_bridge(network)
    return network


@pytest.fixture(scope="module")
def bare(bridge: BridgeNetwork) -> Iterator[NodeCluster]:
    """Two Ready nodes without the product: node-1 with one device at 1.1.0; node-2 with 1.0.0 and 1.1.0."""
    directory, cgroup = run.place()
    parts = needs.parts()
    with (
        NodeControlPlane(parts.programs, bridge, directory) as plane,
        NodeCluster(plane, parts, cgroup=cgroup, timing=RETRY_LATE) as cluster,
    ):
        cluster.add_nodes({"node-1": prepare_source, "node-2": prepare_accepting})
        yield cluster


@pytest.fixture(scope="module")
def nodes(bare: NodeCluster) -> NodeCluster:
    """The two nodes with the product installed from its chart, all pods ready."""
    bare.install_chart()
    return bare
