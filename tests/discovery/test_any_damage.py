"""Whatever is done to a device's files, the scan ends, can be written as JSON, and finds the next device."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from migcompat.engine.attributes import MAX_VALUE
from migcompat.sysfs.scan import scan

from tests.support.fabricate import add_function, add_mdev, make_sysfs, write
from tests.support.sysfs import add_migration

MDEV = "336f95d5-1d9d-5a8e-9e77-55f722edd4e6"
SOUND = "3eeb13bc-4835-50d9-ae6a-0712004468f2"
FUNCTION = "0000:01:00.0"

IN_FUNCTION = (
    *("", "driver", "iommu_group", "vendor", "device", "revision", "numa_node", "physfn", "vfio-dev"),
    *("migration", "migration/self", "migration/self/type", "migration/compatible", "migration_compatible"),
    *("subsystem_vendor", "subsystem_device", "nvidia", "nvidia/current_vgpu_type"),
)
IN_MDEV = ("", "driver", "iommu_group", "mdev_type", "vfio-dev", "migration", "matrix", "control_domains")
VF = "0000:41:00.4"
IN_VF = (
    *("", "driver", "physfn", "iommu_group", "nvidia"),
    *("nvidia/current_vgpu_type", "nvidia/creatable_vgpu_types"),
)
AP = "c0caaab8-c856-5d7a-b255-221bc0d589ba"

FILES = st.sampled_from(
    [
        *(f"devices/pci/{FUNCTION}/{name}".rstrip("/") for name in IN_FUNCTION),
        *(f"devices/css0/0.0.1/{MDEV}/{name}".rstrip("/") for name in IN_MDEV),
        *(f"devices/pci/{VF}/{name}".rstrip("/") for name in IN_VF),
        *(f"devices/vfio_ap/matrix/{AP}/{name}".rstrip("/") for name in IN_MDEV),
        "devices/css0/0.0.1/mdev_supported_types/t-1/name",
        "devices/css0/0.0.1/mdev_supported_types/t-1/device_api",
        "devices/css0/0.0.1/type",
        "devices/css0/0.0.1/driver",
        "devices/vfio_ap/matrix/driver",
        "kernel/debug/vfio",
        f"kernel/debug/vfio/{FUNCTION}/migration/features",
        "devices/css0/0.0.1/mdev_supported_types/t-1/software_version",
        f"bus/pci/devices/{FUNCTION}",
        f"bus/mdev/devices/{MDEV}",
        "bus/pci/drivers/vfio-pci",
        "module/vfio_pci",
        "kernel/iommu_groups/1",
        "kernel/iommu_groups/1/name",
    ]
)

CONTENTS = st.one_of(
    st.none(),
    st.sampled_from(["directory", "fifo"]),
    st.binary(max_size=40),
    st.sampled_from([".", "..", "/", "/dev/zero", "loop", "../../..", "nowhere"]).map(Path),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(FILES, CONTENTS), min_size=1, max_size=4))
def test_any_damage(damages: list[tuple[str, str | bytes | Path | None]]) -> None:
    with TemporaryDirectory() as place:
        sys = make_sysfs(Path(place))
        function = add_function(sys, f"pci/{FUNCTION}", group=1, vfio_dev="vfio0")
        add_migration(function, {"type": "x"}, [{"type": "x"}])
        vf = add_function(sys, f"pci/{VF}", driver="nvidia", group=4, physfn="0000:41:00.0", vfio_dev="vfio1")
        for directory in (vf / "nvidia", sys / f"kernel/debug/vfio/{FUNCTION}/migration"):
            directory.mkdir(parents=True)
        write(vf / "nvidia", {"current_vgpu_type": "1", "creatable_vgpu_types": "1 : one"})
        add_mdev(sys, "css0/0.0.1", MDEV, type_id="t-1", driver="vfio_mdev", group=2, device_api="vfio-ccw")
        add_mdev(sys, "vfio_ap/matrix", AP, type_id="t-2", driver="ap", group=5, device_api="vfio-ap")
        add_mdev(sys, "css0/0.0.2", SOUND, type_id="t-1", driver="other", group=3)
        for name, content in damages:
            put(sys, name, content)
        result = scan(sys)
        msgspec.json.encode(result)
        assert [device.problem for device in result.devices if device.id == SOUND] == [""]
        assert {device.id for device in result.devices} <= {FUNCTION, MDEV, SOUND, VF, AP}
        for device in result.devices:
            for value in device.declaration.shown.values():
                assert value.isascii()
                assert value.isprintable()
                assert 0 < len(value) <= MAX_VALUE


def put(sys: Path, name: str, content: str | bytes | Path | None) -> None:
    """Make ``sys/name`` what *content* says; nothing where a link or nothing stands in the way.

    Never acts through a link, which could lead out of the tree made for the test.
    """
    path = sys / name
    above = [parent for parent in path.parents if parent.is_relative_to(sys)]
    if any(parent.is_symlink() or not parent.is_dir() for parent in above):
        return
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    if content == "directory":
        path.mkdir()
    elif content == "fifo":
        os.mkfifo(path)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, Path):
        path.symlink_to(path.name if str(content) == "loop" else content)
