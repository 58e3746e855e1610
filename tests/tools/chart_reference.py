"""Reference pages made from the chart itself: what its values mean, and what its definitions hold."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

_VALUES_INTRO = """\
# Values of the chart

Made from `charts/migcompat/values.yaml` by `make manifests`. `values.schema.json` refuses unknown keys and
wrong values before anything is installed; of values that contradict each other a sentence says how.

| value | default | meaning |
|---|---|---|
"""
_CRDS_INTRO = """\
# Custom resources

Made from `charts/migcompat/files/crds` by `make manifests`; `kubectl explain <kind> --recursive` shows them.
"""
_KEY = re.compile(r"^( *)([A-Za-z]+):(.*)$")


def values_page(chart: Path) -> str:
    """The table of all values."""
    text = (chart / "values.yaml").read_text()
    defaults = yaml.safe_load(text)
    rows = []
    for path, meaning in _documented(text):
        value: Any = defaults
        for part in path.split("."):
            value = value[part]
        rows.append(f"| `{path}` | `{json.dumps(value)}` | {_cell(meaning)} |\n")
    return _VALUES_INTRO + "".join(rows)


def leaves(values: dict[str, Any], schema_free: tuple[str, ...] = ()) -> Iterator[str]:
    """Dotted names of the values that are no groups of values."""
    for name, value in values.items():
        if isinstance(value, dict) and value and name not in schema_free:
            for rest in leaves(value, schema_free):
                yield f"{name}.{rest}"
        else:
            yield name


def documented(text: str) -> set[str]:
    """Dotted names of the values that have an explanation (a comment ``# -- …`` above)."""
    return {path for path, _ in _documented(text)}


def _documented(text: str) -> Iterator[tuple[str, str]]:
    stack: list[tuple[int, str]] = []
    meaning = ""
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith("# -- "):
            meaning = stripped.removeprefix("# -- ")
        elif stripped.startswith("#") and meaning:
            meaning += " " + stripped.lstrip("# ")
        elif match := _KEY.match(line):
            indent, name = len(match[1]), match[2]
            stack = [entry for entry in stack if entry[0] < indent] + [(indent, name)]
            if meaning:
                yield ".".join(entry for _, entry in stack), meaning
            meaning = ""
        elif not stripped:
            meaning = ""


def crds_page(chart: Path) -> str:
    """A chapter for each definition."""
    chapters = [_CRDS_INTRO]
    for path in sorted((chart / "files" / "crds").glob("*.yaml")):
        definition = yaml.safe_load(path.read_text())["spec"]
        names, version = definition["names"], definition["versions"][0]
        schema = version["schema"]["openAPIV3Schema"]
        columns = [
            c["name"].upper() + (" (wide)" if c.get("priority") else "")
            for c in version["additionalPrinterColumns"]
        ]
        chapters.append(
            f"\n## {names['kind']}\n\n{schema['description']}\n\n"
            f"`{definition['group']}/{version['name']}`, {definition['scope'].lower()}; `{names['plural']}`, "
            f"short {', '.join(f'`{n}`' for n in names['shortNames'])}. "
            f"Columns: NAME, {', '.join(columns)}.\n\n"
            "| field | type | meaning |\n|---|---|---|\n"
        )
        for part in ("spec", "status"):
            if part in schema["properties"]:
                chapters += _rows(
                    part, schema["properties"][part], required=part in schema.get("required", ())
                )
    return "".join(chapters)


def _rows(path: str, node: dict[str, Any], *, required: bool) -> Iterator[str]:
    if path.endswith("conditions"):
        yield f"| `{path}` | list of metav1.Condition | {_cell(node.get('description', ''))} |\n"
        return
    rules = [rule["message"] for rule in node.get("x-kubernetes-validations", ())]
    rules += [rule["message"] for rule in node.get("items", {}).get("x-kubernetes-validations", ())]
    meaning = " ".join([node.get("description", ""), *(f"Rule: {rule}." for rule in rules)]).strip()
    yield f"| `{path}`{' *' if required else ''} | {_type(node)} | {_cell(meaning)} |\n"
    inner, suffix = node, ""
    while True:
        if inner.get("type") == "array":
            inner, suffix = inner["items"], suffix + "[]"
        elif isinstance(inner.get("additionalProperties"), dict):
            inner, suffix = inner["additionalProperties"], suffix + ".<key>"
        else:
            break
    for name, child in inner.get("properties", {}).items():
        yield from _rows(f"{path}{suffix}.{name}", child, required=name in inner.get("required", ()))


def _type(node: dict[str, Any]) -> str:
    kind = node.get("type", "")
    if kind == "array":
        return f"list of {_type(node['items'])}, ≤ {node['maxItems']}"
    if isinstance(node.get("additionalProperties"), dict):
        return f"map of {_type(node['additionalProperties'])}, ≤ {node['maxProperties']}"
    if "enum" in node:
        values = ", ".join(f"`{value}`" for value in node["enum"])
        return values + (f", default `{node['default']}`" if "default" in node else "")
    if kind == "string" and "maxLength" in node:
        return f"string, ≤ {node['maxLength']}"
    return str(kind)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").strip()
