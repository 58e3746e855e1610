"""Which pods concern us, told from the pod alone (contract, chapter *Migration targets*)."""

from __future__ import annotations

from migcompat.api.cluster import Pod
from migcompat.fleet.intent import intent
from migcompat.fleet.migrant import Mode

_KUBEVIRT_OWN = "devices.kubevirt.io/"


def may_be_ours(pod: Pod) -> bool:
    """Whether the pod asks for an extended resource that is not KubeVirt's own (kvm, tun, vhost-net)."""
    return any(not resource.startswith(_KUBEVIRT_OWN) for resource in pod.asks())


def must_wait(pod: Pod, *, allow_loosening: bool) -> bool:
    """Whether a migration target may not be placed while nothing is known about the cluster.

    Without caches it cannot be told whose resources are ours, so every extended resource but KubeVirt's own
    (kvm, tun, vhost-net, on every node) counts; a VM that the admin lets be lax does not wait.
    """
    if not may_be_ours(pod):
        return False
    return intent(pod.metadata.annotations, allow_loosening=allow_loosening).mode is Mode.ENFORCE
