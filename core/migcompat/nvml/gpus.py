"""Which GPU a vGPU lives on, and what NVML knows of it: asked in the background, at most once a minute."""

from __future__ import annotations

import importlib.util
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from migcompat.engine.declaration import Kind
from migcompat.nvml import calls
from migcompat.nvml.calls import Answer, NotAvailable, Question
from migcompat.nvml.facts import Facts, facts, questions
from migcompat.sysfs import pci
from migcompat.sysfs.appearance import Appearance, appearance
from migcompat.sysfs.found import FoundDevice
from migcompat.sysfs.tree import Tree

log = logging.getLogger(__name__)

VENDOR = "10de"
"""NVIDIA, among PCI's vendors."""
DRIVER = "nvidia"
"""Whose GPUs NVML knows; one that is bound to vfio-pci it does not."""
MODULE = "pynvml"
"""What the distribution nvidia-ml-py brings."""

REFRESH = 60.0
"""Seconds between two looks at the same GPUs."""
PATIENCE = 2.0
"""Seconds that a scan waits for what it has not known before; what comes later is in the next scan."""


class _Node(NamedTuple):
    """What NVML is asked about: another one than before is asked at once.

    ``gpus``: address, appearance (another one when its driver is bound anew) and vGPU types of each.
    ``versions``: of the driver.
    """

    gpus: tuple[tuple[str, Appearance, tuple[str, ...]], ...]
    versions: tuple[str, ...]


class Nvml:
    """What NVML said last. *library*: as in :func:`migcompat.nvml.calls.ask`.

    ``problems``: what NVML could not say, in words. May be used from several threads.
    """

    def __init__(
        self,
        library: str = "",
        *,
        ask: Callable[[Sequence[Question], str], list[Answer]] = calls.ask,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._library = library
        self._ask = ask
        self._clock = clock
        self._lock = threading.Lock()
        self._node = _Node((), ())
        self._facts = Facts()
        self._due = 0.0
        self._asking: threading.Event | None = None

    @property
    def problems(self) -> tuple[str, ...]:
        """Why something is not shown."""
        return self._facts.problems

    def completed(
        self, sysfs: Path, devices: Sequence[FoundDevice], patience: float | None = None
    ) -> tuple[FoundDevice, ...]:
        """*devices*, found below *sysfs*, with what NVML knows of their GPUs.

        Takes *patience* seconds (``PATIENCE``) at most, and only when there is something that was not there.
        NVML is not touched when there is no device on a GPU of NVIDIA's driver.
        """
        tree = Tree(os.fspath(sysfs))
        homes = {device.id: gpu for device in devices if (gpu := _gpu(tree, device))}
        if not homes:
            return tuple(devices)
        known = self._known(_node(tree, devices, homes), PATIENCE if patience is None else patience)
        return tuple(_with(device, homes.get(device.id, ""), known) for device in devices)

    def _known(self, node: _Node, patience: float) -> Facts:
        with self._lock:
            news = node != self._node
            if news:
                self._node, self._facts, self._due = node, Facts(problems=self._facts.problems), 0.0
            if self._asking is None and self._clock() >= self._due:
                self._asking = threading.Event()
                threading.Thread(
                    target=self._look, args=(node, self._asking), daemon=True, name="nvml"
                ).start()
            asking = self._asking
        if news and asking is not None:
            asking.wait(patience)
        return self._facts

    def _look(self, node: _Node, done: threading.Event) -> None:
        """Ask until the answer is about what there is now."""
        while True:
            try:
                said = self._said(node)
            except Exception as error:  # whatever NVML does, the agent goes on
                log.exception("NVML: asking it failed")
                said = Facts(problems=(f"{type(error).__name__}: {error}",))
            with self._lock:
                if node == self._node:
                    _tell(said.problems, self._facts.problems)
                    self._facts, self._due, self._asking = said, self._clock() + REFRESH, None
                    done.set()
                    return
                node = self._node

    def _said(self, node: _Node) -> Facts:
        if importlib.util.find_spec(MODULE) is None:
            return Facts(problems=("the Python package nvidia-ml-py is not installed (migcompat[nvml])",))
        asked = questions({address: types for address, _, types in node.gpus})
        try:
            return facts(asked, self._ask(asked, self._library))
        except NotAvailable as error:
            return Facts(problems=(f"{self._library or 'libnvidia-ml.so.1'}: {error}",))


def _gpu(tree: Tree, device: FoundDevice) -> str:
    """The PCI address of the GPU that *device* lives on or is; empty when NVML does not know it."""
    if not device.pci_id.startswith(VENDOR):
        return ""
    gpu = device.physfn or device.parent or device.id
    link = f"{pci.BUS.path}/{gpu}/driver"
    known = pci.ADDRESS.fullmatch(gpu) and tree.once(link, lambda: tree.link(link, [])) == DRIVER
    return gpu if known else ""


def _node(tree: Tree, devices: Iterable[FoundDevice], homes: Mapping[str, str]) -> _Node:
    types: dict[str, set[str]] = {}
    versions = set()
    for device in devices:
        if gpu := homes.get(device.id):
            number = _type_number(device)
            types.setdefault(gpu, set()).update({number} if number else ())
            versions.add(device.declaration.shown.get("driver_version", ""))
    return _Node(
        tuple(
            (gpu, appearance(tree.root, f"{pci.BUS.path}/{gpu}"), tuple(sorted(numbers)))
            for gpu, numbers in sorted(types.items())
        ),
        tuple(sorted(versions)),
    )


def _type_number(device: FoundDevice) -> str:
    """The vGPU type whose name only NVML knows for sure; that of an mdev is in sysfs."""
    return "" if device.kind is Kind.MDEV else device.declaration.shown.get("vgpu_type", "")


def _with(device: FoundDevice, gpu: str, known: Facts) -> FoundDevice:
    if not gpu:
        return device
    more = {**known.common, **known.gpus.get(gpu, {})}
    name = known.type_names.get((gpu, _type_number(device)), "")
    if name:
        more["type_name"] = name
    if "vgpu_manager_version" in more and "software_version" not in device.declaration.shown:
        more["software_version"] = more["vgpu_manager_version"]
    if not more:
        return device
    declaration = msgspec.structs.replace(device.declaration, shown={**device.declaration.shown, **more})
    return msgspec.structs.replace(device, declaration=declaration, type_name=device.type_name or name)


def _tell(problems: tuple[str, ...], before: tuple[str, ...]) -> None:
    if problems and problems != before:
        log.warning("NVML does not tell everything, so attributes are missing: %s", "; ".join(problems))
    elif before and not problems:
        log.info("NVML tells everything again")
