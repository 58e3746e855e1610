"""Which devices a resource takes. Pure; docs/reference/configuration.md says it for people."""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import msgspec

from migcompat.api.names import RESOURCE_DOMAIN
from migcompat.engine.declaration import Kind
from migcompat.resources.defaults import resource_name
from migcompat.sysfs.scan import FoundDevice


class DeviceKind(enum.StrEnum):
    """What a selector's ``kinds`` may hold."""

    MDEV = "mdev"
    VF = "vf"
    FUNCTION = "function"


class Others(enum.StrEnum):
    """What becomes of devices that no resource selects."""

    ADVERTISE = "advertise"
    IGNORE = "ignore"


def device_kind(found: FoundDevice) -> DeviceKind:
    """An mdev, a VF, or another device: a PF, a function that knows no VFs, whatever is on no PCI bus."""
    if found.kind is Kind.MDEV:
        return DeviceKind.MDEV
    return DeviceKind.VF if found.is_vf else DeviceKind.FUNCTION


class Key(NamedTuple):
    """A key of selectors. ``read``: what it looks at, empty where the device has no such thing.

    ``spelled``: values it may have, by which a typing error is found; ``says`` tells people what they are.
    """

    read: Callable[[FoundDevice], str]
    spelled: re.Pattern[str]
    says: str


_PCI_ADDRESS = r"[0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[01][0-9a-fA-F]\.[0-7]"
_HEX4 = re.compile(r"(0[xX])?[0-9a-fA-F]{4}")
_ADDRESS = re.compile(_PCI_ADDRESS)
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_FILE = re.compile(r"[!-.0-~]{1,255}")
_TEXT = re.compile(r"[ -~]{1,255}")

KEYS: Mapping[str, Key] = {
    "types": Key(
        lambda found: found.type, _FILE, "an mdev type or an NVIDIA VF's vGPU type, such as nvidia-557"
    ),
    "typeNames": Key(lambda found: found.type_name, _TEXT, "a type's human name, such as NVIDIA A40-8Q"),
    "vendors": Key(
        lambda found: found.pci_id[:4], _HEX4, "a PCI vendor id of four hex digits, such as '10de'"
    ),
    "devices": Key(
        lambda found: found.pci_id[4:], _HEX4, "a PCI device id of four hex digits, such as '2235'"
    ),
    "drivers": Key(lambda found: found.driver, _FILE, "a driver's name, such as vfio-pci"),
    "parents": Key(
        lambda found: found.parent, _FILE, "what an mdev or a VF lives on, such as '0000:3b:00.4' or matrix"
    ),
    "pfs": Key(lambda found: found.physfn, _ADDRESS, "a PF's PCI address, such as '0000:3b:00.0'"),
    "addresses": Key(
        lambda found: "" if found.kind is Kind.MDEV else found.id,
        _ADDRESS,
        "a PCI address with its domain, such as '0000:3b:00.4'",
    ),
    "uuids": Key(lambda found: found.id if found.kind is Kind.MDEV else "", _UUID, "an mdev's UUID"),
    "numaNodes": Key(
        lambda found: "" if found.numa_node is None else str(found.numa_node),
        re.compile(r"0|[1-9][0-9]{0,4}"),
        "the number of a NUMA node",
    ),
    "kinds": Key(
        lambda found: device_kind(found).value,
        re.compile("|".join(DeviceKind)),
        f"one of {', '.join(DeviceKind)}",
    ),
}
"""Every key of a selector. What a device does not have (a text that is empty) is never among the values."""

LOWERED = frozenset({"pfs", "addresses", "uuids", "vendors", "devices"})
"""Keys whose values are spelled in either case, and in lower case by the kernel."""


def facts(found: FoundDevice) -> dict[str, str]:
    """What selectors look at, by key; read once a device, since there may be many selectors."""
    return {name: key.read(found) for name, key in KEYS.items()}


class Selector(msgspec.Struct, frozen=True):
    """Takes a device that has, for each key of ``wanted``, one of its values."""

    wanted: Mapping[str, frozenset[str]]

    def takes(self, device: Mapping[str, str]) -> bool:
        """Whether it takes the device with these :func:`facts`."""
        for key, values in self.wanted.items():  # noqa: SIM110 - three times as fast as all()
            if device[key] not in values:
                return False
        return True


class Resource(msgspec.Struct, frozen=True):
    """An extended resource. ``name``: with its domain. It takes what any of its selectors takes."""

    name: str
    selectors: tuple[Selector, ...]

    def takes(self, device: Mapping[str, str]) -> bool:
        """Whether it takes the device with these :func:`facts`."""
        for selector in self.selectors:  # noqa: SIM110 - three times as fast as any()
            if selector.takes(device):
                return True
        return False


class Choice(NamedTuple):
    """The resource of a device, empty for one that is not advertised.

    ``also``: resources further down the file that select it, too, and do not get it.
    """

    resource: str
    also: tuple[str, ...] = ()


class Configuration(msgspec.Struct, frozen=True):
    """Resources in the order of the file. ``domain``: of default names. Without any: defaults for all."""

    domain: str = RESOURCE_DOMAIN
    resources: tuple[Resource, ...] = ()
    others: Others = Others.ADVERTISE

    def choose(self, found: FoundDevice) -> Choice:
        """Where *found* belongs.

        A device that is selected by several resources belongs to the first. One that is selected by none has
        its default name, unless a resource of the file has it: that is for what its selectors take.
        """
        names: list[str] = []
        if self.resources:
            device = facts(found)
            names = [resource.name for resource in self.resources if resource.takes(device)]
        if names:
            return Choice(names[0], tuple(names[1:]))
        if self.others is Others.IGNORE:
            return Choice("")
        default = resource_name(found, self.domain)
        return Choice("" if any(default == resource.name for resource in self.resources) else default)
