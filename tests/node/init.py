"""Process 1 of the run's own PID namespace: runs one command, reaps what is orphaned, ends with its status.

Called as ``python -IS init.py PROGRAM [ARGUMENT...]``. When it ends, the kernel kills everything else in the
namespace: containers, their shims, kubelets (pid_namespaces(7)).
"""

import os
import signal
import sys


def main() -> int:
    """The command's exit status; 128 and the signal's number when a signal ended it."""
    # Ctrl-C reaches the whole foreground process group; the command itself decides what follows.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.execvp(sys.argv[1], sys.argv[1:])
    while True:
        pid, status = os.wait()
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


sys.exit(main())
