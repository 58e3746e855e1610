"""Which boot of the machine this is: what was published before the last one says nothing of now."""

from __future__ import annotations

import asyncio
import logging
import re
from pathlib import Path

from migcompat_deviceplugin.problems import Problem, Reason
from migcompat_deviceplugin.state import State

log = logging.getLogger(__name__)

PAUSE = 5.0
"""Seconds between two attempts."""
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_LIMIT = 128


class BootIDError(Exception):
    """The file holds no boot id; the text says what it is instead."""


def read_boot_id(file: Path) -> str:
    """The boot id in *file* (kernel, Documentation/admin-guide/sysctl/kernel.rst: ``random/boot_id``)."""
    try:
        with file.open("rb") as opened:
            text = opened.read(_LIMIT).decode("ascii", "replace").strip()
    except OSError as error:
        raise BootIDError(f"{file} cannot be read ({error.strerror})") from error
    if not _UUID.fullmatch(text):
        raise BootIDError(f"{file} holds no boot id but {text[:40]!r}")
    return text


async def learn_boot_id(file: Path, state: State) -> None:
    """Put the boot id into *state*; tried again until it is there, as nothing can be published without."""
    while not state.boot_id:
        try:
            state.set_boot_id(read_boot_id(file))
        except BootIDError as error:
            problem = Problem(
                Reason.WRONG_HOST_PATH,
                f"{error}: no device is served until hostPaths.bootID is the kernel's random/boot_id",
            )
            if problem != state.boot_problem:
                log.warning("%s", problem)
            state.set_boot_problem(problem)
            await asyncio.sleep(PAUSE)
        else:
            log.info("this is boot %s", state.boot_id)
