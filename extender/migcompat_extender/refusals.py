"""What guards have refused of late: a VM's next attempt had better go to another node.

What a node publishes may accept a VM, and its guard refuse all the same: other devices were free when the
kubelet chose, its topology manager keeps to a NUMA node, a device changed in between. The same node is then
likely to refuse again.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from migcompat.api import names
from migcompat.api.cluster import Pod
from migcompat.fleet.refusal import guard_refusal

AVOIDED_SECONDS = 60.0
"""How long a node that refused a VM is avoided by it."""


class Refusals:
    """Which nodes' guards refused which VMs within the last :data:`AVOIDED_SECONDS`, as seen of their pods.

    Nothing rests on it: who has not seen a pod, because it started later, avoids nothing.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[tuple[str, str], float] = {}

    def note(self, pod: Pod) -> None:
        """A launcher pod as it is now."""
        if pod.is_migration_target and pod.spec.node_name and guard_refusal(pod):
            uid = (pod.metadata.labels or {}).get(names.CREATED_BY, "")
            self._seen[uid, pod.spec.node_name] = self._clock()

    def nodes(self, vm_uid: str) -> frozenset[str]:
        """The nodes that the VM had better avoid."""
        if not self._seen:
            return frozenset()
        since = self._clock() - AVOIDED_SECONDS
        self._seen = {key: at for key, at in self._seen.items() if at > since}
        return frozenset(node for uid, node in self._seen if uid == vm_uid)
