"""What the tests of all kinds of devices ask of a scan."""

from __future__ import annotations

from pathlib import Path

from migcompat.sysfs.scan import FoundDevice, scan


def only(sys: Path) -> FoundDevice:
    """The one device of *sys*; fails when there are others, or problems."""
    result = scan(sys)
    assert result.problems == ()
    [device] = result.devices
    return device


def shown(sys: Path) -> dict[str, str]:
    """What the one device of *sys* shows; fails when it is not usable."""
    device = only(sys)
    assert device.problem == ""
    return device.declaration.shown


def problem_of(sys: Path, path: str) -> str:
    """Why *path*, alone in *sys*, could not be taken for a device."""
    result = scan(sys)
    assert path.rpartition("/")[2] not in {device.id for device in result.devices}
    [problem] = result.problems
    assert problem.path == path
    return problem.message
