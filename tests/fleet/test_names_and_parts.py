"""Names of labels, and the parts in which a VFIONode keeps what devices declare."""

from __future__ import annotations

import re

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from migcompat.api.names import LABEL_LIMIT, label_name
from migcompat.api.vfionode import declaration, split
from migcompat.engine.declaration import Declaration, Kind, Presence, SelfSet

from tests.support.fleets import declared, vfionode

LEGAL = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")


@given(st.text(max_size=200) | st.text("ab-._ ", min_size=30, max_size=80))
def test_any_text_gives_a_legal_name_of_a_label(text: str) -> None:
    name = label_name(text)
    assert LEGAL.fullmatch(name)
    assert len(name) <= LABEL_LIMIT


def test_legal_names_stay_and_others_stay_apart_and_readable() -> None:
    assert label_name("GRID_T4-1Q") == "GRID_T4-1Q"
    assert label_name("a" * LABEL_LIMIT) == "a" * LABEL_LIMIT
    one, other = (label_name(f"GRID T4{end}1Q") for end in " /")
    assert one != other
    assert one.startswith("GRID-T4-1Q-")
    assert label_name("a" * 37 + ". " + "b" * 40).startswith("a" * 37 + "-")


def test_devices_that_differ_in_dynamic_values_share_a_profile_and_keep_their_values() -> None:
    def device(value: str) -> Declaration:
        found = declared(extra={"aggregator": value, "quota": value})
        return msgspec.structs.replace(
            found, accepts=msgspec.structs.replace(found.accepts, entries=(), dynamic=("quota",))
        )

    both = {"one": device("1"), "two": device("2")}
    status = vfionode("n", both).status
    assert len(status.profiles) == 1
    assert [d.dynamic for d in status.devices] == [dict.fromkeys(("aggregator", "quota"), v) for v in "12"]
    assert [declaration(status, d) for d in status.devices] == list(both.values())


def test_what_is_wrong_with_a_self_is_published() -> None:
    broken = Declaration(Kind.MDEV, SelfSet(Presence.MALFORMED, problem="it holds NUL bytes"))
    assert split(broken)[1].self == broken.self
