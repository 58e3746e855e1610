"""What a kind of device is to discovery: a :class:`Provider`, one module each.

A :class:`Bus` lists what there is and takes a first look at each; the first provider that claims a candidate
reads it. To add a kind, write its module and put its ``PROVIDER`` into ``PROVIDERS`` of
:mod:`migcompat.sysfs.scan`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from typing import Generic, NamedTuple, Protocol, TypeVar

from migcompat.sysfs.found import Finds, FoundDevice
from migcompat.sysfs.tree import Tree


class Candidate(Protocol):
    """What may be a device."""

    @property
    def entry(self) -> str:
        """Its path in the bus' directory, relative to the sysfs root."""


C = TypeVar("C", bound=Candidate)

Names = AbstractSet[str]
"""Names of entries, which are the ids of their devices."""


class Bus(NamedTuple, Generic[C]):
    """Where devices are looked for.

    ``path``: directory with an entry a device, relative to the sysfs root. ``candidates``: all entries that
    providers may claim, or those of the given names; what is no candidate becomes a problem of the finds. A
    problem of ``path`` itself says that nothing could be listed. Never raises for what it finds.
    """

    path: str
    candidates: Callable[[Tree, Finds, Names | None], Iterable[C]]


class Provider(NamedTuple, Generic[C]):
    """One kind of device.

    ``claims``: whether a candidate is of this kind. ``read``: the device, or None for one of this kind that
    is not (yet) to be handed to a VM; raises Vanished, ValueError or OSError when it cannot be taken for a
    device. ``silent``: whether it may become a device, or another one, without an event of the kernel.
    """

    bus: Bus[C]
    claims: Callable[[C], bool]
    read: Callable[[C], FoundDevice | None]
    silent: Callable[[C], bool] = lambda candidate: False
