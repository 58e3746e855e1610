"""What NVML's answers mean as attributes. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from migcompat.engine.attributes import MAX_VALUE
from migcompat.nvml.calls import Answer, Question
from migcompat.sysfs.shown import as_set, given

MINORS = range(1, 9)
"""Minor numbers of vGPU versions that are told apart. The same in all agents: a set stands for a range."""

_ECC_MODES = {0: "disabled", 1: "enabled"}
"""``nvmlEnableState_t``, in its own words: ``on`` and ``off`` would be booleans in the YAML of a policy."""


class Facts(NamedTuple):
    """What holds for all GPUs (``common``), for each by its PCI address, and names of vGPU types of each.

    ``problems``: what could not be had, in words.
    """

    common: Mapping[str, str] = {}
    gpus: Mapping[str, Mapping[str, str]] = {}
    type_names: Mapping[tuple[str, str], str] = {}
    problems: tuple[str, ...] = ()


def questions(gpus: Mapping[str, Iterable[str]]) -> list[Question]:
    """What to ask of *gpus*: by PCI address, the vGPU types (numbers) whose names are wanted."""
    asked: list[Question] = [("driver_version",), ("vgpu_versions",)]
    for address, types in sorted(gpus.items()):
        asked.append(("ecc_mode", address))
        asked += [("type_name", address, int(number)) for number in sorted(types)]
    return asked


def facts(asked: Sequence[Question], answers: Sequence[Answer]) -> Facts:
    """What the *answers* to the questions *asked* say; what is not understood becomes a problem."""
    common: dict[str, str] = {}
    gpus: dict[str, dict[str, str]] = {}
    names: dict[tuple[str, str], str] = {}
    problems: list[str] = []
    for (name, *arguments), (value, error) in zip(asked, answers, strict=True):
        try:
            if error:
                raise ValueError(error)
            if name == "driver_version":
                common |= given(vgpu_manager_version=_text(value))
            elif name == "vgpu_versions":
                common |= _vgpu_versions(*value)
            elif name == "ecc_mode":
                gpus.setdefault(str(arguments[0]), {})["ecc_mode"] = _ecc_mode(value)
            else:
                names[str(arguments[0]), str(arguments[1])] = _text(value)
        except ValueError as failed:
            problems.append(f"{' '.join(map(str, (name, *arguments)))}: {failed}")
    return Facts(common, gpus, names, tuple(problems))


def _vgpu_versions(supported: Sequence[int], current: Sequence[int]) -> dict[str, str]:
    """Which vGPU versions running guests may have, and upon which the host still agrees.

    *supported*: what its vGPU manager can, *current*: what the administrator has left of it; first and last
    version each. The version is agreed upon when the guest's driver is loaded, so one that has been taken
    away since may still be in use (NVML, ``nvmlSetVgpuVersion``).
    """
    allowed = max(supported[0], current[0]), min(supported[1], current[1])
    return {
        "vgpu_versions": vgpu_versions(supported),
        "vgpu_versions_allowed": vgpu_versions(allowed),
    }


def vgpu_versions(bounds: Sequence[int]) -> str:
    """The vGPU versions between *bounds* (the first and the last), as a set (``18.1+18.2+19.1``).

    A version is a number of 32 bits, the upper 16 of them major, the lower minor (NVIDIA,
    open-gpu-kernel-modules, ``NV_VGPU_GRIDSW_NUMBER_EXTERNAL_*`` in ``vgpu/vgpu_version.h``). A range is
    spelled as the versions of ``MINORS`` in it, whether NVIDIA has made them or not: one range is part of
    another iff its set is. Raises ValueError for a range that cannot be spelled so.
    """
    low, high = bounds
    if any(end >> 16 == 0 or (end & 0xFFFF) not in MINORS for end in (low, high)) or low > high:
        raise ValueError(f"the range {low:#x} to {high:#x} is not understood")
    majors = range(low >> 16, (high >> 16) + 1)
    if len(majors) * len(MINORS) * len("255.8+") > MAX_VALUE:
        raise ValueError(f"the range {low:#x} to {high:#x} is too long")
    versions = (major << 16 | minor for major in majors for minor in MINORS)
    return as_set([f"{v >> 16}.{v & 0xFFFF}" for v in versions if low <= v <= high])


def _ecc_mode(value: Any) -> str:
    if value not in _ECC_MODES:
        raise ValueError(f"the mode {value} is not known")
    return _ECC_MODES[value]


def _text(value: Any) -> str:
    text = str(value).strip()
    if not (text and text.isascii() and text.isprintable() and len(text) <= MAX_VALUE):
        raise ValueError(f"{text[:64]!r} is no printable ASCII")
    return text
