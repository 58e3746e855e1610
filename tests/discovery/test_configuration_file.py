"""The configuration file: what it says, and where it is wrong."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest
from hypothesis import given
from hypothesis import strategies as st
from migcompat.resources.file import LIMIT, ConfigurationError, load, parse
from migcompat.resources.selection import Configuration, Others, Resource, Selector

NAME = Path("/etc/migcompat/resources.yaml")


def read(text: str) -> Configuration:
    return parse(dedent(text).encode(), NAME)


def mistakes(text: str) -> tuple[str, ...]:
    """Each as ``line:column: message``."""
    with pytest.raises(ConfigurationError) as raised:
        read(text)
    assert str(raised.value) == "; ".join(raised.value.lines)
    return tuple(line.removeprefix(f"{NAME}:") for line in raised.value.lines)


def test_everything_that_a_file_may_hold() -> None:
    configuration = parse(
        dedent("""\
            # Two pools of one GPU's vGPUs, and network functions.
            resources:
            - name: vgpu-a40
              selectors:
              - {types: [nvidia-557], parents: ["0000:3b:00.4"]}
              - typeNames: [NVIDIA A40-8Q]
                numaNodes: [0, 1]
            - name: example.com/nic
              selectors:
              - vendors: ["0x15B3"]
                devices: [101E]
                drivers: [mlx5_vfio_pci]
                pfs: [0000:0A:00.0]
                addresses: ["0000:3B:00.4"]
                kinds: [vf]
              - uuids: [336F95D5-1d9d-5a8e-9e77-55f722edd4e6]
            others: ignore
        """).encode(),
        NAME,
        "vfio.example",
    )
    assert configuration == Configuration(
        "vfio.example",
        (
            Resource(
                "vfio.example/vgpu-a40",
                (
                    Selector({"types": frozenset({"nvidia-557"}), "parents": frozenset({"0000:3b:00.4"})}),
                    Selector({"typeNames": frozenset({"NVIDIA A40-8Q"}), "numaNodes": frozenset({"0", "1"})}),
                ),
            ),
            Resource(
                "example.com/nic",
                (
                    Selector(
                        {
                            "vendors": frozenset({"15b3"}),
                            "devices": frozenset({"101e"}),
                            "drivers": frozenset({"mlx5_vfio_pci"}),
                            "pfs": frozenset({"0000:0a:00.0"}),
                            "addresses": frozenset({"0000:3b:00.4"}),
                            "kinds": frozenset({"vf"}),
                        }
                    ),
                    Selector({"uuids": frozenset({"336f95d5-1d9d-5a8e-9e77-55f722edd4e6"})}),
                ),
            ),
        ),
        Others.IGNORE,
    )


def test_ids_that_look_like_numbers_are_taken_as_they_are_written() -> None:
    (only,) = read(
        "resources: [{name: a, selectors: [{vendors: [8086, 0x10de, 0X1AF4, 0010, 1e36]}]}]"
    ).resources
    assert only.selectors[0].wanted["vendors"] == {"8086", "10de", "1af4", "0010", "1e36"}


def test_no_resources_are_the_default_ones() -> None:
    assert read("resources: []") == Configuration()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["1:1: the file is empty: write at least 'resources: []'"]),
        ("# nothing\n", ["1:1: the file is empty"]),
        ("resources", ["1:1: the file must be a mapping with 'resources', 'others'"]),
        ("{}", ["1:1: 'resources' is missing"]),
        ("others: ignore", ["1:1: 'resources' is missing"]),
        ("resource: []\nresources: []", ["1:1: unknown key 'resource': did you mean 'resources'?"]),
        ("resources: []\nresources: []", ["2:1: 'resources' is here twice: keep one"]),
        ("resources: []\n[a]: b", ["2:1: a key is no text"]),
        ("resources: []\nothers: igonre", ["2:9: 'others' is 'igonre': it may be advertise or ignore"]),
        ("resources: []\nothers: [ignore]", ["2:9: 'others' must be text"]),
        ("resources: {name: a}", ["1:12: 'resources' must be a list: write […]"]),
        ("resources: [a]", ["1:13: a resource must be a mapping with 'name', 'selectors'"]),
        (
            "resources: [{}]",
            ["1:13: 'name' is missing", "1:13: 'selectors' is missing"],
        ),
    ],
)
def test_mistakes_of_the_file(text: str, expected: list[str]) -> None:
    _compare(mistakes(text), expected)


@pytest.mark.parametrize(
    ("resource", "expected"),
    [
        ("{name: a b, selectors: [{kinds: [vf]}]}", ["2:10: the kubelet would refuse this: resource name"]),
        ("{name: kubernetes.io/a, selectors: [{kinds: [vf]}]}", ["2:10: the kubelet would refuse this"]),
        ("{name: [a], selectors: [{kinds: [vf]}]}", ["2:10: 'name' must be text"]),
        ("{name: true, selectors: [{kinds: [vf]}]}", ["2:10: 'name' must be text; if it is, put it in"]),
        ("{name: , selectors: [{kinds: [vf]}]}", ["2:9: 'name' is empty"]),
        ("{name: '', selectors: [{kinds: [vf]}]}", ["2:10: 'name' is empty"]),
        ("{name: a, selectors: {kinds: [vf]}}", ["2:24: 'selectors' must be a list"]),
        ("{name: a, selectors: []}", ["2:24: 'selectors' is empty"]),
        ("{name: a, selectors: [{}]}", ["2:25: the selector is empty, so it would take every device"]),
        ("{name: a, selectors: [vf]}", ["2:25: a selector must be a mapping with 'types', "]),
        ("{name: a, selectors: [{kind: [vf]}]}", ["2:26: unknown key 'kind': did you mean 'kinds'?"]),
        ("{name: a, selectors: [{xyz: [vf]}]}", ["2:26: unknown key 'xyz': a selector has 'types', "]),
        ("{name: a, selectors: [{kinds: vf}]}", ["2:33: 'kinds' must be a list: write [vf]"]),
        ("{name: a, selectors: [{kinds: []}]}", ["2:33: 'kinds' is empty"]),
        ("{name: a, selectors: [{kinds: [pf]}]}", ["2:34: 'pf' in 'kinds' is not one of mdev, vf, function"]),
        ("{name: a, selectors: [{kinds: [[vf]]}]}", ["2:34: an item of 'kinds' must be text"]),
        ("{name: a, selectors: [{vendors: [10deg]}]}", ["2:36: '10deg' in 'vendors' is not a PCI vendor id"]),
        ("{name: a, selectors: [{vendors: [null]}]}", ["2:36: an item of 'vendors' must be text"]),
        ("{name: a, selectors: [{devices: [1]}]}", ["2:36: '1' in 'devices' is not a PCI device id of four"]),
        (
            "{name: a, selectors: [{pfs: ['3b:00.0']}]}",
            ["2:32: '3b:00.0' in 'pfs' is not a PF's PCI address"],
        ),
        ("{name: a, selectors: [{uuids: [abc]}]}", ["2:34: 'abc' in 'uuids' is not an mdev's UUID"]),
        ("{name: a, selectors: [{numaNodes: [-1]}]}", ["2:38: '-1' in 'numaNodes' is not the number of a"]),
        ("{name: a, selectors: [{types: ['a/b']}]}", ["2:34: 'a/b' in 'types' is not an mdev type"]),
        (
            "{name: a, selector: [{drivers: vfio-pci}]}",
            ["2:3: 'selectors' is missing", "2:13: unknown key 'selector': did you mean 'selectors'?"],
        ),
    ],
)
def test_mistakes_of_a_resource(resource: str, expected: list[str]) -> None:
    _compare(mistakes(f"resources:\n- {resource}\n"), expected)


def _compare(found: tuple[str, ...], expected: list[str]) -> None:
    assert len(found) == len(expected), found
    for text, beginning in zip(found, expected, strict=True):
        assert text.startswith(beginning), text


def test_all_mistakes_are_told_at_once_in_their_order() -> None:
    text = """\
        resources:
        - name: kubernetes.io/a
          selectors:
          - vendor: ["10de"]
        others: nobody
    """
    assert [found.partition(" ")[0] for found in mistakes(text)] == ["2:9:", "4:5:", "5:9:"]


def test_of_many_mistakes_the_text_has_the_first() -> None:
    with pytest.raises(ConfigurationError) as raised:
        read("resources:\n" + "- {}\n" * 4)
    assert len(raised.value.lines) == 8
    assert str(raised.value) == "; ".join([*raised.value.lines[:5], "and 3 more"])


def test_names_of_two_resources_must_differ() -> None:
    text = """\
        resources:
        - {name: a, selectors: [{kinds: [vf]}]}
        - {name: vfio.migcompat.io/a, selectors: [{kinds: [mdev]}]}
    """
    assert mistakes(text) == ("3:10: vfio.migcompat.io/a is already in line 2: put all its selectors there",)


def test_names_of_two_resources_must_differ_for_virt_launcher() -> None:
    text = "resources: [{name: a_b, selectors: [{kinds: [vf]}]}, {name: a.b, selectors: [{kinds: [mdev]}]}]"
    (found,) = mistakes(text)
    assert found.startswith("1:61: vfio.migcompat.io/a.b and vfio.migcompat.io/a_b (line 1) are both ")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"resources: [\n", "2:1: no YAML: "),
        (b"resources:\n\t- a", "2:1: no YAML: "),
        (b"resources: []\n---\nresources: []\n", "2:1: no YAML: "),
        (b"resources: *x", "1:12: no YAML: found undefined alias"),
        (b"resources: []\nothers: \xff", "2:9: no UTF-8 from here on"),
        (b"resources: []\nothers: a\x00", "2:10: character U+0000 is not allowed"),
        (b"[" * 50_000, " it is nested too deeply"),
        (b"#" * (LIMIT + 1), " it is larger than 262144 bytes"),
    ],
)
def test_what_is_no_yaml(data: bytes, expected: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        parse(data, NAME)
    (line,) = raised.value.lines
    assert line.startswith(f"{NAME}:{expected}"), line


def test_a_list_that_holds_itself_is_a_mistake() -> None:
    _compare(mistakes("resources: &r [*r]"), ["1:12: a resource must be a mapping"])


@given(st.binary(max_size=60) | st.text("{}[]:,-&*#\n resources'\"name").map(str.encode))
def test_any_bytes_are_a_configuration_or_a_mistake(data: bytes) -> None:
    mistakes: tuple[str, ...] = ()
    try:
        configuration = parse(data, NAME)
    except ConfigurationError as error:
        mistakes = error.lines
    assert mistakes or configuration.domain


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "resources.yaml"
    with pytest.raises(ConfigurationError, match=rf"^{path}: cannot be read: No such file or directory$"):
        load(path)
    path.write_text("resources: []\nothers: ignore\n")
    assert load(path, "vfio.example") == Configuration("vfio.example", (), Others.IGNORE)
