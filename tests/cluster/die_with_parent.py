"""Becomes another program that the kernel kills as soon as the parent is gone (PR_SET_PDEATHSIG, prctl(2)).

Called as ``python -IS die_with_parent.py PARENT_PID PROGRAM [ARGUMENT...]``. Neither SIGKILL nor a crash of
the test process then leaves anything running.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Arms the death signal, then becomes the program."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the parent is gone already")
    os.execvp(sys.argv[2], sys.argv[2:])


main()
