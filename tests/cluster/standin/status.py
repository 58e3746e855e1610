"""A pod's status as a kubelet writes it."""

from __future__ import annotations

from collections.abc import Sequence

from tests.cluster.api import Object, now

STATES: Object = {"waiting": None, "running": None, "terminated": None}
"""A null for each state that does not hold: a strategic merge keeps what it is not told about."""


def seeming(container: Object, *, since: str = "", waiting: Object | None = None) -> Object:
    """The status of a container that has no process: it seems to run `since`, or waits."""
    if since:
        state: Object = {"running": {"startedAt": since}}
    else:
        state = {"waiting": waiting or {"reason": "ContainerCreating", "message": None}}
    return {
        "name": container["name"],
        "image": container.get("image", ""),
        "imageID": "",
        "ready": bool(since),
        "started": bool(since),
        "restartCount": 0,
        "state": STATES | state,
        "lastState": {},
    }


def pod_status(
    pod: Object,
    statuses: Sequence[Object],
    sidecars: Sequence[Object],
    *,
    address: str,
    host: str,
    since: str,
) -> Object:
    """The whole status.

    Args:
        pod: as last seen; its conditions give transition times and readiness gates.
        statuses: of its containers.
        sidecars: of its restartable init containers.
        address: of the pod.
        host: of the node.
        since: when the kubelet first saw the pod.
    """
    former = {c["type"]: c for c in pod.get("status", {}).get("conditions", ())}
    gates = [g["conditionType"] for g in pod["spec"].get("readinessGates", ())]
    ready = all(s["ready"] for s in statuses)
    values = {
        "PodScheduled": True,
        "Initialized": True,
        "ContainersReady": ready,
        "Ready": ready and all(former.get(g, {}).get("status") == "True" for g in gates),
    }
    conditions = []
    for kind, value in values.items():
        had = former.get(kind, {})
        since_then = had.get("lastTransitionTime") if had.get("status") == str(value) else now()
        conditions.append({"type": kind, "status": str(value), "lastTransitionTime": since_then})
    result: Object = {
        "phase": _phase(statuses, restarts=pod["spec"].get("restartPolicy", "Always") == "Always"),
        "hostIP": host,
        "podIP": address,
        "podIPs": [{"ip": address}],
        "startTime": since,
        "conditions": conditions,
        "containerStatuses": list(statuses),
    }
    if sidecars:
        result["initContainerStatuses"] = list(sidecars)
    return result


def rejected(error: Exception) -> Object:
    """The status of a pod that was not admitted; a kubelet never tries it again."""
    return {
        "phase": "Failed",
        "reason": "UnexpectedAdmissionError",
        "message": f"Pod was rejected: {error}, which is unexpected",
    }


def _phase(statuses: Sequence[Object], *, restarts: bool) -> str:
    ended = [s["state"]["terminated"] for s in statuses if s["state"].get("terminated")]
    if len(ended) == len(statuses) and not restarts:
        return "Failed" if any(e["exitCode"] for e in ended) else "Succeeded"
    if any(s["state"].get("running") or s["restartCount"] for s in statuses):
        return "Running"
    return "Pending"
