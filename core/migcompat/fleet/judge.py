"""Verdicts, evaluated once per pair of contents.

Keys are digests of the contents that a verdict depends on, so an entry can never be stale: what changes has
another key.
"""

from __future__ import annotations

import msgspec

from migcompat.api.names import digest
from migcompat.engine.declaration import Declaration
from migcompat.engine.policy import Choice, Policy, VersionScheme
from migcompat.engine.verdict import Verdict, decide
from migcompat.fleet.migrant import Migrant

_LIMIT = 200_000


class Overlay(msgspec.Struct, frozen=True):
    """What the VM's own annotations, or a question's own keys, change in the policy that governs a target."""

    require_return_path: bool = False
    deny_cross_type: bool = False
    allow_cross_type: bool = False
    version_scheme: VersionScheme | None = None

    @classmethod
    def of(cls, migrant: Migrant) -> Overlay:
        """The overlay of a VM."""
        return cls(
            migrant.require_return_path,
            migrant.deny_cross_type,
            migrant.allow_cross_type,
            migrant.version_scheme,
        )

    def apply(self, policy: Policy) -> Policy:
        """*policy* as it governs this VM."""
        cross = policy.cross_type
        if self.deny_cross_type:
            cross = Choice.DENY
        elif self.allow_cross_type:
            cross = Choice.ALLOW
        back = policy.require_return_path or self.require_return_path
        scheme = self.version_scheme or policy.version_scheme
        if (cross, back, scheme) == (policy.cross_type, policy.require_return_path, policy.version_scheme):
            return policy
        return msgspec.structs.replace(
            policy, cross_type=cross, require_return_path=back, version_scheme=scheme
        )


class Judge:
    """Remembers verdicts by content."""

    def __init__(self) -> None:
        self._verdicts: dict[tuple[str, str, str, Overlay], Verdict] = {}

    def verdict(
        self,
        source: tuple[str, Declaration],
        target: tuple[str, Declaration],
        policy: tuple[str, Policy],
        overlay: Overlay,
    ) -> Verdict:
        """The verdict for a source, a target and the target's policy, each given as (key, content)."""
        key = (source[0], target[0], policy[0], overlay)
        found = self._verdicts.get(key)
        if found is None:
            if len(self._verdicts) >= _LIMIT:
                self._verdicts.clear()
            found = decide(source[1], target[1], overlay.apply(policy[1]))
            self._verdicts[key] = found
        return found


def content_key(declaration: Declaration) -> str:
    """The key of a declaration's content; where it was read from does not matter."""
    said = declaration.kind, declaration.self, declaration.accepts
    return digest((*said, declaration.silent, sorted(declaration.compared.items())))
