"""The text of a denial. KubeVirt shows it as an event of the VMI, so it says what and why in one line."""

from __future__ import annotations

from collections import Counter

from migcompat.fleet.migrant import Migrant
from migcompat.fleet.survey import Survey

LIMIT = 1000
"""Characters; the text of an Event may have 1,024, and virt-controller puts some words before ours."""
_MESSAGE_LIMIT = 200


def _short(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def denial(migrant: Migrant, survey: Survey) -> str:
    """Why the VM cannot migrate now: how many nodes accept, and each cause with its count, largest first."""
    head = (
        f"migcompat: VM {migrant.namespace}/{migrant.name} cannot migrate now: "
        f"{survey.compatible} of {survey.total} nodes accept its device(s)"
    )
    if not survey.total:
        return _short(f"{head}: no other node offers {', '.join(sorted(migrant.asks))}", LIMIT)
    causes = [(len(group.nodes), group.reason, group.message) for group in survey.groups]
    if survey.compatible:
        head += ", none of them has them free"
        taken = Counter((fit.reason, fit.message) for fit in survey.fits.values() if fit.compatible)
        causes = [(count, *cause) for cause, count in taken.most_common()] + causes
    text = head + ":"
    for index, (count, reason, message) in enumerate(causes):
        part = f" {count} {reason} ({_short(message, _MESSAGE_LIMIT)})"
        left = len(causes) - index
        more = f" and {left} more cause(s)"
        if len(text) + len(part) + 1 + len(more) > LIMIT:
            return text.rstrip(",") + more
        text += part + ("," if left > 1 else "")
    return text
