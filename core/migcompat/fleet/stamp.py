"""The stamp on a target pod: what the agent needs to decide without watching the cluster.

Annotations of a VM are copied to its target pods, so a tenant could write one. A stamp counts only when it
names the migration that the pod belongs to, webhook and operator overwrite whatever else is there, and the
agent uses it only where the API server cannot tell the source (:mod:`migcompat_deviceplugin.inquiry`).
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from migcompat.api import names
from migcompat.fleet.migrant import Migrant

VERSION = 1
LIMIT = 64 * 1024
"""Bytes; a larger stamp is not written, and the agent asks."""


ALL_ANNOTATIONS = 256 * 1024
"""Bytes of all keys and values together that the API server lets an object have."""


class StampError(ValueError):
    """The stamp cannot be used; the message says why."""


class _Stamp(msgspec.Struct, frozen=True):
    version: int
    migration: str
    migrant: Migrant


_DECODER = msgspec.json.Decoder(_Stamp)


def encode(migrant: Migrant, migration_uid: str, annotations: Mapping[str, str] | None = None) -> str:
    """The annotation's value, or an empty string when it would exceed :data:`LIMIT`.

    *annotations*: those that the pod has. A tenant's may leave no room for a stamp: with one the API server
    would refuse the pod.
    """
    text = msgspec.json.encode(_Stamp(VERSION, migration_uid, migrant))
    others = sum(
        len(key.encode()) + len(value.encode())
        for key, value in (annotations or {}).items()
        if key != names.SOURCE
    )
    room = min(LIMIT, ALL_ANNOTATIONS - others - len(names.SOURCE))
    return text.decode() if len(text) <= room else ""


def decode(text: str, migration_uid: str) -> Migrant:
    """The migrant that the stamp describes.

    Raises:
        StampError: it is no stamp, of another version, or made for another migration.
    """
    if len(text) > LIMIT:
        raise StampError(f"stamp is longer than {LIMIT} bytes")
    try:
        stamp = _DECODER.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise StampError(f"stamp cannot be read: {error}") from error
    if stamp.version != VERSION:
        raise StampError(f"stamp has version {stamp.version}, this agent reads {VERSION}")
    if not migration_uid or stamp.migration != migration_uid:
        raise StampError("stamp was made for another migration")
    devices = tuple(msgspec.structs.replace(device, key="") for device in stamp.migrant.devices)
    return msgspec.structs.replace(stamp.migrant, devices=devices)
