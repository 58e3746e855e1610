"""A node with vGPUs of a GPU of NVIDIA's, and the stub of NVIDIA's library."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fabricate import add_driver, add_function, add_mdev, make_sysfs, write
from tests.support.nvml import DRIVER, Stub, build

LONG = 60.0
GPU = "0000:41:00.0"
OTHER = "0000:81:00.0"
VF = "0000:41:00.4"
UUID = "11111111-0000-4000-8000-000000000001"
ON_VF = "11111111-0000-4000-8000-000000000002"
IDS = ("0x10de", "0x2335")
TYPES = {1414: "NVIDIA H200X-1-18C", 1428: "NVIDIA H200X-141C"}


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled stub."""
    return build(tmp_path_factory.mktemp("nvml"))


def settle() -> None:
    """Wait until nobody asks NVML any more."""
    for thread in threading.enumerate():
        if thread.name == "nvml":
            thread.join(LONG)
            assert not thread.is_alive()


@pytest.fixture(autouse=True)
def nobody_asks() -> Iterator[None]:
    """Tests begin without anything under way from the one before."""
    yield
    settle()


@pytest.fixture
def stub(tmp_path: Path, library: Path, monkeypatch: pytest.MonkeyPatch) -> Stub:
    """What the library says to processes that begin from now on: two GPUs, the second without ECC."""
    made = Stub(tmp_path, library)
    monkeypatch.setenv("NVML_STUB", str(made.file))
    made.add_gpu(GPU, types=TYPES)
    made.add_gpu(OTHER, ecc=None)
    return made


@pytest.fixture
def sys(tmp_path: Path) -> Path:
    """A VF with a vGPU type and an mdev on another VF of one GPU, an mdev on the other, and a NIC's VF."""
    root = make_sysfs(tmp_path)
    add_driver(root, "pci", "nvidia", version=DRIVER)
    for number, gpu in enumerate((GPU, OTHER)):
        add_function(root, f"pci0000:40/{gpu}", driver="nvidia", group=5 + number, ids=IDS)
    vf = add_function(
        root, f"pci0000:40/{VF}", driver="nvidia", group=77, ids=IDS, vfio_dev="vfio9", physfn=GPU
    )
    (vf / "nvidia").mkdir()
    write(vf / "nvidia", {"current_vgpu_type": "1414"})
    add_function(root, "pci0000:40/0000:41:00.5", driver="nvidia", group=78, ids=IDS, physfn=GPU)
    on_vf, on_gpu = "pci0000:40/0000:41:00.5", f"pci0000:40/{OTHER}"
    for parent, uuid, group in ((on_vf, ON_VF, 101), (on_gpu, UUID, 102)):
        add_mdev(root, parent, uuid, type_id="nvidia-475", driver="nvidia-vgpu-vfio", group=group)
    add_function(root, "pci0000:00/0000:01:00.0", driver="mlx5_core", group=1)
    add_function(root, "pci0000:00/0000:01:00.1", group=2, physfn="0000:01:00.0")
    return root
