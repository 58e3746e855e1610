"""A fabricated sysfs with many VFs, for measuring scans and for tests of large nodes."""

from __future__ import annotations

from pathlib import Path

from tests.support.fabricate import add_function, make_sysfs
from tests.support.sysfs import add_migration

VFS_PER_PF = 256

DECLARED = {"device_api": "vfio-pci", "pci_id": "15b3101e", "software_version": "1.2.0", "type": "mlx5-vf"}


def make_vfs(root: Path, count: int, *, declare: bool = False) -> Path:
    """Make a sysfs with *count* VFs below *root*; returns the sysfs root (``root/sys``).

    VFs of SR-IOV PFs behind root ports, each in an IOMMU group of its own, bound to vfio-pci, spread over two
    NUMA nodes. With *declare* each VF gets a ``migration/`` tree with two entries.
    """
    sys = make_sysfs(root)
    for number in range(-(-count // VFS_PER_PF)):
        _add_pf(sys, number, min(VFS_PER_PF, count - number * VFS_PER_PF), declare=declare)
    return sys


def _add_pf(sys: Path, number: int, vfs: int, *, declare: bool) -> None:
    """One PF with its *vfs*, on two bus numbers of its own, because a bus holds 256 functions."""
    bus = 1 + 2 * number
    node = number % 2
    port = f"pci0000:00/0000:00:{number % 32:02x}.0"
    pf = f"0000:{bus:02x}:00.0"
    add_function(sys, f"{port}/{pf}", driver="mlx5_core", group=number, ids=("0x15b3", "0x101d"), node=node)
    for index in range(vfs):
        routing = index + 8
        address = f"0000:{bus + routing // 256:02x}:{routing % 256 // 8:02x}.{routing % 8}"
        serial = number * VFS_PER_PF + index
        device = add_function(
            sys, f"{port}/{address}", group=1000 + serial, node=node, vfio_dev=f"vfio{serial}", physfn=pf
        )
        if declare:
            add_migration(device, DECLARED, [DECLARED, {**DECLARED, "software_version": "1.1.0"}])
