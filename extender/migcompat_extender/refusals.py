"""What nodes have refused of late: a VM's next attempt had better go to another one.

What a node publishes may accept a VM, and its guard refuse all the same: other devices were free when the
kubelet chose, its topology manager keeps to a NUMA node, a device changed in between. Or the kubelet finds no
device at all, because another pod was quicker. The same node is then likely to refuse again.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from migcompat.api import names
from migcompat.api.cluster import Pod
from migcompat.fleet.refusal import guard_refusal, kubelet_refusal

AVOIDED_SECONDS = 60.0
"""How long a node that refused a VM is avoided by it."""

GUARD_REFUSED = "GuardRefused: the guard there has just refused the VM, and other nodes would take it"
KUBELET_REFUSED = (
    "KubeletRefused: the kubelet there has just found no device for the VM, and other nodes would take it"
)


class Refusals:
    """Which nodes refused which VMs within the last :data:`AVOIDED_SECONDS`, as seen of their pods.

    Nothing rests on it: who has not seen a pod, because it started later, avoids nothing.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[tuple[str, str], tuple[float, str]] = {}

    def note(self, pod: Pod) -> None:
        """A launcher pod as it is now."""
        if not (pod.is_migration_target and pod.spec.node_name):
            return
        text = GUARD_REFUSED if guard_refusal(pod) else KUBELET_REFUSED if kubelet_refusal(pod) else ""
        if text:
            uid = (pod.metadata.labels or {}).get(names.CREATED_BY, "")
            self._seen[uid, pod.spec.node_name] = self._clock(), text

    def nodes(self, vm_uid: str) -> dict[str, str]:
        """The nodes that the VM had better avoid, with the text that says why."""
        if not self._seen:
            return {}
        since = self._clock() - AVOIDED_SECONDS
        self._seen = {key: seen for key, seen in self._seen.items() if seen[0] > since}
        return {node: text for (uid, node), (_, text) in self._seen.items() if uid == vm_uid}
