"""Node affinity by name: what a target pod asks for already, and what we add (contract, chapter *Steering*).

Names, never labels: the kubelet re-checks a running pod's affinity when it restarts, and names never go.
Everything that is not ours is kept byte for byte, also fields this version does not know.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from migcompat_extender.jsonpatch import Operation, add

REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"
TERMS = "nodeSelectorTerms"
MAX_WEIGHT = 100

Fields = dict[str, msgspec.Raw]


class _Spec(msgspec.Struct):
    affinity: Fields | None = None


class _Pod(msgspec.Struct):
    spec: _Spec


def _by_name(operator: str, node: str) -> msgspec.Raw:
    """A requirement on the node's name. The API allows exactly one value in ``matchFields``."""
    return msgspec.Raw(msgspec.json.encode({"key": "metadata.name", "operator": operator, "values": [node]}))


def _list(raw: msgspec.Raw | None) -> list[msgspec.Raw]:
    return (msgspec.json.decode(raw, type=list[msgspec.Raw] | None) if raw is not None else None) or []


def _fields(raw: msgspec.Raw | None) -> Fields | None:
    return msgspec.json.decode(raw, type=Fields | None) if raw is not None else None


def _and(term: Fields, requirements: list[msgspec.Raw]) -> Fields:
    merged = [*_list(term.get("matchFields")), *requirements]
    return {**term, "matchFields": msgspec.Raw(msgspec.json.encode(merged))}


def _size(value: object) -> int:
    return len(msgspec.json.encode(value)) + 1


class NodeAffinity:
    """The node affinity of one pod. Raises msgspec.DecodeError when it is not what the API defines."""

    def __init__(self, pod: bytes | msgspec.Raw) -> None:
        affinity = msgspec.json.decode(pod, type=_Pod).spec.affinity
        self._has_affinity = affinity is not None
        own = _fields((affinity or {}).get("nodeAffinity"))
        self._has_own = own is not None
        self._own = own or {}
        self._required = _fields(self._own.get(REQUIRED))
        self.terms = (
            None
            if self._required is None
            else [msgspec.json.decode(term, type=Fields) for term in _list(self._required.get(TERMS))]
        )

    def require(
        self, accepting: Sequence[str], refusing: Sequence[str], max_names: int, max_bytes: int
    ) -> list[Operation]:
        """AND the nodes that take the pod now into its terms, best first.

        Terms are alternatives, so each term of the user is combined with each name; an empty term selects
        nothing and stays out. Where the bounds would cut *accepting* short, and *refusing*, all others that
        offer such devices, fit in, these are excluded instead. At least one name is written whatever the
        bounds.
        """
        given: list[Fields] = [{}] if self.terms is None else [term for term in self.terms if _selects(term)]
        if not given:
            return []
        one_name = sum(_size(_and(term, [_by_name("In", "")])) for term in given)
        used = fits = 0
        for name in accepting[:max_names]:
            used += one_name + len(given) * len(name)
            if used > max_bytes and fits:
                break
            fits += 1
        terms = [_and(term, [_by_name("In", name)]) for name in accepting[:fits] for term in given]
        if fits < len(accepting) and 0 < len(refusing) <= max_names:
            excluding = [_and(term, [_by_name("NotIn", name) for name in refusing]) for term in given]
            if _size(excluding) <= max_bytes:
                terms = excluding
        required = {**(self._required or {}), TERMS: msgspec.Raw(msgspec.json.encode(terms))}
        return [self._set(REQUIRED, required)]

    def prefer(self, accepting: Sequence[Sequence[str]], max_names: int) -> list[Operation]:
        """Add preferences for the accepting nodes, given in groups of equal rank, best first."""
        ours = [
            {"weight": max(1, MAX_WEIGHT - place), "preference": {"matchFields": [_by_name("In", name)]}}
            for place, group in enumerate(accepting)
            for name in group
        ][:max_names]
        if not ours:
            return []
        return [self._set(PREFERRED, [*_list(self._own.get(PREFERRED)), *ours])]

    def _set(self, key: str, value: object) -> Operation:
        if self._has_own:
            return add(value, "spec", "affinity", "nodeAffinity", key)
        if self._has_affinity:
            return add({key: value}, "spec", "affinity", "nodeAffinity")
        return add({"nodeAffinity": {key: value}}, "spec", "affinity")


def _selects(term: Fields) -> bool:
    """A term without requirements matches no node (``v1.NodeSelectorTerm``)."""
    return bool(_list(term.get("matchExpressions")) or _list(term.get("matchFields")))
