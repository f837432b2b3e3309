"""The folder that `syncflow generate` fills: file names, clips, and the manifest that lists them."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from syncflow.errors import UserError
from syncflow.files import replacing, write_whole
from syncflow.media import write_mp4, write_wav

if TYPE_CHECKING:
    from syncflow.models.pipeline import Generated

MANIFEST = "manifest.jsonl"


def check_folder(folder: Path) -> None:
    """
    Raises:
        UserError: no folder can be made there, or nothing written into it.
    """
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        raise UserError(f"-o {folder}: {there} is a file; give a folder")
    try:
        # Asked of the system by doing it: rights, quotas and read-only disks do not all show in a folder's mode.
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        raise UserError(f"-o {folder}: nothing can be written into {there}: {error.strerror}") from error


def slug(prompt: str, length: int = 48) -> str:
    """A file name of a prompt: its ASCII letters and digits; a hash tells apart what that would make equal."""
    text = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")
    if len(text) <= length and re.fullmatch(r"[A-Za-z0-9 ,.'-]+", prompt):
        return text or hashlib.sha256(prompt.encode()).hexdigest()[:8]
    short = text[:length].rstrip("-")
    return f"{short}-{hashlib.sha256(prompt.encode()).hexdigest()[:8]}".lstrip("-")


def write_clip(path: Path, clip: Generated, formats: Sequence[str]) -> None:
    """The clip as `path` with each ending of `formats`."""
    for kind in formats:
        target = path.with_suffix(f".{kind}")
        if kind == "mp4":
            write_mp4(target, clip.frames, clip.fps, clip.waveform, clip.sample_rate)
        elif kind == "wav":
            write_wav(target, clip.waveform, clip.sample_rate)
        elif kind == "gif":
            _write_gif(target, clip)
        else:
            raise UserError(f"{path}: a clip is written as .mp4, .wav or .gif")


def _write_gif(path: Path, clip: Generated) -> None:
    from PIL import Image

    frames = [Image.fromarray(frame) for frame in clip.frames]
    with replacing(path) as whole:
        frames[0].save(whole, save_all=True, append_images=frames[1:], duration=float(1000 / clip.fps), loop=0)


def read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """The rows of a folder's manifest by uri."""
    path = folder / MANIFEST
    if not path.is_file():
        return {}
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
        return {row["uri"]: row for row in rows}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a manifest of this command ({error}); choose another -o folder") from error


def write_manifest(folder: Path, rows: dict[str, dict[str, Any]]) -> None:
    """Atomic; rows of files that are no longer there are left out."""
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows.values() if (folder / row["uri"]).is_file()]
    write_whole(folder / MANIFEST, "".join(lines))
