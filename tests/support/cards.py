"""A kind of device that no kernel has, on a bus of its own: what it takes to add one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from migcompat.engine.declaration import Declaration, Kind
from migcompat.sysfs.found import Finds, FoundDevice
from migcompat.sysfs.provider import Bus, Names, Provider
from migcompat.sysfs.tree import Tree

from tests.support.fabricate import write


class Card(NamedTuple):
    """A candidate."""

    tree: Tree
    entry: str


def _candidates(tree: Tree, finds: Finds, only: Names | None) -> Iterator[Card]:
    names = (name for name in tree.names(CARDS.path) if only is None or name in only)
    yield from (Card(tree, f"{CARDS.path}/{name}") for name in names)


def _read(card: Card) -> FoundDevice | None:
    """A card has a slot, or there is nothing to hand out."""
    notes: list[str] = []
    slot = card.tree.value(f"{card.entry}/slot", notes)
    if notes:
        raise ValueError("; ".join(notes))
    if not slot:
        return None
    return FoundDevice(
        id=card.entry.rpartition("/")[2],
        kind=Kind.PHYSICAL,
        path=card.entry,
        declaration=Declaration(Kind.PHYSICAL),
        driver="vfio-card",
        type=slot,
        iommu_group="7",
    )


CARDS = Bus("bus/cards/devices", _candidates)
PROVIDER = Provider(CARDS, lambda card: not card.entry.endswith("host"), _read)


def add_card(sys: Path, name: str, slot: str) -> None:
    """A card of that name; *slot* stands for its type."""
    directory = sys / CARDS.path / name
    directory.mkdir(parents=True)
    write(directory, {"slot": slot})
