"""Read what is to be processed: a folder of videos, or a CSV, JSONL or Parquet table; local or any fsspec URL.

A table needs `uri` (or `file`), relative to itself unless absolute, and may have `id, start_s, end_s, caption,
video_caption, audio_caption, label, events_s`; other columns are kept as provenance. A folder is searched to the
bottom; a `manifest.csv|jsonl|parquet` at its top says more about the files it names.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import os
import posixpath
import re
from collections.abc import Iterator, Set
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from syncflow.errors import UserError
from syncflow.media import printable
from syncflow.preprocess.config import PreprocessConfig
from syncflow.preprocess.plan import Source, safe_id, short_hash
from syncflow.samples import Reject, first_line

_KINDS = ("3gp", "avi", "flv", "m2ts", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "mts", "ogv", "ts", "webm", "wmv")
VIDEO_SUFFIXES = frozenset(f".{kind}" for kind in _KINDS)
STILL_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
TABLE_SUFFIXES = (".jsonl", ".csv", ".parquet")
COLUMNS = ("uri", "id", "start_s", "end_s", "caption", "video_caption", "audio_caption", "label", "events_s")
STAGE = "manifest"
_LONGEST_S = 10**8
_MAX_CELL = 1 << 24
_PROBLEM = "\0problem"  # in place of a column: why a line of the table is no row


class _BadRow(ValueError):
    """What is wrong with a row; names its column."""


def searched(config: PreprocessConfig) -> Set[str]:
    """Suffixes of the files that folders are searched for."""
    stills = STILL_SUFFIXES if config.takes_stills else frozenset()
    return VIDEO_SUFFIXES | stills if config.sound == "required" else VIDEO_SUFFIXES | stills | {".gif"}


def read_manifest(location: str, suffixes: Set[str] = VIDEO_SUFFIXES) -> Iterator[Source | Reject]:
    """Sources in order, each with a unique id; rows that cannot be used come as rejects that name row and column.

    Args:
        suffixes: of the files that a folder is searched for.

    Raises:
        UserError: there is nothing at `location`, no video in it, or no column that names files.
    """
    if not location:
        raise UserError("--input is missing: give a folder of videos, or a manifest (.csv, .jsonl, .parquet)")
    rows = _rows(location, suffixes)
    try:
        first = next(rows)
    except StopIteration:
        found = f"no videos here (looked for {' '.join(sorted(suffix[1:] for suffix in suffixes))})"
        raise UserError(f"--input {printable(location)}: {found}") from None
    return _sources(itertools.chain([first], rows))


def _sources(rows: Iterator[tuple[int, str, dict[str, Any]]]) -> Iterator[Source | Reject]:
    seen: set[int] = set()  # hashes: a manifest may have millions of rows

    def is_new(name: str) -> bool:
        if (key := hash(name)) in seen:
            return False
        seen.add(key)
        return True

    for number, base, row in rows:
        try:
            source = _source(row, base)
        except _BadRow as error:
            uri = printable(str(row.get("uri") or ""))
            detail = printable(f"row {number}: {error}")
            yield Reject(id=f"row-{number}", source=uri, stage=STAGE, reason="bad_row", detail=detail)
            continue
        if is_new(source.id):
            yield source
            continue
        other = Source(**{**vars(source), "id": f"{source.id[:63]}-{short_hash(_what(source))}"})
        if row.get("id") in (None, "") and is_new(other.id):
            yield other
            continue
        detail = f"row {number}: column id: {source.id} was used above; the first is kept"
        yield Reject(id=source.id, source=printable(source.uri), stage=STAGE, reason="duplicate_id", detail=detail)


def _what(source: Source) -> str:
    return f"{source.uri} {source.start_s} {source.end_s}"


def _source(row: dict[str, Any], base: str) -> Source:
    if _PROBLEM in row:
        raise _BadRow(row[_PROBLEM])
    uri = _text(row, "uri")
    if not uri:
        raise _BadRow("column uri: empty")
    start_s, end_s = _seconds(row, "start_s"), _seconds(row, "end_s")
    if end_s is not None and end_s <= (start_s or 0):
        raise _BadRow(f"column end_s: {float(end_s)} is not after start_s {float(start_s or 0)}")
    given = _text(row, "id")
    return Source(
        id=safe_id(given or os.path.splitext(uri if "://" not in uri else uri.split("://", 1)[1])[0].lstrip("/")),
        uri=_resolve(uri, base),
        start_s=start_s,
        end_s=end_s,
        caption=_text(row, "caption"),
        video_caption=_text(row, "video_caption"),
        audio_caption=_text(row, "audio_caption"),
        label=_text(row, "label"),
        events_s=_events(row),
        provenance={
            printable(str(k)): printable(str(v)) for k, v in row.items() if k and k not in COLUMNS and _present(v)
        },
    )


def _present(value: Any) -> bool:
    return value is not None and value != "" and value == value  # NaN is what an empty Parquet cell reads as


def _text(row: dict[str, Any], column: str) -> str:
    value = row.get(column)
    if not _present(value):
        return ""
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise _BadRow(f"column {column}: expected text, got {value!r}")
    # The name of a file is kept as it is; everything else goes into records, which are UTF-8.
    return str(value) if column == "uri" else printable(" ".join(str(value).split()))


def _seconds(row: dict[str, Any], column: str) -> Fraction | None:
    value = row.get(column)
    if not _present(value):
        return None
    try:
        seconds = Fraction(str(value))
    except (ValueError, ZeroDivisionError):
        raise _BadRow(f"column {column}: not a number of seconds: {value!r}") from None
    if seconds < 0:
        raise _BadRow(f"column {column}: {value} is before the start")
    if seconds > _LONGEST_S:
        raise _BadRow(f"column {column}: {value} s are years")
    return seconds


def _events(row: dict[str, Any]) -> tuple[float, ...] | None:
    value = row.get("events_s")
    if value is None or value == "":
        return None
    try:
        times = tuple(float(t) for t in (json.loads(value) if isinstance(value, str) else value))
    except (TypeError, ValueError, RecursionError):
        times = (math.nan,)
    if not all(map(math.isfinite, times)):
        raise _BadRow(f"column events_s: not a list of seconds: {value!r}")
    return times


def _resolve(uri: str, base: str) -> str:
    if "://" in uri or uri.startswith("/"):
        return uri
    if "://" in base:
        return f"{base.rstrip('/')}/{uri}"
    return os.path.join(base, uri)


def _rows(location: str, suffixes: Set[str]) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """(row number from 1, folder that relative names start from, values by column)."""
    try:
        fs, path = fsspec.core.url_to_fs(location)
    except (ValueError, ImportError) as error:
        raise UserError(f"--input {location}: {error}") from error
    local = isinstance(fs, LocalFileSystem)
    try:
        exists, is_folder = (os.path.exists(path), os.path.isdir(path)) if local else (fs.exists(path), fs.isdir(path))
    except Exception as error:
        raise UserError(f"--input {location}: cannot be reached ({first_line(error)})") from error
    if not exists:
        raise UserError(f"--input {printable(location)}: no such file or folder")
    if is_folder:
        yield from _folder_rows(fs, path, location, local, suffixes)
    elif PurePosixPath(path).suffix.lower() in TABLE_SUFFIXES:
        base = str(Path(path).parent) if local else posixpath.dirname(location)
        number = 0
        for number, row in _table(fs, path, location):
            yield number, base, row
        if not number:
            raise UserError(f"--input {printable(location)}: the table has no rows")
    elif PurePosixPath(path).suffix.lower() in suffixes:
        yield 1, "", {"uri": os.path.abspath(path) if local else location}
    else:
        raise UserError(f"--input {printable(location)}: expected a folder, a video, or a .csv, .jsonl or .parquet")


def _folder_rows(
    fs: Any, path: str, location: str, local: bool, suffixes: Set[str]
) -> Iterator[tuple[int, str, dict[str, Any]]]:
    base = path if local else location.rstrip("/")
    if local:
        found = [os.path.relpath(os.path.join(d, f), path) for d, _, files in os.walk(path) for f in files]
    else:
        root = path.rstrip("/") + "/"
        found = [name.removeprefix(root) for name in fs.find(path)]
    videos = sorted(name for name in found if PurePosixPath(name).suffix.lower() in suffixes)
    tables = [f"manifest{suffix}" for suffix in TABLE_SUFFIXES if f"manifest{suffix}" in found]
    number, named = 0, set()
    for table in tables[:1]:
        where = f"{location.rstrip('/')}/{table}"
        for number, row in _table(fs, f"{path.rstrip('/')}/{table}", where):
            named.add(os.path.normpath(str(row.get("uri") or "")))
            yield number, base, row
    for offset, name in enumerate((name for name in videos if name not in named), start=1):
        yield number + offset, base, {"uri": name}


def _table(fs: Any, path: str, location: str) -> Iterator[tuple[int, dict[str, Any]]]:
    suffix = PurePosixPath(path).suffix.lower()
    read = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}[suffix]
    try:
        with fs.open(path, "rb") as file:
            yield from read(file, printable(location))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{printable(location)} cannot be read: {first_line(error)}") from error


def _csv(file: Any, location: str) -> Iterator[tuple[int, dict[str, Any]]]:
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
    csv.field_size_limit(_MAX_CELL)
    reader = csv.reader(text, strict=True)
    try:
        columns = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        raise UserError(f"{location} cannot be read: {error} in its first line") from error
    _need_uri(columns, location)
    number = 0
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            number += 1
            what = "a quote is opened and never closed" if "end of data" in str(error) else str(error)
            yield number, {_PROBLEM: what}
            continue
        if not cells:  # an empty line
            continue
        number += 1
        row = dict(zip(columns, cells, strict=False))
        yield number, _named({**row, _PROBLEM: "more cells than columns"} if len(cells) > len(columns) else row)


def _jsonl(file: Any, location: str) -> Iterator[tuple[int, dict[str, Any]]]:
    first = True
    for number, line in enumerate(io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            yield number, {_PROBLEM: f"not a JSON object: {line.strip()[:80]}"}
            continue
        if first:
            _need_uri(row, location)
            first = False
        yield number, _named(row)


def _parquet(file: Any, location: str) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file)
    except pyarrow.ArrowException as error:
        raise UserError(f"{location} cannot be read: {first_line(error)}") from error
    _need_uri(table.schema_arrow.names, location)
    number = 0
    try:
        for batch in table.iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield number, _named(row)
    except pyarrow.ArrowException as error:
        raise UserError(f"{location} cannot be read beyond row {number}: {first_line(error)}") from error


def _need_uri(columns: Any, location: str) -> None:
    names = [printable(str(name)) for name in columns]
    if "uri" not in names and "file" not in names:
        found = ", ".join(names) or "none"
        hint = "; columns are to be separated by commas" if len(names) == 1 and re.search(r";|\\t", names[0]) else ""
        raise UserError(f"{location}: no column `uri` (or `file`) that names the videos; columns found: {found}{hint}")
    if twice := [name for name in names if name in COLUMNS and names.count(name) > 1]:
        raise UserError(f"{location}: column {twice[0]} is there twice")


def _named(row: dict[str, Any]) -> dict[str, Any]:
    """With `file` as `uri`."""
    if "uri" not in row and "file" in row:
        row = dict(row)
        row["uri"] = row.pop("file")
    return row
