"""Node affinity by name: what a target pod asks for already, and what we add (contract, chapter *Steering*).

Names, never labels: the kubelet re-checks a running pod's affinity when it restarts, and names never go.
Everything that is not ours is kept byte for byte, also fields this version does not know.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec

from migcompat_extender.jsonpatch import Operation, add
from migcompat_extender.selector import Selector, Term

REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"
TERMS = "nodeSelectorTerms"
MAX_WEIGHT = 100
CHECKS = 100_000
"""Requirements that are looked at to put names in order (0.2 µs each): a pod's own may be absurdly many."""

Fields = dict[str, msgspec.Raw]
Labels = Callable[[str], Mapping[str, str]]
"""The labels of the node of a name."""


class _Spec(msgspec.Struct, rename="camel"):
    affinity: Fields | None = None
    node_selector: dict[str, str] | None = None


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
        spec = msgspec.json.decode(pod, type=_Pod).spec
        affinity = spec.affinity
        self._node_selector = spec.node_selector or {}
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
        self,
        accepting: Sequence[str],
        refusing: Sequence[str],
        max_names: int,
        max_bytes: int,
        labels: Labels,
    ) -> list[Operation]:
        """AND the nodes that take the pod now, *accepting*, best first, into its terms.

        *refusing*: all others on which kube-scheduler may count such devices. They are excluded where that
        takes fewer names, or where not all of *accepting* fit into the bounds. Where neither list fits,
        *accepting* is cut: nodes that the pod's own requirements rule out go first, then the worst. One
        name at least is written whatever the bounds.

        Terms are alternatives, so each term of the user is combined with each name; an empty term selects
        nothing and stays out.
        """
        given: list[Fields] = [{}] if self.terms is None else [term for term in self.terms if _selects(term)]
        if not given:
            return []
        fits = _fitting(accepting, given, max_names, max_bytes)
        cut = fits < len(accepting)
        if (cut or len(refusing) < len(accepting)) and _may_exclude(refusing, given, max_names, max_bytes):
            terms = [_and(term, [_by_name("NotIn", name) for name in refusing]) for term in given]
        else:
            named = list(self._own_first(accepting, labels)) if cut else accepting
            fits = _fitting(named, given, max_names, max_bytes)
            terms = [_and(term, [_by_name("In", name)]) for name in named[:fits] for term in given]
        required = {**(self._required or {}), TERMS: msgspec.Raw(msgspec.json.encode(terms))}
        return [self._set(REQUIRED, required)]

    def _own_first(self, nodes: Sequence[str], labels: Labels) -> Iterator[str]:
        """*nodes* in their order, but those that the pod's own requirements rule out after the others."""
        terms = msgspec.json.decode(msgspec.json.encode(self.terms), type=list[Term] | None)
        selector = Selector(self._node_selector, terms)
        checked = nodes[: CHECKS // max(1, selector.size)]
        chosen = {node for node in checked if selector.selects(node, labels(node))}
        yield from (node for node in nodes if node in chosen)
        yield from (node for node in nodes if node not in chosen)

    def prefer(self, accepting: Sequence[Sequence[str]], max_names: int, max_bytes: int) -> list[Operation]:
        """Add preferences for the accepting nodes, given in groups of equal rank, best first."""
        ranked = [(place, name) for place, group in enumerate(accepting) for name in group][:max_names]
        ours = [
            {"weight": max(1, MAX_WEIGHT - place), "preference": {"matchFields": [_by_name("In", name)]}}
            for place, name in ranked
        ]
        used = list(itertools.accumulate(map(_size, ours)))
        ours = ours[: bisect.bisect_right(used, max_bytes)]
        if not ours:
            return []
        return [self._set(PREFERRED, [*_list(self._own.get(PREFERRED)), *ours])]

    def _set(self, key: str, value: object) -> Operation:
        if self._has_own:
            return add(value, "spec", "affinity", "nodeAffinity", key)
        if self._has_affinity:
            return add({key: value}, "spec", "affinity", "nodeAffinity")
        return add({"nodeAffinity": {key: value}}, "spec", "affinity")


def _fitting(names: Sequence[str], given: Sequence[Fields], max_names: int, max_bytes: int) -> int:
    """How many of *names*, each combined with each of *given*, the bounds allow; one at least."""
    one_name = sum(_size(_and(term, [_by_name("In", "")])) for term in given)
    used = fits = 0
    for name in names[:max_names]:
        used += one_name + len(given) * len(name)
        if used > max_bytes and fits:
            break
        fits += 1
    return fits


def _may_exclude(names: Sequence[str], given: Sequence[Fields], max_names: int, max_bytes: int) -> bool:
    """Whether *names*, all of them in each of *given*, keep to the bounds (told without making the terms)."""
    if not 0 < len(names) <= max_names:
        return False
    once = sum(len(_by_name("NotIn", name)) + 1 for name in names)
    return sum(_size(_and(term, [])) for term in given) + len(given) * once <= max_bytes


def _selects(term: Fields) -> bool:
    """A term without requirements matches no node (``v1.NodeSelectorTerm``)."""
    return bool(_list(term.get("matchExpressions")) or _list(term.get("matchFields")))
