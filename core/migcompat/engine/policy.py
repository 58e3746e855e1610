"""Policies: what an admin says about comparing devices (semantics §5)."""

from __future__ import annotations

import enum

import msgspec


class VersionScheme(enum.StrEnum):
    """How ``software_version`` is compared (§3, rule V)."""

    SEMVER = "semver"
    EXACT = "exact"
    DOTTED = "dotted"


class Choice(enum.StrEnum):
    """Allow or Deny."""

    ALLOW = "Allow"
    DENY = "Deny"


class Policy(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, rename="camel"):
    """The keys of §5 that govern one comparison. Lists given replace the defaults."""

    version_scheme: VersionScheme = VersionScheme.SEMVER
    cross_type: Choice = Choice.ALLOW
    set_attributes: tuple[str, ...] = ("features", "pv_mode", "alg_set")
    ordered_attributes: tuple[str, ...] = ()
    ignored_attributes: tuple[str, ...] = ()
    dynamic_attributes: tuple[str, ...] = ("aggregator", "remote_url")
    off_values: dict[str, tuple[str, ...]] = {}
    require_return_path: bool = False
    unknown: Choice = Choice.DENY
    supplied_self: dict[str, str] = msgspec.field(default={}, name="self")
    supplied_compatible: tuple[dict[str, str], ...] = msgspec.field(default=(), name="compatible")


DEFAULT_POLICY = Policy()
