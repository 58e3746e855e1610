"""Node affinity by name: the pod may go where it could before *and* a node accepts, nowhere else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from migcompat_extender.affinity import CHECKS, REQUIRED, NodeAffinity
from migcompat_extender.jsonpatch import pointer, write

from tests.extender.selector import selected
from tests.extender.world import by_name, patch_of

NODES = {
    f"n{i}": {"zone": f"z{i % 3}", "size": str(i), **({"gpu": "yes"} if i % 2 else {})} for i in range(8)
}
NODE = st.sampled_from(sorted(NODES))
EXPRESSION = st.one_of(
    st.builds(
        lambda op, values: {"key": "zone", "operator": op, "values": values},
        st.sampled_from(["In", "NotIn"]),
        st.lists(st.sampled_from(["z0", "z1", "z2"]), min_size=1, max_size=2, unique=True),
    ),
    st.builds(lambda op: {"key": "gpu", "operator": op}, st.sampled_from(["Exists", "DoesNotExist"])),
    st.builds(
        lambda op, size: {"key": "size", "operator": op, "values": [str(size)]},
        st.sampled_from(["Gt", "Lt"]),
        st.integers(0, 8),
    ),
)
FIELD = st.builds(by_name, st.sampled_from(["In", "NotIn"]), NODE)
TERM = st.fixed_dictionaries(
    {},
    optional={
        "matchExpressions": st.one_of(st.none(), st.lists(EXPRESSION, max_size=2)),
        "matchFields": st.one_of(st.none(), st.lists(FIELD, max_size=2)),
    },
)
REQUIREMENT = st.one_of(
    st.none(),
    st.just({}),
    st.fixed_dictionaries({"nodeSelectorTerms": st.one_of(st.none(), st.lists(TERM, max_size=3))}),
)
OTHER = [{"weight": 1, "preference": {"matchExpressions": [{"key": "gpu", "operator": "Exists"}]}}]
PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"


@st.composite
def pods(draw: st.DrawFn) -> dict[str, Any]:
    """A pod with any node affinity, and parts of it absent or null."""
    own = draw(
        st.one_of(
            st.none(),
            st.fixed_dictionaries({}, optional={REQUIRED: REQUIREMENT, PREFERRED: st.just(OTHER)}),
        )
    )
    affinity = draw(
        st.one_of(st.none(), st.just({"podAntiAffinity": {"x": 1}}), st.just({"nodeAffinity": own}))
    )
    spec = draw(st.sampled_from([{"containers": []}, {"containers": [], "affinity": affinity}]))
    return {"metadata": {"name": "p"}, "spec": spec}


def terms_of(pod: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The pod's required terms as the API server sees them: None when it requires nothing."""
    required = ((pod["spec"].get("affinity") or {}).get("nodeAffinity") or {}).get(REQUIRED)
    return None if required is None else required.get("nodeSelectorTerms") or []


def required(
    pod: Mapping[str, Any], accepting: Sequence[str], refusing: Sequence[str], names: int, size: int
) -> dict[str, Any]:
    """The pod with its patch applied."""
    affinity = NodeAffinity(json.dumps(pod).encode())
    operations = affinity.require(accepting, refusing, names, size, lambda name: NODES.get(name, {}))
    return patch_of(pod, json.loads(write(operations)))


@given(pods(), st.sets(NODE, min_size=1), st.integers(1, 8), st.sampled_from([1, 300, 1000, 100_000]))
@example({"spec": {"affinity": {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": [{}]}}}}}, {"n1"}, 8, 1)
@settings(max_examples=600)
def test_patched_affinity_is_the_conjunction(
    pod: dict[str, Any], accepting: set[str], names: int, size: int
) -> None:
    order = sorted(accepting, reverse=True)
    after = required(pod, order, sorted(NODES.keys() - accepting), names, size)
    before = {n for n, labels in NODES.items() if selected(terms_of(pod), n, labels)}
    now = {n for n, labels in NODES.items() if selected(terms_of(after), n, labels)}
    assert now <= before & accepting, "never on a node that refuses or that the user ruled out"
    if names >= len(NODES) and size == 100_000:
        assert now == before & accepting
    assert bool(now) == bool(before & accepting), "not all is cut off that the pod itself allows"
    own, patched = (p["spec"].get("affinity") or {} for p in (pod, after))
    assert patched.get("podAntiAffinity") == own.get("podAntiAffinity")
    own, patched = (affinity.get("nodeAffinity") or {} for affinity in (own, patched))
    assert patched.get(PREFERRED) == own.get(PREFERRED)


def test_names_are_bounded_and_the_best_come_first() -> None:
    names = [f"n{i:03}" for i in range(500)]
    after = required({"spec": {}}, names, [f"r{i}" for i in range(101)], 100, 100_000)
    assert terms_of(after) == [{"matchFields": [by_name("In", name)]} for name in names[:100]]


def test_bytes_are_bounded() -> None:
    long_names = [f"n{i}.{'x' * 200}" for i in range(100)]
    after = required({"spec": {}}, long_names, [], 100, 8192)
    assert 1 < len(terms_of(after) or []) < 100
    assert len(json.dumps(terms_of(after), separators=(",", ":"))) <= 8192


def test_refusing_names_where_accepting_ones_do_not_fit() -> None:
    names = [f"n{i:03}" for i in range(500)]
    user = [
        {"matchExpressions": [{"key": "a", "operator": "Exists"}]},
        {"matchFields": [by_name("NotIn", "z")]},
    ]
    pod = {"spec": {"affinity": {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": user}}}}}
    after = required(pod, names, ["r1", "r2"], 100, 100_000)
    shut_out = [by_name("NotIn", "r1"), by_name("NotIn", "r2")]
    assert terms_of(after) == [
        {**user[0], "matchFields": shut_out},
        {"matchFields": [by_name("NotIn", "z"), *shut_out]},
    ]


def test_the_shorter_list_is_written_also_where_both_fit() -> None:
    after = required({"spec": {}}, ["n1", "n2", "n3"], ["r1", "r2"], 100, 100_000)
    assert terms_of(after) == [{"matchFields": [by_name("NotIn", "r1"), by_name("NotIn", "r2")]}]
    after = required({"spec": {}}, ["n1", "n2"], ["r1", "r2"], 100, 100_000)
    assert terms_of(after) == [{"matchFields": [by_name("In", name)]} for name in ("n1", "n2")]


@pytest.mark.parametrize("count", [1, 3, 20_000])
def test_a_pods_own_terms_however_many_cost_little(count: int) -> None:
    """20,000 terms are what a pod of 1.5 MB holds; combined with 5,000 names they would be 100 million."""
    user = [{"matchExpressions": [{"key": f"k{i}", "operator": "DoesNotExist"}]} for i in range(count)]
    pod = {"spec": {"affinity": {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": user}}}}}
    asked: list[str] = []

    def labels(name: str) -> dict[str, str]:
        asked.append(name)
        return {"k0": ""} if name == "n0" else {}

    names, others = [f"n{i}" for i in range(5000)], [f"r{i}" for i in range(100)]
    affinity = NodeAffinity(json.dumps(pod).encode())
    after = patch_of(pod, json.loads(write(affinity.require(names, [*others, "r"], 100, 64 * 1024, labels))))
    assert len(asked) == min(5000, CHECKS // count)
    written = [term["matchFields"][0]["values"][0] for term in terms_of(after) or ()]
    first = 1 if count == 1 else 0
    assert list(dict.fromkeys(written)) == names[first : first + len(written) // count]
    assert len(after["spec"]["affinity"]["nodeAffinity"][REQUIRED]["nodeSelectorTerms"]) >= count


def test_refusing_names_are_bounded_in_bytes_too() -> None:
    names, long_names = [f"n{i:03}" for i in range(500)], [f"r{i}.{'x' * 200}" for i in range(90)]
    after = required({"spec": {}}, names, long_names, 100, 12_000)
    assert terms_of(after) == [{"matchFields": [by_name("In", name)]} for name in names[:100]]


def test_a_requirement_that_selects_nothing_is_left_as_it_is() -> None:
    """An empty list of terms, unlike an empty term, is not valid: the API server would refuse the pod."""
    pod: dict[str, Any] = {"spec": {"affinity": {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": [{}]}}}}}
    assert required(pod, ["n1"], [], 100, 100_000) == pod


def test_fields_of_later_versions_are_kept() -> None:
    term = {"matchExpressions": [{"key": "a", "operator": "Exists", "new": 1}], "new": {"x": [1.50]}}
    pod = {"spec": {"affinity": {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": [term], "new": True}}}}}
    after = required(pod, ["n1"], [], 100, 100_000)
    assert terms_of(after) == [{**term, "matchFields": [by_name("In", "n1")]}]
    assert after["spec"]["affinity"]["nodeAffinity"][REQUIRED]["new"] is True


def test_preferences_are_added_by_rank() -> None:
    pod = {"spec": {"affinity": {"nodeAffinity": {PREFERRED: OTHER}}}}
    operations = NodeAffinity(json.dumps(pod).encode()).prefer([["a", "b"], ["c"], ["d"]], 3, 1000)
    after = patch_of(pod, json.loads(write(operations)))
    assert after["spec"]["affinity"]["nodeAffinity"][PREFERRED] == [
        *OTHER,
        {"weight": 100, "preference": {"matchFields": [by_name("In", "a")]}},
        {"weight": 100, "preference": {"matchFields": [by_name("In", "b")]}},
        {"weight": 99, "preference": {"matchFields": [by_name("In", "c")]}},
    ]
    assert NodeAffinity(json.dumps(pod).encode()).prefer([], 3, 1000) == []


def test_preferences_are_bounded_in_bytes_too() -> None:
    (operation,) = NodeAffinity(b'{"spec": {}}').prefer([["n" * 200] * 9], 100, 1000)
    added = patch_of({"spec": {}}, json.loads(write([operation])))["spec"]["affinity"]["nodeAffinity"]
    assert len(added[PREFERRED]) == 3


def test_weights_of_preferences_stay_in_the_range_that_the_api_allows() -> None:
    operations = NodeAffinity(b'{"spec": {}}').prefer([[f"n{i}"] for i in range(120)], 1000, 100_000)
    after = patch_of({"spec": {}}, json.loads(write(operations)))
    weights = [p["weight"] for p in after["spec"]["affinity"]["nodeAffinity"][PREFERRED]]
    assert weights == [*range(100, 0, -1), *[1] * 20]


def test_pointers_escape() -> None:
    assert pointer("metadata", "annotations", "a~b/c~1") == "/metadata/annotations/a~0b~1c~01"
