"""The image that the product's image is built in (BASE of the Dockerfile), made of Debian packages."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.node import debian
from tests.support import longrun

SUITE = "bookworm"
PACKAGES = ("python3", "python3-venv", "binutils")
"""Besides Debian's essential ones: Python 3.11, and strip."""

_EXCLUDED = (
    "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/zoneinfo/*",
    "/usr/share/doc/*", "*/gconv/*", "*/gprofng/*",
)  # fmt: skip
_INCLUDED = ("/usr/share/doc/*/copyright",)
_HOOKS = "/usr/share/mmdebstrap/hooks/maybe-merged-usr"
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_NEEDED = {
    "mmdebstrap": "mmdebstrap",
    "unshare": "util-linux",
    _HOOKS: "mmdebstrap",
    _KEYRING: "debian-archive-keyring",
}
_DEADLINE = 900.0

RECIPE = "\n".join((SUITE, *PACKAGES, *_EXCLUDED, *_INCLUDED))
"""Whatever changes the result."""


def make(tar: Path, scratch: Path) -> None:
    """Writes the root file system to `tar`.

    The packages come from the archive that this machine's apt uses.

    Args:
        tar: made anew.
        scratch: for temporary files.

    Raises:
        tests.node.debian.DebianError: mmdebstrap cannot be had, or apt here knows no Debian archive.
        tests.support.longrun.LongRunError: a package cannot be had or installed.
    """
    debian.need(_NEEDED)
    excluded = [f"--dpkgopt=path-exclude={path}" for path in _EXCLUDED]
    included = [f"--dpkgopt=path-include={path}" for path in _INCLUDED]
    command = [
        "mmdebstrap", "--quiet", "--mode=root", "--variant=essential", f"--include={','.join(PACKAGES)}",
        f"--keyring={_KEYRING}", f"--hook-dir={_HOOKS}", *excluded, *included,
        SUITE, str(tar), f"deb {_archive()} {SUITE} main",
    ]  # fmt: skip
    longrun.run(
        "base image",
        [*longrun.NAMESPACES, *command],
        deadline=_DEADLINE,
        environment={**os.environ, "TMPDIR": str(scratch), "LC_ALL": "C.UTF-8"},
    )


def _archive() -> str:
    """Where this machine's apt gets Debian from."""
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(ORIGIN) $(CODENAME) $(REPO_URI)", "Identifier: Packages"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    for line in listed.stdout.splitlines():
        origin, _, rest = line.partition(" ")
        codename, _, address = rest.partition(" ")
        if origin == "Debian" and "-" not in codename:
            return address
    raise debian.DebianError(
        f"the base image is made of packages of Debian {SUITE}, and apt here knows no Debian archive"
        f" (after `apt-get update`, `apt-get indextargets` names none). {listed.stderr.strip()}"
    )
