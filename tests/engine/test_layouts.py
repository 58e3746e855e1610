"""The reading rules and the layouts, on files (semantics §2)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from migcompat.engine.declaration import Acceptance, Declaration, Entry, Kind, Presence, SelfSet
from migcompat.engine.verdict import decide
from migcompat.sysfs.declaration import read_declaration

LINES = "software_version=1.2.3\ndevice_api=vfio-pci\ntype=T\n"
BASE = {"software_version": "1.2.3\n", "device_api": "vfio-pci\n"}
OWN = {"software_version": "1.2.3", "device_api": "vfio-pci", "type": "T"}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    device = tmp_path / "device"
    device.mkdir()
    return device


def put(place: Path, files: Files) -> Path:
    for name, content in files.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return place


Files = dict[str, str | bytes]


def l1(own: Files, *entries: Files) -> Files:
    files: Files = {f"migration/self/{name}": value for name, value in own.items()}
    for index, entry in enumerate(entries):
        files |= {f"migration/compatible{index or ''}/{name}": value for name, value in entry.items()}
    return files


def read(place: Path, files: Files, kind: Kind = Kind.MDEV) -> Declaration:
    return read_declaration(put(place, files), kind)


def attributes(declared: Declaration) -> list[dict[str, str]]:
    return [entry.attributes for entry in declared.accepts.entries]


def problems(declared: Declaration) -> list[bool]:
    return [bool(entry.problem) for entry in declared.accepts.entries]


class TestValues:
    @pytest.mark.parametrize(
        ("raw", "value"),
        [
            ("7\n", "7"),
            (" \t\r\n 7 \t\r\n", "7"),
            ("", ""),
            ("\n", ""),
            ('"7"\n', "7"),
            ('" 7 "\n', " 7 "),
            ('""', ""),
            ('"', '"'),
            ('""7""', '"7"'),
            ('"7', '"7'),
            ('7"', '7"'),
            ('"a"b"', 'a"b'),
            ("a b=c # d", "a b=c # d"),
            ("~!", "~!"),
            ("x" * 4096 + "\n", "x" * 4096),
        ],
    )
    def test_stripping_and_quotes_in_every_layout(self, tmp_path: Path, raw: str, value: str) -> None:
        line = raw.strip("\n")
        written: list[Files] = [l1({**OWN, "x": raw}, {**OWN, "x": raw})]
        if "\n" not in line:
            text = f"{LINES}x={line}\n"
            written.append({"migration/self": text, "migration/compatible": text})
            written.append({"migration_compatible": f"SELF:\n{text}COMPATIBLE:\n{text}"})
        for index, files in enumerate(written):
            (tmp_path / str(index)).mkdir()
            declared = read(tmp_path / str(index), files)
            assert declared.self.attributes["x"] == value
            assert attributes(declared)[0]["x"] == value

    @pytest.mark.parametrize(
        "raw",
        [
            b"a\x00",
            b"\x00",
            b"a\x1fb",
            b"a\x7f",
            b"a\tb",
            b"a\rb",
            b"\xef\xbb\xbfa",
            "é".encode(),
            b"\x0b7",
            b"\xa0",
        ],
    )
    def test_what_is_not_printable_spoils_the_set_or_the_document(self, tmp_path: Path, raw: bytes) -> None:
        good = {name: value.encode() for name, value in OWN.items()}
        lines = LINES.encode()
        cases: list[tuple[Files, int]] = [
            (l1({**good, "x": raw}, {**good, "x": raw}, {**good}), 1),
            ({"migration/self": lines + b"x=" + raw + b"\n", "migration/compatible": lines}, 1),
        ]
        for index, (files, usable) in enumerate(cases):
            (tmp_path / str(index)).mkdir()
            declared = read(tmp_path / str(index), files)
            assert declared.self.presence is Presence.MALFORMED
            assert problems(declared).count(False) == usable
        (tmp_path / "l2").mkdir()
        text = lines + b"\n" + lines + b"x=" + raw + b"\n"
        declared = read(tmp_path / "l2", {"migration/self": lines, "migration/compatible": text})
        assert (declared.self.presence, declared.accepts.presence) == (Presence.PRESENT, Presence.MALFORMED)
        (tmp_path / "l3").mkdir()
        text = b"SELF:\n" + lines + b"COMPATIBLE:\n" + lines + raw + b"=1\n"
        declared = read(tmp_path / "l3", {"migration_compatible": text})
        assert (declared.self.presence, declared.accepts.presence) == (Presence.MALFORMED, Presence.MALFORMED)

    def test_a_value_of_several_lines_is_malformed_in_l1(self, place: Path) -> None:
        assert read(place, l1({**OWN, "x": "1\n2\n"})).self.presence is Presence.MALFORMED

    def test_a_value_longer_than_4096_bytes_spoils_its_set_in_every_layout(self, tmp_path: Path) -> None:
        text = f"{LINES}x={'x' * 4097}\n"
        long: Files = {**OWN, "x": "x" * 4097}
        written: list[Files] = [
            l1(long, long, {**OWN}),
            {"migration/self": text, "migration/compatible": f"{text}\n{LINES}"},
            {"migration_compatible": f"SELF:\n{text}COMPATIBLE:\n{text}COMPATIBLE:\n{LINES}"},
        ]
        for index, files in enumerate(written):
            (tmp_path / str(index)).mkdir()
            declared = read(tmp_path / str(index), files)
            assert declared.self.presence is Presence.MALFORMED
            assert problems(declared) == [True, False]


class TestCanonicalForms:
    @pytest.mark.parametrize(
        ("alias", "name", "value"),
        [
            ("mdev_type", "type", "T"),
            ("device_type", "device_api", "vfio-pci"),
            ("device_id", "pci_id", "8086591d"),
            ("pciid", "pci_id", "8086591d"),
            ("interface_version", "software_version", "1.2.3"),
        ],
    )
    def test_aliases(self, tmp_path: Path, alias: str, name: str, value: str) -> None:
        rest: Files = {key: text for key, text in OWN.items() if key != name}
        for index, (files, presence) in enumerate(
            (
                (l1({**rest, alias: value}), Presence.PRESENT),
                (l1({**rest, alias: value, name: value}), Presence.PRESENT),
                (l1({**rest, alias: value, name: value + "0"}), Presence.MALFORMED),
            )
        ):
            (tmp_path / str(index)).mkdir()
            declared = read(tmp_path / str(index), files)
            assert declared.self.presence is presence
            if presence is Presence.PRESENT:
                assert declared.self.attributes == {**OWN, name: value}

    def test_an_alias_is_compared_after_canonicalisation(self, place: Path) -> None:
        declared = read(place, l1({**OWN, "pci_id": "0x8086:0x591D", "device_id": "8086591d"}))
        assert declared.self.attributes["pci_id"] == "8086591d"

    @pytest.mark.parametrize("raw", ["8086:591D", "0x8086591d", "0X8086591D", "8086591D", '"8086:591d"'])
    def test_pci_id(self, place: Path, raw: str) -> None:
        assert read(place, l1({**OWN, "pci_id": raw})).self.attributes["pci_id"] == "8086591d"

    @pytest.mark.parametrize("raw", ["8086591", "8086591dd", "8086:591g", "", "8086 591d", "800x86591d"])
    def test_what_is_no_pci_id_spoils_the_set(self, place: Path, raw: str) -> None:
        declared = read(place, l1({**OWN, "pci_id": raw}, {**OWN, "pci_id": raw}))
        assert declared.self.presence is Presence.MALFORMED
        assert problems(declared) == [True]

    @pytest.mark.parametrize(("raw", "value"), [("0x1a", "26"), ("0b11", "3"), ("0o17", "15"), ("-1", "-1")])
    def test_integers(self, place: Path, raw: str, value: str) -> None:
        declared = read(place, l1({**OWN, "chpid_type": raw, "subchannel_type": raw}))
        assert declared.self.attributes == {**OWN, "chpid_type": value, "subchannel_type": value}

    def test_device_api(self, place: Path) -> None:
        assert read(place, l1({**OWN, "device_api": "vfio_pci"})).self.attributes == OWN


class TestSets:
    def test_empty_sets_are_none(self, place: Path) -> None:
        (place / "migration/self").mkdir(parents=True)
        (place / "migration/compatible/1").mkdir(parents=True)
        (place / "migration/compatible2").mkdir(parents=True)
        declared = read_declaration(place)
        assert declared.self.presence is Presence.ABSENT
        assert declared.accepts.presence is Presence.ABSENT

    def test_a_missing_must_attribute(self, place: Path) -> None:
        declared = read(place, l1({"type": "T", "device_api": "vfio-pci"}))
        assert declared.self.presence is Presence.MALFORMED
        assert declared.self.problem == "self lacks software_version"

    def test_a_physical_device_needs_its_pci_id(self, place: Path) -> None:
        assert read(place, l1({**OWN}), Kind.PHYSICAL).self.problem == "self lacks pci_id"
        assert read(place, l1({**OWN}), Kind.MDEV).self.presence is Presence.PRESENT

    @pytest.mark.parametrize("line", ["junk", "# comment", "=1", " = 1", "COMPATIBLE", "SELF", "compatible:"])
    def test_bad_lines_spoil_the_set_they_stand_in(self, tmp_path: Path, line: str) -> None:
        for name, files in {
            "l2": {"migration/self": LINES, "migration/compatible": f"{LINES}\n{line}\n{LINES}\n{LINES}"},
            "l3": {
                "migration_compatible": f"SELF:\n{LINES}COMPATIBLE:\n{LINES}"
                f"COMPATIBLE:\n{line}\n{LINES}COMPATIBLE:\n{LINES}"
            },
        }.items():
            (tmp_path / name).mkdir()
            declared = read(tmp_path / name, dict(files))
            assert declared.self.presence is Presence.PRESENT
            assert problems(declared) == [False, True, False]
            own = tmp_path / f"{name}-self"
            own.mkdir()
            spoiled = {key: text.replace(LINES, f"{line}\n{LINES}", 1) for key, text in files.items()}
            assert read(own, dict(spoiled)).self.presence is Presence.MALFORMED

    def test_a_bad_line_alone_is_an_entry(self, place: Path) -> None:
        declared = read(place, {"migration/self": LINES, "migration/compatible": "junk\n"})
        assert problems(declared) == [True]

    def test_the_same_key_twice(self, place: Path) -> None:
        text = f"{LINES}pci_id=8086591d\nx=1\nx=1\npci_id=8086:591D\n\n{LINES}x=1\nx=2\n"
        own = text.split("\n\n", maxsplit=1)[0]
        declared = read(place, {"migration/self": own, "migration/compatible": text})
        assert declared.self.attributes == {**OWN, "pci_id": "8086591d", "x": "1"}
        assert problems(declared) == [False, True]

    def test_a_line_is_split_at_the_first_equals_sign(self, place: Path) -> None:
        declared = read(place, {"migration/self": f"{LINES}url=a=b=c\n"})
        assert declared.self.attributes["url"] == "a=b=c"

    def test_blanks_around_keys(self, place: Path) -> None:
        declared = read(place, {"migration/self": f"{LINES}\t x \t=\t 1 \r\n"})
        assert declared.self.attributes["x"] == "1"


class TestL1:
    def test_names_that_are_ignored(self, place: Path) -> None:
        ignored: Files = {
            "uevent": "\x00",
            "power": "x",
            "subsystem": "x",
            ".hidden": "\x00",
        }
        files = l1({**OWN, **ignored, "inner/type": "U"}, {**OWN, **ignored, "power2/x": "1"})
        declared = read(place, files)
        assert declared.self.attributes == OWN
        assert attributes(declared) == [OWN]

    def test_entries_stand_in_the_order_of_their_numbers(self, place: Path) -> None:
        names = ["compatible", "compatible/0", "compatible/2", "compatible/10"]
        names += ["compatible1", "compatible_2", "compatible0003", "compatible_0010", "compatible11"]
        files: Files = {f"migration/{name}/x": name for name in reversed(names)}
        assert attributes(read(place, files)) == [{"x": name} for name in names]

    @pytest.mark.parametrize(
        "name", ["compatible-1", "compatible1a", "compatible__1", "Compatible1", "compatibles"]
    )
    def test_other_siblings_are_no_entries(self, place: Path, name: str) -> None:
        declared = read(place, {**l1({**OWN}), f"migration/{name}/type": "T"})
        assert declared.accepts.presence is Presence.ABSENT

    def test_other_sub_directories_of_compatible_are_no_entries(self, place: Path) -> None:
        assert attributes(read(place, {**l1({**OWN}, {**OWN}), "migration/compatible/a1/type": "T"})) == [OWN]

    def test_256_entries_are_read_and_257_are_malformed(self, tmp_path: Path) -> None:
        for count, presence in ((256, Presence.PRESENT), (257, Presence.MALFORMED)):
            for layout in ("compatible/{}", "compatible{}"):
                place = tmp_path / f"{count}{layout[10]}"
                place.mkdir()
                files: Files = {f"migration/{layout.format(index)}/type": "T" for index in range(count)}
                declared = read(place, files)
                assert declared.accepts.presence is presence
                assert len(declared.accepts.entries) == (count if count == 256 else 0)

    def test_empty_directories_do_not_count_as_entries(self, place: Path) -> None:
        for index in range(300):
            (place / f"migration/compatible{index}").mkdir(parents=True)
        declared = read(place, {"migration/compatible299/type": "T"})
        assert attributes(declared) == [{"type": "T"}]

    def test_a_file_name_that_is_not_printable_spoils_the_set(self, place: Path) -> None:
        put(place, l1({**OWN}, {**OWN}))
        with open(os.fsencode(place) + b"/migration/self/\xff\n", "wb") as file:
            file.write(b"1")
        declared = read_declaration(place)
        assert declared.self.presence is Presence.MALFORMED
        assert declared.self.problem.isprintable()

    def test_templates_that_are_wrong_do_not_stop_reading(self, place: Path) -> None:
        declared = read(place, l1({**OWN}, {**OWN, "type": "{"}, {**OWN}))
        assert decide(declared, declared).entry == 1


class TestL2:
    def test_blank_lines_mean_nothing_in_self(self, place: Path) -> None:
        declared = read(place, {"migration/self": "\n\n" + LINES.replace("\n", "\n \t\r\n\n")})
        assert declared.self.attributes == OWN

    def test_separators(self, place: Path) -> None:
        text = f"\n\n{LINES}\n \t \nCOMPATIBLE:\n\nCOMPATIBLE:\n{LINES}\tCOMPATIBLE: \r\n{LINES}\n\n"
        declared = read(place, {"migration/self": LINES, "migration/compatible": text})
        assert attributes(declared) == [OWN, OWN, OWN]

    def test_no_final_line_feed_and_carriage_returns(self, place: Path) -> None:
        text = LINES.replace("\n", "\r\n").strip()
        declared = read(place, {"migration/self": text, "migration/compatible": text})
        assert (declared.self.attributes, attributes(declared)) == (OWN, [OWN])

    def test_empty_files(self, place: Path) -> None:
        declared = read(place, {"migration/self": "\n", "migration/compatible": "COMPATIBLE:\n\n"})
        assert declared.self.presence is Presence.ABSENT
        assert declared.accepts.presence is Presence.ABSENT

    def test_size_of_a_document(self, tmp_path: Path) -> None:
        for extra, presence in ((0, Presence.PRESENT), (1, Presence.MALFORMED)):
            place = tmp_path / str(extra)
            place.mkdir()
            text = LINES + "\n" * (65536 + extra - len(LINES))
            declared = read(place, {"migration/self": text, "migration/compatible": text})
            assert declared.self.presence is presence
            accepted = [OWN] if presence is Presence.PRESENT else []
            assert [found for found in attributes(declared) if found] == accepted

    def test_number_of_entries(self, tmp_path: Path) -> None:
        for count, presence in ((256, Presence.PRESENT), (257, Presence.MALFORMED)):
            place = tmp_path / str(count)
            place.mkdir()
            declared = read(place, {"migration/self": LINES, "migration/compatible": "type=T\n\n" * count})
            assert declared.accepts.presence is presence
            assert declared.self.presence is Presence.PRESENT

    def test_the_halves_may_be_of_different_layouts(self, place: Path) -> None:
        declared = read(place, {**l1({**OWN}), "migration/compatible": f"{LINES}\n{LINES}"})
        assert (declared.self.attributes, attributes(declared)) == (OWN, [OWN, OWN])


class TestL3:
    def test_sections(self, place: Path) -> None:
        text = (
            f"\nCOMPATIBLE:\n  {LINES}\n\nx=1\n \tSELF: \r\n\nsoftware_version=1.2.3\n"
            "COMPATIBLE:\nCOMPATIBLE:\ny=2\nSELF:\n\tdevice_api=vfio-pci\ntype=T\n"
        )
        declared = read(place, {"migration_compatible": text})
        assert declared.self.attributes == OWN
        assert attributes(declared) == [{**OWN, "x": "1"}, {"y": "2"}]
        assert declared.layout == "L3"

    def test_too_many_entries_spoil_all_of_it(self, place: Path) -> None:
        text = f"SELF:\n{LINES}" + "COMPATIBLE:\ntype=T\n" * 257
        declared = read(place, {"migration_compatible": text})
        assert (declared.self.presence, declared.accepts.presence) == (Presence.MALFORMED, Presence.MALFORMED)

    def test_too_long(self, place: Path) -> None:
        text = f"SELF:\n{LINES}" + "\n" * 65536
        declared = read(place, {"migration_compatible": text})
        assert (declared.self.presence, declared.accepts.presence) == (Presence.MALFORMED, Presence.MALFORMED)

    def test_a_line_before_the_first_section(self, place: Path) -> None:
        declared = read(place, {"migration_compatible": f"{LINES}COMPATIBLE:\n{LINES}"})
        assert declared.self.presence is Presence.MALFORMED
        assert attributes(declared) == [OWN]


class TestL4:
    def mdev(self, place: Path, files: dict[str, str], instance: dict[str, str] | None = None) -> Declaration:
        types = place.parent / "parent/mdev_supported_types/T"
        put(types, {"name": "display", "available_instances": "3", **files})
        if not (place / "mdev_type").is_symlink():
            (place / "mdev_type").symlink_to("../parent/mdev_supported_types/T")
        put(place, dict(instance or {}))
        return read_declaration(place)

    def test_own_and_compatible_types(self, place: Path) -> None:
        declared = self.mdev(place, {**BASE, "compatible_type": "U, V,,W\n"})
        assert declared.kind is Kind.MDEV
        assert declared.layout == "L4"
        assert declared.self.attributes == OWN
        assert attributes(declared) == [{**OWN, "type": name} for name in "TUVW"]

    def test_sets(self, place: Path) -> None:
        declared = self.mdev(place, {**BASE, "compatible_pv_mode": "a,b", "compatible_x": "1"})
        assert declared.self.attributes == {**OWN, "pv_mode": "a,b", "x": "1"}
        assert attributes(declared) == [{**OWN, "pv_mode": "a,b", "x": "1"}]
        assert declared.accepts.sets == ("pv_mode", "x")

    def test_items_of_a_list_have_canonical_forms(self, place: Path) -> None:
        declared = self.mdev(place, {**BASE, "compatible_pci_id": "8086:591D, 0x80865931"})
        assert declared.self.attributes["pci_id"] == "8086591d,80865931"
        source = Declaration(Kind.MDEV, SelfSet(Presence.PRESENT, {**OWN, "pci_id": "80865931"}))
        assert decide(source, declared).compatible
        other = Declaration(Kind.MDEV, SelfSet(Presence.PRESENT, {**OWN, "pci_id": "80865932"}))
        assert decide(other, declared).reason == "ApiSpecificMismatch"
        assert problems(self.mdev(place, {**BASE, "compatible_pci_id": "8086591d,nothing"})) == [True]

    def test_a_sources_lists_are_sets_too(self, place: Path) -> None:
        source = self.mdev(place, {**BASE, "compatible_mode": "b,a"})
        entry = Entry({**OWN, "mode": "a,b,c"})
        target = Declaration(
            Kind.MDEV, SelfSet(Presence.PRESENT, OWN), Acceptance(Presence.PRESENT, (entry,))
        )
        assert decide(source, target).compatible

    def test_version_lists_are_for_entries(self, place: Path) -> None:
        declared = self.mdev(place, {**BASE, "software_version": "1.0.0-1.2.3,2.0.0-"})
        assert decide(declared, declared).reason == "VersionMalformed"
        assert decide(Declaration(Kind.MDEV, read_l1(place)), declared).compatible

    def test_dynamic_resources(self, place: Path) -> None:
        files = {**BASE, "dynamic_resources": "aggregator, profile,gone,,reset,../x,remove,sriov_x\n"}
        instance = {"aggregator": "2\n", "profile": "p\n", "reset": "1\n", "other": "1\n"}
        declared = self.mdev(place, files, instance)
        assert declared.self.attributes == {**OWN, "aggregator": "2", "profile": "p"}
        assert declared.accepts.dynamic == ("aggregator", "profile", "gone")
        assert decide(declared, declared).obligations == {"aggregator": "2", "profile": "p"}

    def test_an_instances_own_value_is_what_it_is(self, place: Path) -> None:
        files = {**BASE, "dynamic_resources": "lanes", "compatible_lanes": "1,2,4"}
        declared = self.mdev(place, files, {"lanes": "2"})
        assert declared.self.attributes["lanes"] == "2"
        assert attributes(declared)[0]["lanes"] == "1,2,4"
        assert decide(declared, declared).compatible

    def test_not_there_without_a_version(self, place: Path) -> None:
        declared = self.mdev(place, {"device_api": "vfio-pci", "compatible_type": "U"})
        assert declared == Declaration(Kind.MDEV)

    def test_without_device_api(self, place: Path) -> None:
        declared = self.mdev(place, {"software_version": "1.2.3"})
        assert declared.self.presence is Presence.MALFORMED

    def test_values_are_literals(self, place: Path) -> None:
        declared = self.mdev(place, {**BASE, "compatible_type": "{v:int:1},U"})
        assert problems(declared) == [False, True, False]
        declared = self.mdev(place, {**BASE, "compatible_type": "", "compatible_x": "{v:int:1}"})
        assert declared.self.presence is Presence.MALFORMED
        assert problems(declared) == [True]

    def test_malformed_compatible_type_leaves_the_own_type(self, place: Path) -> None:
        declared = self.mdev(place, {**BASE, "compatible_type": "U\x01"})
        assert problems(declared) == [False, True]
        assert declared.self.presence is Presence.PRESENT

    def test_malformed_dynamic_resources(self, place: Path) -> None:
        declared = self.mdev(place, {**BASE, "dynamic_resources": "a\x01"})
        assert declared.self.presence is Presence.MALFORMED
        assert problems(declared) == [False]

    def test_more_than_256_types(self, place: Path) -> None:
        listed = ",".join(f"U{index}" for index in range(256))
        declared = self.mdev(place, {**BASE, "compatible_type": listed})
        assert declared.accepts.presence is Presence.MALFORMED

    def test_a_physical_device_has_none(self, place: Path) -> None:
        self.mdev(place, {**BASE})
        assert read_declaration(place, Kind.PHYSICAL) == Declaration(Kind.PHYSICAL)

    def test_a_list_of_a_name_that_has_its_own_file_is_another_value_for_it(self, place: Path) -> None:
        declared = self.mdev(place, {**BASE, "compatible_device_api": "vfio-ap"})
        assert declared.self.presence is Presence.MALFORMED
        assert problems(declared) == [True]


def read_l1(place: Path) -> SelfSet:
    """A self set of the same device in another layout."""
    other = place.parent / "other"
    return read(other, l1({**OWN, "software_version": "2.3.0"})).self


class TestPreference:
    def test_l1_before_l3_before_l4(self, place: Path) -> None:
        TestL4().mdev(place, {**BASE, "software_version": "4.0"})
        assert read_declaration(place).layout == "L4"
        put(place, {"migration_compatible": f"SELF:\n{LINES}"})
        assert read_declaration(place).layout == "L3"
        (place / "migration").mkdir()
        assert read_declaration(place).layout == "L3"
        put(place, {"migration/self": LINES})
        assert read_declaration(place).layout == "L2"

    def test_entries_of_another_layout_are_not_mixed_in(self, place: Path) -> None:
        files = {**l1({**OWN}), "migration_compatible": f"COMPATIBLE:\n{LINES}"}
        assert read(place, files).accepts.presence is Presence.ABSENT

    def test_nothing(self, place: Path) -> None:
        assert read_declaration(place) == Declaration(Kind.PHYSICAL)
        (place / "migration").write_text("x")
        (place / "migration_compatible").mkdir()
        (place / "mdev_type").symlink_to("nowhere")
        assert read_declaration(place) == Declaration(Kind.MDEV)
        assert read_declaration(place / "gone") == Declaration(Kind.PHYSICAL)

    def test_vendor_and_device_are_never_taken_for_a_pci_id(self, place: Path) -> None:
        declared = read(place, {**l1({**OWN}), "vendor": "0x8086\n", "device": "0x591d\n"}, Kind.PHYSICAL)
        assert declared.self.problem == "self lacks pci_id"
