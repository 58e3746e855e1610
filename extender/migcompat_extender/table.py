"""The verdicts for one VM on every node it is asked about, evaluated once per state of the cluster."""

from __future__ import annotations

import functools

import msgspec
from migcompat.fleet.fleet import Fleet, Preference
from migcompat.fleet.migrant import Migrant
from migcompat.fleet.rejection import rejection
from migcompat.fleet.survey import Survey

_LIMIT = 256


class Table(dict[str, str]):
    """Node name to :func:`.rejection`, filled as nodes are asked about."""

    def __init__(self, fleet: Fleet, migrant: Migrant) -> None:
        super().__init__()
        self._fleet = fleet
        self.migrant = migrant

    def __missing__(self, node: str) -> str:
        text = self[node] = rejection(self._fleet.fit(self.migrant, node))
        return text

    @functools.cached_property
    def survey(self) -> Survey:
        """The answer over all nodes, for admission."""
        return self._fleet.survey(self.migrant)

    @functools.cached_property
    def preferences(self) -> dict[str, Preference]:
        """The accepting nodes, the most preferred first: as ``/prioritize`` ranks them."""
        return self._fleet.preferences(self.migrant, self.survey.fits)


class Tables:
    """One table a migrant, all dropped when the fleet changes (its ``generation``)."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._generation = fleet.generation
        self._tables: dict[bytes, Table] = {}

    def of(self, migrant: Migrant) -> Table:
        """The table of *migrant* for the fleet as it is now."""
        if self._generation != self._fleet.generation or len(self._tables) >= _LIMIT:
            self._tables.clear()
            self._generation = self._fleet.generation
        key = msgspec.msgpack.encode(migrant)
        table = self._tables.get(key)
        if table is None:
            table = self._tables[key] = Table(self._fleet, migrant)
        return table
