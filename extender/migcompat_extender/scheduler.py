"""Which scheduler a target pod names (contract, chapter *Steering*, way 3)."""

from __future__ import annotations

import msgspec

from migcompat_extender.jsonpatch import Operation, add

DEFAULT = "default-scheduler"
"""What kube-apiserver writes into pods that name none (``v1.DefaultSchedulerName``)."""


class _Spec(msgspec.Struct, rename="camel"):
    scheduler_name: str | None = None


class _Pod(msgspec.Struct):
    spec: _Spec


def assign(pod: bytes | msgspec.Raw, name: str) -> list[Operation]:
    """Name the scheduler *name* in a pod that leaves the choice open; an empty *name* leaves every pod alone.

    A scheduler that a VM's owner has chosen stays. Raises msgspec.DecodeError when the pod is not what the
    API defines.
    """
    if not name or msgspec.json.decode(pod, type=_Pod).spec.scheduler_name not in (None, "", DEFAULT):
        return []
    return [add(name, "spec", "schedulerName")]
