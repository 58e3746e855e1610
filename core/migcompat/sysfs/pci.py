"""The PCI bus, and what holds for every function on it, whoever drives it.

A function can be given to a VM when VFIO serves it. That is so when

* it has a ``vfio-dev/`` entry: whatever its driver is called, it has registered the function with VFIO
  (since Linux 6.1), or
* its driver's name says so (:func:`is_vfio_driver`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from posixpath import basename
from typing import NamedTuple

import msgspec

from migcompat.engine.declaration import Kind
from migcompat.sysfs import shown
from migcompat.sysfs.declaration import read_declaration
from migcompat.sysfs.found import Finds, FoundDevice, Vanished
from migcompat.sysfs.provider import Bus, Names
from migcompat.sysfs.tree import Tree, ancestors, printable

ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]")
"""``domain:bus:device.function``; domains above ffff exist behind Intel VMD."""

DEVICE_API = "vfio-pci"
"""What every VFIO PCI function is to its user, whichever driver serves it."""

NO_IOMMU = "vfio-noiommu"
"""The name of IOMMU groups that VFIO makes up for functions in no-IOMMU mode."""

HARMLESS_DRIVERS = frozenset({"", "pcieport", "pci-stub"})
"""Drivers that do no DMA of their own and so may share an IOMMU group with a VFIO device
(``driver_managed_dma`` in ``drivers/pci/pcie/portdrv.c`` and ``drivers/pci/pci-stub.c``)."""

_WORD = re.compile(r"0x[0-9a-f]{4}")
_BYTE = re.compile(r"0x[0-9a-f]{2}")


def is_vfio_driver(driver: str) -> bool:
    """Whether *driver*'s name is that of vfio-pci or one of its variant drivers.

    vfio-pci itself (``drivers/vfio/pci/vfio_pci.c``) and the variant drivers all end in ``vfio_pci``:
    ``mlx5_vfio_pci``, ``hisi_acc_vfio_pci``, ``pds_vfio_pci``, ``virtio_vfio_pci``,
    ``nvgrace_gpu_vfio_pci``, ``qat_vfio_pci``, ``ism_vfio_pci`` and, the only one with dashes,
    ``xe-vfio-pci`` (``struct pci_driver`` in ``drivers/vfio/pci/*/``; ``KBUILD_MODNAME`` has underscores).
    This serves kernels before 6.1 and the moment between binding and registering.
    """
    return driver.replace("-", "_").endswith("vfio_pci")


class Identity(NamedTuple):
    """What is burnt into a function: ids of 8 hex digits, ``revision`` as the kernel writes it (``0x02``)."""

    pci_id: str = ""
    revision: str = ""
    subsystem: str = ""

    def shown(self) -> dict[str, str]:
        """All but the id, which is another attribute for a function than for what lives on it."""
        revision = self.revision[2:] if _BYTE.fullmatch(self.revision) else ""
        return shown.given(pci_revision=revision, pci_subsystem=self.subsystem)


class Neighbours(NamedTuple):
    """What functions must know of each other.

    ``drivers`` by address; ``hosts``: addresses of what the host uses, by IOMMU group; ``identities`` of VFs
    by PF.
    """

    drivers: dict[str, str]
    hosts: dict[str, list[str]]
    identities: dict[str, Identity]


class Function(NamedTuple):
    """A function as the first look at the bus shows it; ``notes``: what went wrong then."""

    tree: Tree
    address: str
    entry: str
    driver: str
    vfio_dev: str
    notes: list[str]
    neighbours: Neighbours

    @property
    def of_vfio(self) -> bool:
        """Whether VFIO serves it."""
        return bool(self.vfio_dev) or is_vfio_driver(self.driver)

    @property
    def is_vf(self) -> bool:
        """Whether it is a VF."""
        return self.tree.exists(f"{self.entry}/physfn")


def _candidates(tree: Tree, finds: Finds, only: Names | None) -> Iterator[Function]:
    try:
        names = tree.names(BUS.path)
    except OSError as error:
        finds.problem(BUS.path, f"cannot be listed ({error.strerror}): no PCI device is found")
        return
    neighbours = Neighbours({}, {}, {})
    functions: list[Function] = []
    deciding = None if only is None else _deciding(tree, only)
    for name in names:
        if deciding is not None and name not in deciding:
            continue
        asked = only is None or name in only
        told = finds if asked else Finds()
        entry = f"{BUS.path}/{name}"
        notes: list[str] = []
        if not ADDRESS.fullmatch(name):
            told.problem(printable(entry), "the name is not a PCI address")
            continue
        driver = neighbours.drivers[name] = tree.link(f"{entry}/driver", notes)
        function = Function(tree, name, entry, driver, tree.vfio_dev(entry, notes), notes, neighbours)
        if not function.of_vfio:
            if notes or not (driver or tree.is_directory(entry)):
                told.problem(entry, "; ".join(notes) or "the link is broken")
                continue
            if driver not in HARMLESS_DRIVERS:
                neighbours.hosts.setdefault(tree.link(f"{entry}/iommu_group", notes), []).append(name)
        if asked:
            functions.append(function)
    yield from functions


def _deciding(tree: Tree, only: Names) -> Names | None:
    """The functions that decide what is read of those named *only*: they, their PFs and all of their groups.

    None for all functions: a group does not list a function that says it is in it. The kernel keeps both in
    step (``iommu_group_add_device`` in ``drivers/iommu/iommu.c``).
    """
    deciding = set(only)
    for name in only:
        entry = f"{BUS.path}/{name}"
        deciding.add(tree.link(f"{entry}/physfn", []))
        group = tree.link(f"{entry}/iommu_group", [])
        if group:
            try:
                members = tree.names(f"kernel/iommu_groups/{group}/devices")
            except OSError:
                return None
            if name not in members:
                return None
            deciding.update(members)
    return deciding


BUS = Bus("bus/pci/devices", _candidates)


def identity(tree: Tree, function: str, notes: list[str]) -> Identity:
    """The identity of the function at the path *function*; only a missing id is worth a note."""
    pci_id = _words(tree, function, ("vendor", "device"), notes)
    if not pci_id:
        return Identity()
    revision = tree.value(f"{function}/revision", [])
    return Identity(pci_id, revision, _words(tree, function, ("subsystem_vendor", "subsystem_device"), []))


def _words(tree: Tree, function: str, names: tuple[str, str], notes: list[str]) -> str:
    words = []
    for name in names:
        word = tree.value(f"{function}/{name}", notes)
        if not _WORD.fullmatch(word):
            notes.append(f"{name} reads '{word[:16]}', not 0x and 4 hex digits")
            return ""
        words.append(word[2:])
    return "".join(words)


def function_above(device: str) -> str:
    """The path of the nearest PCI function above *device*; empty where there is none."""
    return next((place for place in ancestors(device) if ADDRESS.fullmatch(basename(place))), "")


def read(
    function: Function, *, type_id: str = "", type_name: str = "", extra: Mapping[str, str] | None = None
) -> FoundDevice:
    """The device that *function* is; *extra* is what it shows beside its PCI facts.

    Without a *type_id* the PCI id stands for the type, as a signature. Raises Vanished, ValueError, OSError.
    """
    tree, address, entry, driver, vfio_dev, notes, _ = function
    path = tree.device_path(entry)
    group = tree.link(f"{path}/iommu_group", notes)
    physfn = tree.link(f"{path}/physfn", notes)
    own = _identity_of(function, path, physfn)
    as_whole = bool(own.pci_id and physfn) and own.pci_id == _pci_id_of(tree, physfn)
    version = tree.driver_version("pci", driver)
    numa_node = tree.numa_node(path, notes)
    notes += _obstacles(function, group, physfn)
    signature = f"pci-{own.pci_id[:4]}-{own.pci_id[4:]}" if own.pci_id else ""
    declaration = read_declaration(tree.absolute(path), Kind.PHYSICAL)
    shows = {
        **shown.given(device_api=DEVICE_API, type=type_id or signature, pci_id=own.pci_id),
        **own.shown(),
        "pci_function": _role(tree, path, physfn),
        **shown.of_driver(driver, version),
        **shown.migration_features(tree, address),
        **(extra or {}),
    }
    found = FoundDevice(
        id=address,
        kind=Kind.PHYSICAL,
        path=printable(path),
        declaration=msgspec.structs.replace(declaration, shown=shows),
        parent=physfn,
        driver=driver,
        driver_version=version,
        type=type_id,
        type_name=type_name,
        pool=f"{signature}-vf" if as_whole and not type_id else "",
        device_api=DEVICE_API,
        pci_id=own.pci_id,
        revision=own.revision,
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


def _role(tree: Tree, path: str, physfn: str) -> str:
    """What the function at *path* is to SR-IOV: ``vf``, ``pf`` (it could have VFs), else ``function``.

    The kernel makes the files from the PCI capability (``sriov_pf_dev_attr_group`` and
    ``sriov_vf_dev_attr_group`` in ``drivers/pci/iov.c``; Documentation/ABI/testing/sysfs-bus-pci).
    """
    if physfn:
        return "vf"
    return "pf" if tree.exists(f"{path}/sriov_totalvfs") else "function"


def _identity_of(function: Function, path: str, physfn: str) -> Identity:
    """The identity of the function at *path*, read once for all VFs of the PF *physfn*.

    The kernel itself takes them all from the PF and its first VF (``pci_iov_add_virtfn`` and
    ``pci_read_vf_config_common`` in ``drivers/pci/iov.c``). What cannot be read is not remembered.
    """
    known = function.neighbours.identities
    if physfn in known:
        return known[physfn]
    own = identity(function.tree, path, function.notes)
    if physfn and own.pci_id:
        known[physfn] = own
    return own


def _pci_id_of(tree: Tree, address: str) -> str:
    """The id of another function, read once a scan; empty where it cannot be read."""
    return tree.once(
        ("pci id", address), lambda: _words(tree, f"{BUS.path}/{address}", ("vendor", "device"), [])
    )


def _obstacles(function: Function, group: str, physfn: str) -> list[str]:
    """Why the kernel or KubeVirt would not let a VM have the function."""
    tree, driver, neighbours = function.tree, function.driver, function.neighbours
    notes: list[str] = []
    pf_driver = neighbours.drivers.get(physfn, "")
    hosts = [address for address in neighbours.hosts.get(group, ()) if address != function.address]
    if not driver:
        notes.append("no driver is bound to it")
    if not group:
        notes.append("it has no IOMMU group: switch the IOMMU on (firmware, kernel command line)")
    elif hosts:
        notes.append(
            f"its IOMMU group {group} also holds {hosts[-1]} (driver {neighbours.drivers[hosts[-1]]}),"
            " which the host uses: bind that to vfio-pci too"
        )
    elif tree.value(f"kernel/iommu_groups/{group}/name", []) == NO_IOMMU:
        notes.append("it is in VFIO's no-IOMMU mode, which offers no isolation: switch the IOMMU on")
    if physfn and is_vfio_driver(pf_driver):
        notes.append(
            f"its PF {physfn} is bound to {pf_driver}, so it opens only with a VF token, which KubeVirt"
            " cannot pass: bind the PF to its host driver"
        )
    return notes
