"""What the real node needs from Debian: installed where it is missing, in one go.

Run as a program (``python -m tests.node.debian COMMAND=PACKAGE...``) it installs what is missing and prints
where everything is.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.cluster.binaries import build
from tests.support import longrun

_PATH = (*os.environ.get("PATH", os.defpath).split(os.pathsep), "/usr/local/sbin", "/usr/sbin", "/sbin")
_LISTS = Path("/var/lib/apt/lists")
_INSTALL_DEADLINE = 900.0
_UPDATE_DEADLINE = 300.0
_LET_IT_END = 300.0
_APT = (
    "apt-get",
    "--quiet",
    "--option=DPkg::Lock::Timeout=300",
    "--option=Acquire::Retries=3",
    "--option=Dpkg::Options::=--force-confdef",
    "--option=Dpkg::Options::=--force-confold",
)

_POLICY = Path("/usr/sbin/policy-rc.d")
_NO_SERVICES = "MIGCOMPAT_STARTS_NO_SERVICE"
_POLICY_TEXT = f"""#!/bin/sh
# Of migcompat's tests: packages installed by them start no service. Without the variable it forbids nothing.
[ -z "${_NO_SERVICES}" ] || exit 101
"""


class DebianError(RuntimeError):
    """Something of Debian could not be had; the text says what, why, and what to do."""


def need(commands: Mapping[str, str]) -> dict[str, Path]:
    """Where the commands are; the packages of those that are missing are installed, without their services.

    Nothing is removed for it, and no recommended package comes along. Two processes that ask at the same time
    install once. Progress goes to stderr.

    Args:
        commands: command to Debian package, as in ``{"runc": "runc"}``. A key with a leading ``/`` is the
            path of a file or directory that the package brings, as ``/usr/lib/cni`` is.

    Raises:
        DebianError: not root, no apt-get, a package cannot be had, or does not bring the command.
    """
    if missing := _missing(commands):
        with longrun.locked(build.cache() / "debian.lock", "Debian packages"):
            if missing := _missing(commands):
                _install(missing)
    return {command: found for command in commands if (found := _find(command))}


def _install(missing: Mapping[str, str]) -> None:
    packages = sorted(set(missing.values()))
    wanted = f"{', '.join(missing)}: missing on this machine"
    by_hand = f"`apt-get install {' '.join(packages)}`"
    if not shutil.which(_APT[0]):
        raise DebianError(
            f"{wanted}, and it has no apt-get to install them with. On Debian {by_hand} brings them;"
            " bring them here by its own means."
        )
    if os.geteuid() != 0:
        raise DebianError(f"{wanted}, and only root can install them: {by_hand}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8", _NO_SERVICES: "1"}
    install = [*_APT, "install", "--yes", "--no-install-recommends", "--no-remove", "--no-upgrade", *packages]

    def apt(name: str, command: list[str], deadline: float) -> None:
        longrun.run(name, command, deadline=deadline, environment=environment, let_it_end=_LET_IT_END)

    longrun.say(f"installing {', '.join(packages)}")
    try:
        with _no_services():
            if not any(_LISTS.glob("*_Packages*")):
                apt("apt-get update", [*_APT, "update"], _UPDATE_DEADLINE)
            try:
                apt("apt-get install", install, _INSTALL_DEADLINE)
            except longrun.LongRunError as error:
                longrun.say(f"apt-get install failed; once more with new lists. It said: {error}")
                apt("apt-get update", [*_APT, "update"], _UPDATE_DEADLINE)
                apt("apt-get install", install, _INSTALL_DEADLINE)
    except longrun.LongRunError as error:
        raise DebianError(f"{wanted}, and cannot be installed. {error}") from error
    if still := _missing(missing):
        brings = ", ".join(f"{package} does not bring {command}" for command, package in still.items())
        raise DebianError(f"{wanted}, also after {by_hand}: {brings}")


@contextlib.contextmanager
def _no_services() -> Iterator[None]:
    """Has invoke-rc.d and deb-systemd-invoke refuse to start anything (policy-rc.d, Debian policy 9.3.3.2).

    An administrator's own policy stays, whatever it says. Ours forbids nothing when a killed process left it.
    """
    ours = _POLICY_TEXT.encode()
    try:
        with _POLICY.open("xb") as file:
            file.write(ours)
    except FileExistsError:
        if _POLICY.read_bytes() != ours:
            yield
            return
    _POLICY.chmod(0o755)
    try:
        yield
    finally:
        _POLICY.unlink(missing_ok=True)


def _missing(commands: Mapping[str, str]) -> dict[str, str]:
    return {command: package for command, package in commands.items() if not _find(command)}


def _find(command: str) -> Path | None:
    if command.startswith("/"):
        return Path(command) if Path(command).exists() else None
    found = shutil.which(command, path=os.pathsep.join(_PATH))
    return Path(found) if found else None


def main() -> None:
    """Installs what is missing and prints where everything is."""
    longrun.interruptible()
    try:
        found = need(dict(argument.split("=", 1) for argument in sys.argv[1:]))
    except DebianError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted")
    for path in found.values():
        print(path)


if __name__ == "__main__":
    main()
