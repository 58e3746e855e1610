"""How a refusal on the target node is told: by the status of the pod that was to start there."""

from __future__ import annotations

from migcompat.api.cluster import Pod

GUARD_MARK = "migcompat guard:"
"""What the agent's refusals begin with; the kubelet puts its own words before it."""

_WANTING = "OutOf"
"""What the kubelet puts before the name of the resource that it has too little of."""
_NOT_ADMITTED = frozenset({"UnexpectedAdmissionError", "TopologyAffinityError"})
"""No device could be allocated; those that are there lie on other NUMA nodes than the kubelet keeps to."""


def guard_refusal(pod: Pod) -> str:
    """The guard's own sentence when one of the pod's containers waits because of it, else empty."""
    for container in pod.status.container_statuses or ():
        waiting = container.state.waiting
        if waiting is not None and GUARD_MARK in waiting.message:
            return waiting.message[waiting.message.index(GUARD_MARK) :]
    return ""


def kubelet_refusal(pod: Pod) -> str:
    """The kubelet's reason when it has failed the pod for want of a device, else empty.

    Reasons as in Kubernetes' pkg/kubelet/lifecycle/predicate.go and pkg/kubelet/cm.
    """
    if pod.status.phase != "Failed":
        return ""
    reason = pod.status.reason
    lacks_device = reason.startswith(_WANTING) and reason.removeprefix(_WANTING) in pod.asks()
    return reason if lacks_device or reason in _NOT_ADMITTED else ""
