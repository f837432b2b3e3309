"""What a person writes: prompts, files of prompts, sizes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from syncflow.errors import UserError

MAX_PROMPT_WORDS = 5_000


@dataclass
class Request:
    """One prompt, the video it is for, and what its row of the prompts file said besides."""

    prompt: str
    video: Path | None = None
    extra: dict[str, Any] = field(default_factory=dict)


def check_prompt(prompt: str) -> None:
    """
    Raises:
        UserError: nothing to say, or a book.
    """
    if not prompt.strip():
        raise UserError('a prompt is empty; say what is to be seen and heard, for example "a dog barks"')
    words = len(prompt.split())
    if words > MAX_PROMPT_WORDS:
        raise UserError(
            f"a prompt has {words:,} words; a caption has a few dozen, at most {MAX_PROMPT_WORDS:,} are read"
        )


def read_prompts(path: Path) -> Iterator[Request]:
    """A prompt a line from .txt; rows {"prompt" or "caption": …, "video": optional path, …} from .jsonl."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a file of prompts: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if path.suffix != ".jsonl":
            yield Request(line.strip())
            continue
        try:
            row = json.loads(line)
            prompt = row.pop("prompt", None) or row.pop("caption")
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise UserError(
                f'{path}:{number}: want a row such as {{"prompt": "a dog barks"}}, got {line[:60]}'
            ) from error
        video = row.pop("video", None)
        yield Request(str(prompt), None if video is None else path.parent / video, row)


def parse_size(text: str) -> tuple[int, int]:
    """(width, height) from WIDTHxHEIGHT."""
    match = re.fullmatch(r"\s*(\d{1,6})\s*[xX×]\s*(\d{1,6})\s*", text)
    if match is None:
        raise UserError(f"size {text!r}: write it as WIDTHxHEIGHT, for example 256x256")
    return int(match[1]), int(match[2])
