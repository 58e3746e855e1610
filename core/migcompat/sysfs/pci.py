"""PCI functions that can be given to a VM: VFs, PFs and plain functions bound to a VFIO driver.

A function is a VFIO device when

* it has a ``vfio-dev/`` entry: whatever its driver is called, it has registered the function with VFIO
  (since Linux 6.1), or
* its driver's name says so: ``vfio-pci`` itself (``drivers/vfio/pci/vfio_pci.c``), and the variant drivers,
  which all end in ``vfio_pci``: ``mlx5_vfio_pci``, ``hisi_acc_vfio_pci``, ``pds_vfio_pci``,
  ``virtio_vfio_pci``, ``nvgrace_gpu_vfio_pci``, ``qat_vfio_pci``, ``ism_vfio_pci`` and, the only one with
  dashes, ``xe-vfio-pci`` (``struct pci_driver`` in ``drivers/vfio/pci/*/``; ``KBUILD_MODNAME`` has
  underscores). This rule serves kernels before 6.1 and the moment between binding and registering.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import NamedTuple

from migcompat.engine.declaration import Kind
from migcompat.sysfs.declaration import read_declaration
from migcompat.sysfs.found import Finds, FoundDevice, Vanished
from migcompat.sysfs.tree import NO_IOMMU, PCI_ADDRESS, Tree, printable

BUS = "bus/pci/devices"

DEVICE_API = "vfio-pci"
"""What every VFIO PCI function is to its user, whichever driver serves it."""

HARMLESS_DRIVERS = frozenset({"", "pcieport", "pci-stub"})
"""Drivers that do no DMA of their own and so may share an IOMMU group with a VFIO device
(``driver_managed_dma`` in ``drivers/pci/pcie/portdrv.c`` and ``drivers/pci/pci-stub.c``)."""


def is_vfio_driver(driver: str) -> bool:
    """Whether *driver*'s name is that of vfio-pci or one of its variant drivers."""
    return driver.replace("-", "_").endswith("vfio_pci")


def find(tree: Tree) -> Finds:
    """All PCI VFIO devices of *tree*. Never raises for what it finds there."""
    finds = Finds()
    try:
        names = tree.names(BUS)
    except OSError as error:
        finds.problem(BUS, f"cannot be listed ({error.strerror}): no PCI device is found")
        return finds
    neighbours = _Neighbours()
    candidates: list[_Candidate] = []
    for name in names:
        entry = f"{BUS}/{name}"
        notes: list[str] = []
        if not PCI_ADDRESS.fullmatch(name):
            finds.problem(printable(entry), "the name is not a PCI address")
            continue
        driver = neighbours.drivers[name] = tree.link(f"{entry}/driver", notes)
        vfio_dev = tree.vfio_dev(entry, notes)
        if vfio_dev or is_vfio_driver(driver):
            candidates.append(_Candidate(name, driver, vfio_dev, notes))
        elif notes or not (driver or tree.is_directory(entry)):
            finds.problem(entry, "; ".join(notes) or "the link is broken")
        elif driver not in HARMLESS_DRIVERS:
            neighbours.host_groups[tree.link(f"{entry}/iommu_group", notes)] = f"{name} (driver {driver})"
    for candidate in candidates:
        finds.device(f"{BUS}/{candidate.address}", partial(_read, tree, candidate, neighbours))
    return finds


class _Candidate(NamedTuple):
    """A VFIO device as the first look at the bus shows it; ``notes``: what went wrong then."""

    address: str
    driver: str
    vfio_dev: str
    notes: list[str]


class _Neighbours:
    """What must be known of other functions to judge one: drivers by address, and who holds which group."""

    def __init__(self) -> None:
        self.drivers: dict[str, str] = {}
        self.host_groups: dict[str, str] = {}


def _read(tree: Tree, candidate: _Candidate, neighbours: _Neighbours) -> FoundDevice:
    address, driver, vfio_dev, notes = candidate
    entry = f"{BUS}/{address}"
    path = tree.device_path(entry)
    group = tree.link(f"{path}/iommu_group", notes)
    physfn = tree.link(f"{path}/physfn", notes)
    pci_id, revision = tree.pci_id(path, notes)
    numa_node = tree.numa_node(path, notes)
    notes += _obstacles(tree, driver, group, physfn, neighbours)
    found = FoundDevice(
        id=address,
        kind=Kind.PHYSICAL,
        path=printable(path),
        declaration=read_declaration(Path(tree.absolute(path)), Kind.PHYSICAL),
        parent=physfn,
        driver=driver,
        driver_version=tree.driver_version("pci", driver),
        device_api=DEVICE_API,
        pci_id=pci_id,
        revision=revision,
        numa_node=numa_node,
        iommu_group=group,
        vfio_dev=vfio_dev,
        is_vf=bool(physfn),
        physfn=physfn,
        problem="; ".join(notes),
    )
    if not tree.is_directory(entry):
        raise Vanished
    return found


def _obstacles(tree: Tree, driver: str, group: str, physfn: str, neighbours: _Neighbours) -> list[str]:
    """Why the kernel or KubeVirt would not let a VM have the function."""
    notes: list[str] = []
    pf_driver = neighbours.drivers.get(physfn, "")
    if not driver:
        notes.append("no driver is bound to it")
    if not group:
        notes.append("it has no IOMMU group: switch the IOMMU on (firmware, kernel command line)")
    elif group in neighbours.host_groups:
        notes.append(
            f"its IOMMU group {group} also holds {neighbours.host_groups[group]}, which the host uses:"
            " bind that to vfio-pci too"
        )
    elif tree.value(f"kernel/iommu_groups/{group}/name", []) == NO_IOMMU:
        notes.append("it is in VFIO's no-IOMMU mode, which offers no isolation: switch the IOMMU on")
    if physfn and is_vfio_driver(pf_driver):
        notes.append(
            f"its PF {physfn} is bound to {pf_driver}, so it opens only with a VF token, which KubeVirt"
            " cannot pass: bind the PF to its host driver"
        )
    return notes
