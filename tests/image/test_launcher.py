"""The launcher's image, which only the tests need: it must tell the truth about devices, and end at once."""

from __future__ import annotations

import json
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.image.archive import Archive
from tests.image.container import Container, Node
from tests.node import images

PATIENCE = 60.0
QEMU = 107
"""The user that KubeVirt's launchers run as."""

Launch = Callable[..., Container]


NODES = {
    "/dev/vfio/vfio": Node(1, 3),
    "/dev/vfio/7": Node(1, 5, 0o600),
    "/dev/vfio/devices/vfio3": Node(511, 70000),
    "/dev/iommu": Node(1, 7),
    "/dev/other": Node(1, 3),
}
"""Devices that open for all, for root, and, lacking a driver, not at all; and one that is not VFIO's."""


@pytest.fixture
def launch(shared: Path, tmp_path: Path) -> Iterator[Launch]:
    archive = Archive(images.launcher())
    root = shared / "root"
    root.mkdir()
    archive.unpack(root)
    started: list[Container] = []

    def one(*arguments: str, uid: int = QEMU) -> Container:
        container = Container(
            root,
            {"Env": ["PATH=/"], "User": "0"},
            ["launcher", *arguments],
            log=tmp_path / f"log-{len(started)}",
            nodes=NODES,
            environment={
                "PCI_RESOURCE_A": "0000:01:00.1",
                "MDEV_PCI_RESOURCE_B": "an id",
                "OTHER": "x",
            },
            uid=uid,
        )
        started.append(container)
        return container

    yield one
    for container in started:
        container.stop()


def lines(container: Container, count: int) -> list[Any]:
    deadline = time.monotonic() + PATIENCE
    while len(said := container.output().splitlines()) < count:
        assert time.monotonic() < deadline, said
        time.sleep(0.05)
    return [json.loads(line) for line in said]


def test_one_archive_holds_both_images() -> None:
    with tarfile.open(images.launcher()) as tar:
        manifest = json.load(tar.extractfile("manifest.json"))  # type: ignore[arg-type]
        configs = {
            entry["RepoTags"][0]: json.load(tar.extractfile(entry["Config"]))  # type: ignore[arg-type]
            for entry in manifest
        }
    assert {tag: config["config"]["Entrypoint"] for tag, config in configs.items()} == {
        images.LAUNCHER: ["/launcher"],
        images.PAUSE: ["/launcher", "pause"],
    }
    assert {config["architecture"] for config in configs.values()} <= {"amd64", "arm64"}


@pytest.mark.parametrize(
    ("uid", "opens"),
    [
        (QEMU, {"/dev/vfio/7": "permission denied"}),
        (0, {}),
    ],
)
def test_it_says_what_it_was_given_and_ends_when_told(
    launch: Launch, uid: int, opens: dict[str, str]
) -> None:
    container = launch("--what", "virt-launcher", "--is given", uid=uid)
    (said,) = lines(container, 1)
    assert said["pid"] == 1
    assert (said["uid"], said["gid"]) == (uid, uid)
    assert said["environment"] == {"PCI_RESOURCE_A": "0000:01:00.1", "MDEV_PCI_RESOURCE_B": "an id"}
    assert said["errors"] == []
    found = {device.pop("path"): device for device in said["devices"]}
    errors = {"/dev/vfio/devices/vfio3": "no such device or address", **opens}
    assert found == {
        path: {"type": "c", "number": number, "opens": path not in errors, "error": errors.get(path, "")}
        for path, number in {
            "/dev/iommu": "1:7",
            "/dev/vfio/7": "1:5",
            "/dev/vfio/devices/vfio3": "511:70000",
            "/dev/vfio/vfio": "1:3",
        }.items()
    }
    container.terminate()
    assert container.wait(PATIENCE) == 0


def test_it_says_it_again_when_asked(launch: Launch) -> None:
    container = launch()
    lines(container, 1)
    container.signal("USR1")
    first, second = lines(container, 2)
    assert first == second


def test_as_pause_it_says_nothing(launch: Launch) -> None:
    container = launch("pause")
    container.terminate()
    assert container.wait(PATIENCE) == 0
    assert container.output() == ""


def test_a_probe_succeeds_and_devices_are_told_once(launch: Launch) -> None:
    probe, devices = launch("probe"), launch("devices")
    assert probe.wait(PATIENCE) == 0
    assert probe.output() == ""
    assert devices.wait(PATIENCE) == 0
    assert len(lines(devices, 1)) == 1
