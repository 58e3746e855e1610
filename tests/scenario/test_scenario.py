"""The main job as a test: the story that ``make demo`` prints, on the same real parts."""

from __future__ import annotations

import pytest

from tests.cluster.binaries.build import Binaries
from tests.cluster.cluster import Cluster
from tests.cluster.controlplane import ControlPlane
from tests.scenario.story import RETRY_LATE, Story


class Quiet:
    """Tells nobody; remembers the chapters for the test's own check that all were told."""

    def __init__(self) -> None:
        self.chapters: list[str] = []

    def chapter(self, title: str) -> None:
        self.chapters.append(title)

    def say(self, text: str) -> None:
        pass

    def show(self, command: str, output: str) -> None:
        pass


@pytest.mark.timeout(420)
def test_the_main_job(binaries: Binaries) -> None:
    narrator = Quiet()
    with ControlPlane(binaries) as plane, Cluster(plane, timing=RETRY_LATE) as cluster:
        Story(cluster, narrator).tell()
    assert len(narrator.chapters) == 6
