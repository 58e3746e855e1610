"""Which attributes may ever be dynamic, that is be written to a target device (semantics §3)."""

from __future__ import annotations

_NEVER_WRITTEN = frozenset(
    {
        "remove",
        "reset",
        "reset_method",
        "rescan",
        "driver_override",
        "new_id",
        "remove_id",
        "bind",
        "unbind",
        "uevent",
        "power",
        "enable",
        "config",
        "rom",
        "msi_bus",
        "d3cold_allowed",
    }
)
_NEVER_WRITTEN_PREFIXES = ("resource", "sriov_", ".")
_LONGEST_NAME = 255  # NAME_MAX of Linux: a longer name is no path component


def may_be_dynamic(name: str) -> bool:
    """Whether *name* may name an obligation, whoever asks for it: one harmless path component.

    The list is semantics §3's: these sysfs attributes remove, reset or rebind devices, or move their
    resources. Whoever writes an obligation must ask here again.
    """
    return (
        0 < len(name) <= _LONGEST_NAME
        and "/" not in name
        and name.isprintable()
        and name not in _NEVER_WRITTEN
        and not name.startswith(_NEVER_WRITTEN_PREFIXES)
    )
