"""The chart value ``devicePlugin.config``: what agents get of it, and what is refused before that."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from migcompat.resources.file import ConfigurationError, parse
from migcompat.resources.selection import KEYS, DeviceKind, Others

from tests.chart.support import CHART, ROOT, Object, named, pod_specs, refusal, render
from tests.cluster.binaries.build import Binaries

NAME = "migcompat-device-plugin"
CONFIG: Object = {
    "resources": [
        {"name": "b", "selectors": [{"vendors": ["10de"], "devices": ["2235"], "numaNodes": [0]}]},
        {"name": "example.com/a", "selectors": [{"typeNames": ["NVIDIA A40-8Q"]}, {"pfs": ["0000:03:00.0"]}]},
    ],
    "others": "ignore",
}


def flags(config: Any) -> tuple[str, str]:
    return "--set-json", f"devicePlugin.config={json.dumps(config)}"


def test_without_it_there_is_nothing_of_it(binaries: Binaries) -> None:
    objects = render(binaries)
    assert not [o for o in objects if o["kind"] == "ConfigMap" and o["metadata"]["name"] == NAME]
    spec = pod_specs(objects)["device-plugin"]
    assert not [a for a in spec["containers"][0]["args"] if a.startswith("--config")]
    assert "config" not in [volume["name"] for volume in spec["volumes"]]


def test_agents_have_it_as_a_file_that_the_kubelet_can_change(binaries: Binaries) -> None:
    objects = render(binaries, *flags(CONFIG))
    ((file, text),) = named(objects, "ConfigMap", NAME)["data"].items()
    assert yaml.safe_load(text) == CONFIG
    assert [r.name for r in parse(text.encode(), Path(file)).resources] == [
        "vfio.migcompat.io/b",
        "example.com/a",
    ]
    spec = pod_specs(objects)["device-plugin"]
    (container,) = spec["containers"]
    assert {"name": "config", "configMap": {"name": NAME}} in spec["volumes"]
    (mount,) = (mount for mount in container["volumeMounts"] if mount["name"] == "config")
    assert mount == {"name": "config", "mountPath": "/etc/migcompat", "readOnly": True}, "no subPath"
    assert f"--config={mount['mountPath']}/{file}" in container["args"]


def test_a_change_of_it_restarts_no_agent(binaries: Binaries) -> None:
    one, other = (
        named(render(binaries, *flags({**CONFIG, "others": others})), "DaemonSet") for others in Others
    )
    assert one == other


def test_it_is_not_there_without_agents(binaries: Binaries) -> None:
    objects = render(binaries, *flags(CONFIG), "--set", "devicePlugin.enabled=false")
    assert not [o for o in objects if o["kind"] == "ConfigMap" and o["metadata"]["name"] == NAME]


def test_the_schema_has_the_keys_of_selectors() -> None:
    definitions = json.loads((CHART / "values.schema.json").read_text())["definitions"]
    properties = definitions["selector"]["properties"]
    assert set(properties) == set(KEYS)
    assert properties["kinds"]["items"]["enum"] == [kind.value for kind in DeviceKind]


def resource(name: str = "a", **wanted: Any) -> Object:
    return {"resources": [{"name": name, "selectors": [wanted or {"kinds": ["vf"]}]}]}


@pytest.mark.parametrize(
    "config",
    [
        {"others": "ignore"},
        {"resource": []},
        {"resources": {}},
        {"resources": [], "others": "none"},
        {"resources": [{"name": "a"}]},
        {"resources": [{"selectors": [{"kinds": ["vf"]}]}]},
        {"resources": [{"name": "a", "selectors": []}]},
        {"resources": [{"name": "a", "selectors": [{}]}]},
        resource("a b"),
        resource("n" * 64),
        resource("kubernetes.io/a"),
        resource("node.kubernetes.io/a"),
        resource("mykubernetes.io/a"),
        resource("requests.example.com/a"),
        resource("a/b/c"),
        resource(kind=["vf"]),
        resource(kinds="vf"),
        resource(kinds=["pf"]),
        resource(kinds=[]),
        resource(vendors=["10d"]),
        resource(pfs=["3b:00.0"]),
        resource(uuids=["abc"]),
        resource(numaNodes=[-1]),
        resource(types=["a/b"]),
    ],
)
def test_helm_refuses_what_agents_would_refuse(binaries: Binaries, config: Object) -> None:
    assert "devicePlugin" in refusal(binaries, *flags(config))
    with pytest.raises(ConfigurationError):
        parse(yaml.safe_dump(config).encode(), Path("resources.yaml"))


def test_helm_refuses_ids_that_it_would_change(binaries: Binaries) -> None:
    """Unquoted, ``0x10de`` is 4318 by the time that the chart sees it."""
    assert "devicePlugin" in refusal(binaries, *flags(resource(vendors=[4318])))


def test_the_documented_example_is_one(binaries: Binaries, tmp_path: Path) -> None:
    page = (ROOT / "docs/reference/configuration.md").read_text()
    values = tmp_path / "values.yaml"
    values.write_text(re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL)[0])
    data = named(render(binaries, "-f", str(values)), "ConfigMap", NAME)["data"]
    names = [r.name for r in parse(data["resources.yaml"].encode(), Path("resources.yaml")).resources]
    assert names == ["vfio.migcompat.io/a40-8q", "example.com/rdma", "vfio.migcompat.io/numa1-gpus"]


def test_every_key_is_documented() -> None:
    page = (ROOT / "docs/reference/configuration.md").read_text()
    assert re.findall(r"^\| `([a-zA-Z]+)` \|", page, re.MULTILINE)[2:-2] == list(KEYS)
