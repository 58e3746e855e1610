"""What a VM's annotations ask for, and how much of it the admin lets count (contract, Labels)."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from migcompat.api import names
from migcompat.engine.policy import Choice
from migcompat.fleet.migrant import Mode


class Intent(msgspec.Struct, frozen=True):
    """How strictly the VM is to be treated.

    ``warnings`` name values that are not understood (they enforce); ``loosened`` the annotations that make
    the VM laxer and were honoured, and ``denied`` those that were not, for the audit.
    """

    mode: Mode = Mode.ENFORCE
    require_return_path: bool = False
    deny_cross_type: bool = False
    allow_cross_type: bool = False
    warnings: tuple[str, ...] = ()
    loosened: tuple[str, ...] = ()
    denied: tuple[str, ...] = ()


def intent(annotations: Mapping[str, str] | None, *, allow_loosening: bool) -> Intent:
    """Read the three annotations of a VMI. Unknown values enforce and are named in ``warnings``."""
    given = annotations or {}
    warnings: list[str] = []
    lax: list[str] = []

    def one_of(key: str, allowed: tuple[str, ...]) -> str:
        value = given.get(key, "")
        if value and value not in allowed:
            warnings.append(f"{key}: unknown value {value[:64]!r}, expected one of {', '.join(allowed)}")
            return ""
        return value

    mode = Mode(one_of(names.MODE, tuple(Mode)) or Mode.ENFORCE)
    back = one_of(names.REQUIRE_RETURN_PATH, ("true", "false"))
    cross = one_of(names.CROSS_TYPE, tuple(Choice))
    if mode is not Mode.ENFORCE:
        lax.append(f"{names.MODE}={mode}")
    if cross == Choice.ALLOW:
        lax.append(f"{names.CROSS_TYPE}={cross}")
    return Intent(
        mode=mode if allow_loosening else Mode.ENFORCE,
        require_return_path=back == "true" or back != given.get(names.REQUIRE_RETURN_PATH, back),
        deny_cross_type=cross == Choice.DENY or cross != given.get(names.CROSS_TYPE, cross),
        allow_cross_type=cross == Choice.ALLOW and allow_loosening,
        warnings=tuple(warnings),
        loosened=tuple(lax) if allow_loosening else (),
        denied=() if allow_loosening else tuple(lax),
    )
