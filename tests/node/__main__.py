"""``make test-node``: the tests on real nodes; arguments go to pytest. ``hold``: a cluster to play with."""

from __future__ import annotations

import sys
import time

from tests.cluster.binaries.build import BuildError
from tests.cluster.controlplane import ClusterError
from tests.node import needs, run
from tests.node.debian import DebianError

TESTS = ("tests/node", "tests/image")


def main() -> int:
    """Gets what is needed, then runs tests or holds a cluster in namespaces of their own; exit status."""
    begun = time.monotonic()
    arguments = sys.argv[1:]
    try:
        needs.parts()
        print(
            f"[real nodes] all parts are there, {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True
        )
        if arguments[:1] == ["hold"]:
            return run.contained([sys.executable, "-m", "tests.node.hold", *arguments[1:]])
        chosen = [] if any(not a.startswith("-") for a in arguments) else list(TESTS)
        return run.contained([sys.executable, "-m", "pytest", *chosen, *arguments])
    except (BuildError, ClusterError, DebianError) as error:
        print(f"real nodes: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("real nodes: interrupted, everything is ended and removed", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
