"""What a person writes: prompts, files of prompts, sizes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from syncflow.errors import UserError
from syncflow.media import printable

MAX_PROMPT_WORDS = 5_000
MAX_SEED = 2**63 - 1


@dataclass
class Request:
    """One prompt, the video it is for, and what its row of the prompts file said besides."""

    prompt: str
    video: Path | None = None
    extra: dict[str, Any] = field(default_factory=dict)


def check_prompt(prompt: str) -> None:
    """
    Raises:
        UserError: nothing to say, or a book, or bytes that are no text.
    """
    if not prompt.isascii() and any("\ud800" <= letter <= "\udfff" for letter in prompt):
        raise UserError(f"a prompt is not text in UTF-8: {printable(prompt[:60])}")
    if not prompt.strip():
        raise UserError('a prompt is empty; say what is to be seen and heard, for example "a dog barks"')
    words = len(prompt.split())
    if words > MAX_PROMPT_WORDS:
        raise UserError(
            f"a prompt has {words:,} words; a caption has a few dozen, at most {MAX_PROMPT_WORDS:,} are read"
        )


def read_prompts(path: Path) -> Iterator[Request]:
    """A prompt a line from .txt; rows {"prompt" or "caption": …, "video": optional path, …} from .jsonl.

    Raises:
        UserError: it cannot be read; or a row that cannot be used, with its number.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a file of prompts: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        request = _row(path, number, line) if path.suffix == ".jsonl" else Request(line.strip())
        try:
            check_prompt(request.prompt)
        except UserError as error:
            raise UserError(f"{path}:{number}: {error}") from None
        yield request


def _row(path: Path, number: int, line: str) -> Request:
    try:
        row = json.loads(line)
        prompt = row.pop("prompt", None) or row.pop("caption")
        video = row.pop("video", None)
    except (ValueError, KeyError, AttributeError, TypeError):
        prompt = video = None
    if not isinstance(prompt, str) or not isinstance(video, str | None):
        raise UserError(f'{path}:{number}: want a row such as {{"prompt": "a dog barks"}}, got {printable(line[:60])}')
    if video is None:
        return Request(prompt, None, row)
    if not (path.parent / video).is_file():
        raise UserError(f"{path}:{number}: {printable(video)}: no such file beside {path.name}")
    return Request(prompt, path.parent / video, row)


def parse_size(text: str) -> tuple[int, int]:
    """(width, height) from WIDTHxHEIGHT."""
    match = re.fullmatch(r"\s*(\d{1,6})\s*[xX×]\s*(\d{1,6})\s*", text)
    if match is None:
        raise UserError(f"size {text!r}: write it as WIDTHxHEIGHT, for example 256x256")
    return int(match[1]), int(match[2])
