"""Which resource takes which device."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from migcompat.engine.declaration import Declaration, Kind
from migcompat.resources.defaults import NAME_LIMIT, resource_name
from migcompat.resources.naming import DOMAIN_LIMIT, check_domain, environment_name, full_name
from migcompat.resources.selection import KEYS, Choice, Configuration, Others, Resource, Selector, facts
from migcompat.sysfs.found import FoundDevice

UUID = "336f95d5-1d9d-5a8e-9e77-55f722edd4e6"
MDEV = FoundDevice(
    id=UUID,
    kind=Kind.MDEV,
    path="p",
    declaration=Declaration(Kind.MDEV),
    parent="0000:3b:00.4",
    driver="nvidia",
    type="nvidia-557",
    type_name="NVIDIA A40-8Q",
    pci_id="10de2235",
    physfn="0000:3b:00.0",
)
VF = FoundDevice(
    id="0000:3b:00.5",
    kind=Kind.PHYSICAL,
    path="p",
    declaration=Declaration(Kind.PHYSICAL),
    parent="0000:3b:00.0",
    driver="mlx5_vfio_pci",
    pci_id="15b3101e",
    numa_node=1,
    is_vf=True,
    physfn="0000:3b:00.0",
)
FUNCTION = FoundDevice(
    id="0000:5e:00.0",
    kind=Kind.PHYSICAL,
    path="p",
    declaration=Declaration(Kind.PHYSICAL),
    driver="vfio-pci",
    pci_id="10de2235",
    numa_node=0,
)
CCW = FoundDevice(
    id=UUID.replace("3", "4"),
    kind=Kind.MDEV,
    path="p",
    declaration=Declaration(Kind.MDEV),
    parent="0.0.0313",
    driver="vfio_ccw_mdev",
    type="vfio_ccw-io",
    type_name="I/O subchannel (Non-QDIO)",
)
ALL = (MDEV, VF, FUNCTION, CCW)


def selector(**wanted: Any) -> Selector:
    return Selector({key: frozenset(values) for key, values in wanted.items()})


def resource(name: str, *selectors: Selector) -> Resource:
    return Resource(f"example.com/{name}", selectors)


@pytest.mark.parametrize(
    ("wanted", "taken"),
    [
        ({"types": ["nvidia-557"]}, [MDEV]),
        ({"types": ["nvidia-557", "vfio_ccw-io"]}, [MDEV, CCW]),
        ({"typeNames": ["NVIDIA A40-8Q"]}, [MDEV]),
        ({"vendors": ["10de"]}, [MDEV, FUNCTION]),
        ({"devices": ["101e"]}, [VF]),
        ({"vendors": ["10de"], "devices": ["101e"]}, []),
        ({"drivers": ["vfio-pci", "mlx5_vfio_pci"]}, [VF, FUNCTION]),
        ({"parents": ["0000:3b:00.4"]}, [MDEV]),
        ({"parents": ["0000:3b:00.0"]}, [VF]),
        ({"pfs": ["0000:3b:00.0"]}, [MDEV, VF]),
        ({"addresses": ["0000:5e:00.0", UUID]}, [FUNCTION]),
        ({"uuids": [UUID, "0000:5e:00.0"]}, [MDEV]),
        ({"numaNodes": ["0"]}, [FUNCTION]),
        ({"kinds": ["mdev"]}, [MDEV, CCW]),
        ({"kinds": ["vf"]}, [VF]),
        ({"kinds": ["function"]}, [FUNCTION]),
        ({"kinds": ["vf", "function"], "numaNodes": ["1"]}, [VF]),
    ],
)
def test_keys(wanted: dict[str, list[str]], taken: list[FoundDevice]) -> None:
    assert [device for device in ALL if selector(**wanted).takes(facts(device))] == taken


def test_every_key_is_tried_above() -> None:
    (mark,) = (mark for mark in test_keys.pytestmark if mark.name == "parametrize")  # type: ignore[attr-defined]
    assert {key for wanted, _ in mark.args[1] for key in wanted} == set(KEYS)


@pytest.mark.parametrize("key", KEYS)
def test_no_value_is_that_of_a_device_that_has_none(key: str) -> None:
    assert not KEYS[key].spelled.fullmatch("")


def test_a_resource_takes_what_any_of_its_selectors_takes() -> None:
    both = resource("both", selector(types=["nvidia-557"]), selector(drivers=["vfio-pci"]))
    assert [device for device in ALL if both.takes(facts(device))] == [MDEV, FUNCTION]


def test_the_first_of_several_resources_has_the_device() -> None:
    gpus = resource("gpus", selector(vendors=["10de"]))
    passthrough = resource("passthrough", selector(drivers=["vfio-pci"]))
    either = resource("either", selector(vendors=["10de", "15b3"]))
    configuration = Configuration(resources=(gpus, passthrough, either))
    assert configuration.choose(FUNCTION) == Choice(gpus.name, (passthrough.name, either.name))
    assert configuration.choose(MDEV) == Choice(gpus.name, (either.name,))
    assert configuration.choose(VF) == Choice(either.name)


def test_what_no_resource_takes_has_its_default_name_or_none() -> None:
    gpus = resource("gpus", selector(vendors=["10de"]))
    assert Configuration("a.example", (gpus,)).choose(VF) == Choice("a.example/pci-15b3-101e")
    assert Configuration("a.example", (gpus,), Others.IGNORE).choose(VF) == Choice("")


def test_a_name_of_the_file_is_only_for_what_its_selectors_take() -> None:
    """Else a resource that is to hold one GPU's devices would get all others' by their default name."""
    one = Resource("example.com/nvidia-557", (selector(parents=["0000:3b:00.9"]),))
    assert Configuration("example.com", (one,)).choose(MDEV) == Choice("")


@pytest.mark.parametrize("device", ALL)
def test_without_a_file_every_device_has_its_default_name(device: FoundDevice) -> None:
    assert Configuration().choose(device) == Choice(resource_name(device))


# --- names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("vgpu-a40", "vfio.example/vgpu-a40"),
        ("A40_8Q.x", "vfio.example/A40_8Q.x"),
        ("example.com/vgpu", "example.com/vgpu"),
        ("n" * NAME_LIMIT, f"vfio.example/{'n' * NAME_LIMIT}"),
    ],
)
def test_names_that_the_kubelet_takes(name: str, full: str) -> None:
    assert full_name(name, "vfio.example") == full


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "resource name ''"),
        ("a b", "letters, digits"),
        ("-a", "first and last"),
        ("a.", "first and last"),
        ("n" * (NAME_LIMIT + 1), "longer than 63"),
        ("kubernetes.io/gpu", "belong to Kubernetes"),
        ("node.kubernetes.io/gpu", "belong to Kubernetes"),
        ("mykubernetes.io/gpu", "belong to Kubernetes"),
        ("requests.example.com/gpu", "those of quotas"),
        ("Example.com/gpu", "no DNS name"),
        ("a/b/c", "no DNS name"),
        ("/gpu", "no DNS name"),
        ("example.com/", "resource name ''"),
        (f"{'d' * (DOMAIN_LIMIT + 1)}/gpu", "longer than 244"),
    ],
)
def test_names_that_the_kubelet_refuses(name: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        full_name(name, "vfio.example")


@given(st.text(max_size=80))
def test_any_name_that_passes_is_a_qualified_one(name: str) -> None:
    try:
        full = full_name(name, "vfio.example")
    except ValueError:
        return
    domain, _, short = full.rpartition("/")
    check_domain(domain)
    assert short.isascii()
    assert 0 < len(short) <= NAME_LIMIT


def test_the_name_that_virt_launcher_looks_for() -> None:
    assert environment_name("vfio.migcompat.io/vgpu-a40.x") == "VFIO_MIGCOMPAT_IO_VGPU-A40_X"
