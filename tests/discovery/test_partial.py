"""A look at some devices finds of them what a scan of all finds."""

from __future__ import annotations

import shutil
from collections.abc import Set as AbstractSet
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from migcompat.sysfs.found import ScanResult
from migcompat.sysfs.scan import scan
from migcompat.sysfs.tree import Tree

from tests.support.fabricate import add_function, add_mdev, make_sysfs, write
from tests.support.sysfs import unpack
from tests.support.vfs import make_vfs

PF = "0000:01:00.0"
FUNCTIONS = [f"0000:01:00.{number}" for number in range(1, 8)]
MDEVS = [f"00000000-0000-4000-8000-{number:012d}" for number in range(4)]
NAMES = [PF, *FUNCTIONS, *MDEVS, "0000:ff:00.0", "no name of a device"]

FUNCTION = st.fixed_dictionaries(
    {
        "driver": st.sampled_from(["", "vfio-pci", "mlx5_vfio_pci", "mlx5_core", "nvidia", "pcieport"]),
        "group": st.sampled_from([None, 1, 2, 3]),
        "physfn": st.sampled_from(["", PF]),
        "vfio_dev": st.sampled_from(["", "vfio7"]),
    }
)
MDEV = st.fixed_dictionaries(
    {
        "parent": st.sampled_from([PF, FUNCTIONS[0], "css"]),
        "driver": st.sampled_from(["", "nvidia"]),
        "group": st.sampled_from([None, 8, 9]),
    }
)
HARM = st.sampled_from(
    [
        *(f"bus/pci/devices/{name}/{file}" for name in FUNCTIONS[:3] for file in ("driver", "iommu_group")),
        *(f"bus/mdev/devices/{MDEVS[0]}/{file}" for file in ("driver", "mdev_type")),
        "kernel/iommu_groups/1",
        "kernel/iommu_groups/2/devices",
        f"kernel/iommu_groups/2/devices/{FUNCTIONS[0]}",
    ]
)


def of(result: ScanResult, names: AbstractSet[str]) -> ScanResult:
    """What of *result* is about *names*."""
    return ScanResult(
        tuple(device for device in result.devices if device.id in names),
        tuple(problem for problem in result.problems if problem.path.rpartition("/")[2] in names),
    )


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(st.sampled_from([PF, *FUNCTIONS]), FUNCTION),
    st.dictionaries(st.sampled_from(MDEVS), MDEV),
    st.lists(HARM, max_size=2),
    st.sets(st.sampled_from(NAMES)),
)
def test_some_are_found_as_among_all(
    functions: dict[str, Any], mdevs: dict[str, Any], harms: list[str], names: set[str]
) -> None:
    with TemporaryDirectory() as place:
        sys = make_sysfs(Path(place))
        for name, facts in functions.items():
            made = add_function(
                sys, f"pci/{name}", **{**facts, "physfn": "" if name == PF else facts["physfn"]}
            )
            if facts["driver"] == "nvidia":
                (made / "nvidia").mkdir()
                write(made / "nvidia", {"current_vgpu_type": "7"})
        for name, facts in mdevs.items():
            parent = "css" if facts["parent"] == "css" else f"pci/{facts['parent']}"
            add_mdev(sys, parent, name, type_id="t-1", driver=facts["driver"], group=facts["group"])
        for harm in harms:
            path = sys / harm
            if path.is_symlink() or path.is_file():
                path.unlink()
                path.write_text("garbled")
            elif path.is_dir():
                shutil.rmtree(path)
        some, whole = scan(sys, names), scan(sys)
        assert (some.devices, some.problems) == (of(whole, names).devices, of(whole, names).problems)
        assert whole.silent or not some.silent


@pytest.mark.parametrize("recorded", ["2-vfio-mdev"])
def test_each_device_of_a_recorded_node(recorded: str, tmp_path: Path) -> None:
    sys = unpack("linux-6.12-debian13-cdev", recorded, tmp_path)
    whole = scan(sys)
    assert whole.devices
    for device in whole.devices:
        assert scan(sys, {device.id}).devices == (device,)


def test_a_look_at_one_of_many_reads_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sys = make_vfs(tmp_path, 64)
    looked: list[str] = []
    link = Tree.link

    def counted(tree: Tree, path: str, notes: list[str]) -> str:
        looked.append(path)
        return link(tree, path, notes)

    monkeypatch.setattr(Tree, "link", counted)
    whole = scan(sys)
    of_all = len(looked)
    looked.clear()
    some = whole.devices[7].id
    assert scan(sys, {some}).devices == (whole.devices[7],)
    assert 0 < len(looked) < of_all / 10
