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


class _Gpu(NamedTuple):
    """``appearance``: another one when its driver is bound anew. ``types``: numbers of vGPU types."""

    appearance: Appearance
    types: frozenset[str] = frozenset()


class _Node(NamedTuple):
    """What NVML is asked about. ``gpus``: by PCI address. ``versions``: of the driver."""

    gpus: Mapping[str, _Gpu] = {}
    versions: frozenset[str] = frozenset()

    def covers(self, other: _Node) -> bool:
        """Whether what is asked of this one says all of *other*."""
        return other.versions <= self.versions and all(
            address in self.gpus
            and gpu.appearance == self.gpus[address].appearance
            and gpu.types <= self.gpus[address].types
            for address, gpu in other.gpus.items()
        )

    def updated(self, part: _Node) -> _Node:
        """This one, after a look at a *part* of its devices."""
        gpus = dict(self.gpus)
        for address, gpu in part.gpus.items():
            known = gpus.get(address)
            types = known.types if known and known.appearance == gpu.appearance else frozenset()
            gpus[address] = _Gpu(gpu.appearance, types | gpu.types)
        return _Node(gpus, self.versions if part.versions <= self.versions else part.versions)


def _still_true(known: Facts, of: _Node, now: _Node) -> Facts:
    """What was *known* of a node and is no less true of what it is *now*."""
    if not now.versions <= of.versions:
        return Facts(problems=known.problems)
    same = {
        address
        for address, gpu in now.gpus.items()
        if address in of.gpus and of.gpus[address].appearance == gpu.appearance
    }
    return known._replace(
        gpus={address: told for address, told in known.gpus.items() if address in same},
        type_names={key: name for key, name in known.type_names.items() if key[0] in same},
    )


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
        self._node = _Node()
        self._facts = Facts()
        self._due = 0.0
        self._asking: threading.Event | None = None

    @property
    def problems(self) -> tuple[str, ...]:
        """Why something is not shown."""
        return self._facts.problems

    @property
    def asking(self) -> bool:
        """Whether an answer is under way: what it says is in the next scan."""
        return self._asking is not None

    def completed(
        self,
        sysfs: Path,
        devices: Sequence[FoundDevice],
        patience: float | None = None,
        *,
        whole: bool = True,
    ) -> tuple[FoundDevice, ...]:
        """*devices*, found below *sysfs*, with what NVML knows of their GPUs.

        *whole*: these are all devices of the node; what is known of other GPUs is forgotten. Takes *patience*
        seconds (``PATIENCE``) at most, and only when there is a GPU, a type or a driver that was not there.
        NVML is not touched when there is no device on a GPU of NVIDIA's driver.
        """
        tree = Tree(os.fspath(sysfs))
        homes = {device.id: gpu for device in devices if (gpu := _gpu(tree, device))}
        if not homes:
            return tuple(devices)
        node = _node(tree, devices, homes)
        known = self._known(node, whole, PATIENCE if patience is None else patience)
        return tuple(_with(device, homes.get(device.id, ""), known) for device in devices)

    def _known(self, seen: _Node, whole: bool, patience: float) -> Facts:
        with self._lock:
            before, self._node = self._node, seen if whole else self._node.updated(seen)
            self._facts = _still_true(self._facts, before, self._node)
            news = not before.covers(self._node)
            if self._asking is None and (news or self._clock() >= self._due):
                self._asking = threading.Event()
                threading.Thread(
                    target=self._look, args=(self._node, self._asking), daemon=True, name="nvml"
                ).start()
            asking = self._asking
        if news and asking is not None:
            asking.wait(patience)
        return self._facts

    def _look(self, node: _Node, done: threading.Event) -> None:
        """Ask until the answer says all of what there is now."""
        while True:
            try:
                said = self._said(node)
            except Exception as error:  # whatever NVML does, the agent goes on
                log.exception("NVML: asking it failed")
                said = Facts(problems=(f"{type(error).__name__}: {error}",))
            with self._lock:
                before, self._facts = self._facts, _still_true(said, node, self._node)
                if node.covers(self._node):
                    _tell(said.problems, before.problems)
                    self._due, self._asking = self._clock() + REFRESH, None
                    done.set()
                    return
                node = self._node

    def _said(self, node: _Node) -> Facts:
        if importlib.util.find_spec(MODULE) is None:
            return Facts(problems=("the Python package nvidia-ml-py is not installed (migcompat[nvml])",))
        asked = questions({address: gpu.types for address, gpu in node.gpus.items()})
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
    gpus = {
        address: _Gpu(appearance(tree.root, f"{pci.BUS.path}/{address}"), frozenset(numbers))
        for address, numbers in types.items()
    }
    return _Node(gpus, frozenset(versions))


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
