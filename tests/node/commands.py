"""Running the machine's own tools: ip, mount, nsenter, ctr."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence

from tests.cluster.controlplane import ClusterError

ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}


def run(*command: str | os.PathLike[str], timeout: float = 60.0, stdin: str = "") -> str:
    """The output of a command.

    Raises:
        ClusterError: it failed, or took longer than `timeout` seconds; with what it said.
    """
    words: Sequence[str] = [os.fspath(word) for word in command]
    try:
        result = subprocess.run(
            words, input=stdin, capture_output=True, text=True, timeout=timeout, env=ENVIRONMENT, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"`{' '.join(words)}` took over {timeout:.0f} s") from error
    except OSError as error:
        raise ClusterError(f"`{words[0]}` cannot be run: {error.strerror}") from error
    if result.returncode:
        said = f"{result.stderr.strip()} {result.stdout.strip()[-2000:]}"
        raise ClusterError(f"`{' '.join(words)}` failed ({result.returncode}): {said}")
    return result.stdout
