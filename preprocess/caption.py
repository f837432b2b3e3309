"""Captions: the ones given are kept; what a clip without any gets is the configuration's choice."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from syncflow.media import MediaError, printable
from syncflow.preprocess.config import PreprocessConfig
from syncflow.preprocess.work import Work


class GivenCaption:
    """The manifest's caption, else its parts joined, else its label or the words of the file's name."""

    name = "caption"
    batched = False

    def setup(self, config: PreprocessConfig, device: str) -> None:
        self.missing = config.missing_caption

    def __call__(self, works: Sequence[Work]) -> None:
        """
        Raises:
            MediaError: no_caption.
        """
        for work in works:
            source = work.plan.source
            work.video_caption, work.audio_caption = source.video_caption, source.audio_caption
            work.caption = source.caption or join(source.video_caption, source.audio_caption)
            work.provenance["caption_from"] = "manifest"
            if work.caption:
                continue
            if self.missing == "require":
                raise MediaError("no_caption", source.uri, "has no caption in the manifest")
            if self.missing == "empty":
                work.provenance["caption_from"] = "none"
                continue
            work.caption = source.label or words(source.uri)
            work.provenance["caption_from"] = "label" if source.label else "file name"


def join(video_caption: str, audio_caption: str) -> str:
    """One caption of what is seen and what is heard."""
    return " ".join(part if part[-1] in ".!?" else part + "." for part in (video_caption, audio_caption) if part)


def words(uri: str) -> str:
    """The words of a file's name: `dog-barks_03.mp4` -> `dog barks`."""
    stem = printable(PurePosixPath(uri.split("?")[0]).stem)
    return " ".join(re.findall(r"[^\W\d_]+", stem)) or stem
