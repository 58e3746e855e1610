"""Functions on vfio-pci and variant drivers: found, and what they show."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from migcompat.sysfs.scan import scan

from tests.discovery.finding import only, shown
from tests.support.fabricate import add_driver, add_function, write

VF = "pci0000:00/0000:01:00.1"
PF = "0000:01:00.0"

VARIANTS = {
    "mlx5_vfio_pci": ("mlx5_core", "0x15b3", "0x101e"),
    "hisi_acc_vfio_pci": ("hisi_sec2", "0x19e5", "0xa256"),
    "xe-vfio-pci": ("xe", "0x8086", "0xe211"),
    "qat_vfio_pci": ("4xxx", "0x8086", "0x4941"),
    "nvgrace_gpu_vfio_pci": ("", "0x10de", "0x2342"),
    "pds_vfio_pci": ("pds_core", "0x1dd8", "0x1003"),
    "virtio_vfio_pci": ("virtio-pci", "0x1af4", "0x1041"),
}
"""Driver to its PF's host driver (none: it has no VFs) and PCI id."""


@pytest.mark.parametrize("driver", VARIANTS)
@pytest.mark.parametrize("registered", [True, False], ids=["vfio-dev", "before Linux 6.1"])
def test_variant_drivers(sys: Path, driver: str, registered: bool) -> None:
    host, vendor, device = VARIANTS[driver]
    if host:
        add_function(sys, f"pci0000:00/{PF}", driver=host, group=1, ids=(vendor, "0x0001"))
    vf = add_function(
        sys,
        VF,
        driver=driver,
        group=2,
        ids=(vendor, device),
        physfn=PF if host else "",
        vfio_dev="vfio0" if registered else "",
    )
    write(vf, {"revision": "0x0a", "subsystem_vendor": vendor, "subsystem_device": "0x0061"})
    short = vendor[2:], device[2:]
    assert shown(sys) == {
        "device_api": "vfio-pci",
        "type": "pci-" + "-".join(short),
        "pci_id": "".join(short),
        "pci_revision": "0a",
        "pci_subsystem": f"{short[0]}0061",
        "pci_function": "vf" if host else "function",
        "driver": driver,
    }
    assert only(sys).is_vf is bool(host)


def test_a_driver_whose_module_has_a_version_shows_it(sys: Path) -> None:
    add_driver(sys, "pci", "mlx5_vfio_pci", version="24.10-2.1.8")
    add_function(sys, VF, driver="mlx5_vfio_pci", group=2)
    says = shown(sys)
    assert says["driver_version"] == says["software_version"] == "24.10-2.1.8"


def test_vfs_of_one_pf_are_of_one_identity_as_the_kernel_has_it(
    recorded: Callable[[str, str], Path],
) -> None:
    """The claim that lets a scan read it once: in the recording, each VF's own files say the same."""
    root = recorded("linux-6.12-debian13-cdev", "2-vfio-mdev")
    vfs = [device for device in scan(root).devices if device.is_vf]
    assert len({device.physfn for device in vfs}) == 2
    for vf in vfs:
        own = [(root / vf.path / name).read_text().strip()[2:] for name in ("vendor", "device", "revision")]
        assert [vf.pci_id, vf.revision[2:]] == ["".join(own[:2]), own[2]]


def test_vfs_of_different_pfs_are_told_apart(sys: Path) -> None:
    for bus, revision in (("01", "0x01"), ("02", "0x02")):
        for function in "12":
            vf = add_function(
                sys, f"pci0000:00/0000:{bus}:00.{function}", group=int(bus + function),
                physfn=f"0000:{bus}:00.0",
            )  # fmt: skip
            write(vf, {"revision": revision})
    says = [device.declaration.shown["pci_revision"] for device in scan(sys).devices]
    assert says == ["01", "01", "02", "02"]


def test_a_vf_whose_files_cannot_be_read_hides_no_sibling(sys: Path) -> None:
    vfs = [add_function(sys, f"pci0000:00/0000:01:00.{n}", group=n, physfn="0000:01:00.0") for n in (1, 2, 3)]
    write(vfs[0], {"vendor": "?"})
    first, *others = scan(sys).devices
    assert "vendor reads '?'" in first.problem
    assert [device.problem for device in others] == ["", ""]
    assert [device.pci_id for device in others] == ["15b3101e"] * 2


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ("stop-copy\np2p\npre-copy\ndirty-tracking\n", "dirty-tracking+p2p+pre-copy+stop-copy"),
        ("stop-copy\n", "stop-copy"),
        ("", None),
        ("stop-copy\n\x01\n", None),
        ("Stop Copy\nstop-copy\n", "stop-copy"),
    ],
)
def test_what_vfio_lists_for_debugging(sys: Path, features: str, expected: str | None) -> None:
    add_function(sys, VF, driver="mlx5_vfio_pci", group=2)
    debug = sys / "kernel/debug/vfio/0000:01:00.1/migration"
    debug.mkdir(parents=True)
    (debug / "features").write_text(features)
    assert shown(sys).get("migration_features") == expected


def test_a_device_that_vfio_knows_and_its_driver_cannot_migrate(sys: Path) -> None:
    add_function(sys, VF, driver="vfio-pci", group=2)
    debug = sys / "kernel/debug/vfio/0000:01:00.1"
    debug.parent.mkdir(parents=True)
    assert "migration_features" not in shown(sys), "VFIO does not know it yet"
    debug.mkdir()
    assert shown(sys)["migration_features"] == "none"
    debug.rmdir()
    debug.write_text("no directory")
    assert "migration_features" not in shown(sys)


def test_debugfs_of_a_kernel_before_it_listed_features(sys: Path) -> None:
    add_function(sys, VF, driver="mlx5_vfio_pci", group=2)
    (sys / "kernel/debug/vfio/0000:01:00.1/migration").mkdir(parents=True)
    (sys / "kernel/debug/vfio/0000:01:00.1/migration/state").write_text("RUNNING\n")
    assert "migration_features" not in shown(sys)
