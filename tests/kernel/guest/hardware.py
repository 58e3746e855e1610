"""The machine's devices as the kernel shows and changes them; shares no code with what is tested.

Source of the files: kernel, Documentation/ABI/testing/sysfs-bus-pci, Documentation/driver-api/
vfio-mediated-device.rst.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import uuid
from pathlib import Path

SYS = Path("/sys")
PCI = SYS / "bus/pci/devices"
MDEV = SYS / "bus/mdev/devices"
VFIO_PCI = "vfio-pci"
DOMAIN = "vfio.migcompat.io"

MTTY_PORTS = 24
"""Of the mtty driver, shared by its types (``MAX_MTTYS``, samples/vfio-mdev/mtty.c)."""
NVME = ("0x1b36", "0x0010")
IGB = ("0x8086", "0x10c9")
EDU = ("0x1234", "0x11e8")

Pools = dict[str, dict[str, bool]]
"""Devices of each resource, and whether each can be used."""


def read(path: Path) -> str:
    """An attribute's content without its newline."""
    return path.read_text(encoding="ascii").strip()


def write(path: Path, text: str) -> None:
    """One write, as the kernel wants it. Raises OSError with what the kernel thinks of it."""
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def link(path: Path) -> str:
    """The name of what a link leads to; empty when there is no link."""
    try:
        return os.path.basename(os.readlink(path))
    except FileNotFoundError:
        return ""


# -- mediated devices -----------------------------------------------------------------------------------


def mdev_types() -> dict[str, Path]:
    """Directories of all mdev types by their ids (``mtty-1``)."""
    return {path.name: path for path in SYS.glob("class/mdev_bus/*/mdev_supported_types/*")}


def available(type_id: str) -> int:
    """How many more mdevs of a type there can be."""
    return int(read(mdev_types()[type_id] / "available_instances"))


def create(type_id: str, name: str = "") -> str:
    """A new mdev; returns its UUID."""
    name = name or str(uuid.uuid4())
    write(mdev_types()[type_id] / "create", name)
    return name


def remove(name: str) -> None:
    """The mdev's end."""
    write(MDEV / name / "remove", "1")


def mdevs() -> list[str]:
    """All mdevs."""
    return sorted(os.listdir(MDEV))


def mdev_driver(name: str) -> str:
    """The name of an mdev's driver, empty without one."""
    return link(MDEV / name / "driver")


def iommu_group(name: str) -> str:
    """The number of an mdev's IOMMU group."""
    return link(MDEV / name / "iommu_group")


def unbind_mdev(name: str) -> None:
    """Take an mdev's driver away, for good: nothing binds it again.

    ``mdev_match`` in drivers/vfio/mdev/mdev_driver.c.
    """
    write(MDEV / name / "driver/unbind", name)


# -- PCI functions --------------------------------------------------------------------------------------


def functions(ids: tuple[str, str]) -> list[str]:
    """Addresses of all functions with this vendor and device id that are no VFs."""
    return [
        path.name
        for path in sorted(PCI.iterdir())
        if (read(path / "vendor"), read(path / "device")) == ids and not (path / "physfn").is_symlink()
    ]


def physical_function(ids: tuple[str, str]) -> str:
    """The one function with these ids that can have VFs."""
    (found,) = [address for address in functions(ids) if (PCI / address / "sriov_totalvfs").exists()]
    return found


def set_vfs(pf: str, count: int) -> list[str]:
    """Change the number of a PF's VFs (the kernel wants 0 in between); returns their addresses.

    They get no driver.
    """
    write(PCI / pf / "sriov_drivers_autoprobe", "0")
    if int(read(PCI / pf / "sriov_numvfs")):
        write(PCI / pf / "sriov_numvfs", "0")
    if count:
        write(PCI / pf / "sriov_numvfs", str(count))
    return [link(PCI / pf / f"virtfn{number}") for number in range(count)]


def driver(address: str) -> str:
    """The name of a function's driver, empty without one."""
    return link(PCI / address / "driver")


def unbind(address: str) -> None:
    """Take a function's driver away."""
    write(PCI / address / "driver/unbind", address)


def bind(address: str, name: str = VFIO_PCI) -> None:
    """Give a function without a driver this one, as KubeVirt's documentation and driverctl do."""
    write(PCI / address / "driver_override", name)
    write(SYS / "bus/pci/drivers_probe", address)
    assert driver(address) == name, f"{address} is bound to {driver(address)!r}"


# -- modules --------------------------------------------------------------------------------------------


def unload(module: str) -> None:
    """Remove a driver's module, as an upgrade does, and with it the driver from its devices."""
    subprocess.run(["busybox", "rmmod", module], check=True, timeout=30)


def load(module: str) -> None:
    """Insert a driver's module; it takes the devices that it is meant for."""
    subprocess.run(["modprobe", module], check=True, timeout=30)


# -- all of them ----------------------------------------------------------------------------------------


def truth() -> Pools:
    """What a kubelet should know now: every mdev, and every function bound to vfio-pci."""
    pools: Pools = {}
    for name in mdevs():
        with contextlib.suppress(FileNotFoundError):
            pool = pools.setdefault(f"{DOMAIN}/{link(MDEV / name / 'mdev_type')}", {})
            pool[name] = bool(mdev_driver(name))
    for path in PCI.iterdir():
        if driver(path.name) == VFIO_PCI:
            ids = f"pci-{read(path / 'vendor')[2:]}-{read(path / 'device')[2:]}"
            pf = path / "physfn"
            if pf.is_symlink() and all(read(pf / word) == read(path / word) for word in ("vendor", "device")):
                ids += "-vf"
            pools.setdefault(f"{DOMAIN}/{ids}", {})[path.name] = True
    return pools


def reset() -> None:
    """As after the boot: no mdev, no VF, every function with the host's driver."""
    for name in mdevs():
        remove(name)
    for ids in (NVME, IGB):
        set_vfs(physical_function(ids), 0)
    for path in PCI.iterdir():
        if driver(path.name) == VFIO_PCI:
            unbind(path.name)
            write(path / "driver_override", "\n")
    for ids in (NVME, IGB):
        for address in functions(ids):
            if not driver(address):
                write(SYS / "bus/pci/drivers_probe", address)
