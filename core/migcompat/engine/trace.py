"""Why a verdict is what it is, attribute by attribute (semantics §3), told by the matching itself.

:func:`trace` runs :func:`migcompat.engine.verdict.decide` with a :class:`Matcher` that also writes down what
each of its steps compared and came to. There is no second implementation of the rules: a row is what a step
returned.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable, Mapping

import msgspec

from migcompat.engine.attributes import API_SPECIFIC, DEVICE_API, PCI_ID, SOFTWARE_VERSION, TYPE
from migcompat.engine.declaration import Declaration, Kind, SelfSet
from migcompat.engine.matching import (
    STAGE_ALL,
    STAGE_API_SPECIFIC,
    STAGE_DEVICE_API,
    STAGE_OTHERS,
    STAGE_TYPE,
    STAGE_VERSION,
    Matcher,
    Outcome,
    Rules,
)
from migcompat.engine.policy import DEFAULT_POLICY, Policy
from migcompat.engine.reasons import Reason
from migcompat.engine.templates import Bindings, Pattern, Templates
from migcompat.engine.verdict import Verdict, decide

PRESENCE = "presence"
"""The row of stage 1, which is about no attribute."""


class Finding(enum.StrEnum):
    """What became of one attribute."""

    OK = "ok"
    REFUSES = "refuses"
    NOT_REACHED = "not reached"
    OBLIGATION = "obligation"
    IGNORED = "ignored"
    UNKNOWN = "unknown"


class Rule(enum.StrEnum):
    """Whose rule an attribute was held against."""

    ENTRY = "entry"
    OWN = "own value"
    BOTH = "entry and own value"
    POLICY = "policy"
    NONE = ""


class Row(msgspec.Struct, frozen=True, omit_defaults=True):
    """One attribute against one entry.

    ``source``: its value on the source; ``target``: the entry's pattern, or the target's own value where that
    counts (``rule``); null where there is none. ``how`` they were compared. ``section`` of the semantics.
    ``message``: why it refuses, or what else is to be said.
    """

    attribute: str
    source: str | None
    target: str | None
    rule: Rule
    how: str
    finding: Finding
    section: str
    message: str = ""


class EntryTrace(msgspec.Struct, frozen=True, omit_defaults=True):
    """One entry of ``compatible``: its rows in the order of the stages, or the ``problem`` it is skipped for.

    ``reason`` and ``message`` are empty for an entry that was not looked at (an earlier one had matched).
    """

    index: int
    reason: str = ""
    message: str = ""
    problem: str = ""
    rows: tuple[Row, ...] = ()


class Trace(msgspec.Struct, frozen=True, omit_defaults=True):
    """A verdict and how it was found. ``back``: the way back, where it was looked at (semantics §5)."""

    verdict: Verdict
    presence: Row
    entries: tuple[EntryTrace, ...] = ()
    back: Trace | None = None


def trace(source: Declaration, target: Declaration, policy: Policy = DEFAULT_POLICY) -> Trace:
    """The verdict of :func:`decide` for the same arguments, with its reasons."""
    recorder = _Recorder(source, target)
    verdict = decide(source, target, policy, recorder)
    back, forth = None, verdict
    if recorder.way_back is not None:
        one_way = msgspec.structs.replace(policy, require_return_path=False)
        forth = decide(source, target, one_way)
        returned = decide(target, source, one_way)
        back = Trace(returned, _presence(returned, target, source), recorder.way_back.told())
    return Trace(verdict, _presence(forth, source, target), recorder.told(), back)


def _presence(verdict: Verdict, source: Declaration, target: Declaration) -> Row:
    """Stage 1: what there is to compare at all; also what ``unknown`` of the policy says to that."""
    unknown = verdict.reason is Reason.UNKNOWN
    stopped = unknown or (verdict.entry is None and not verdict.compatible)
    return Row(
        PRESENCE,
        f"self {source.self.presence}",
        f"self {target.self.presence}, compatible {target.accepts.presence}",
        Rule.POLICY if unknown and verdict.compatible else Rule.NONE,
        "",
        Finding.REFUSES if stopped and not verdict.compatible else Finding.OK,
        "§5 unknown" if unknown else "§3 stage 1",
        verdict.message if stopped else "",
    )


class _Recorder:
    """Collects the entries of the way from *source* to *target*."""

    def __init__(self, source: Declaration, target: Declaration) -> None:
        self.entries: dict[int, EntryTrace] = {}
        self.way_back: _Recorder | None = None
        self._source = source
        self._target = target

    def skipped(self, problems: Mapping[int, str]) -> None:
        self.entries |= {index: EntryTrace(index, problem=why) for index, why in problems.items()}

    def matcher(  # noqa: PLR0917
        self,
        index: int,
        source: Mapping[str, str],
        target: SelfSet | None,
        kind: Kind,
        ruled: Rules,
        unknown: tuple[str, ...],
    ) -> Matcher:
        telling = _Telling(source, target, kind, ruled)
        telling.unknown = unknown
        telling.tell = functools.partial(self._tell, index)
        return telling

    def _tell(self, index: int, reason: str, message: str, rows: tuple[Row, ...]) -> None:
        self.entries[index] = EntryTrace(index, reason, message, rows=rows)

    def back(self) -> _Recorder:
        self.way_back = _Recorder(self._target, self._source)
        return self.way_back

    def told(self) -> tuple[EntryTrace, ...]:
        """All entries by index, also those that were not looked at."""
        count = len(self._target.accepts.entries)
        return tuple(self.entries.get(index) or EntryTrace(index) for index in range(count))


class _Telling(Matcher):
    """A matcher for one entry that writes down what each step came to."""

    unknown: tuple[str, ...] = ()
    """Attributes of the entry that cannot be compared."""
    tell: Callable[[str, str, tuple[Row, ...]], None]

    def __init__(self, source: Mapping[str, str], target: SelfSet | None, kind: Kind, ruled: Rules) -> None:
        super().__init__(source, target, kind, ruled)
        self._rows: dict[str, Row] = {}

    def match(self, entry: Templates) -> Outcome:
        outcome = super().match(entry)
        self._complete(entry)
        untold = self.unknown and outcome.stage == STAGE_ALL
        reason = Reason.UNKNOWN if untold else outcome.reason
        self.tell(reason, outcome.message, tuple(self._rows.values()))
        return outcome

    def _fixed(
        self, entry: Templates, bindings: Bindings, name: str, stage: int, reason: Reason
    ) -> Outcome | None:
        outcome = super()._fixed(entry, bindings, name, stage, reason)
        pattern = entry.patterns.get(name)
        deny = name == TYPE and self._rules.deny_cross_type
        rule = Rule.OWN if pattern is None else Rule.BOTH if deny else Rule.ENTRY
        section = f"§3 stage {stage}" + (" and §5 crossType" if deny else "")
        as_set = pattern is not None and name in self._rules.sets and name in API_SPECIFIC.values()
        self._add(name, pattern, rule, how="subset" if as_set else "equal", section=section, outcome=outcome)
        return outcome

    def _version(self, entry: Templates, bindings: Bindings) -> Outcome | None:
        outcome = super()._version(entry, bindings)
        pattern = entry.patterns.get(SOFTWARE_VERSION)
        rule = Rule.OWN if pattern is None else Rule.ENTRY
        how = f"version, {self._rules.scheme}"
        self._add(
            SOFTWARE_VERSION,
            pattern,
            rule,
            how=how,
            section=f"§3 stage {STAGE_VERSION}, rule V",
            outcome=outcome,
        )
        return outcome

    def _unconstrained(self, name: str, value: str, obligations: dict[str, str]) -> Outcome | None:
        outcome = super()._unconstrained(name, value, obligations)
        section, how = f"§3 stage {STAGE_OTHERS}", "entry must have it"
        if name in obligations:
            note = f"{value} is to be written to {name} of the target before it is handed over"
            self._put(
                name,
                None,
                Rule.POLICY,
                how="dynamic",
                section="§3 dynamic",
                finding=Finding.OBLIGATION,
                message=note,
            )
        elif outcome is None and value:
            note = "the policy takes this value for none"
            self._put(
                name,
                None,
                Rule.POLICY,
                how="off value",
                section="§5 offValues",
                finding=Finding.OK,
                message=note,
            )
        elif outcome is None:
            self._put(
                name,
                None,
                Rule.NONE,
                how=how,
                section=section,
                finding=Finding.OK,
                message="an empty value asks nothing",
            )
        else:
            self._add(name, None, Rule.NONE, how=how, section=section, outcome=outcome)
        return outcome

    def _missing_on_source(self, bindings: Bindings, name: str, pattern: Pattern) -> Outcome | None:
        outcome = super()._missing_on_source(bindings, name, pattern)
        self._add(
            name,
            pattern,
            Rule.ENTRY,
            how="source must have it",
            section=f"§3 stage {STAGE_OTHERS}",
            outcome=outcome,
        )
        return outcome

    def _compare(self, bindings: Bindings, name: str, pattern: Pattern, value: str) -> Outcome | None:
        outcome = super()._compare(bindings, name, pattern, value)
        how, section = "equal", f"§3 stage {STAGE_OTHERS}"
        if name in self._rules.sets:
            how, section = "subset", "§3 set-valued"
        elif name in self._rules.ordered:
            how, section = "at most", "§3 ordered"
        self._add(name, pattern, Rule.ENTRY, how=how, section=section, outcome=outcome)
        return outcome

    def _add(
        self,
        name: str,
        pattern: Pattern | None,
        rule: Rule,
        *,
        how: str,
        section: str,
        outcome: Outcome | None,
    ) -> None:
        finding = Finding.OK if outcome is None else Finding.REFUSES
        message = outcome.message if outcome else ""
        self._put(name, pattern, rule, how=how, section=section, finding=finding, message=message)

    def _put(
        self,
        name: str,
        pattern: Pattern | None,
        rule: Rule,
        *,
        section: str,
        finding: Finding,
        how: str = "",
        message: str = "",
    ) -> None:
        target = pattern.text if pattern is not None else None
        own = (self._own or {}).get(name)
        if rule is Rule.OWN:
            target = own
        elif rule is Rule.BOTH:
            target = f"{target}, own {'none' if own is None else own}"
        self._rows[name] = Row(name, self._source.get(name), target, rule, how, finding, section, message)

    def _complete(self, entry: Templates) -> None:
        """Rows of what no step looked at, in the order in which it would have come."""
        specific = API_SPECIFIC.get(self._source[DEVICE_API], "")
        fixed = {
            DEVICE_API: f"§3 stage {STAGE_DEVICE_API}",
            specific: f"§3 stage {STAGE_API_SPECIFIC}",
            TYPE: f"§3 stage {STAGE_TYPE}",
            SOFTWARE_VERSION: f"§3 stage {STAGE_VERSION}, rule V",
        }
        others = sorted((self._source.keys() | entry.patterns.keys() | set(self.unknown)) - fixed.keys())
        for name, section in (*fixed.items(), *((name, f"§3 stage {STAGE_OTHERS}") for name in others)):
            if not name or name in self._rows:
                continue
            pattern = entry.patterns.get(name)
            rule = Rule.NONE if pattern is None else Rule.ENTRY
            of_parent = name == specific == PCI_ID and self._kind is not Kind.PHYSICAL and pattern is None
            if name in self.unknown:
                who = "source" if pattern is not None else "target"
                note = f"the policy compares it, and the {who} does not show it"
                self._put(
                    name,
                    pattern,
                    Rule.POLICY,
                    how="own value",
                    section="§5 unknown",
                    finding=Finding.UNKNOWN,
                    message=note,
                )
            elif of_parent:
                if name in self._source:
                    note = "an mdev's is its parent's: it counts only where the entry names it"
                    self._put(name, None, Rule.NONE, section=section, finding=Finding.IGNORED, message=note)
            elif name in self._rules.ignored and name not in fixed:
                note = "the policy ignores it"
                self._put(
                    name,
                    pattern,
                    Rule.POLICY,
                    section="§5 ignoredAttributes",
                    finding=Finding.IGNORED,
                    message=note,
                )
            else:
                self._put(name, pattern, rule, section=section, finding=Finding.NOT_REACHED)
        order = [*fixed, *others]
        self._rows = {name: self._rows[name] for name in order if name in self._rows}
