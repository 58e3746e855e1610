"""What node selector terms mean (v1.NodeSelector), written down a second time for the tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def selected(terms: Sequence[Mapping[str, Any]] | None, name: str, labels: Mapping[str, str]) -> bool:
    """Whether a node is selected: any of the terms; no terms at all (None) select every node."""
    return True if terms is None else any(_term(term, name, labels) for term in terms)


def _term(term: Mapping[str, Any], name: str, labels: Mapping[str, str]) -> bool:
    expressions = term.get("matchExpressions") or []
    fields = term.get("matchFields") or []
    if not expressions and not fields:
        return False
    for field in fields:
        assert field["key"] == "metadata.name"
        assert field["operator"] in ("In", "NotIn")
        assert len(field["values"]) == 1, "the API server allows exactly one value"
    own = {"metadata.name": name}
    return all(_holds(r, labels) for r in expressions) and all(_holds(r, own) for r in fields)


def _holds(requirement: Mapping[str, Any], values: Mapping[str, str]) -> bool:
    key, operator = requirement["key"], requirement["operator"]
    wanted = requirement.get("values") or []
    match operator:
        case "In":
            return values.get(key) in wanted
        case "NotIn":
            return values.get(key) not in wanted
        case "Exists":
            return key in values
        case "DoesNotExist":
            return key not in values
        case "Gt":
            return key in values and int(values[key]) > int(wanted[0])
        case "Lt":
            return key in values and int(values[key]) < int(wanted[0])
    raise AssertionError(f"operator {operator}")
