"""The stages of matching one source against one entry (semantics §3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache

import msgspec

from migcompat.engine.attributes import (
    API_SPECIFIC,
    CANONICALISED,
    DEVICE_API,
    PCI_ID,
    SOFTWARE_VERSION,
    TYPE,
    MalformedError,
    canonical_name,
    canonical_value,
    shown,
)
from migcompat.engine.declaration import Kind, SelfSet
from migcompat.engine.dynamic import may_be_dynamic
from migcompat.engine.policy import Choice, Policy, VersionScheme
from migcompat.engine.reasons import Reason
from migcompat.engine.templates import Bindings, Pattern, TemplateError, Templates, understand
from migcompat.engine.versions import BackwardsRangeError, check_entry, refusal, refusal_by_own

STAGE_DEVICE_API = 2
STAGE_API_SPECIFIC = 3
STAGE_TYPE = 4
STAGE_VERSION = 5
STAGE_OTHERS = 6
STAGE_ALL = 7
"""Beyond the last stage: the entry matched."""

_VERSION_REASONS = (Reason.VERSION_MALFORMED, Reason.VERSION_MAJOR_MISMATCH, Reason.VERSION_MINOR_OLDER)
"""From farthest to nearest to a pass."""

_REMEMBERED = 2048


class Rules(msgspec.Struct, frozen=True):
    """A policy together with what the target's layout declares (L4), ready for look-ups by canonical name."""

    scheme: VersionScheme
    deny_cross_type: bool
    sets: frozenset[str]
    ordered: frozenset[str]
    ignored: frozenset[str]
    dynamic: frozenset[str]
    off: Mapping[str, frozenset[str | None]]

    def without(self, names: tuple[str, ...]) -> Rules:
        """The same, with *names* ignored too."""
        return msgspec.structs.replace(self, ignored=self.ignored.union(names)) if names else self


class Outcome(msgspec.Struct, frozen=True):
    """How far one entry got: ``stage`` is the one that failed, or STAGE_ALL with the match's results."""

    stage: int
    reason: Reason
    message: str
    bindings: dict[str, str | int] = {}
    obligations: dict[str, str] = {}


class UnusableEntryError(ValueError):
    """A malformed entry, or one all of whose bindings are dropped; says why."""


def rules(policy: Policy, sets: tuple[str, ...] = (), dynamic: tuple[str, ...] = ()) -> Rules:
    """The *policy* with the ``sets`` of either side's L4 lists and the *target's* ``dynamic_resources``.

    Names of obligations come from nowhere else, and never from the source (semantics §3).
    """
    return Rules(
        scheme=policy.version_scheme,
        deny_cross_type=policy.cross_type is Choice.DENY,
        sets=_names((*policy.set_attributes, *sets)),
        ordered=_names(policy.ordered_attributes),
        ignored=_names(policy.ignored_attributes),
        dynamic=frozenset(filter(may_be_dynamic, _names((*policy.dynamic_attributes, *dynamic)))),
        off={
            (name := canonical_name(key)): frozenset(_canonical(name, value) for value in values)
            for key, values in policy.off_values.items()
        },
    )


def _names(names: tuple[str, ...]) -> frozenset[str]:
    return frozenset(map(canonical_name, names))


def compile_entry(attributes: Mapping[str, str], scheme: VersionScheme) -> Templates:
    """Understand an entry's values once for many sources. Raises UnusableEntryError."""
    found = _compiled(tuple(sorted(attributes.items())), scheme)
    if isinstance(found, str):
        raise UnusableEntryError(found)
    return found


@lru_cache(maxsize=_REMEMBERED)
def _compiled(attributes: tuple[tuple[str, str], ...], scheme: VersionScheme) -> Templates | str:
    """The understood entry, or why there is none (a value, because exceptions are not remembered)."""
    try:
        templates = understand(dict(attributes))
        version = templates.patterns.get(SOFTWARE_VERSION)
        if version is not None:
            Bindings(templates).narrow(version, lambda text: _checked(text, scheme))
    except (TemplateError, BackwardsRangeError) as error:
        return str(error)
    return templates


def _checked(text: str, scheme: VersionScheme) -> bool:
    check_entry(text, scheme)
    return True


class Matcher:
    """One source against one entry after another of one target."""

    def __init__(self, source: Mapping[str, str], target: SelfSet | None, kind: Kind, ruled: Rules) -> None:
        """*target*: its own self if that is usable, else None; *kind*: the target's."""
        self._source = source
        self._own = target.attributes if target is not None else None
        self._kind = kind
        self._rules = ruled

    def match(self, entry: Templates) -> Outcome:
        """Take *entry* through all stages; the outcome tells the first that fails."""
        bindings = Bindings(entry)
        failed = (
            self._fixed(entry, bindings, DEVICE_API, STAGE_DEVICE_API, Reason.DEVICE_API_MISMATCH)
            or self._api_specific(entry, bindings)
            or self._fixed(entry, bindings, TYPE, STAGE_TYPE, Reason.TYPE_MISMATCH)
            or self._version(entry, bindings)
        )
        return failed or self._others(entry, bindings)

    def _fixed(
        self, entry: Templates, bindings: Bindings, name: str, stage: int, reason: Reason
    ) -> Outcome | None:
        """Stages 2 to 4: the source's value is exactly the entry's, or the target's own if it has none."""
        pattern = entry.patterns.get(name)
        deny = name == TYPE and self._rules.deny_cross_type
        own_counts = pattern is None or deny
        if own_counts and self._own is None:
            return _own_needed(name, stage)
        value = self._source.get(name)
        if pattern is not None and (value is None or not self._accepted(bindings, pattern, name, value)):
            return Outcome(stage, reason, _both(name, value, bindings.sample(pattern)))
        own = self._own.get(name) if self._own is not None else None
        if own_counts and (value is None or value != own):
            why = ", and the policy denies other types" if deny else ""
            return Outcome(stage, reason, _both(name, value, own, "is itself") + why)
        return None

    def _api_specific(self, entry: Templates, bindings: Bindings) -> Outcome | None:
        """Stage 3. An mdev's ``pci_id`` is its parent's: checked only when the entry names it."""
        name = API_SPECIFIC.get(self._source[DEVICE_API], "")
        if not name:
            return None
        if name == PCI_ID and self._kind is not Kind.PHYSICAL and name not in entry.patterns:
            return None
        return self._fixed(entry, bindings, name, STAGE_API_SPECIFIC, Reason.API_SPECIFIC_MISMATCH)

    def _version(self, entry: Templates, bindings: Bindings) -> Outcome | None:
        """Stage 5, rule V. Of bindings that fail for several reasons the nearest to a pass counts."""
        source = self._source[SOFTWARE_VERSION]
        pattern = entry.patterns.get(SOFTWARE_VERSION)
        if pattern is None:
            if self._own is None:
                return _own_needed(SOFTWARE_VERSION, STAGE_VERSION)
            own = self._own[SOFTWARE_VERSION]
            failed = refusal_by_own(source, own, self._rules.scheme)
            if failed is None:
                return None
            return Outcome(STAGE_VERSION, failed, _both(SOFTWARE_VERSION, source, own, "is itself"))
        reasons: set[Reason] = set()

        def passes(text: str) -> bool:
            why_not = refusal(source, text, self._rules.scheme)
            if why_not is not None:
                reasons.add(why_not)
            return why_not is None

        if bindings.narrow(pattern, passes):
            return None
        nearest = max(reasons, key=_VERSION_REASONS.index)
        return Outcome(STAGE_VERSION, nearest, _both(SOFTWARE_VERSION, source, bindings.sample(pattern)))

    def _others(self, entry: Templates, bindings: Bindings) -> Outcome:
        """Stage 6: the union of the other attributes, in alphabetical order."""
        skipped = {DEVICE_API, TYPE, SOFTWARE_VERSION, API_SPECIFIC.get(self._source[DEVICE_API], "")}
        skipped |= self._rules.ignored
        obligations: dict[str, str] = {}
        for name in sorted((self._source.keys() | entry.patterns.keys()) - skipped):
            value = self._source.get(name)
            pattern = entry.patterns.get(name)
            if pattern is None:
                failed = self._unconstrained(name, value or "", obligations)
            elif value is None:
                failed = self._missing_on_source(bindings, name, pattern)
            else:
                failed = self._compare(bindings, name, pattern, value)
            if failed is not None:
                return failed
        return Outcome(
            STAGE_ALL, Reason.COMPATIBLE, "target accepts the source", bindings.first(), obligations
        )

    def _unconstrained(self, name: str, value: str, obligations: dict[str, str]) -> Outcome | None:
        """An attribute of the source that the entry lacks. An empty value asks and owes nothing."""
        if value == "":
            return None
        if name in self._rules.dynamic:
            obligations[name] = value
            return None
        if value in self._rules.off.get(name, ()):
            return None
        return Outcome(STAGE_OTHERS, Reason.ATTRIBUTE_MISSING_ON_TARGET, _both(name, value, None))

    def _missing_on_source(self, bindings: Bindings, name: str, pattern: Pattern) -> Outcome | None:
        """An attribute of the entry that the source lacks: fine where the pattern's whole is empty."""
        if bindings.narrow_literal(pattern, ""):
            return None
        message = _both(name, None, bindings.sample(pattern))
        return Outcome(STAGE_OTHERS, Reason.ATTRIBUTE_MISSING_ON_SOURCE, message)

    def _compare(self, bindings: Bindings, name: str, pattern: Pattern, value: str) -> Outcome | None:
        if name in self._rules.sets:
            matched = bindings.narrow(pattern, _superset_of(value))
        elif name in self._rules.ordered:
            matched = bindings.narrow(pattern, _at_least(value))
        else:
            matched = self._equal(bindings, pattern, name, value)
        if matched:
            return None
        return Outcome(STAGE_OTHERS, Reason.ATTRIBUTE_MISMATCH, _both(name, value, bindings.sample(pattern)))

    def _accepted(self, bindings: Bindings, pattern: Pattern, name: str, value: str) -> bool:
        """Stages 2 to 4 are exact, but for what an L4 list or a policy makes a set of (PCI ids, say)."""
        if name in self._rules.sets and name in API_SPECIFIC.values():
            return bindings.narrow(pattern, _superset_of(value))
        return self._equal(bindings, pattern, name, value)

    def _equal(self, bindings: Bindings, pattern: Pattern, name: str, value: str) -> bool:
        """Whole-value comparison; a template's result is brought into canonical form first."""
        if name not in CANONICALISED:
            return bindings.narrow_literal(pattern, value)
        return bindings.narrow(pattern, lambda text: _canonical(name, text) == value)


def _own_needed(name: str, stage: int) -> Outcome:
    return Outcome(
        stage, Reason.MALFORMED_SELF, f"{name}: the target's own value is needed, and its self is not usable"
    )


def _both(name: str, value: str | None, accepted: str | None, does: str = "accepts") -> str:
    """The message of a mismatch: the attribute and both values, and nothing that tells devices apart."""
    ours = "none" if value is None else shown(value)
    theirs = "none" if accepted is None else shown(accepted)
    return f"{name}: source has {ours}, target {does} {theirs}"


def _canonical(name: str, text: str) -> str | None:
    try:
        return canonical_value(name, text)
    except MalformedError:
        return None


def _members(text: str) -> frozenset[str]:
    """The members of a set-valued attribute: order and repeats are irrelevant."""
    return frozenset(
        member for part in text.split("+") for piece in part.split(",") if (member := piece.strip(" "))
    )


def _superset_of(value: str) -> Callable[[str], bool]:
    wanted = _members(value)
    return lambda text: wanted <= _members(text)


def _at_least(value: str) -> Callable[[str], bool]:
    """``int(source) <= int(entry)``; what is no integer does not match."""
    wanted = _integer(value)

    def accepts(text: str) -> bool:
        offered = _integer(text)
        return wanted is not None and offered is not None and wanted <= offered

    return accepts


def _integer(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None
