"""A cluster for the harness's own tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.binaries import build
from tests.cluster.cluster import Cluster
from tests.cluster.controlplane import ControlPlane
from tests.cluster.kubevirt.timing import Timing


@pytest.fixture(scope="module")
def harness(binaries: build.Binaries) -> Iterator[Cluster]:
    """A cluster of the module's own: two nodes, no product; evacuations are tried again soon."""
    with ControlPlane(binaries) as plane, Cluster(plane, timing=Timing(evacuation_backoff=1.0)) as cluster:
        for name in ("node-1", "node-2"):
            cluster.add_node(name)
        yield cluster
