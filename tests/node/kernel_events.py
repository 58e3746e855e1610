"""Events of the machine's kernel, which the agents hear in the network namespaces of their pods."""

from __future__ import annotations

from pathlib import Path

from tests.cluster.controlplane import ClusterError

_SYS = Path("/sys")
_SPEAKERS = ("bus/pci/devices/*/uevent", "bus/*/drivers/*/uevent", "module/*/uevent")
"""What agents listen to, and every machine has one of (`migcompat.sysfs.uevents.SUBSYSTEMS`)."""


def speak() -> Path:
    """Has the kernel say that some device, driver or module changed (ABI/testing/sysfs-uevent); which one.

    Nothing changes. All listeners on the machine hear it, each run's agents too.

    Raises:
        ClusterError: there is nothing to write to, or it may not be written to.
    """
    path = next((path for pattern in _SPEAKERS for path in sorted(_SYS.glob(pattern))), None)
    if path is None:
        raise ClusterError(f"below {_SYS} is none of {', '.join(_SPEAKERS)}: no event can be made")
    try:
        path.write_text("change")
    except OSError as error:
        raise ClusterError(f"{path}: no event can be made: {error.strerror}") from error
    return path
