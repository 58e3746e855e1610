"""vfio-ap mdevs: their queues and control domains."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from migcompat.engine.declaration import Kind
from migcompat.sysfs.scan import scan

from tests.discovery.finding import only, shown
from tests.support.fabricate import add_driver, add_mdev, link

UUID = "336f95d5-1d9d-5a8e-9e77-55f722edd4e6"


@pytest.fixture
def matrix(sys: Path) -> Path:
    """A mediated matrix device, with its parent bound on a bus that no other kind has."""
    device = add_mdev(
        sys,
        "vfio_ap/matrix",
        UUID,
        type_id="vfio_ap-passthrough",
        driver="vfio_ap_mdev",
        group=3,
        device_api="vfio-ap",
    )
    add_driver(sys, "matrix", "vfio_ap")
    link(device.parent / "driver", sys / "bus/matrix/drivers/vfio_ap")
    (device / "matrix").write_text("06.0004\n05.00ab\n05.0004\n06.00ab\n")
    (device / "control_domains").write_text("00ab\n0004\n")
    return device


def test_a_matrix(sys: Path, matrix: Path) -> None:
    device = only(sys)
    assert (device.kind, device.parent, device.pci_id, device.problem) == (Kind.MDEV, "matrix", "", "")
    assert shown(sys) == {
        "device_api": "vfio-ap",
        "type": "vfio_ap-passthrough",
        "type_name": "The vfio_ap-passthrough",
        "driver": "vfio_ap_mdev",
        "ap_queues": "05.0004+05.00ab+06.0004+06.00ab",
        "ap_control_domains": "0004+00ab",
    }


def test_its_queues_change_without_an_event(sys: Path, matrix: Path) -> None:
    assert scan(sys).silent
    assert scan(sys, frozenset({UUID})).silent
    assert not scan(sys, frozenset()).silent


@pytest.mark.parametrize(
    "text", ["", "05.\n06.\n", ".0004\n", "05.0004\n06.\n", "5.4\n", "05.0004 06.0004\n", "05.0004\n\x01"]
)
def test_a_matrix_without_queues_or_not_understood(sys: Path, matrix: Path, text: str) -> None:
    (matrix / "matrix").write_text(text)
    assert "ap_queues" not in shown(sys)
    assert shown(sys)["ap_control_domains"] == "0004+00ab"


@pytest.mark.parametrize(("count", "known"), [(511, True), (512, False), (600, False)])
def test_a_matrix_that_fills_the_page_may_be_cut_off(
    sys: Path, matrix: Path, count: int, known: bool
) -> None:
    (matrix / "matrix").write_text("".join(f"{n // 256:02x}.{n % 256:04x}\n" for n in range(count)))
    queues = shown(sys).get("ap_queues", "")
    assert len(queues.split("+")) == (count if known else 1)
    assert len(queues) <= 4096


@pytest.mark.parametrize("name", ["matrix", "control_domains"])
def test_what_cannot_be_read_is_left_out(
    sys: Path, matrix: Path, name: str, broken: Callable[[Path], None]
) -> None:
    before = shown(sys)
    broken(matrix / name)
    gone = {"matrix": "ap_queues", "control_domains": "ap_control_domains"}[name]
    assert shown(sys) == {key: value for key, value in before.items() if key != gone}


@pytest.mark.parametrize("name", ["matrix", "control_domains"])
def test_what_blocks_or_loops_is_left_out(sys: Path, matrix: Path, name: str) -> None:
    (matrix / name).unlink()
    os.mkfifo(matrix / name)
    assert len(shown(sys)) == 5
    (matrix / name).unlink()
    (matrix / name).symlink_to(name)
    assert len(shown(sys)) == 5
