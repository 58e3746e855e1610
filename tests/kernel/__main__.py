"""``make test-kernel``: the tests in a booted kernel; arguments go to pytest."""

from __future__ import annotations

import signal
import sys

import pytest

from tests.kernel import image

TESTS = ("tests/kernel",)


def main() -> int:
    """Gets what is needed, then runs the tests, each on a line; exit status."""
    # A shell starts background jobs with SIGINT ignored, and Python leaves it so.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        image.image()
    except image.ImageError as error:
        print(f"booted kernel: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("booted kernel: interrupted, everything is ended and removed", file=sys.stderr)
        return 130
    arguments = sys.argv[1:]
    chosen = [] if any(not argument.startswith("-") for argument in arguments) else list(TESTS)
    return int(pytest.main(["-vv", *chosen, *arguments]))


if __name__ == "__main__":
    sys.exit(main())
