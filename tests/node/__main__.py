"""``make test-node``: the tests on real nodes; arguments go to pytest. ``hold``: a cluster to play with."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.cluster.binaries.build import BuildError
from tests.cluster.controlplane import ClusterError
from tests.node import needs, run
from tests.node.debian import DebianError
from tests.support import longrun

TESTS = ("tests/node", "tests/image")
OUTSIDE = (Path("tests/node/test_interrupted.py"), Path("tests/node/test_preparation.py"))
"""What starts runs, or what comes before them, and ends it: it has to see the machine as it is, so no run's
namespaces are around it."""
_NONE_CHOSEN = 5  # pytest.ExitCode.NO_TESTS_COLLECTED; importing pytest takes long


def main() -> int:
    """Gets what is needed, then runs tests or holds a cluster in namespaces of their own; exit status."""
    longrun.interruptible()
    begun = time.monotonic()
    arguments = sys.argv[1:]
    try:
        run.require_root()
        needs.parts()
        # From here on only runs have something to end; they say themselves how.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        print(
            f"[real nodes] all parts are there, {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True
        )
        if arguments[:1] == ["hold"]:
            return run.contained([sys.executable, "-m", "tests.node.hold", *arguments[1:]])
        return _test(arguments)
    except (BuildError, ClusterError, DebianError) as error:
        print(f"real nodes: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("real nodes: interrupted, everything is ended and removed", file=sys.stderr)
        return 130


def _test(arguments: Sequence[str]) -> int:
    """The worse of two pytests' exit statuses: in a run, and of `OUTSIDE`."""
    inside, outside, options = split(arguments)
    pytest = [sys.executable, "-m", "pytest"]
    codes = []
    if inside:
        ignored = [f"--ignore={file}" for file in OUTSIDE]
        codes.append(run.contained([*pytest, *ignored, *inside, *options]))
    if outside:
        codes.append(_call([*pytest, *outside, *options]))
    return max((code for code in codes if code != _NONE_CHOSEN), default=_NONE_CHOSEN)


def split(arguments: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """What pytest is to collect in a run, what outside of it, and its other arguments."""
    paths = [a for a in arguments if Path(a.split("::")[0]).exists()]
    options = [a for a in arguments if a not in paths]
    files = {a: Path(a.split("::")[0]).resolve() for a in paths or TESTS}
    own = {file.resolve(): file for file in OUTSIDE}
    outside = [a for a, file in files.items() if file in own]
    inside = [a for a in files if a not in outside]
    chosen = {files[a] for a in outside}
    for file, name in own.items():
        if file not in chosen and any(file.is_relative_to(files[a]) for a in inside):
            outside.append(str(name))
    return inside, outside, options


def _call(command: Sequence[str]) -> int:
    """The exit status of a command that ends with this process."""
    process = subprocess.Popen([sys.executable, "-IS", str(run.DIE_WITH_PARENT), str(os.getpid()), *command])
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.wait()
        raise
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
