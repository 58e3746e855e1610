"""The verdict (semantics §4): one source against all entries of a target, and back where policy asks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import msgspec

from migcompat.engine.attributes import SOFTWARE_VERSION, missing_must
from migcompat.engine.declaration import Acceptance, Declaration, Kind, Presence, SelfSet
from migcompat.engine.matching import (
    STAGE_ALL,
    Matcher,
    Outcome,
    Rules,
    UnusableEntryError,
    compile_entry,
    rules,
)
from migcompat.engine.policy import DEFAULT_POLICY, Choice, Policy
from migcompat.engine.reasons import Reason
from migcompat.engine.templates import MAX_DEVICE_BINDINGS, Templates
from migcompat.engine.versions import rank

__all__ = ["Reason", "Recorder", "Verdict", "decide", "entry_problems"]


class Verdict(msgspec.Struct, frozen=True):
    """Whether a target accepts a source, and why.

    ``message`` names the attribute and both values, never a node or a device, so that equal causes
    aggregate. ``entry``: the index, malformed ones counted, of the entry that matched or got furthest; null
    when none was looked at. ``bindings`` and ``obligations`` are empty unless compatible; an
    ``int`` variable is bound to a number. ``rank``: smaller
    is better; null without versions (so always with ``versionScheme: exact``, whose versions have no order).
    """

    compatible: bool
    reason: Reason
    message: str
    entry: int | None = None
    bindings: dict[str, str | int] = {}
    obligations: dict[str, str] = {}
    rank: tuple[int, ...] | None = None


class Recorder(Protocol):
    """Looks on while a verdict is found (:mod:`.trace`)."""

    def skipped(self, problems: Mapping[int, str]) -> None:
        """Entries that are not usable, by index, and why."""

    def matcher(  # noqa: PLR0917
        self,
        index: int,
        source: Mapping[str, str],
        target: SelfSet | None,
        kind: Kind,
        ruled: Rules,
        unknown: tuple[str, ...],
    ) -> Matcher:
        """What to match the entry *index* with; *unknown*: attributes that cannot be compared."""

    def back(self) -> Recorder:
        """Who looks on at the way back."""


def decide(
    source: Declaration,
    target: Declaration,
    policy: Policy = DEFAULT_POLICY,
    recorder: Recorder | None = None,
) -> Verdict:
    """May the state of *source* migrate to *target* (semantics §3, §4)?

    Both are taken as they are: call :func:`migcompat.engine.policy.supply` before where a policy supplies
    anything. With ``requireReturnPath`` the way back is decided here too, under the same policy.
    """
    verdict = _one_way(source, target, policy, recorder)
    if not (verdict.compatible and policy.require_return_path):
        return verdict
    back = _one_way(target, source, policy, recorder.back() if recorder is not None else None)
    if back.compatible:
        return verdict
    return msgspec.structs.replace(
        verdict,
        compatible=False,
        reason=Reason.RETURN_PATH,
        message=f"on the way back, {back.message}",
        bindings={},
        obligations={},
    )


def entry_problems(accepts: Acceptance, policy: Policy = DEFAULT_POLICY) -> dict[int, str]:
    """Why entries are skipped, by index: what a reader is to be warned of (semantics §2)."""
    return _usable(accepts, policy)[1]


def _usable(accepts: Acceptance, policy: Policy) -> tuple[dict[int, Templates], dict[int, str]]:
    usable: dict[int, Templates] = {}
    problems: dict[int, str] = {}
    for index, entry in enumerate(accepts.entries):
        try:
            if entry.problem:
                raise UnusableEntryError(entry.problem)
            usable[index] = compile_entry(entry.attributes, policy.version_scheme)
        except UnusableEntryError as error:
            problems[index] = str(error)
    if sum(entry.count for entry in usable.values()) > MAX_DEVICE_BINDINGS:
        reason = f"the templates of all entries have more than {MAX_DEVICE_BINDINGS} bindings"
        problems |= dict.fromkeys(usable, reason)
        usable = {}
    return usable, problems


def _one_way(source: Declaration, target: Declaration, policy: Policy, recorder: Recorder | None) -> Verdict:
    own = _checked(target)
    ours = _checked(source)
    absent = _absence(ours, own, target.accepts)
    if absent:
        return _unknown(Reason.NOT_MIGRATABLE, absent, policy)
    if ours.presence is Presence.UNREADABLE:
        return _unknown(Reason.UNKNOWN, f"the source's self cannot be read: {ours.problem}", policy)
    ranked = _rank(ours, own, policy)
    if ours.presence is Presence.MALFORMED:
        return Verdict(False, Reason.MALFORMED_SELF, f"the source's self is malformed: {ours.problem}")
    ruled = rules(policy, (*source.accepts.sets, *target.accepts.sets), target.accepts.dynamic)
    verdict = _best(source, ours, own, target, policy, ruled, recorder=recorder)
    verdict = msgspec.structs.replace(verdict, rank=ranked)
    unread = _unread(own, target.accepts)
    if unread and not verdict.compatible:
        return _unknown(Reason.UNKNOWN, unread, policy, ranked)
    return verdict


def _best(  # noqa: PLR0917
    source: Declaration,
    ours: SelfSet,
    own: SelfSet,
    target: Declaration,
    policy: Policy,
    ruled: Rules,
    *,
    recorder: Recorder | None,
) -> Verdict:
    """The first entry that matches, or the first of those that got furthest."""
    usable, problems = _usable(target.accepts, policy)
    if recorder is not None:
        recorder.skipped(problems)
    if not usable:
        why = next(iter(problems.values()), target.accepts.problem) or "it accepts nothing"
        message = f"target has no usable compatible entry: {why}"
        return Verdict(False, Reason.NO_COMPATIBLE_ENTRY, message)
    itself = own if own.presence is Presence.PRESENT else None
    outcomes: list[tuple[int, Outcome]] = []
    untold: tuple[int, str] | None = None
    for index, entry in usable.items():
        unknown = target.accepts.entries[index].unknown
        compared = target.compared.get(index, ()) if source.silent else ()
        unsaid = tuple(name for name in compared if name not in ours.attributes.keys() | ruled.ignored)
        known = ruled.without((*unknown, *unsaid))
        if recorder is None:
            matcher = Matcher(ours.attributes, itself, target.kind, known)
        else:
            untellable = (*unknown, *unsaid)
            matcher = recorder.matcher(index, ours.attributes, itself, target.kind, known, untellable)
        outcome = matcher.match(entry)
        if (unknown or unsaid) and (outcome.stage == STAGE_ALL or outcome.reason is Reason.MALFORMED_SELF):
            # All that is known of it matches.
            who, name = ("target", unknown[0]) if unknown else ("source", unsaid[0])
            untold = untold or (index, f"{name}: the policy compares it, and the {who} does not show it")
            continue
        outcomes.append((index, outcome))
        if outcome.stage == STAGE_ALL:
            break
    if untold and not (outcomes and outcomes[-1][1].stage == STAGE_ALL):
        return msgspec.structs.replace(_unknown(Reason.UNKNOWN, untold[1], policy), entry=untold[0])
    index, outcome = max(outcomes, key=lambda pair: pair[1].stage)
    return Verdict(
        outcome.stage == STAGE_ALL,
        outcome.reason,
        outcome.message,
        index,
        outcome.bindings,
        outcome.obligations,
    )


def _checked(declaration: Declaration) -> SelfSet:
    """The self set, malformed when it lacks a must attribute, whoever made the declaration."""
    own = declaration.self
    if own.presence is Presence.PRESENT:
        lacking = missing_must(declaration.kind, own.attributes)
        if lacking:
            return SelfSet(Presence.MALFORMED, own.attributes, f"self lacks {lacking}")
    return own


def _absence(ours: SelfSet, own: SelfSet, accepts: Acceptance) -> str:
    """Why there is nothing to compare, or empty."""
    if ours.presence is Presence.ABSENT:
        return "source says nothing about itself"
    nothing = own.presence is Presence.ABSENT and accepts.presence is Presence.ABSENT
    return "target says nothing about itself" if nothing and not accepts.entries else ""


def _unread(own: SelfSet, accepts: Acceptance) -> str:
    """What of the target could not be read, or empty."""
    if accepts.presence is Presence.UNREADABLE:
        return f"what the target accepts cannot be read: {accepts.problem}"
    if own.presence is Presence.UNREADABLE:
        return f"the target's self cannot be read: {own.problem}"
    return ""


def _unknown(reason: Reason, message: str, policy: Policy, ranked: tuple[int, ...] | None = None) -> Verdict:
    """The answer where there is nothing to compare, which ``unknown: Allow`` turns into a compatible one.

    Semantics §5 says of that key that "today's drivers export no migration/ tree, so this is how most real
    hardware gets its answer": it therefore covers ``NotMigratable``, which is what absent trees give
    (§3, stage 1), as well as ``Unknown``, and both become compatible with reason ``Unknown``. It covers
    nothing that a device does say: ``NoCompatibleEntry`` and ``MalformedSelf`` stay refusals.
    """
    if policy.unknown is Choice.ALLOW:
        return Verdict(True, Reason.UNKNOWN, f"{message}; the policy allows it", rank=ranked)
    return Verdict(False, reason, message, rank=ranked)


def _rank(ours: SelfSet, own: SelfSet, policy: Policy) -> tuple[int, ...] | None:
    if ours.presence is not Presence.PRESENT or own.presence is not Presence.PRESENT:
        return None
    return rank(ours.attributes[SOFTWARE_VERSION], own.attributes[SOFTWARE_VERSION], policy.version_scheme)
