"""Journals as tests read and change them, written from the description of the format."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def sealed(record: dict[str, Any] | bytes) -> bytes:
    """A record, or the text of one without its closing brace, as a line with a valid checksum."""
    text = record if isinstance(record, bytes) else json.dumps(record).encode()[:-1]
    return text + b', "checksum": "%08x"}\n' % zlib.crc32(text)


def records_of(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a journal, heads included; it may be in the middle of being written."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    records = [json.loads(line) for line in lines]
    assert [sealed(record) for record in _without_checksum(records)] == [line + b"\n" for line in lines]
    return _without_checksum(records)


def trials_of(path: Path) -> list[dict[str, Any]]:
    """Its finished trials."""
    return [record for record in records_of(path) if "format" not in record]


def rewrite(path: Path, trials: Sequence[dict[str, Any]], source: Path | None = None) -> None:
    """Write a journal with other trials after the head of `source`, by default of the file itself."""
    head = records_of(source or path)[0]
    path.write_bytes(b"".join(map(sealed, [head, *trials])))


def _without_checksum(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if key != "checksum"} for record in records]
