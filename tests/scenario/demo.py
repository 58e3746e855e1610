"""``make demo``: the main job on a real control plane, step by step. Leaves nothing running."""

from __future__ import annotations

import sys
import time

from rich.console import Console

from tests.cluster.binaries.build import BuildError, binaries
from tests.cluster.cluster import Cluster
from tests.cluster.controlplane import ClusterError, ControlPlane
from tests.scenario.story import RETRY_LATE, Story


class Printer:
    """Tells the story on a terminal."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self._number = 0
        self._begun = time.monotonic()

    def chapter(self, title: str) -> None:
        """A numbered heading with the seconds so far."""
        self._number += 1
        self._console.print(f"\n[bold]{self._number}. {title}[/bold]  [dim]({self._seconds()})[/dim]")

    def say(self, text: str) -> None:
        """A sentence."""
        self._console.print(f"   {text}  [dim]({self._seconds()})[/dim]")

    def show(self, command: str, output: str) -> None:
        """A command and its output."""
        self._console.print(f"\n   [cyan]$ {command}[/cyan]")
        for line in output.rstrip().splitlines():
            self._console.print(f"   {line}", markup=False)
        self._console.print()

    def _seconds(self) -> str:
        return f"{time.monotonic() - self._begun:.0f} s"


def main() -> int:
    """Runs the story; 1 when a chapter did not come true or a part is missing."""
    printer = Printer()
    try:
        programs = binaries()
        printer.say("Starting etcd, kube-apiserver, kube-controller-manager and kube-scheduler.")
        with ControlPlane(programs) as plane, Cluster(plane, timing=RETRY_LATE) as cluster:
            Story(cluster, printer).tell()
    except (AssertionError, BuildError, ClusterError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: interrupted", file=sys.stderr)
        return 130
    printer.say("Everything came true; all processes are ended.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
