"""The agent's configuration file: read again when it has changed, the last good one kept."""

from __future__ import annotations

from pathlib import Path

import msgspec
from migcompat.api.names import RESOURCE_DOMAIN
from migcompat.resources.selection import Configuration

CHART_VALUE = "devicePlugin.config"

_Identity = tuple[int, int, int, int, int]


class Loaded(msgspec.Struct, frozen=True):
    """What is known of the file. ``path``: None where there is none, which is a configuration, too.

    ``configuration``: the one in force, None while there was no good one yet. ``problem``: why the file as it
    is now is not in force, empty where it is.
    """

    path: Path | None = None
    configuration: Configuration | None = Configuration()
    problem: str = ""


class ConfigFile:
    """The file at *path*; *domain* is that of names without one.

    The kubelet replaces what is mounted from a ConfigMap by a symlink's new target, others write in place. So
    it is looked at through links at every scan, and read when it is another file or has another time or size.
    """

    def __init__(self, path: Path | None = None, domain: str = RESOURCE_DOMAIN) -> None:
        self._path = path
        self._domain = domain
        self._seen: _Identity | None = None
        self._loaded = Loaded(path, None if path else Configuration(domain))

    def look(self) -> Loaded:
        """The configuration now. May block."""
        if self._path is None:
            return self._loaded
        seen = _identity(self._path)
        if seen is None or seen != self._seen:
            self._seen = seen
            self._loaded = self._read(self._path, self._loaded.configuration)
        return self._loaded

    def changed(self) -> bool:
        """Whether the file is another one than at the last :meth:`look`."""
        return self._path is not None and _identity(self._path) != self._seen

    def _read(self, path: Path, before: Configuration | None) -> Loaded:
        # Here, so that agents without a file need not have YAML in memory.
        from migcompat.resources.file import ConfigurationError, load  # noqa: PLC0415

        try:
            return Loaded(path, load(path, self._domain))
        except ConfigurationError as error:
            return Loaded(path, before, f"{error} (chart value {CHART_VALUE})")


def _identity(path: Path) -> _Identity | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
