"""The process that loads NVML: ``python -m migcompat.nvml.program LIBRARY QUESTIONS``.

LIBRARY is the path of ``libnvidia-ml.so.1``, empty for the dynamic linker's choice; QUESTIONS a JSON list of
lists, a name of ``QUESTIONS`` and its arguments each. The answers go to stdout, one a line: first whether
NVML could be initialised, then one for each question, each as ``{"value": …}`` or ``{"error": "why not"}``.

A process of its own, because whoever has NVML open keeps the driver from being replaced, whoever has loaded
it keeps the old library (``NVML_ERROR_LIB_RM_VERSION_MISMATCH``), and a call that hangs or crashes takes only
this process along. Of the project it imports nothing, so that it starts in a few hundredths of a second. Its
end closes NVML, and it ends with whoever has started it.
"""

from __future__ import annotations

import ctypes
import json
import signal
import sys
from collections.abc import Callable
from typing import Any

_PR_SET_PDEATHSIG = 1


def main(library: str, questions: list[list[Any]]) -> None:
    """Answers *questions* on stdout."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        nvml = _opened(library)
    except Exception as error:
        _say(error=_why(error))
        return
    _say(value=None)
    for name, *arguments in questions:
        try:
            _say(value=QUESTIONS[name](nvml, *arguments))
        except Exception as error:
            _say(error=_why(error))


def _opened(library: str) -> Any:
    import pynvml  # noqa: PLC0415 - where it is missing is said as an answer

    if library:
        # pynvml then opens the name that this library gives itself, and gets the one that is loaded already.
        ctypes.CDLL(library)
    pynvml.nvmlInit()
    return pynvml


def _driver_version(nvml: Any) -> str:
    return str(nvml.nvmlSystemGetDriverVersion())


def _vgpu_versions(nvml: Any) -> list[list[int]]:
    """The supported range, and what the administrator has left of it (``nvmlSetVgpuVersion``)."""
    return [[int(low), int(high)] for low, high in nvml.nvmlGetVgpuVersion()]


def _ecc_mode(nvml: Any, address: str) -> int:
    """The mode of now; the pending one counts from the GPU's next reset."""
    current, _ = nvml.nvmlDeviceGetEccMode(nvml.nvmlDeviceGetHandleByPciBusId(address))
    return int(current)


def _type_name(nvml: Any, address: str, type_id: int) -> str:
    if type_id not in nvml.nvmlDeviceGetSupportedVgpus(nvml.nvmlDeviceGetHandleByPciBusId(address)):
        raise LookupError(f"the GPU has no vGPU type {type_id}")
    return str(nvml.nvmlVgpuTypeGetName(type_id))


QUESTIONS: dict[str, Callable[..., Any]] = {
    "driver_version": _driver_version,
    "vgpu_versions": _vgpu_versions,
    "ecc_mode": _ecc_mode,
    "type_name": _type_name,
}
"""What can be asked, by name."""


def _why(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return "the Python package nvidia-ml-py is not installed (migcompat[nvml])"
    return str(error) or type(error).__name__


def _say(**answer: object) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
