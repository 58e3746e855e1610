"""One provider a kind: what a new one takes, and that none knows of another's bus."""

from __future__ import annotations

import ast
from pathlib import Path

import migcompat.sysfs
import pytest
from migcompat.sysfs import scan as discovery
from migcompat.sysfs.provider import Provider
from migcompat.sysfs.scan import PROVIDERS, scan

from tests.support.cards import PROVIDER, add_card
from tests.support.fabricate import add_function, add_mdev

UUID = "336f95d5-1d9d-5a8e-9e77-55f722edd4e6"
SOURCES = sorted(Path(migcompat.sysfs.__path__[0]).glob("*.py"))


def test_a_new_kind_is_one_provider_more(sys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "PROVIDERS", (*PROVIDERS, PROVIDER))
    add_mdev(sys, "virtual/mtty/mtty", UUID, type_id="mtty-1", driver="mtty", group=1)
    for name, slot in {"a": "s1", "b": "", "host": "s3", "c": "\x01", "d": "s4"}.items():
        add_card(sys, name, slot)
    result = scan(sys)
    assert [device.id for device in result.devices] == [UUID, "a", "d"]
    assert [(problem.path, problem.message) for problem in result.problems] == [
        ("bus/cards/devices/c", "slot is not printable ASCII")
    ]


def test_the_first_that_claims_a_device_reads_it(sys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_function(sys, "pci0000:00/0000:01:00.1", group=4)
    [pci] = {provider.bus for provider in PROVIDERS if provider.bus.path == "bus/pci/devices"}
    mine = Provider(pci, lambda function: True, lambda function: None)
    monkeypatch.setattr(discovery, "PROVIDERS", (*PROVIDERS, mine))
    assert len(scan(sys).devices) == 1
    monkeypatch.setattr(discovery, "PROVIDERS", (mine, *PROVIDERS))
    assert scan(sys).devices == ()


def test_each_provider_is_a_module_of_its_own() -> None:
    defining = [path.stem for path in SOURCES if "\nPROVIDER = " in path.read_text()]
    assert len(defining) == len(PROVIDERS) == len({id(provider) for provider in PROVIDERS})


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_only_pci_modules_know_pci(path: Path) -> None:
    """All but they, and the list of providers, work on a machine of another architecture."""
    tree = ast.parse(path.read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    names = {f"{node.module}.{alias.name}" for node in imports for alias in node.names}
    names |= {node.module or "" for node in imports}
    known = {name for name in names if name.startswith("migcompat.sysfs.pci")}
    assert path.stem.startswith("pci") or path.stem == "scan" or not known


def test_a_machine_without_pci_has_its_mdevs(sys: Path) -> None:
    (sys / "bus/pci/devices").rmdir()
    (sys / "bus/pci").rmdir()
    add_mdev(
        sys, "vfio_ap/matrix", UUID, type_id="vfio_ap-passthrough", driver="vfio_ap_mdev", group=1,
        device_api="vfio-ap",
    )  # fmt: skip
    assert [device.id for device in scan(sys).devices] == [UUID]
