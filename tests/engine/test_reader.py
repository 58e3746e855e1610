"""Bounded reads inside the device directory (semantics §2, reading rules)."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from migcompat.engine.declaration import Kind, Presence
from migcompat.engine.verdict import decide
from migcompat.sysfs.declaration import read_declaration
from migcompat.sysfs.reader import AbsentError, MalformedFileError, UnreadableError, read_value

from tests.engine.test_layouts import LINES, OWN, attributes, l1, problems, put


@pytest.fixture
def place(tmp_path: Path) -> Path:
    device = tmp_path / "node-7" / "0000:00:02.0"
    device.mkdir(parents=True)
    return device


def fifo(path: Path) -> None:
    os.mkfifo(path)


def device_node(path: Path) -> None:
    path.symlink_to("/dev/zero")


def unix_socket(path: Path) -> None:
    bound = socket.socket(socket.AF_UNIX)
    os.chdir(path.parent)
    bound.bind(path.name)
    bound.close()


def escaping_link(path: Path) -> None:
    outside = path.parents[len(path.parts) - 2] / "tmp"
    path.symlink_to(os.path.relpath(outside, path.parent))


def link_to_a_file_outside(path: Path) -> None:
    path.symlink_to("/etc/hostname")


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def dangling(path: Path) -> None:
    path.symlink_to("nothing-here")


SPECIAL = [fifo, device_node, unix_socket, escaping_link, link_to_a_file_outside, loop, dangling]
Make = Callable[[Path], None]


@pytest.fixture(autouse=True)
def _working_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("make", SPECIAL)
class TestSpecialFilesAreMalformed:
    def test_as_a_value(self, place: Path, make: Make) -> None:
        put(place, l1({**OWN}, {**OWN}, {**OWN}))
        make(place / "migration/self/x")
        make(place / "migration/compatible/x")
        declared = read_declaration(place, Kind.MDEV)
        assert declared.self.presence is Presence.MALFORMED
        assert problems(declared) == [True, False]

    def test_as_an_ignored_name(self, place: Path, make: Make) -> None:
        put(place, l1({**OWN}, {**OWN}))
        make(place / "migration/self/uevent")
        make(place / "migration/compatible/subsystem")
        declared = read_declaration(place, Kind.MDEV)
        assert (declared.self.attributes, attributes(declared)) == (OWN, [OWN])

    def test_as_a_set_or_document(self, place: Path, make: Make) -> None:
        (place / "migration").mkdir()
        make(place / "migration/self")
        make(place / "migration/compatible")
        declared = read_declaration(place, Kind.MDEV)
        assert declared.self.presence is Presence.MALFORMED
        assert problems(declared) == [True]
        assert decide(declared, declared).reason == "MalformedSelf"

    def test_as_a_numbered_entry(self, place: Path, make: Make) -> None:
        put(place, l1({**OWN}, {**OWN}))
        make(place / "migration/compatible/3")
        make(place / "migration/compatible4")
        declared = read_declaration(place, Kind.MDEV)
        assert problems(declared)[-2:] == [True, True]

    def test_as_l3(self, place: Path, make: Make) -> None:
        make(place / "migration_compatible")
        declared = read_declaration(place, Kind.MDEV)
        assert (declared.self.presence, declared.accepts.presence) == (Presence.MALFORMED, Presence.MALFORMED)

    def test_as_an_instance_attribute_or_a_file_of_l4(self, place: Path, make: Make) -> None:
        files: dict[str, str | bytes] = {
            "software_version": "1.2.3",
            "device_api": "vfio-pci",
            "dynamic_resources": "aggregator",
        }
        put(place.parent / "T", files)
        (place / "mdev_type").symlink_to("../T")
        make(place / "aggregator")
        declared = read_declaration(place)
        assert declared.self.presence is Presence.MALFORMED
        assert problems(declared) == [False]
        make(place.parent / "T/compatible_x")
        assert problems(read_declaration(place)) == [True]

    def test_messages_name_no_device(self, place: Path, make: Make) -> None:
        put(place, l1({**OWN}, {**OWN}))
        make(place / "migration/self/x")
        make(place / "migration/compatible/x")
        declared = read_declaration(place, Kind.MDEV)
        text = declared.self.problem + declared.accepts.entries[0].problem
        assert "node-7" not in text
        assert "0000:00:02.0" not in text
        assert "migration/self/x" in text


class TestLinks:
    def test_one_that_stays_inside_is_fine(self, place: Path) -> None:
        put(place, {**l1({**OWN}, {**OWN}), "elsewhere/type": "T", "real/x": "1"})
        (place / "migration/self/x").symlink_to("../../elsewhere/../real/x")
        (place / "migration/compatible1").symlink_to("../elsewhere")
        declared = read_declaration(place, Kind.MDEV)
        assert declared.self.attributes == {**OWN, "x": "1"}
        assert attributes(declared) == [OWN, {"type": "T"}]

    def test_the_device_directory_itself_may_be_one(self, place: Path, tmp_path: Path) -> None:
        put(place, l1({**OWN}, {**OWN}))
        (tmp_path / "by-name").symlink_to(place)
        assert read_declaration(tmp_path / "by-name", Kind.MDEV).self.attributes == OWN

    def test_a_migration_directory_that_leaves(self, place: Path) -> None:
        put(place.parent / "other", l1({**OWN}, {**OWN}))
        (place / "migration").symlink_to("../other/migration")
        put(place, {"migration_compatible": f"SELF:\n{LINES}"})
        declared = read_declaration(place, Kind.MDEV)
        assert (declared.self.presence, declared.accepts.presence) == (Presence.MALFORMED, Presence.MALFORMED)

    def test_a_sibling_directory_whose_name_begins_alike_is_outside(self, place: Path) -> None:
        put(place.parent / f"{place.name}-twin", {"x": "1"})
        put(place, l1({**OWN}))
        (place / "migration/self/x").symlink_to(f"../../../{place.name}-twin/x")
        assert read_declaration(place, Kind.MDEV).self.presence is Presence.MALFORMED

    def test_a_file_of_a_type_directory_that_leaves_it(self, place: Path) -> None:
        put(place.parent / "T", {"software_version": "1.2.3"})
        put(place.parent, {"secret": "vfio-pci"})
        (place / "mdev_type").symlink_to("../T")
        (place.parent / "T/device_api").symlink_to("../secret")
        assert read_declaration(place).self.presence is Presence.MALFORMED

    def test_a_name_that_climbs_out(self, place: Path) -> None:
        put(place.parent, {"secret": "1"})
        with pytest.raises(MalformedFileError):
            read_value(place / "../secret", limit=10, root=place)


class TestReadErrors:
    @pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ENODEV, errno.EAGAIN])
    def test_of_a_value(self, place: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
        put(place, l1({**OWN, "bad": "1"}, {**OWN}, {**OWN, "bad": "1"}))
        fail_to_open(monkeypatch, "bad", number)
        declared = read_declaration(place, Kind.MDEV)
        assert declared.self.presence is Presence.UNREADABLE
        assert declared.accepts.presence is Presence.UNREADABLE
        assert problems(declared) == [False, True]
        assert str(place) not in declared.self.problem + declared.accepts.problem
        assert decide(declared, declared).reason == "Unknown"

    def test_while_reading(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        put(place, {"migration/self": LINES, "migration/compatible": LINES})

        def fail(handle: int, length: int) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr("migcompat.sysfs.reader.os.read", fail)
        declared = read_declaration(place, Kind.MDEV)
        assert (declared.self.presence, declared.accepts.presence) == (
            Presence.UNREADABLE,
            Presence.UNREADABLE,
        )

    def test_of_what_is_known_to_be_malformed_anyway(
        self, place: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        put(place, l1({**OWN, "bad": "1", "pci_id": "x"}))
        fail_to_open(monkeypatch, "bad", errno.EIO)
        assert read_declaration(place, Kind.MDEV).self.presence is Presence.MALFORMED

    def test_a_must_attribute_that_cannot_be_read_is_not_missing(
        self, place: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        put(place, l1({**OWN}))
        fail_to_open(monkeypatch, "type", errno.EIO)
        assert read_declaration(place, Kind.MDEV).self.presence is Presence.UNREADABLE

    def test_an_attribute_that_has_vanished_is_absent(
        self, place: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        put(place, l1({**OWN, "bad": "1"}))
        fail_to_open(monkeypatch, "bad", errno.ENOENT)
        assert read_declaration(place, Kind.MDEV).self.attributes == OWN

    def test_of_the_device_directory(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        put(place, l1({**OWN}))

        def fail(path: str) -> os.stat_result:
            raise PermissionError(errno.EACCES, "Permission denied", path)

        monkeypatch.setattr("migcompat.sysfs.reader.os.lstat", fail)
        for kind in (None, Kind.MDEV):
            declared = read_declaration(place, kind)
            assert declared.self.presence is Presence.UNREADABLE
            assert str(place) not in declared.self.problem

    def test_of_l4s_files(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        files: dict[str, str | bytes] = {"software_version": "1.2.3", "device_api": "vfio-pci"}
        put(place.parent / "T", {**files, "compatible_type": "U", "dynamic_resources": "a"})
        (place / "mdev_type").symlink_to("../T")
        fail_to_open(monkeypatch, "compatible_type", errno.EIO)
        declared = read_declaration(place)
        assert (declared.self.presence, declared.accepts.presence) == (Presence.PRESENT, Presence.UNREADABLE)
        assert decide(declared, declared).reason == "Compatible"
        fail_to_open(monkeypatch, "dynamic_resources", errno.EIO)
        declared = read_declaration(place)
        assert (declared.self.presence, declared.accepts.presence) == (
            Presence.UNREADABLE,
            Presence.UNREADABLE,
        )
        fail_to_open(monkeypatch, "software_version", errno.EIO)
        declared = read_declaration(place)
        assert (declared.self.presence, declared.accepts.presence) == (
            Presence.UNREADABLE,
            Presence.UNREADABLE,
        )


def fail_to_open(monkeypatch: pytest.MonkeyPatch, name: str, number: int) -> None:
    """Let opening any file called *name* fail."""
    real = os.open

    def fail(path: str, flags: int, *more: int) -> int:
        if os.path.basename(path) == name:
            raise OSError(number, os.strerror(number), path)
        return real(path, flags, *more)

    monkeypatch.setattr("migcompat.sysfs.reader.os.open", fail)


class TestBounds:
    def test_reading_stops_at_the_limit(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        put(place, {"x": "1" * 100})
        assert read_value(place / "x", limit=100, root=place) == b"1" * 100
        with pytest.raises(MalformedFileError, match="longer than 99 bytes"):
            read_value(place / "x", limit=99, root=place)

    def test_an_endless_file(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        put(place, {"migration/self": LINES})
        asked = []

        def endless(handle: int, length: int) -> bytes:
            asked.append(length)
            return b"x" * min(length, 1000)

        monkeypatch.setattr("migcompat.sysfs.reader.os.read", endless)
        assert read_declaration(place, Kind.MDEV).self.presence is Presence.MALFORMED
        assert sum(min(length, 1000) for length in asked) <= 65537

    def test_a_real_sysfs_attribute_says_4096_bytes_and_has_fewer(self, place: Path) -> None:
        """st_size tells nothing: what counts is what reading gives."""
        put(place, {"x": "7\n"})
        os.truncate(place / "x", 4096)
        assert read_value(place / "x", limit=4096, root=place).startswith(b"7\n")
        real = Path("/sys/kernel/mm/transparent_hugepage/enabled")
        if real.exists():
            assert read_value(real, limit=4096, root=real.parent)

    def test_too_many_names(self, place: Path) -> None:
        put(place, l1({**OWN, **{f"x{index}": "1" for index in range(4200)}}))
        assert read_declaration(place, Kind.MDEV).self.presence is Presence.MALFORMED

    def test_kinds_of_errors(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        put(place, {"x": "1"})
        with pytest.raises(AbsentError):
            read_value(place / "gone", limit=10, root=place)
        with pytest.raises(AbsentError):
            read_value(place / "x/y", limit=10, root=place)
        with pytest.raises(AbsentError):
            read_value(place / ("n" * 300), limit=10, root=place)
        with pytest.raises(MalformedFileError):
            read_value(place, limit=10, root=place.parent)
        fail_to_open(monkeypatch, "x", errno.EIO)
        with pytest.raises(UnreadableError):
            read_value(place / "x", limit=10, root=place)

    def test_nothing_but_what_a_layout_names_is_opened(
        self, place: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        put(
            place,
            {**l1({**OWN}, {**OWN}), "config": "1", "resource0": "1", "migration/other": "1", "rom": "1"},
        )
        opened = []
        real = os.open

        def note(path: str, flags: int, *more: int) -> int:
            opened.append(os.path.relpath(path, place))
            return real(path, flags, *more)

        monkeypatch.setattr("migcompat.sysfs.reader.os.open", note)
        read_declaration(place)
        expected = {f"migration/{half}/{name}" for half in ("self", "compatible") for name in OWN}
        assert set(opened) - {"."} == expected, "beside the directory itself"
