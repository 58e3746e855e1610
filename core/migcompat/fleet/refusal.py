"""How a guard's refusal is told: by the status of the container that it kept from starting."""

from __future__ import annotations

from migcompat.api.cluster import Pod

GUARD_MARK = "migcompat guard:"
"""What the agent's refusals begin with; the kubelet puts its own words before it."""


def guard_refusal(pod: Pod) -> str:
    """The guard's own sentence when one of the pod's containers waits because of it, else empty."""
    for container in pod.status.container_statuses or ():
        waiting = container.state.waiting
        if waiting is not None and GUARD_MARK in waiting.message:
            return waiting.message[waiting.message.index(GUARD_MARK) :]
    return ""
