"""The cases of ``vectors.yaml``, written to trees in every layout each can be written in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import yaml
from migcompat.engine.policy import Policy, parse_policy

from tests.engine.trees import Content


class Case(msgspec.Struct, frozen=True):
    """One case: two contents, the policy, and what is expected."""

    id: str
    source: Content
    target: Content
    policy: dict[str, Any]
    expect: dict[str, Any]
    any_version_reason: bool

    def parsed_policy(self) -> Policy:
        """The policy as the engine has it."""
        return parse_policy(self.policy)

    def check(self, verdict: dict[str, Any]) -> None:
        """Compare the plain *verdict* with what is expected."""
        expected = dict(self.expect)
        if self.any_version_reason and not expected["compatible"]:
            assert verdict["reason"].startswith("Version")
            expected["reason"] = verdict["reason"]
        assert {key: verdict[key] for key in expected} == expected, verdict


def cases() -> list[Case]:
    """All cases."""
    text = Path(__file__).with_name("vectors.yaml").read_text(encoding="utf-8")
    return [_case(raw) for raw in yaml.safe_load(text)]


def _case(raw: dict[str, Any]) -> Case:
    how = raw.get("raw", {})
    source = Content(
        None if how.get("source_absent") else raw["source"]["self"],
        tuple(how.get("source_compatible", ())),
        raw["kind"] == "mdev",
    )
    target = Content(
        None if how.get("target_absent") else raw["target"]["self"],
        () if how.get("target_absent") else tuple(raw["target"]["compatible"]),
        raw["target_kind"] == "mdev",
    )
    expect, policy = raw["expect"], raw.get("policy", {})
    return Case(raw["id"], source, target, policy, expect, how.get("any_version_reason", False))
