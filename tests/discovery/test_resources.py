"""Default pools: legal extended-resource names, one for each mdev type and PCI id."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from migcompat.engine.declaration import Declaration, Kind
from migcompat.resources.defaults import NAME_LIMIT, resource_name
from migcompat.sysfs.found import FoundDevice

LEGAL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")


def mdev(type_id: str) -> FoundDevice:
    return FoundDevice(id="m", kind=Kind.MDEV, path="p", declaration=Declaration(Kind.MDEV), type=type_id)


def function(pci_id: str, type_id: str = "") -> FoundDevice:
    nothing = Declaration(Kind.PHYSICAL)
    return FoundDevice("f", Kind.PHYSICAL, "p", nothing, pci_id=pci_id, type=type_id)


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        (mdev("mtty-2"), "vfio.migcompat.io/mtty-2"),
        (mdev("i915-GVTg_V5_4"), "vfio.migcompat.io/i915-gvtg-v5-4"),
        (mdev("vfio_ap-passthrough"), "vfio.migcompat.io/vfio-ap-passthrough"),
        (mdev("_x.y_"), "vfio.migcompat.io/x-y"),
        (mdev(""), "vfio.migcompat.io/unknown"),
        (mdev("__"), "vfio.migcompat.io/unknown"),
        (function("15b3101e"), "vfio.migcompat.io/pci-15b3-101e"),
        (function(""), "vfio.migcompat.io/unknown"),
        (function("10de2335", "nvidia-1414"), "vfio.migcompat.io/nvidia-1414"),
    ],
)
def test_names(device: FoundDevice, expected: str) -> None:
    assert resource_name(device) == expected


def test_another_domain() -> None:
    assert resource_name(mdev("mtty-2"), "gpu.example.com") == "gpu.example.com/mtty-2"


def test_long_types_stay_apart() -> None:
    one, other = (resource_name(mdev("t" * 80 + end)).split("/")[1] for end in "ab")
    assert one != other
    assert len(one) <= NAME_LIMIT
    assert one.startswith("ttt")


def test_the_longest_type_is_left_alone() -> None:
    assert resource_name(mdev("t" * NAME_LIMIT)).split("/")[1] == "t" * NAME_LIMIT


@given(st.text(max_size=200))
def test_any_type_gives_a_legal_name(type_id: str) -> None:
    name = resource_name(mdev(type_id)).split("/", 1)[1]
    assert LEGAL.fullmatch(name)
    assert len(name) <= NAME_LIMIT
