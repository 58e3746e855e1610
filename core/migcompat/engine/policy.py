"""Policies: what an admin says about comparing devices (semantics §5)."""

from __future__ import annotations

import enum
from collections.abc import Mapping

import msgspec

from migcompat.engine.attributes import MAX_ENTRIES, Draft, checked_self
from migcompat.engine.declaration import Declaration, Kind, Presence, SelfSet
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
        draft = _drafted(attributes, literal=False)
        if draft.problem:
            raise PolicyError(f"compatible[{index}]: {draft.problem}")
        try:
            understand(draft.attributes)
        except TemplateError as error:
            raise PolicyError(f"compatible[{index}]: {error}") from None


def supply(declaration: Declaration, policy: Policy) -> Declaration:
    """*declaration* with what *policy* supplies for its device (semantics §5).

    Attributes fill what is missing and replace nothing; they also complete a self that is malformed only
    because it lacks a must attribute, but no other malformed and no unreadable one. Entries are appended,
    whatever became of the device's own.
    """
    own, accepts = declaration.self, declaration.accepts
    if policy.supplied_self and (own.presence is not Presence.UNREADABLE):
        own = _filled(declaration.kind, own, policy)
    if policy.supplied_compatible:
        added = (_drafted(attributes, literal=False).entry() for attributes in policy.supplied_compatible)
        entries = (*accepts.entries, *(entry for entry in added if entry is not None))
        presence = Presence.PRESENT if entries and accepts.presence is Presence.ABSENT else accepts.presence
        accepts = msgspec.structs.replace(accepts, entries=entries, presence=presence)
    if own is declaration.self and accepts is declaration.accepts:
        return declaration
    return msgspec.structs.replace(declaration, self=own, accepts=accepts)


def _filled(kind: Kind, own: SelfSet, policy: Policy) -> SelfSet:
    if own.presence is Presence.MALFORMED and not own.attributes:
        return own
    draft = _drafted(policy.supplied_self, literal=True)
    if draft.problem:
        return SelfSet(Presence.MALFORMED, {}, f"the policy supplies a malformed self: {draft.problem}")
    return checked_self(kind, {**draft.attributes, **own.attributes})


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
