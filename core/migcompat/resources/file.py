"""The configuration file: YAML to :class:`Configuration`, each mistake with its line and column.

Import it where there is such a file: most agents have none, and need no YAML.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import yaml

from migcompat.api.names import RESOURCE_DOMAIN
from migcompat.resources.naming import environment_name, full_name
from migcompat.resources.selection import KEYS, LOWERED, Configuration, Others, Resource, Selector

LIMIT = 256 * 1024
"""Bytes of a file."""
TOLD = 5
"""Mistakes that an error's text has, which goes into logs and conditions."""

_SCALARS = frozenset(f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "timestamp"))
"""What counts as text: an unquoted id or address may look like a number (``8086``, ``0000:03:00.0``)."""


class Flaw(NamedTuple):
    """A mistake; ``line`` and ``column`` count from 1, both 0 for one of the file as a whole."""

    line: int
    column: int
    message: str


class ConfigurationError(Exception):
    """A file that cannot be used. ``lines``: each mistake as ``file:line:column: what, and what to do``.

    Its text has the first of them.
    """

    def __init__(self, path: Path, flaws: Iterable[Flaw]) -> None:
        self.lines = tuple(
            f"{path}:{line}:{column}: {message}" if line else f"{path}: {message}"
            for line, column, message in flaws
        )
        more = [f"and {len(self.lines) - TOLD} more"] if len(self.lines) > TOLD else []
        super().__init__("; ".join([*self.lines[:TOLD], *more]))


def load(path: Path, domain: str = RESOURCE_DOMAIN) -> Configuration:
    """Read *path*; *domain* is that of names without one. Raises ConfigurationError."""
    try:
        with path.open("rb") as file:
            data = file.read(LIMIT + 1)
    except OSError as error:
        raise ConfigurationError(path, [Flaw(0, 0, f"cannot be read: {error.strerror}")]) from error
    return parse(data, path, domain)


def parse(data: bytes, path: Path, domain: str = RESOURCE_DOMAIN) -> Configuration:
    """The configuration that *data* holds; *path* is for messages. Raises ConfigurationError."""
    if len(data) > LIMIT:
        raise ConfigurationError(path, [Flaw(0, 0, f"it is larger than {LIMIT} bytes")])
    flaws: list[Flaw] = []
    configuration = _Reader(domain, flaws).configuration(_compose(data, path))
    if flaws:
        raise ConfigurationError(path, sorted(flaws))
    return configuration


def _compose(data: bytes, path: Path) -> yaml.Node | None:
    """The tree of nodes. Raises ConfigurationError for what is no YAML."""
    try:
        text = data.decode()
        # Not the C loader: a deeply nested file would end the process.
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        flaw = _at(data[: error.start].decode(), "no UTF-8 from here on")
    except yaml.reader.ReaderError as error:
        flaw = _at(text[: error.position], f"character U+{ord(text[error.position]):04X} is not allowed")
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        said = "; ".join(part for part in (error.context, error.problem) if part)
        flaw = Flaw(mark.line + 1 if mark else 0, mark.column + 1 if mark else 0, f"no YAML: {said}")
    except RecursionError:
        flaw = Flaw(0, 0, "it is nested too deeply")
    raise ConfigurationError(path, [flaw])


def _at(before: str, message: str) -> Flaw:
    """A flaw behind the text *before*."""
    return Flaw(before.count("\n") + 1, len(before) - before.rfind("\n"), message)


class _Reader:
    """Walks the nodes; notes each flaw and goes on, so that one look shows them all."""

    def __init__(self, domain: str, flaws: list[Flaw]) -> None:
        self._domain = domain
        self._flaws = flaws

    def configuration(self, node: yaml.Node | None) -> Configuration:
        if node is None:
            self._flaws.append(Flaw(1, 1, "the file is empty: write at least 'resources: []'"))
            return Configuration(self._domain)
        fields = self._mapping(node, ("resources", "others"), "the file")
        if "resources" in fields:
            resources = tuple(self._resources(fields["resources"]))
        else:
            resources = ()
            if isinstance(node, yaml.MappingNode):
                self._flaw(node, "'resources' is missing: a list of resources, which may be empty ([])")
        others = Others.ADVERTISE
        if "others" in fields:
            text = self._text(fields["others"], "'others'")
            if text in tuple(Others):
                others = Others(text)
            elif text:
                self._flaw(fields["others"], f"'others' is {text!r}: it may be {' or '.join(Others)}")
        return Configuration(self._domain, resources, others)

    def _resources(self, node: yaml.Node) -> Iterator[Resource]:
        taken: dict[str, tuple[str, int]] = {}
        for item in self._list(node, "'resources'"):
            fields = self._mapping(item, ("name", "selectors"), "a resource")
            name = self._name(item, fields, taken)
            if "selectors" not in fields:
                if isinstance(item, yaml.MappingNode):
                    self._flaw(item, "'selectors' is missing: a list of what the resource takes")
                continue
            selectors = tuple(map(self._selector, self._list(fields["selectors"], "'selectors'")))
            if isinstance(fields["selectors"], yaml.SequenceNode) and not selectors:
                self._flaw(fields["selectors"], "'selectors' is empty, so the resource would take nothing")
            yield Resource(name, selectors)

    def _name(self, item: yaml.Node, fields: dict[str, yaml.Node], taken: dict[str, tuple[str, int]]) -> str:
        if "name" not in fields:
            if isinstance(item, yaml.MappingNode):
                self._flaw(item, "'name' is missing: the resource's name, such as vgpu-a40")
            return ""
        node = fields["name"]
        text = self._text(node, "'name'")
        try:
            name = full_name(text, self._domain) if text else ""
        except ValueError as error:
            self._flaw(node, f"the kubelet would refuse this: {error}")
            return ""
        if name:
            key = environment_name(name)
            other, line = taken.get(key, ("", 0))
            if other == name:
                self._flaw(node, f"{name} is already in line {line}: put all its selectors there")
            elif other:
                self._flaw(
                    node, f"{name} and {other} (line {line}) are both {key} for a VM: change one of them"
                )
            else:
                taken[key] = name, node.start_mark.line + 1
        return name

    def _selector(self, node: yaml.Node) -> Selector:
        fields = self._mapping(node, tuple(KEYS), "a selector")
        if isinstance(node, yaml.MappingNode) and not node.value:
            self._flaw(node, f"the selector is empty, so it would take every device: {_one_of(KEYS)}")
        return Selector({key: frozenset(self._values(key, value)) for key, value in fields.items()})

    def _values(self, key: str, node: yaml.Node) -> Iterator[str]:
        items = self._list(node, f"'{key}'")
        if isinstance(node, yaml.SequenceNode) and not items:
            self._flaw(node, f"'{key}' is empty, so the selector would take nothing: leave it out")
        for item in items:
            text = self._text(item, f"an item of '{key}'")
            if not text:
                continue
            if KEYS[key].spelled.fullmatch(text):
                yield _normal(key, text)
            else:
                self._flaw(item, f"{text!r} in '{key}' is not {KEYS[key].says}")

    # -- nodes --------------------------------------------------------------------------------------------

    def _mapping(self, node: yaml.Node, known: tuple[str, ...], what: str) -> dict[str, yaml.Node]:
        """The values of a mapping by key, those that are *known* and there once."""
        if not isinstance(node, yaml.MappingNode):
            self._flaw(node, f"{what} must be a mapping with {_one_of(known)}")
            return {}
        found: dict[str, yaml.Node] = {}
        for key, value in node.value:
            name = str(key.value) if isinstance(key, yaml.ScalarNode) else ""
            if name not in known:
                close = difflib.get_close_matches(name, known, 1)
                hint = f"did you mean '{close[0]}'?" if close else f"{what} has {_one_of(known)}"
                self._flaw(key, f"unknown key {name!r}: {hint}" if name else f"a key is no text: {hint}")
            elif name in found:
                self._flaw(key, f"'{name}' is here twice: keep one")
            else:
                found[name] = value
        return found

    def _list(self, node: yaml.Node, what: str) -> list[yaml.Node]:
        if not isinstance(node, yaml.SequenceNode):
            self._flaw(node, f"{what} must be a list: write [{_shown(node)}], or '- ' before each item")
            return []
        items: list[yaml.Node] = node.value
        return items

    def _text(self, node: yaml.Node, what: str) -> str:
        """The text of a scalar as it is written, empty (and a flaw) where there is none."""
        if isinstance(node, yaml.ScalarNode) and not node.value:
            self._flaw(node, f"{what} is empty")
            return ""
        if not isinstance(node, yaml.ScalarNode) or node.tag not in _SCALARS:
            self._flaw(node, f"{what} must be text; if it is, put it in quotes")
            return ""
        return str(node.value)

    def _flaw(self, node: yaml.Node, message: str) -> None:
        self._flaws.append(Flaw(node.start_mark.line + 1, node.start_mark.column + 1, message))


def _normal(key: str, text: str) -> str:
    """*text* as the kernel spells it."""
    if key not in LOWERED:
        return text
    return text.lower().removeprefix("0x")


def _one_of(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def _shown(node: yaml.Node) -> str:
    return str(node.value)[:40] if isinstance(node, yaml.ScalarNode) else "…"
