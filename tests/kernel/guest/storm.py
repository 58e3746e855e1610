"""Changes of devices at random, the same for the same seed, as fast as the kernel makes them."""

from __future__ import annotations

import random

from tests.kernel.guest import hardware
from tests.kernel.guest.hardware import EDU, IGB, NVME, PCI, read

_TYPES = ("mtty-1", "mtty-2", "mdpy-vga", "mbochs-small")
_CHANGES = {
    "create": 40,
    "remove": 25,
    "bind": 20,
    "unbind": 10,
    "lose a driver": 3,
    "change VFs": 2,
}
"""What happens how often; changing the number of VFs takes the kernel half a second."""


class Storm:
    """``changes``: how many there have been."""

    def __init__(self, seed: int) -> None:
        self.changes = 0
        self._random = random.Random(seed)
        self._spare = hardware.functions(EDU)
        self._pfs = [hardware.physical_function(ids) for ids in (NVME, IGB)]

    def blow(self, changes: int) -> None:
        """So many changes, one after another."""
        while self.changes < changes:
            self.change()

    def change(self) -> None:
        """One change; one that is not possible now is none."""
        (kind,) = self._random.choices(list(_CHANGES), list(_CHANGES.values()))
        self.changes += self._do(kind)

    def _do(self, kind: str) -> bool:
        mdevs = hardware.mdevs()
        functions = self._functions()
        if kind == "create":
            types = [type_id for type_id in _TYPES if hardware.available(type_id)]
            return bool(types) and bool(hardware.create(self._random.choice(types)))
        if kind == "remove" and mdevs:
            hardware.remove(self._random.choice(mdevs))
            return True
        if kind == "lose a driver" and (bound := [m for m in mdevs if hardware.mdev_driver(m)]):
            hardware.unbind_mdev(self._random.choice(bound))
            return True
        if kind == "bind" and (free := [f for f in functions if not hardware.driver(f)]):
            hardware.bind(self._random.choice(free))
            return True
        if kind == "unbind" and (bound := [f for f in functions if hardware.driver(f)]):
            hardware.unbind(self._random.choice(bound))
            return True
        if kind == "change VFs":
            pf = self._random.choice(self._pfs)
            hardware.set_vfs(pf, self._random.randint(0, int(read(PCI / pf / "sriov_totalvfs"))))
            return True
        return False

    def _functions(self) -> list[str]:
        """VFs, and functions that the host needs for nothing."""
        vfs = [path.name for path in sorted(PCI.iterdir()) if (path / "physfn").is_symlink()]
        return [*vfs, *self._spare]
