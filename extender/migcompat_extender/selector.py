"""Which nodes a pod's own requirements leave it (``v1.NodeSelector`` and ``nodeSelector``).

Only for the order of names where not all can be written: kube-scheduler decides, on labels as they are then.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import msgspec

_INTEGER = re.compile(r"[+-]?[0-9]{1,19}")


class Requirement(msgspec.Struct):
    """``v1.NodeSelectorRequirement``."""

    key: str
    operator: str
    values: list[str] | None = None

    def holds(self, found: Mapping[str, str]) -> bool:
        """Whether *found* (labels, or fields) meets it; an operator that is not known is never met."""
        value, wanted = found.get(self.key), self.values or ()
        match self.operator:
            case "In":
                return value in wanted
            case "NotIn":
                return value not in wanted
            case "Exists":
                return value is not None
            case "DoesNotExist":
                return value is None
            case "Gt" | "Lt" if value is not None and len(wanted) == 1:
                if not _INTEGER.fullmatch(value) or not _INTEGER.fullmatch(wanted[0]):
                    return False
                left, right = int(value), int(wanted[0])
                return left > right if self.operator == "Gt" else left < right
        return False


class Term(msgspec.Struct, rename="camel"):
    """``v1.NodeSelectorTerm``; one without requirements selects nothing."""

    match_expressions: list[Requirement] | None = None
    match_fields: list[Requirement] | None = None

    def selects(self, name: str, labels: Mapping[str, str]) -> bool:
        """Whether all requirements hold for the node."""
        fields = {"metadata.name": name}
        held = [r.holds(labels) for r in self.match_expressions or ()]
        held += [r.holds(fields) for r in self.match_fields or ()]
        return bool(held) and all(held)


class Selector:
    """A pod's own requirements. *terms*: None where it has no required node affinity."""

    def __init__(self, node_selector: Mapping[str, str], terms: Sequence[Term] | None) -> None:
        self._labels = node_selector
        self._terms = terms
        self.size = len(node_selector) + sum(
            len(term.match_expressions or ()) + len(term.match_fields or ()) for term in terms or ()
        )
        """Requirements in all, which is what one question costs."""

    def selects(self, name: str, labels: Mapping[str, str]) -> bool:
        """Whether the pod may go to the node as far as these requirements matter."""
        if any(labels.get(key) != value for key, value in self._labels.items()):
            return False
        return self._terms is None or any(term.selects(name, labels) for term in self._terms)
