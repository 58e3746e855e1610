"""``make cache-key``: a digest of what the cache of built parts depends on, for a CI system's cache.

The cache (``$XDG_CACHE_HOME/migcompat`` or ``~/.cache/migcompat``) is right whatever is in it: each part lies
there under a digest of its own. This key only tells when a stored copy of it has become incomplete.
"""

from __future__ import annotations

import hashlib
import platform
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = (
    "requirements.lock",
    "requirements-build.lock",
    "requirements-dev.lock",
    "Dockerfile",
    "deploy/image",
    "tests/cluster/binaries",
    "tests/image/base.py",
    "tests/image/build.py",
    "tests/kernel/image.py",
    "tests/kernel/image.sh",
    "tests/kernel/init",
    "tests/node/images.py",
    "tests/node/launcher",
)
"""Files that say what is built or fetched once."""


def key() -> str:
    """``migcompat-<machine>-<digest>``, the same for equal contents of `SOURCES` that git knows of."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--", *SOURCES], cwd=ROOT, capture_output=True, check=True, timeout=60
    )
    digest = hashlib.sha256()
    for name in sorted(listed.stdout.decode().split("\0")):
        if name:
            content = (ROOT / name).read_bytes()
            digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return f"migcompat-{platform.machine()}-{digest.hexdigest()[:20]}"


if __name__ == "__main__":
    print(key())
