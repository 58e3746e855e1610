"""Policies: what an admin says about comparing devices (semantics §5)."""

from __future__ import annotations

import collections
import enum
import re
from collections.abc import Mapping

import msgspec

from migcompat.engine.attributes import MAX_ENTRIES, MUST, Draft, canonical_name, checked_self
from migcompat.engine.declaration import Declaration, Entry, Presence, SelfSet
from migcompat.engine.templates import TemplateError, understand


class VersionScheme(enum.StrEnum):
    """How ``software_version`` is compared (§3, rule V)."""

    SEMVER = "semver"
    EXACT = "exact"
    DOTTED = "dotted"


class Choice(enum.StrEnum):
    """Allow or Deny."""

    ALLOW = "Allow"
    DENY = "Deny"


class Policy(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, rename="camel"):
    """The keys of §5 that govern one comparison. Lists given replace the defaults."""

    version_scheme: VersionScheme = VersionScheme.SEMVER
    cross_type: Choice = Choice.ALLOW
    set_attributes: tuple[str, ...] = ("features", "pv_mode", "alg_set")
    ordered_attributes: tuple[str, ...] = ()
    ignored_attributes: tuple[str, ...] = ()
    dynamic_attributes: tuple[str, ...] = ("aggregator", "remote_url")
    off_values: dict[str, tuple[str, ...]] = {}
    require_return_path: bool = False
    unknown: Choice = Choice.DENY
    supplied_self: dict[str, str] = msgspec.field(default={}, name="self")
    supplied_compatible: tuple[dict[str, str], ...] = msgspec.field(default=(), name="compatible")


DEFAULT_POLICY = Policy()

_KEYS = frozenset(field.encode_name for field in msgspec.structs.fields(Policy))
_DEEPEST = 2
"""Containers below a key: ``offValues: {attr: [value]}``, ``compatible: [{attr: pattern}]``."""

_TEXT_KEYS = _KEYS - {"requireReturnPath"}

_OWN = re.compile(r"\{self:([A-Za-z0-9_.-]+)\}")
"""In an entry that a policy supplies: the value that the device itself has (docs/semantics.md, appendix)."""
_ANY = "0" * 8
"""A value that every attribute may have, to check what a policy supplies without a device."""


class PolicyError(ValueError):
    """A policy that cannot be used: says which key and what to do."""


def parse_policy(raw: object) -> Policy:
    """The policy that *raw* (what a YAML or JSON document holds; None: an empty one) says.

    Raises PolicyError for an unknown key, for a value that is not a string where semantics §5 wants one
    (YAML reads an unquoted ``off`` as false, ``1.2`` as a number), and for what :func:`check_policy` finds.
    """
    if raw is None:
        return DEFAULT_POLICY
    if not isinstance(raw, Mapping):
        raise PolicyError(f"a policy is a mapping of keys to values, not {_kind_of(raw)}")
    if "spec" in raw:
        raise PolicyError(
            "this is a whole object: give the keys of a CompatibilityPolicy's spec, without selector"
        )
    for key in raw:
        if key not in _KEYS:
            raise PolicyError(f"unknown key {key!r}; a policy knows {', '.join(sorted(_KEYS))}")
    for key in _TEXT_KEYS & raw.keys():
        _require_text(raw[key], key)
    try:
        policy = msgspec.convert(raw, Policy)
    except msgspec.ValidationError as error:
        raise PolicyError(str(error)) from None
    check_policy(policy)
    return policy


def check_policy(policy: Policy) -> None:
    """Raise PolicyError when what *policy* supplies would be malformed, so that its author hears of it."""
    draft = _drafted(policy.supplied_self, literal=True)
    if draft.problem:
        raise PolicyError(f"self: {draft.problem}")
    if len(policy.supplied_compatible) > MAX_ENTRIES:
        raise PolicyError(f"compatible: holds more than {MAX_ENTRIES} entries")
    for index, attributes in enumerate(policy.supplied_compatible):
        known: Mapping[str, str] = collections.defaultdict(lambda: _ANY)
        draft = _drafted(_resolved(attributes, known), literal=False)
        if draft.problem:
            raise PolicyError(f"compatible[{index}]: {draft.problem}")
        try:
            understand(draft.attributes)
        except TemplateError as error:
            raise PolicyError(f"compatible[{index}]: {error}") from None


def supply(declaration: Declaration, policy: Policy) -> Declaration:
    """*declaration* with what *policy* supplies for its device (semantics §5).

    Attributes fill what is missing and replace nothing; they also complete a self that is malformed only
    because it lacks a must attribute, but no other malformed and no unreadable one. What the policy does not
    supply itself is taken from what the device shows: must attributes, and those that the policy's entries
    name. Entries are appended, whatever became of the device's own; in them ``{self:<attribute>}`` stands for
    the device's own value, and where it has none, or a source that declares nothing lacks the attribute,
    nobody can tell whether the entry matches (``Unknown``), unless something else in it does not.
    """
    if not (policy.supplied_self or policy.supplied_compatible):
        return declaration
    own = _filled(declaration, policy)
    filled = declaration
    if own is not declaration.self:
        silent = declaration.self.presence is declaration.accepts.presence is Presence.ABSENT
        filled = msgspec.structs.replace(declaration, self=own, silent=silent)
    return _extended(filled, policy) if policy.supplied_compatible else filled


def _filled(declaration: Declaration, policy: Policy) -> SelfSet:
    own = declaration.self
    if own.presence is Presence.UNREADABLE or (own.presence is Presence.MALFORMED and not own.attributes):
        return own
    draft = _drafted(policy.supplied_self, literal=True)
    if draft.problem:
        return SelfSet(Presence.MALFORMED, {}, f"the policy supplies a malformed self: {draft.problem}")
    missing = _shown(declaration.shown, policy)
    if not (draft.attributes or missing):
        return own
    filled = checked_self(declaration.kind, {**missing, **draft.attributes, **own.attributes})
    if own.presence is Presence.ABSENT and not draft.attributes and filled.presence is not Presence.PRESENT:
        # It declares nothing, and what it shows is not enough: that is no flaw of its.
        return own
    return filled


def _shown(shown: Mapping[str, str], policy: Policy) -> dict[str, str]:
    """Those attributes of *shown* that may become part of the device's self."""
    if not shown:
        return {}
    wanted = set(MUST)
    for attributes in policy.supplied_compatible:
        wanted.update(map(canonical_name, attributes))
        for value in attributes.values():
            wanted.update(_OWN.findall(value))
    found: dict[str, str] = {}
    for name in sorted(wanted & shown.keys()):
        draft = _drafted({name: shown[name]}, literal=True)
        if not draft.problem:
            found |= draft.attributes
    return found


def _extended(filled: Declaration, policy: Policy) -> Declaration:
    """*filled* with the policy's entries behind its own."""
    own, accepts = filled.self, filled.accepts
    known = own.attributes if own.presence is Presence.PRESENT else {}
    entries = list(accepts.entries)
    compared: dict[int, tuple[str, ...]] = {}
    for attributes in policy.supplied_compatible:
        entry = _entry(attributes, known)
        if entry is not None:
            compared[len(entries)] = _compared(attributes, known)
            entries.append(entry)
    presence = Presence.PRESENT if entries and accepts.presence is Presence.ABSENT else accepts.presence
    extended = msgspec.structs.replace(accepts, entries=tuple(entries), presence=presence)
    return msgspec.structs.replace(filled, accepts=extended, compared=compared)


def _compared(attributes: Mapping[str, str], own: Mapping[str, str]) -> tuple[str, ...]:
    """The attributes of a supplied entry that stand for something that a device that is *own* has."""
    names = (name for name, value in attributes.items() if any(map(own.get, _OWN.findall(value))))
    return tuple(sorted(map(canonical_name, names)))


def _entry(attributes: Mapping[str, str], own: Mapping[str, str]) -> Entry | None:
    """A supplied entry for a device that is *own*; None for an empty one."""
    unknown = {name for name, value in attributes.items() if set(_OWN.findall(value)) - own.keys()}
    known = {name: value for name, value in attributes.items() if name not in unknown}
    entry = _drafted(_resolved(known, own), literal=False).entry()
    if not unknown:
        return entry
    names = tuple(sorted(map(canonical_name, unknown)))
    return msgspec.structs.replace(entry or Entry(), unknown=names)


def _resolved(attributes: Mapping[str, str], own: Mapping[str, str]) -> dict[str, str]:
    """A supplied entry with the device's own values in place of its references to them."""
    return {name: _OWN.sub(lambda match: own[match[1]], value) for name, value in attributes.items()}


def _drafted(attributes: Mapping[str, str], *, literal: bool) -> Draft:
    """Supplied attributes under the reading rules that files are under (semantics §2)."""
    draft = Draft(literal=literal)
    for key, value in attributes.items():
        draft.add_raw(key.encode(errors="replace"), value.encode(errors="replace"))
    return draft


def _require_text(value: object, place: str, depth: int = 0) -> None:
    """Raise PolicyError unless all that *value* holds, keys included, are strings."""
    if depth > _DEEPEST:
        raise PolicyError(f"{place}: is nested too deeply")
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise PolicyError(f"{place}: the name {key!r} is {_kind_of(key)}, not a string: quote it")
            _require_text(inner, f"{place}.{key}", depth + 1)
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            _require_text(inner, f"{place}[{index}]", depth + 1)
    elif not isinstance(value, str):
        raise PolicyError(f"{place}: {value!r} is {_kind_of(value)}, not a string: quote it")


def _kind_of(value: object) -> str:
    names: dict[type, str] = {bool: "a boolean", int: "a number", float: "a number", type(None): "empty"}
    return names.get(type(value), f"a {type(value).__name__}")
