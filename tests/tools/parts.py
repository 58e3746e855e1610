"""``make parts``: builds and installs what the tests need once, so that a stage's seconds are its tests'.

Each of the stages would do so itself. Needs what they need: root, Debian, the package registries.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import tests.image.build as product
from tests.cluster.binaries import build
from tests.cluster.controlplane import ClusterError
from tests.kernel import image as kernel
from tests.node import debian, images, needs, run
from tests.support import longrun, nvml

PARTS: dict[str, Callable[[], object]] = {
    "Kubernetes, etcd, helm": build.binaries,
    "kubelet, kube-proxy": build.node_binaries,
    "Debian packages": lambda: debian.need({**needs.COMMANDS, **nvml.TOOLS}),
    "launcher's image": images.launcher,
    "product's image": product.image,
    "kernel and its guest": kernel.image,
}
"""In the order of the stages."""


def main() -> int:
    """Gets one part after the other and says how long each took; exit status."""
    longrun.interruptible()
    print(f"parts: kept in {build.cache()}", file=sys.stderr, flush=True)
    try:
        run.require_root()
        for name, get in PARTS.items():
            begun = time.monotonic()
            get()
            print(f"parts: {time.monotonic() - begun:5.0f} s  {name}", file=sys.stderr, flush=True)
    except (build.BuildError, debian.DebianError, kernel.ImageError, ClusterError) as error:
        print(f"parts: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("parts: interrupted, everything is ended and removed", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
