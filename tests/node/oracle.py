"""Mediated devices of one pool, and by hand what may move to what: nothing of the product is asked.

Only what these devices use of semantics §3: versions (rule V without lists), one dynamic attribute, several
entries. Assignments are found by trying all.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.scenario import nodes
from tests.support.sysfs import set_migration

AGGREGATOR = "aggregator"
"""The dynamic attribute: becomes an obligation where an entry does not name it."""
UNTOUCHED = "16"
"""What it reads on a device that says nothing of it."""
_VERSIONS = ("1.0.0", "1.1.0", "1.2.0", "2.0.0")


@dataclass(frozen=True)
class Entry:
    """One entry of ``compatible``; `aggregator`: what it demands, None if it does not name it."""

    version: str
    aggregator: str | None = None


@dataclass(frozen=True)
class Mdev:
    """What a device says; `aggregator`: its value, None if its ``self`` does not name it."""

    version: str
    aggregator: str | None
    entries: tuple[Entry, ...]

    @property
    def own(self) -> dict[str, str]:
        """Its ``self``."""
        return _attributes(self.version, self.aggregator)

    @property
    def patterns(self) -> list[dict[str, str]]:
        """Its ``compatible`` entries."""
        return [_attributes(entry.version, entry.aggregator) for entry in self.entries]

    @property
    def at_first(self) -> str:
        """What the attribute `AGGREGATOR` of the device reads before anybody has written to it."""
        return self.aggregator or UNTOUCHED


UNIQUE = Mdev("9.0.0", None, (Entry("9.0.0"),))
"""What no :func:`any_mdev` accepts."""


def any_mdev(chance: random.Random) -> Mdev:
    """A device that mostly accepts its own version and older ones of the same major one."""
    version = chance.choice(_VERSIONS)
    accepted = version if chance.random() < 0.85 else chance.choice(_VERSIONS)
    entries = [Entry(accepted, "2" if chance.random() < 0.15 else None)]
    if chance.random() < 0.25:
        entries.append(Entry(chance.choice(_VERSIONS)))
    return Mdev(version, chance.choice(("1", "2", "4", None)), tuple(entries))


def place(device: Path, mdev: Mdev) -> None:
    """The device of that sysfs directory is `mdev` from now on."""
    (device / AGGREGATOR).write_text(f"{mdev.at_first}\n")
    set_migration(device, mdev.own, mdev.patterns)


def accepting(target: Mdev, source: Mdev) -> list[Entry]:
    """The entries of `target` that the state of `source` matches; none: `target` refuses it."""
    return [
        entry
        for entry in target.entries
        if _passes(source.version, entry.version) and entry.aggregator in (None, source.aggregator)
    ]


def assignments(sources: Sequence[Mdev], targets: Sequence[Mdev]) -> Iterator[tuple[int, ...]]:
    """Every way to give each of `sources` a device of its own (an index of `targets`) that accepts it."""
    for chosen in itertools.permutations(range(len(targets)), len(sources)):
        if all(accepting(targets[t], source) for t, source in zip(chosen, sources, strict=True)):
            yield chosen


def explains(sources: Sequence[Mdev], targets: Sequence[Mdev], reads: Sequence[str]) -> bool:
    """Whether `targets` may have taken over from `sources`, if `AGGREGATOR` now `reads` so on each."""
    return any(
        all(reads[t] in _written(targets[t], source) for t, source in zip(chosen, sources, strict=True))
        for chosen in assignments(sources, targets)
    )


def _written(target: Mdev, source: Mdev) -> set[str]:
    """What the attribute may read once `target` was handed over to what comes from `source`."""
    obliges = {e.aggregator is None and source.aggregator is not None for e in accepting(target, source)}
    return {source.aggregator or "" if obliged else target.at_first for obliged in obliges}


def _passes(source: str, accepted: str) -> bool:
    (major, minor, _), (its_major, its_minor, _) = (
        [int(part) for part in version.split(".")] for version in (source, accepted)
    )
    return major == its_major and minor <= its_minor


def _attributes(version: str, aggregator: str | None) -> dict[str, str]:
    return nodes.attributes(version) | ({} if aggregator is None else {AGGREGATOR: aggregator})
