"""What a MigrationCompatibility asks, as a migrant that the fleet can survey. Pure."""

from __future__ import annotations

import msgspec
from migcompat.api.cluster import VirtualMachineInstance
from migcompat.api.migrationcompatibility import LiteralSource, MigrationCompatibility, Overrides
from migcompat.engine.attributes import Draft
from migcompat.engine.declaration import Declaration
from migcompat.engine.policy import Choice
from migcompat.fleet.fleet import Fleet
from migcompat.fleet.migrant import Migrant, MigrantDevice

INVALID_SPEC = "InvalidSpec"
VMI_NOT_FOUND = "VirtualMachineInstanceNotFound"
DEVICE_NOT_FOUND = "DeviceNotFound"


class Question(msgspec.Struct, frozen=True):
    """*migrant* is to be surveyed; *vmi* is the VM it stands for, if any."""

    migrant: Migrant
    vmi: VirtualMachineInstance | None = None


class Unanswerable(msgspec.Struct, frozen=True):
    """Why there is nothing to survey."""

    reason: str
    message: str


def ask(fleet: Fleet, item: MigrationCompatibility) -> Question | Unanswerable:
    """What *item* asks. An object that asks nothing, or several things, is answered with a reason."""
    spec = item.spec
    given = [spec.virtual_machine_instance, spec.device, spec.attributes]
    if sum(part is not None for part in given) != 1:
        return Unanswerable(
            INVALID_SPEC, "Give exactly one of spec.virtualMachineInstance, spec.device and spec.attributes."
        )
    if spec.virtual_machine_instance is not None:
        name = spec.virtual_machine_instance.name
        vmi = fleet.vmi(item.metadata.namespace, name)
        if vmi is None:
            return Unanswerable(VMI_NOT_FOUND, f"There is no VirtualMachineInstance {name} in the namespace.")
        return Question(_overridden(fleet.migrant(vmi), spec.policy), vmi)
    if spec.device is not None:
        migrant = fleet.device_migrant(spec.device.node, spec.device.id)
        if migrant.problem:
            return Unanswerable(DEVICE_NOT_FOUND, f"The device cannot be found: {migrant.problem}.")
        return Question(_overridden(migrant, spec.policy))
    if spec.attributes is not None:
        return Question(_overridden(_literal(spec.attributes), spec.policy))
    raise AssertionError("unreachable: exactly one part is given")


def _literal(given: LiteralSource) -> Migrant:
    draft = Draft(literal=True)
    for name, value in given.self.items():
        draft.add_raw(name.encode(), value.encode())
    declared = Declaration(given.kind, draft.self_set(given.kind))
    return Migrant(
        namespace="",
        name="",
        uid="",
        node="",
        asks={given.resource: 1},
        devices=(MigrantDevice(given.resource, declared),),
    )


def _overridden(migrant: Migrant, overrides: Overrides | None) -> Migrant:
    """*migrant* as the question's own policy keys want it treated. They change this answer, no migration."""
    if overrides is None:
        return migrant
    changed = migrant
    if overrides.require_return_path is not None:
        changed = msgspec.structs.replace(changed, require_return_path=overrides.require_return_path)
    if overrides.version_scheme is not None:
        changed = msgspec.structs.replace(changed, version_scheme=overrides.version_scheme)
    if overrides.cross_type is not None:
        changed = msgspec.structs.replace(
            changed,
            deny_cross_type=overrides.cross_type is Choice.DENY,
            allow_cross_type=overrides.cross_type is Choice.ALLOW,
        )
    return changed
