"""A control plane of the chart's own: its definitions and policies are cluster-wide."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chart.support import CHART, NAMESPACE, RELEASE, Installed
from tests.cluster.binaries.build import Binaries
from tests.cluster.controlplane import ControlPlane


@pytest.fixture(scope="session")
def chart_plane(binaries: Binaries) -> Iterator[ControlPlane]:
    """A control plane without the chart."""
    with ControlPlane(binaries) as plane:
        yield plane


@pytest.fixture(scope="session")
def installed(chart_plane: ControlPlane) -> Installed:
    """The chart, installed with its defaults."""
    chart_plane.helm("install", RELEASE, str(CHART), "--namespace", NAMESPACE, "--create-namespace")
    installed = Installed(chart_plane)
    installed.await_policies()
    return installed
