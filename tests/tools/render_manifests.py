"""Writes what is derived from the chart: deploy/manifests.yaml and the reference of values and definitions.

``python -m tests.tools.render_manifests`` (``make manifests``); a test compares the files with what it gives.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests.cluster.binaries.build import Binaries, binaries
from tests.tools.chart_reference import crds_page, values_page

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "migcompat"
NAMESPACE = "migcompat-system"

HEADER = f"""\
# migcompat without helm, rendered from charts/migcompat with its defaults by `make manifests`. Do not edit.
#
#   sed 's#image: migcompat:#image: <registry>/migcompat:#' deploy/manifests.yaml |
#     kubectl apply --server-side -f -
#   deploy/certificates.sh {NAMESPACE}
#
# The image is named without a registry: the first command puts yours in. The second makes the
# extender's certificates, which the chart would have made (docs/install.md).
---
apiVersion: v1
kind: Namespace
metadata:
  name: {NAMESPACE}
  labels:
    app.kubernetes.io/part-of: migcompat
    # The device plugin mounts directories of its host.
    pod-security.kubernetes.io/enforce: privileged
"""
_HELMS_OWN = re.compile(r" *(helm\.sh/chart|app\.kubernetes\.io/managed-by): .*\n|# Source: .*\n")


def manifests(programs: Binaries) -> str:
    """The chart's objects as plain manifests; certificates are left to deploy/certificates.sh."""
    result = subprocess.run(
        [
            *(programs.helm, "template", "migcompat", str(CHART), "--namespace", NAMESPACE),
            *("--set", "tls.existingSecret=migcompat-extender-tls"),
            *("--set", r"webhook.annotations.migcompat\.io/ca-bundle=deploy/certificates.sh"),
            "--no-hooks",
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return HEADER + _HELMS_OWN.sub("", result.stdout)


def rendered(programs: Binaries) -> dict[Path, str]:
    """All derived files and what they are to hold."""
    return {
        ROOT / "deploy" / "manifests.yaml": manifests(programs),
        ROOT / "docs" / "reference" / "chart-values.md": values_page(CHART),
        ROOT / "docs" / "reference" / "crds.md": crds_page(CHART),
    }


def main() -> None:
    """Writes the files."""
    for path, text in rendered(binaries()).items():
        path.write_text(text)
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
