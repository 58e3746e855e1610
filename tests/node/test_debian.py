"""Installing from Debian, with an apt-get that only notes what it is asked for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.node import debian

APT = """#!/bin/sh
echo "$*" >> {home}/asked
case "$*" in *update*) touch {home}/lists/x_Packages; exit 0;; esac
MIGCOMPAT_STARTS_NO_SERVICE=$MIGCOMPAT_STARTS_NO_SERVICE {home}/policy-rc.d containerd start
echo "$?" >> {home}/may-start
if [ -e {home}/broken ]; then rm {home}/broken; echo "E: 404 Not Found"; exit 100; fi
for name in one two; do printf '#!/bin/sh\\n' > {home}/bin/$name; chmod +x {home}/bin/$name; done
"""


class Machine:
    """A Debian of which only apt-get is there."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.home = home
        self.policy = home / "policy-rc.d"
        for name in ("bin", "lists"):
            (home / name).mkdir()
        (home / "lists" / "a_Packages.lz4").touch()
        self._put("apt-get", APT.format(home=home))
        path = (str(home / "bin"), "/usr/bin", "/bin")
        monkeypatch.setenv("PATH", os.pathsep.join(path))
        monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
        monkeypatch.setattr(debian, "_PATH", path[:1])
        monkeypatch.setattr(debian, "_LISTS", home / "lists")
        monkeypatch.setattr(debian, "_POLICY", self.policy)

    def _put(self, name: str, text: str) -> None:
        (self.home / "bin" / name).write_text(text)
        (self.home / "bin" / name).chmod(0o755)

    def asked(self) -> list[list[str]]:
        """Command (and packages) of every call of apt-get."""
        file = self.home / "asked"
        lines = file.read_text().splitlines() if file.exists() else []
        return [[word for word in line.split() if not word.startswith("--")] for line in lines]

    def may_start(self) -> list[str]:
        """What policy-rc.d said at every installation; 101 forbids."""
        return (self.home / "may-start").read_text().split()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_what_is_there_is_not_installed(machine: Machine) -> None:
    here = machine.home / "bin" / "apt-get"
    assert debian.need({"apt-get": "apt", str(here): "apt"}) == {"apt-get": here, str(here): here}
    assert machine.asked() == []


def test_everything_that_is_missing_is_installed_at_once_and_starts_no_service(machine: Machine) -> None:
    bin_ = machine.home / "bin"
    found = debian.need({"one": "package-b", "apt-get": "apt", str(bin_ / "two"): "package-a"})
    assert found == {"one": bin_ / "one", "apt-get": bin_ / "apt-get", str(bin_ / "two"): bin_ / "two"}
    assert machine.asked() == [["install", "package-a", "package-b"]]
    assert "--no-remove" in (machine.home / "asked").read_text()
    assert machine.may_start() == ["101"]
    assert not machine.policy.exists()


def test_lists_are_fetched_where_there_are_none(machine: Machine) -> None:
    (machine.home / "lists" / "a_Packages.lz4").unlink()
    debian.need({"one": "p"})
    assert machine.asked() == [["update"], ["install", "p"]]


def test_lists_that_are_too_old_are_fetched_anew(machine: Machine) -> None:
    (machine.home / "broken").touch()
    debian.need({"one": "p"})
    assert machine.asked() == [["install", "p"], ["update"], ["install", "p"]]


def test_a_policy_of_the_administrators_stays(machine: Machine) -> None:
    machine.policy.write_text("#!/bin/sh\nexit 0\n")
    machine.policy.chmod(0o755)
    debian.need({"one": "p"})
    assert machine.may_start() == ["0"]
    assert machine.policy.read_text() == "#!/bin/sh\nexit 0\n"


def test_a_policy_that_a_killed_run_left_forbids_nothing_and_goes(machine: Machine) -> None:
    with pytest.raises(KeyboardInterrupt), debian._no_services():
        left = machine.policy.read_bytes()
        raise KeyboardInterrupt
    machine.policy.write_bytes(left)
    machine.policy.chmod(0o755)
    assert os.spawnl(os.P_WAIT, str(machine.policy), "policy-rc.d", "containerd", "start") == 0
    debian.need({"one": "p"})
    assert machine.may_start() == ["101"]
    assert not machine.policy.exists()


@pytest.mark.parametrize("lacking", ["apt-get", "root", "package", "command"])
def test_what_cannot_be_had_is_told_with_what_to_do(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, lacking: str
) -> None:
    needed, told = "one", {
        "apt-get": "one: missing on this machine, and it has no apt-get to install them with",
        "root": "one: missing on this machine, and only root can install them: `apt-get install the-package`",
        "package": "E: Unable to locate package the-package",
        "command": "three: missing on this machine, also after `apt-get install the-package`:"
        " the-package does not bring three",
    }[lacking]  # fmt: skip
    if lacking == "apt-get":
        (machine.home / "bin" / "apt-get").unlink()
        monkeypatch.setenv("PATH", str(machine.home / "bin"))
    elif lacking == "root":
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
    elif lacking == "package":
        machine._put("apt-get", "#!/bin/sh\necho E: Unable to locate package the-package; exit 100\n")
    else:
        needed = "three"
    with pytest.raises(debian.DebianError) as error:
        debian.need({needed: "the-package"})
    assert told in str(error.value)
