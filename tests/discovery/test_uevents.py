"""Messages of the kernel: what counts, what does not, and what a socket can do."""

from __future__ import annotations

import errno
import itertools
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from migcompat.sysfs import uevents
from migcompat.sysfs.uevents import DRAIN_LIMIT, MESSAGE_LIMIT, Heard, Listener, listen, parse

from tests.support.uevents import FakeUevents, message

RECORDED = (
    b"change@/devices/virtual/mem/null\0ACTION=change\0DEVPATH=/devices/virtual/mem/null\0SUBSYSTEM=mem\0"
    b"SYNTH_UUID=12345678-1234-4234-8234-123456789012\0MAJOR=1\0MINOR=3\0DEVNAME=null\0DEVMODE=0666\0SEQNUM=815\0"
)


def test_a_message_of_a_real_kernel() -> None:
    event = parse(RECORDED)
    assert event == ("change", "/devices/virtual/mem/null", "mem")
    assert not event.relevant


@pytest.mark.parametrize("subsystem", ["drivers", "iommu", "mdev", "module", "pci", "vfio", "vfio-dev"])
@pytest.mark.parametrize("action", ["add", "remove", "change", "bind", "unbind", "move"])
def test_every_action_of_a_relevant_subsystem_counts(action: str, subsystem: str) -> None:
    event = parse(message(action, subsystem))
    assert event is not None
    assert (event.action, event.subsystem, event.relevant) == (action, subsystem, True)


@pytest.mark.parametrize(
    "garbled",
    [
        b"",
        b"\0",
        b"add",
        b"add@",
        b"@/devices/x\0SUBSYSTEM=mdev\0",
        b"add@devices/x\0SUBSYSTEM=mdev\0",
        b"libudev\0\xfe\xed\xca\xfe\0SUBSYSTEM=mdev\0",
        b"4dd@/devices/x\0SUBSYSTEM=mdev\0",
    ],
)
def test_what_is_no_event_is_none(garbled: bytes) -> None:
    assert parse(garbled) is None


def test_an_event_without_a_subsystem_is_not_relevant() -> None:
    event = parse(b"add@/devices/x\0SUBSYSTEM\0=mdev\0XSUBSYSTEM=mdev\0")
    assert event is not None
    assert not event.relevant


@given(st.binary(max_size=300))
def test_arbitrary_bytes_never_raise(garbled: bytes) -> None:
    parse(garbled)


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_arbitrary_bytes_in_a_message_never_raise(devpath: bytes, rest: bytes) -> None:
    event = parse(b"add@/" + devpath + b"\0SUBSYSTEM=mdev\0" + rest)
    assert event is not None


def test_only_the_kernels_relevant_messages_are_counted() -> None:
    messages = FakeUevents()
    messages.send()
    messages.send(message("bind", "pci"))
    messages.send(message("add", "net"))
    messages.send(b"\xff garbled \0 SUBSYSTEM=mdev")
    messages.send(sender=4711)
    listener = messages.listener()
    assert listener.drain() == Heard(2, 0, frozenset({"/devices/virtual/x/y"}))
    assert not listener.drain()


def test_an_overrun_is_told_and_reading_goes_on() -> None:
    messages = FakeUevents()
    messages.fail(errno.ENOBUFS)
    messages.send()
    assert messages.listener().drain() == Heard(1, 1, frozenset({"/devices/virtual/x/y"}))


def test_a_message_longer_than_any_of_the_kernels_is_cut() -> None:
    messages = FakeUevents()
    messages.send(message(devpath="/" + "x" * MESSAGE_LIMIT))
    assert messages.listener().drain() == Heard()


def test_a_broken_socket_is_an_error() -> None:
    messages = FakeUevents()
    messages.fail(errno.EBADF)
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        messages.listener().drain()


def test_a_storm_is_taken_in_portions() -> None:
    class Storm:
        """Messages without end."""

        def __init__(self) -> None:
            self.numbers = itertools.count()

        def fileno(self) -> int:
            return 0

        def recvfrom(self, bufsize: int, /) -> tuple[bytes, tuple[int, int]]:
            next(self.numbers)
            return message(), (0, 1)

        def close(self) -> None:
            pass

    storm = Storm()
    assert Listener(storm).drain() == Heard(DRAIN_LIMIT, 0, frozenset({"/devices/virtual/x/y"}))
    assert next(storm.numbers) == DRAIN_LIMIT


def test_anybody_may_listen_to_the_kernel() -> None:
    listener = listen()
    try:
        assert os.get_blocking(listener.fileno()) is False
        listener.drain()
    finally:
        listener.close()


def test_events_tell_of_a_mounted_sysfs_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sys").mkdir()
    device = tmp_path.stat().st_dev
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "22 1 0:21 / /proc rw,relatime shared:3 - proc proc rw\n"
        f"23 1 {os.major(device)}:{os.minor(device)} / /sys rw,relatime - ext4 /dev/sysfs rw\n"
    )
    ids = tmp_path / "uid_map"
    ids.write_text("         0          0 4294967295\n")
    monkeypatch.setattr(uevents, "MOUNTS", mounts)
    monkeypatch.setattr(uevents, "UID_MAP", ids)
    assert not uevents.tell_of(tmp_path / "sys"), "a tree like one"
    mounts.write_text(
        f"23 1 {os.major(device)}:{os.minor(device)} / /host/sys rw master:7 - sysfs sysfs rw\n"
    )
    assert uevents.tell_of(tmp_path / "sys")
    assert not uevents.tell_of(tmp_path / "gone")
    ids.write_text("         0     100000      65536\n")
    assert not uevents.tell_of(tmp_path / "sys"), "the kernel tells other user namespaces nothing"


def test_the_machines_own_mounts_can_be_read() -> None:
    assert not uevents.tell_of(Path("/proc"))
