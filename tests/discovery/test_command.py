"""``migcompat scan``."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
import yaml
from migcompat.cli import scan as scan_command
from migcompat.sysfs.scan import FoundDevice
from typer.testing import CliRunner

from tests.support.fabricate import add_function, add_mdev
from tests.support.sysfs import KERNELS, add_migration

UUID = "336f95d5-1d9d-5a8e-9e77-55f722edd4e6"
SELF = {"device_api": "vfio-pci", "software_version": "1.2.0", "type": "mtty-2"}


@pytest.fixture
def run() -> Callable[..., tuple[int, str]]:
    app = typer.Typer()
    app.callback()(lambda: None)
    scan_command.command(app)

    def invoke(*arguments: str | Path) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["scan", *map(str, arguments)])
        return result.exit_code, result.output

    return invoke


@pytest.fixture
def node(sys: Path) -> Path:
    """An mdev that declares, a VF that does not, a function without IOMMU and an entry that leads nowhere."""
    parent = "virtual/mtty/mtty"
    device = add_mdev(sys, parent, UUID, type_id="mtty-2", driver="mtty", group=7, vfio_dev="vfio3")
    add_migration(device, SELF, [SELF, {**SELF, "software_version": "{"}])
    add_function(sys, "pci0000:00/0000:01:00.0", driver="mlx5_core", group=1, node=1)
    add_function(sys, "pci0000:00/0000:01:00.1", group=2, node=1, physfn="0000:01:00.0")
    add_function(sys, "pci0000:00/0000:02:00.0", group=None)
    (sys / "bus/pci/devices/0000:03:00.0").symlink_to("../../../devices/gone")
    return sys


def test_text(run: Callable[..., tuple[int, str]], node: Path) -> None:
    code, output = run("--sysfs", node)
    assert code == 0
    lines = output.splitlines()
    assert lines[0] == f"3 VFIO devices in {node}: 2 physical, 1 mediated"
    table = {line.split()[0]: line.split() for line in lines[2:6]}
    assert table["DEVICE"] == [
        *("DEVICE", "KIND", "TYPE", "DRIVER", "PARENT", "NUMA", "GROUP", "VFIO-DEV", "RESOURCE", "DECLARES")
    ]
    assert table["0000:01:00.1"] == [
        *("0000:01:00.1", "VF", "15b3101e", "vfio-pci", "0000:01:00.0", "1", "2", "-"),
        *("vfio.migcompat.io/pci-15b3-101e-vf", "nothing"),
    ]
    assert table[UUID] == [
        *(UUID, "mdev", "mtty-2", "mtty", "mtty", "-", "7", "vfio3", "vfio.migcompat.io/mtty-2"),
        *("1.2.0,", "accepts", "2", "entries"),
    ]
    assert f"{UUID} (L1)" in lines
    assert "  self: device_api=vfio-pci software_version=1.2.0 type=mtty-2" in lines
    assert "  compatible[0]: device_api=vfio-pci software_version=1.2.0 type=mtty-2" in lines
    shows = lines.index("Shown without being declared:")
    for line, (function, role) in enumerate([("0000:01:00.1", "vf"), ("0000:02:00.0", "function")]):
        assert lines[shows + 1 + 2 * line] == f"  {function}"
        assert lines[shows + 2 + 2 * line].split() == [
            *("device_api=vfio-pci", "driver=vfio-pci", f"pci_function={role}"),
            *("pci_id=15b3101e", "pci_revision=00", "pci_subsystem=15b30001", "type=pci-15b3-101e"),
        ]
    assert lines[shows + 5] == f"  {UUID}"
    assert any(line.startswith("  0000:02:00.0: it has no IOMMU group") for line in lines)
    assert any(line.startswith("  bus/pci/devices/0000:03:00.0: ") for line in lines)


def test_text_names_few_of_the_many_that_show_the_same(
    run: Callable[..., tuple[int, str]], sys: Path
) -> None:
    for n in range(5):
        add_function(sys, f"pci0000:00/0000:01:00.{n}", group=n)
    lines = run("--sysfs", sys)[1].splitlines()
    assert "  0000:01:00.0, 0000:01:00.1, 0000:01:00.2 and 2 more" in lines


def test_text_of_a_machine_without_devices(run: Callable[..., tuple[int, str]], sys: Path) -> None:
    assert run("--sysfs", sys) == (0, f"0 VFIO devices in {sys}: 0 physical, 0 mediated\n")


def test_json_has_every_field(run: Callable[..., tuple[int, str]], node: Path) -> None:
    code, output = run("--sysfs", node, "-o", "json")
    assert code == 0
    document = json.loads(output)
    assert document["sysfs"] == str(node)
    devices = {device["id"]: device for device in document["devices"]}
    fields = {*FoundDevice.__struct_encode_fields__, "resource", "alsoSelectedBy"}
    assert all(set(device) == fields for device in devices.values())
    assert devices["0000:01:00.1"]["numaNode"] == 1
    assert devices["0000:01:00.1"]["isVf"] is True
    assert devices[UUID]["numaNode"] is None
    assert devices[UUID]["declaration"]["self"]["attributes"] == SELF
    assert devices[UUID]["declaration"]["layout"] == "L1"
    assert devices[UUID]["declaration"]["shown"] == {
        **{"device_api": "vfio-pci", "type": "mtty-2", "type_name": "The mtty-2", "driver": "mtty"}
    }
    assert devices["0000:01:00.1"]["declaration"]["shown"]["type"] == "pci-15b3-101e"
    assert [problem["path"] for problem in document["problems"]] == ["bus/pci/devices/0000:03:00.0"]


def test_yaml_says_the_same_as_json(run: Callable[..., tuple[int, str]], node: Path) -> None:
    _, as_yaml = run("--sysfs", node, "-o", "yaml")
    _, as_json = run("--sysfs", node, "-o", "json")
    assert yaml.safe_load(as_yaml) == json.loads(as_json)


def test_a_recorded_tree(run: Callable[..., tuple[int, str]], recorded: Callable[[str, str], Path]) -> None:
    code, output = run("--sysfs", recorded(KERNELS[1], "2-vfio-mdev"), "-o", "json")
    assert code == 0
    assert len(json.loads(output)["devices"]) == 23


def test_a_root_that_is_no_sysfs_is_an_unusable_argument(
    run: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    code, output = run("--sysfs", tmp_path)
    assert code == 2
    assert f"Error: {tmp_path} is no sysfs" in output


def test_an_unknown_format_is_an_unusable_argument(run: Callable[..., tuple[int, str]], sys: Path) -> None:
    assert run("--sysfs", sys, "-o", "xml")[0] == 2


# --- with a configuration file -----------------------------------------------------------------------------

CONFIG = """\
resources:
- {name: serial, selectors: [{types: [mtty-2]}]}
- {name: example.com/nic, selectors: [{kinds: [vf], pfs: ["0000:01:00.0"]}]}
- {name: virtual, selectors: [{kinds: [mdev]}]}
others: ignore
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "resources.yaml"
    path.write_text(CONFIG)
    return path


def test_a_file_says_under_which_resource_each_device_is_advertised(
    run: Callable[..., tuple[int, str]], node: Path, config: Path
) -> None:
    code, output = run("--sysfs", node, "--config", config, "--resource-domain", "vfio.example")
    assert code == 0
    lines = output.splitlines()
    rows = {line.split()[0]: line for line in lines[3:6]}
    assert " example.com/nic " in rows["0000:01:00.1"]
    assert " vfio.example/serial " in rows[UUID]
    assert " ignored " in rows["0000:02:00.0"]
    title = lines.index("Selected by several resources, of which the first has it:")
    assert lines[title + 1] == f"  {UUID}: vfio.example/serial, vfio.example/virtual"


def test_a_file_counts_for_programs_too(
    run: Callable[..., tuple[int, str]], node: Path, config: Path
) -> None:
    code, output = run("--sysfs", node, "--config", config, "-o", "json")
    assert code == 0
    found = {d["id"]: (d["resource"], d["alsoSelectedBy"]) for d in json.loads(output)["devices"]}
    assert found == {
        "0000:01:00.1": ("example.com/nic", []),
        "0000:02:00.0": ("", []),
        UUID: ("vfio.migcompat.io/serial", ["vfio.migcompat.io/virtual"]),
    }


def test_mistakes_in_a_file_are_told_line_by_line(
    run: Callable[..., tuple[int, str]], node: Path, config: Path
) -> None:
    config.write_text(CONFIG.replace("types", "typ").replace("others", "other"))
    code, output = run("--sysfs", node, "--config", config)
    assert code == 2
    assert output.splitlines() == [
        f"Error: {config}:2:31: unknown key 'typ': did you mean 'types'?",
        f"Error: {config}:5:1: unknown key 'other': did you mean 'others'?",
    ]


def test_a_file_that_is_not_there_and_a_domain_that_is_none_are_unusable_arguments(
    run: Callable[..., tuple[int, str]], node: Path, tmp_path: Path
) -> None:
    code, output = run("--sysfs", node, "--config", tmp_path / "none.yaml")
    assert (code, output) == (2, f"Error: {tmp_path}/none.yaml: cannot be read: No such file or directory\n")
    code, output = run("--sysfs", node, "--resource-domain", "kubernetes.io")
    assert code == 2
    assert "names in kubernetes.io belong to Kubernetes" in output


def test_the_documented_example(run: Callable[..., tuple[int, str]], sys: Path, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/reference/configuration.md").read_text()
    values, shown = re.findall(r"```(?:yaml)?\n(.*?)```", page, flags=re.DOTALL)[:2]
    config = tmp_path / "resources.yaml"
    config.write_text(yaml.safe_dump(yaml.safe_load(values)["devicePlugin"]["config"]))
    gpu, nic = "pci0000:40/0000:41:00.0", "pci0000:00/0000:3b:00"
    add_mdev(sys, gpu, UUID, type_id="nvidia-557", driver="nvidia", group=7)
    (sys / "devices" / gpu / "mdev_supported_types/nvidia-557/name").write_text("NVIDIA A40-8Q\n")
    add_function(sys, f"{nic}.0", driver="mlx5_core", group=1)
    add_function(sys, f"{nic}.2", group=2, physfn="0000:3b:00.0")
    for number in (1, 2):
        add_function(sys, f"pci0000:00/0000:5e:00.{number}", group=2 + number, physfn="0000:5e:00.0")

    code, output = run("--sysfs", sys, "--config", config)
    assert code == 0
    rows = [re.split(r" {2,}", line) for line in output.splitlines()[2:7]]
    column = rows[0].index("RESOURCE")
    documented = [line.split() for line in shown.splitlines()[1:]]
    assert sorted([*row[:3], "…", row[column]] for row in rows) == sorted(documented)
