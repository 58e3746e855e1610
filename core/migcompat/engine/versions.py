"""Rule V: does a software version accept another (semantics §3)."""

from __future__ import annotations

import re
from functools import lru_cache

import msgspec

from migcompat.engine.policy import VersionScheme
from migcompat.engine.reasons import Reason

Version = tuple[int, ...]
"""A version's components, padded with zeros to the number of them that the scheme allows."""

_SEMVER = re.compile(r"(?:0|[1-9][0-9]*)(?:\.(?:0|[1-9][0-9]*)){1,2}")
_DOTTED = re.compile(r"[0-9]+(?:\.[0-9]+){0,7}")
_SEMVER_WIDTH = 3
_DOTTED_WIDTH = 8
_COMPARED = {VersionScheme.SEMVER: 2, VersionScheme.DOTTED: _DOTTED_WIDTH}
"""How many components a plain version compares: the bugfix never rejects, a driver's own do."""

_REMEMBERED = 1024


class BackwardsRangeError(ValueError):
    """A range whose end lies before its start: the entry that holds it is malformed (rule V)."""


class _Range(msgspec.Struct, frozen=True):
    """From ``low`` to ``high``, both included; ``high`` None: to before the next first component."""

    low: Version
    high: Version | None

    def holds(self, version: Version) -> bool:
        if self.high is None:
            return self.low <= version and version[0] == self.low[0]
        return self.low <= version <= self.high

    def holds_major(self, major: int) -> bool:
        return self.low[0] <= major <= (self.high or self.low)[0]


class _Accepted(msgspec.Struct, frozen=True):
    """What a value accepts: one plain version, or explicit items; neither when it is garbled."""

    plain: Version | None = None
    items: tuple[_Range, ...] = ()


def refusal(source: str, accepted: str, scheme: VersionScheme) -> Reason | None:
    """Why *source* does not pass against an entry's value *accepted*, or None when it passes."""
    if scheme is VersionScheme.EXACT:
        return None if source == accepted else Reason.VERSION_MAJOR_MISMATCH
    version = parse(source, scheme)
    found = _accepted(accepted, scheme)
    if version is None or (found.plain is None and not found.items):
        return Reason.VERSION_MALFORMED
    if found.plain is not None:
        if version[0] != found.plain[0]:
            return Reason.VERSION_MAJOR_MISMATCH
        compared = _COMPARED[scheme]
        return None if version[:compared] <= found.plain[:compared] else Reason.VERSION_MINOR_OLDER
    if any(item.holds(version) for item in found.items):
        return None
    if any(item.holds_major(version[0]) for item in found.items):
        return Reason.VERSION_MINOR_OLDER
    return Reason.VERSION_MAJOR_MISMATCH


def refusal_by_own(source: str, own: str, scheme: VersionScheme) -> Reason | None:
    """Like :func:`refusal` against the target's own version, which is one version and never a list."""
    if scheme is not VersionScheme.EXACT and parse(own, scheme) is None:
        return Reason.VERSION_MALFORMED
    return refusal(source, own, scheme)


def check_entry(text: str, scheme: VersionScheme) -> None:
    """Raise BackwardsRangeError when an entry's value *text* holds a range written backwards."""
    if scheme is not VersionScheme.EXACT:
        _accepted(text, scheme)


def rank(source: str, target: str, scheme: VersionScheme) -> tuple[int, ...] | None:
    """How far the *target*'s own version is from the *source*'s (semantics §4); smaller is better.

    0 when the target's is not older, else 1; then the distances component by component, for ``dotted`` as
    many as the longer of the two has. None when either is no version of *scheme*.
    """
    ours, theirs = parse(source, scheme), parse(target, scheme)
    if ours is None or theirs is None:
        return None
    width = _SEMVER_WIDTH if scheme is VersionScheme.SEMVER else 1 + max(source.count("."), target.count("."))
    distances = (abs(a - b) for a, b in zip(ours[:width], theirs[:width], strict=True))
    return (0 if theirs >= ours else 1, *distances)


@lru_cache(maxsize=_REMEMBERED)
def parse(text: str, scheme: VersionScheme) -> Version | None:
    """The components of *text*, or None when it is no version of *scheme* (``exact`` has none)."""
    if scheme is VersionScheme.EXACT:
        return None
    semver = scheme is VersionScheme.SEMVER
    if not (_SEMVER if semver else _DOTTED).fullmatch(text):
        return None
    try:
        parts = tuple(int(part) for part in text.split("."))
    except ValueError:  # more digits than Python reads, and more than a value of 4096 bytes holds
        return None
    return parts + (0,) * ((_SEMVER_WIDTH if semver else _DOTTED_WIDTH) - len(parts))


@lru_cache(maxsize=_REMEMBERED)
def _accepted(text: str, scheme: VersionScheme) -> _Accepted:
    """Parse an entry's value. Raises BackwardsRangeError."""
    pieces = [piece.strip(" ") for piece in text.split(",")]
    if len(pieces) == 1 and (plain := parse(pieces[0], scheme)) is not None:
        return _Accepted(plain)
    items = []
    garbled = False
    for piece in pieces:
        first, dash, last = piece.partition("-")
        low = parse(first, scheme)
        high = parse(last, scheme) if last else None
        if low is None or (last and high is None):
            garbled = True
        elif not dash:
            items.append(_Range(low, low))
        elif high is not None and high < low:
            raise BackwardsRangeError(f"the version range {piece} is written backwards")
        else:
            items.append(_Range(low, high))
    return _Accepted() if garbled else _Accepted(items=tuple(items))
