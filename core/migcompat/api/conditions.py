"""Keeping a list of conditions as the API conventions ask ("Typical status properties")."""

from __future__ import annotations

import msgspec

from migcompat.api.meta import Condition


def set_condition(existing: list[Condition], new: Condition, now: str) -> list[Condition]:
    """*existing* with *new* in place of the condition of its type (or added at the end).

    ``last_transition_time`` stays what it was unless the status changes; then it is *now* (RFC 3339).
    The lists given are not changed, so old and new can be compared to see whether a write is needed.
    """
    at = next((i for i, condition in enumerate(existing) if condition.type == new.type), None)
    old = None if at is None else existing[at]
    kept = old.last_transition_time if old is not None and old.status == new.status else None
    stamped = msgspec.structs.replace(new, last_transition_time=kept or now)
    if at is None:
        return [*existing, stamped]
    return [stamped if i == at else c for i, c in enumerate(existing) if i == at or c.type != new.type]
