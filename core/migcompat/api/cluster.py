"""The parts of Kubernetes' and KubeVirt's own kinds that decide where a VM may go."""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from migcompat.api import names
from migcompat.api.meta import Condition, ObjectMeta

_QUANTITY = re.compile(r"([0-9]{1,19})(?:([kMGTPE])(i?)|[eE]([0-9]{1,2}))?")
_MOST = 2**63 - 1
_POWERS = " kMGTPE"


def _whole(quantity: str | int) -> int:
    """A ``resource.Quantity`` in the forms that whole numbers are stored in: ``2``, ``1k``, ``1Ki``, ``1e3``.

    Anything else, which the API server would not take for devices, is 0.
    """
    found = _QUANTITY.fullmatch(str(quantity))
    if not found:
        return 0
    digits, suffix, binary, exponent = found.groups()
    power = _POWERS.index(suffix or " ")
    unit: int = 1024**power if binary else 10 ** (3 * power + int(exponent or 0))
    return min(int(digits) * unit, _MOST)


def extended(quantities: Mapping[str, str | int]) -> dict[str, int]:
    """Extended resources (names that contain ``/``) of which there is at least one, in whole devices."""
    return {name: count for name, found in quantities.items() if "/" in name and (count := _whole(found))}


class NodeSystemInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """``status.nodeInfo``: the boot id tells a VFIONode of an earlier boot from a current one."""

    boot_id: str = msgspec.field(default="", name="bootID")


class NodeCondition(msgspec.Struct, frozen=True, omit_defaults=True):
    """A condition of a Node, without its ticking fields."""

    type: str = ""
    status: str = ""


class NodeSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """``Node.spec``."""

    unschedulable: bool = False


class NodeStatus(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """``Node.status``."""

    node_info: NodeSystemInfo = NodeSystemInfo()
    conditions: list[NodeCondition] | None = None
    allocatable: dict[str, str | int] | None = None


class Node(msgspec.Struct, omit_defaults=True):
    """A Node."""

    metadata: ObjectMeta
    spec: NodeSpec = NodeSpec()
    status: NodeStatus = NodeStatus()

    @property
    def takes_pods(self) -> bool:
        """Whether new pods may go there: it is neither cordoned nor known to be not ready."""
        ready = all(c.status == "True" for c in self.status.conditions or () if c.type == "Ready")
        return ready and not self.spec.unschedulable


class Resources(msgspec.Struct, frozen=True, omit_defaults=True):
    """A container's resources (quantities as the API gives them: strings, or integers)."""

    limits: dict[str, str | int] | None = None
    requests: dict[str, str | int] | None = None


class Container(msgspec.Struct, frozen=True, omit_defaults=True):
    """A container."""

    name: str = ""
    resources: Resources | None = None


class PodSpec(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """``Pod.spec``."""

    node_name: str = ""
    containers: list[Container] = []


class Waiting(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why a container does not run."""

    reason: str = ""
    message: str = ""


class ContainerState(msgspec.Struct, frozen=True, omit_defaults=True):
    """A container's state."""

    waiting: Waiting | None = None


class ContainerStatus(msgspec.Struct, frozen=True, omit_defaults=True):
    """A container's status."""

    name: str = ""
    state: ContainerState = ContainerState()


class PodStatus(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """``Pod.status``."""

    phase: str = ""
    reason: str = ""
    message: str = ""
    container_statuses: list[ContainerStatus] | None = None


class Pod(msgspec.Struct, omit_defaults=True):
    """A Pod."""

    metadata: ObjectMeta
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()

    @property
    def is_migration_target(self) -> bool:
        """Whether KubeVirt made the pod as the target of a migration (contract, Migration targets).

        A VM that has migrated runs in such a pod too: compare the VMI's ``status.nodeName`` where it matters.
        """
        labels = self.metadata.labels or {}
        return labels.get(names.LAUNCHER_LABEL) == names.LAUNCHER_VALUE and names.MIGRATION_UID in labels

    @property
    def is_over(self) -> bool:
        """Whether the pod has ended and so holds no device."""
        return self.status.phase in ("Succeeded", "Failed")

    def asks(self) -> dict[str, int]:
        """Extended resources the containers ask for, summed, in whole devices (names that contain ``/``)."""
        wanted: dict[str, int] = {}
        for container in self.spec.containers:
            resources = container.resources
            for name, count in extended((resources and resources.limits) or {}).items():
                wanted[name] = wanted.get(name, 0) + count
        return wanted


class Workload(msgspec.Struct, omit_defaults=True):
    """A DaemonSet or a Deployment: whether it is there, and being deleted."""

    metadata: ObjectMeta


class HostDevice(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """An element of ``spec.domain.devices.gpus`` or ``.hostDevices``."""

    name: str = ""
    device_name: str = ""


class Devices(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """``spec.domain.devices``."""

    gpus: list[HostDevice] | None = None
    host_devices: list[HostDevice] | None = None


class Domain(msgspec.Struct, frozen=True, omit_defaults=True):
    """``spec.domain``."""

    devices: Devices = Devices()


class VMISpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """``VirtualMachineInstance.spec``."""

    domain: Domain = Domain()


class VMIStatus(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """``VirtualMachineInstance.status``."""

    phase: str = ""
    node_name: str = ""
    conditions: list[Condition] | None = None
    active_pods: dict[str, str] | None = None


class VirtualMachineInstance(msgspec.Struct, omit_defaults=True):
    """A VMI."""

    metadata: ObjectMeta
    spec: VMISpec = VMISpec()
    status: VMIStatus = VMIStatus()

    def device_names(self) -> list[str]:
        """Resource names of all its GPUs and host devices, in order."""
        devices = self.spec.domain.devices
        return [d.device_name for d in (*(devices.gpus or ()), *(devices.host_devices or ()))]


class MigrationSpec(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """``VirtualMachineInstanceMigration.spec``."""

    vmi_name: str = ""


class MigrationStatus(msgspec.Struct, frozen=True, omit_defaults=True):
    """``VirtualMachineInstanceMigration.status``; phases that end it are Succeeded and Failed."""

    phase: str = ""


class VirtualMachineInstanceMigration(msgspec.Struct, omit_defaults=True):
    """A VMIM: the wish to migrate one VMI, made by a person, a drain or a descheduler."""

    metadata: ObjectMeta
    spec: MigrationSpec = MigrationSpec()
    status: MigrationStatus = MigrationStatus()
