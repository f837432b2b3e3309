"""The ffmpeg process: where it is, running it with a time limit, and what can be wrong with a file."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from syncflow.errors import UserError

FILE = "file:?"
"""Stands for the file while a command line is built: ffmpeg-python cannot hold names that are not UTF-8."""
_MAX_ERRORS = 20


class MediaError(UserError):
    """A file that cannot be used as asked; `reason` is a short countable name such as no_audio."""

    def __init__(self, reason: str, path: str | Path, detail: str) -> None:
        super().__init__(f"{printable(path)}: {detail}")
        self.reason = reason
        self.path = str(path)
        self.detail = detail

    def __reduce__(self) -> tuple[Any, ...]:
        return MediaError, (self.reason, self.path, self.detail)


@lru_cache(maxsize=1)
def ffmpeg_path() -> str:
    """The ffmpeg on PATH, else the one that imageio-ffmpeg packs."""
    found = shutil.which("ffmpeg")
    if found:
        return found
    try:
        import imageio_ffmpeg

        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except (ImportError, RuntimeError) as error:
        raise UserError("no ffmpeg found: install ffmpeg, or pip install imageio-ffmpeg") from error


def printable(path: str | Path) -> str:
    """A path that any terminal and any JSON file can hold: no line breaks, no bytes outside UTF-8."""
    text = os.fsencode(str(path)).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def run(
    path: str | Path, arguments: Sequence[str], timeout_s: float, *, data: Any = None, pass_fds: tuple[int, ...] = ()
) -> tuple[int, tuple[str, ...]]:
    """Run ffmpeg on `path`, fed with the bytes `data`; its exit status, and what it complained of.

    Raises:
        MediaError: timeout.
    """
    command = [ffmpeg_path(), "-hide_banner", "-v", "error", "-y", *arguments]
    stdin: dict[str, Any] = {"stdin": subprocess.DEVNULL} if data is None else {"input": data}
    try:
        done = subprocess.run(command, capture_output=True, timeout=timeout_s, pass_fds=pass_fds, **stdin)
    except subprocess.TimeoutExpired as error:
        raise MediaError("timeout", path, f"ffmpeg took more than {timeout_s:g} s") from error
    lines = [line for line in done.stderr.decode("utf-8", "backslashreplace").splitlines() if line.strip()]
    return done.returncode, tuple(dict.fromkeys(lines))[:_MAX_ERRORS]
