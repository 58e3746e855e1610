"""One booted machine: a kernel under QEMU without KVM, our source and its packages in it, no network.

Its hardware: two NUMA nodes and an IOMMU; an NVMe controller (4 VFs) and an igb network card (7 VFs), each
behind a root port of its own; another NVMe controller on NUMA node 1; two ``edu`` functions behind a bridge,
which share an IOMMU group, and one with a group of its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.cluster.processes import Process
from tests.kernel import image
from tests.kernel.image import Image

MEMORY = 1024
"""MiB, one half on each NUMA node."""

_PREFIX = "mc-kernel-"
_DISK = 16 * 1024 * 1024
_KERNEL = (
    "console=ttyS0 quiet loglevel=4 rdinit=/init intel_iommu=on mitigations=off nokaslr tsc=reliable"
    # On a busy host the emulated timer may be late for the kernel's check of it at boot.
    " no_timer_check"
    # A kernel that has lost its way ends, with its last words on the console.
    " panic=-1 oops=panic"
)
_HARDWARE = """
-M q35 -accel tcg,thread=multi,tb-size=512 -smp 2
-nodefaults -no-user-config -display none -no-reboot -monitor none -serial stdio
-device intel-iommu,intremap=on,eim=on,device-iotlb=on
-device pcie-root-port,id=rp1,bus=pcie.0,chassis=1,slot=1
-device pcie-root-port,id=rp2,bus=pcie.0,chassis=1,slot=2
-device pcie-root-port,id=rp3,bus=pcie.0,chassis=1,slot=3
-device pxb-pcie,id=far,bus_nr=128,numa_node=1,bus=pcie.0
-device pcie-root-port,id=rp4,bus=far,chassis=2,slot=1
-device pcie-pci-bridge,id=bridge,bus=rp3
-device nvme-subsys,id=sub
-device nvme,id=pf,serial=near,subsys=sub,bus=rp1,sriov_max_vfs=4,sriov_vq_flexible=8,sriov_vi_flexible=4
-device nvme-ns,drive=disk,bus=pf
-device nvme,serial=far,bus=rp4
-netdev hubport,hubid=0,id=hub -device igb,netdev=hub,bus=rp2,mac=52:54:00:12:34:56
-device edu,bus=bridge,addr=1 -device edu,bus=bridge,addr=2 -device edu,bus=pcie.0,addr=0x10
"""
_CPU = "qemu64,+x2apic"
"""With x2APIC interrupts are acknowledged by MSR instead of MMIO. Under QEMU 10.0 an MMIO access of one CPU
while another changes the memory map (as each change of a PCI function does) may hit another device, or end
QEMU (``iotlb_to_section: Assertion``): without it two runs of some minutes in five did."""


def command(made: Image, directory: Path) -> list[str]:
    """QEMU's command line for a machine whose files are in *directory*: ``source/``, ``out/``, ``disk``."""
    node = MEMORY // 2
    share = "local,security_model=none,multidevs=remap"
    return [
        *image.program(made.root, "qemu-system-x86_64"),
        *(f for d in ("qemu", "seabios") for f in ("-L", str(made.root / "usr/share" / d))),
        *("-L", str(made.root / "usr/lib/ipxe/qemu")),
        *("-cpu", _CPU, "-m", f"{MEMORY}M"),
        *("-object", f"memory-backend-ram,id=m0,size={node}M", "-numa", "node,nodeid=0,cpus=0,memdev=m0"),
        *("-object", f"memory-backend-ram,id=m1,size={node}M", "-numa", "node,nodeid=1,cpus=1,memdev=m1"),
        *("-kernel", str(made.vmlinuz), "-initrd", str(made.initrd), "-append", _KERNEL),
        *("-fsdev", f"{share},id=source,readonly=on,path={directory / 'source'}"),
        *("-device", "virtio-9p-pci,fsdev=source,mount_tag=source,bus=pcie.0"),
        *("-fsdev", f"{share},id=site,readonly=on,path={made.site}"),
        *("-device", "virtio-9p-pci,fsdev=site,mount_tag=site,bus=pcie.0"),
        *("-fsdev", f"{share},id=out,path={directory / 'out'}"),
        *("-device", "virtio-9p-pci,fsdev=out,mount_tag=out,bus=pcie.0"),
        *("-drive", f"file={directory / 'disk'},if=none,id=disk,format=raw"),
        *shlex.split(_HARDWARE),
    ]


def boot(made: Image, directory: Path) -> Process:
    """Switches the machine on; its console is ``console.log`` in *directory*. It dies with this process."""
    with (directory / "disk").open("wb") as disk:
        disk.truncate(_DISK)
    return Process(
        "machine",
        command(made, directory),
        log=directory / "console.log",
        environment={**os.environ, "QEMU_MODULE_DIR": str(made.root / "usr/lib/x86_64-linux-gnu/qemu")},
    )


@contextlib.contextmanager
def run_directory() -> Iterator[Path]:
    """A directory for one machine, removed at the end; those that killed runs have left are removed before.

    Whoever uses one holds a lock on it, which the kernel takes back however the process ends.
    """
    parent = Path(tempfile.gettempdir())
    for remains in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError), _locked(remains):
            shutil.rmtree(remains)
    directory = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    try:
        with _locked(directory):
            yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
