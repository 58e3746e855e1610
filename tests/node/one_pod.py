"""A run for `test_interrupted` to end: one node with a pod that runs. pytest finds it only by its name."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from tests.node import images, needs, run
from tests.node.addresses import BridgeNetwork
from tests.node.cluster import NodeCluster
from tests.node.controlplane import NodeControlPlane
from tests.node.devices import prepare_source

TOLD = "MIGCOMPAT_TEST_TOLD"
"""Environment: a directory. The run writes its name into ``begun`` at first, makes ``pod-runs`` when its pod
runs, and then waits for ``end``; it fails when that says so."""
FAIL = "fail"
POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "one", "namespace": "default"},
    "spec": {
        "containers": [
            {
                "name": "compute",
                "image": images.LAUNCHER,
                "imagePullPolicy": "Never",
                "volumeMounts": [{"name": "memory", "mountPath": "/memory"}],
            }
        ],
        "volumes": [{"name": "memory", "emptyDir": {"medium": "Memory"}}],
    },
}


def test_a_pod_runs_until_told(bridge: BridgeNetwork) -> None:
    told = Path(os.environ[TOLD])
    directory, cgroup = run.place()
    parts = dataclasses.replace(needs.parts(), product=None)
    (told / "begun").write_text(directory.name)
    with (
        NodeControlPlane(parts.programs, bridge, directory) as plane,
        NodeCluster(plane, parts, cgroup=cgroup) as cluster,
    ):
        cluster.add_nodes({"node-1": prepare_source})
        plane.apply(POD)
        cluster.wait(lambda: plane.get("pod", "one")["status"]["phase"] == "Running", "the pod runs")
        (told / "pod-runs").touch()
        cluster.wait((told / "end").exists, "told to end", within=500)
        if (told / "end").read_text() == FAIL:
            pytest.fail("told to fail with the pod running")
        assert plane.get("pod", "one")["status"]["containerStatuses"][0]["restartCount"] == 0
