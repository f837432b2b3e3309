"""The clips of a folder: their files, captions and known event times, in an order that no file system changes."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from syncflow.errors import UserError
from syncflow.media import printable

EXTENSIONS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".ts")
MANIFESTS = ("manifest.jsonl", "manifest.csv")


@dataclass(frozen=True)
class ClipFile:
    """One file to be judged."""

    name: str
    """Path inside its folder without extension, fit for print: what pairs it with a reference."""
    path: Path
    caption: str = ""
    events_s: tuple[float, ...] | None = None
    """Times of visible impacts, where they are known."""
    label: str = ""


@dataclass(frozen=True)
class Failure:
    """A clip that could not be judged."""

    clip: str
    reason: str
    detail: str


@dataclass
class ClipSet:
    """The clips of one system."""

    name: str
    folder: Path
    clips: list[ClipFile]
    failures: list[Failure] = field(default_factory=list)


def find_clips(folder: Path, captions: Mapping[str, str] | None = None) -> ClipSet:
    """Every video under `folder`, by name; facts from its manifest, captions also from `captions` (by name).

    Raises:
        UserError: no such folder, no video in it, or a manifest that cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"{printable(folder)}: no such folder; give a folder of videos")
    paths = sorted(
        (p for p in folder.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file() and not _hidden(p, folder)),
        key=os.fsencode,
    )
    rows = _manifest(folder)
    if not paths:
        raise UserError(f"{printable(folder)}: no video here ({', '.join(EXTENSIONS)}); give a folder that holds some")
    clips, seen = [], dict[str, Path]()
    for path in paths:
        inside = path.relative_to(folder)
        name = printable(inside.with_suffix(""))
        name = printable(inside) if name in seen else name
        seen[name] = path
        row = rows.get(str(inside), {})
        caption = (captions or {}).get(name) or (captions or {}).get(path.stem) or str(row.get("caption") or "")
        clips.append(ClipFile(name, path, caption, _events(row, folder), str(row.get("label") or "")))
    failures = [
        Failure(printable(uri), "missing", "the manifest names this file, but it is not in the folder")
        for uri in sorted(set(rows) - {str(p.relative_to(folder)) for p in paths})
    ]
    return ClipSet(folder.resolve().name, folder, clips, failures)


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _manifest(folder: Path) -> dict[str, dict[str, Any]]:
    for name in MANIFESTS:
        if (folder / name).is_file():
            return {_uri(row): row for row in read_rows(folder / name) if _uri(row)}
    return {}


def _uri(row: Mapping[str, Any]) -> str:
    return os.path.normpath(str(row.get("uri") or row.get("file") or "")).removeprefix(".")


def _events(row: Mapping[str, Any], folder: Path) -> tuple[float, ...] | None:
    events = row.get("events_s")
    if events is None or events == "":
        return None
    try:
        values = json.loads(events) if isinstance(events, str) else events
        return tuple(sorted(float(value) for value in values))
    except (ValueError, TypeError) as error:
        raise UserError(f"{printable(folder)}: events_s of {_uri(row)} is not a list of seconds: {events!r}") from error


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL, CSV or TSV file.

    Raises:
        UserError: no such file, another format, or a line that cannot be read.
    """
    if not path.is_file():
        raise UserError(f"{printable(path)}: no such file")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{printable(path)} is not UTF-8 text") from error
    if path.suffix in (".jsonl", ".json"):
        rows = []
        for number, line in enumerate(text.splitlines(), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UserError(f"{printable(path)}, line {number}: not JSON ({error})") from error
            if not isinstance(row, dict):
                raise UserError(f"{printable(path)}, line {number}: expected an object with uri and caption")
            rows.append(row)
        return rows
    if path.suffix in (".csv", ".tsv"):
        return list(csv.DictReader(text.splitlines(keepends=True), delimiter="\t" if path.suffix == ".tsv" else ","))
    raise UserError(f"{printable(path)}: captions come as .jsonl, .csv or .tsv with the columns uri and caption")


def read_captions(path: Path) -> dict[str, str]:
    """Captions by clip name, from a file with the columns uri (or file, or id) and caption."""
    found: dict[str, str] = {}
    rows = read_rows(path)
    for row in rows:
        caption = str(row.get("caption") or row.get("prompt") or "")
        key = _uri(row).removesuffix(".") or str(row.get("id") or "")
        if caption and key:
            name = str(Path(key).with_suffix("")) if Path(key).suffix.lower() in EXTENSIONS else key
            found[name] = caption
            found.setdefault(Path(name).name, caption)
    if not found:
        raise UserError(f"{printable(path)}: no captions here; it needs the columns uri and caption")
    return found


def content_hash(path: Path) -> str:
    """SHA-256 of the file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def set_hash(hashes: Iterable[str]) -> str:
    """16 hex digits for a set of files, whatever their order."""
    return hashlib.sha256("\n".join(sorted(hashes)).encode()).hexdigest()[:16]
