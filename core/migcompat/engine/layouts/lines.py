"""The ``key=value`` lines of L2 and L3 (semantics §2)."""

from __future__ import annotations

from collections.abc import Iterator

from migcompat.engine.attributes import MAX_DOCUMENT, Draft, GarbledError, clean, readable

SELF_LINE = "SELF:"
COMPATIBLE_LINE = "COMPATIBLE:"


def read_lines(document: bytes) -> Iterator[tuple[str, str] | str]:
    """Each line of *document*: key and value, stripped, when it has a ``=``; else its stripped text.

    Raises GarbledError when the document as a whole is malformed: its bytes, or its size.
    """
    if len(document) > MAX_DOCUMENT:
        raise GarbledError(f"is longer than {MAX_DOCUMENT} bytes")
    for line in document.split(b"\n"):
        key, equals, value = line.partition(b"=")
        if equals:
            yield clean(key), clean(value)
        else:
            yield clean(line)


def add_line(draft: Draft, line: tuple[str, str] | str) -> None:
    """Take one line, not blank and no section line, into the set it stands in."""
    if isinstance(line, str):
        draft.spoil(f"the line {readable(line.encode())!r} has no '='")
    else:
        draft.add_text(*line)
