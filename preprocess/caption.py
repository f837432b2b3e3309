"""Captions: the ones given are kept; else what models see and hear, else the configuration's choice."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from syncflow.media import MediaError, printable
from syncflow.models.perception.captioners import PictureCaptioner, SoundCaptioner
from syncflow.preprocess.config import CaptionsConfig, PreprocessConfig
from syncflow.preprocess.encode import halving
from syncflow.preprocess.networks import captioner_folder
from syncflow.preprocess.work import Stage, Work


class GivenCaption:
    """The manifest's caption, else its parts joined; where no model is to write one, `fall_back`."""

    name = "caption"
    batched = False

    def setup(self, config: PreprocessConfig, device: str) -> None:
        self.missing = config.missing_caption
        self.by_model = config.captions.video.on or config.captions.audio.on

    def __call__(self, works: Sequence[Work]) -> None:
        """
        Raises:
            MediaError: no_caption.
        """
        for work in works:
            source = work.plan.source
            work.video_caption, work.audio_caption = source.video_caption, source.audio_caption
            work.caption = source.caption
            work.provenance["caption_from"] = "manifest"
            if not work.caption and not self.by_model:
                work.caption = join(work.video_caption, work.audio_caption)
                if not work.caption:
                    fall_back(work, self.missing)


class ModelCaption:
    """What models see and hear, for clips without a caption; a part that the manifest gives is kept."""

    name = "caption_models"
    batched = True

    def setup(self, config: PreprocessConfig, device: str) -> None:
        self.missing = config.missing_caption
        video, audio = config.captions.video, config.captions.audio
        self.frames = video.frames
        self.see: PictureCaptioner | None = None
        self.hear: SoundCaptioner | None = None
        if video.on:
            folder = captioner_folder(video.path, "captions.video.path")
            self.see = PictureCaptioner(folder, video.prompt, video.max_new_tokens, device)
        if audio.on:
            folder = captioner_folder(audio.path, "captions.audio.path")
            self.hear = SoundCaptioner(folder, audio.prompt, audio.max_new_tokens, device)

    def __call__(self, works: Sequence[Work]) -> None:
        works = [work for work in works if not work.caption]
        unseen = [work for work in works if not work.video_caption] if self.see else []
        unheard = [work for work in works if not work.audio_caption and _has_sound(work)] if self.hear else []
        for work, said in zip(unseen, halving(self._see, unseen), strict=True):
            work.video_caption, work.provenance["caption_from"] = said, "models"
        for work, said in zip(unheard, halving(self._hear, unheard), strict=True):
            work.audio_caption, work.provenance["caption_from"] = said, "models"
        for work in works:
            work.caption = join(work.video_caption, work.audio_caption)
            if not work.caption:
                try:
                    fall_back(work, self.missing)
                except MediaError as error:
                    work.drop(self.name, error.reason, error.detail)

    def _see(self, works: Sequence[Work]) -> list[str]:
        return self.see([work.even_frames(self.frames) for work in works]) if self.see and works else []

    def _hear(self, works: Sequence[Work]) -> list[str]:
        """Only what the source really has of the sound."""
        if self.hear is None or not works:
            return []
        sounds = [work.decoded.waveform[slice(*work.decoded.valid_samples)] for work in works]
        return self.hear(sounds, works[0].decoded.sample_rate)


def _has_sound(work: Work) -> bool:
    first, end = work.decoded.valid_samples
    return first < end


def caption_stages(config: CaptionsConfig) -> list[Stage]:
    """By models, if one is on."""
    return [ModelCaption()] if config.video.on or config.audio.on else []


def fall_back(work: Work, missing: str) -> None:
    """What a clip without any caption gets: its label or the words of its file's name, none, or a way out.

    Raises:
        MediaError: no_caption.
    """
    source = work.plan.source
    if missing == "require":
        raise MediaError("no_caption", source.uri, "has no caption")
    if missing == "empty":
        work.provenance["caption_from"] = "none"
        return
    work.caption = source.label or words(source.uri)
    work.provenance["caption_from"] = "label" if source.label else "file name"


def join(video_caption: str, audio_caption: str) -> str:
    """One caption of what is seen and what is heard."""
    return " ".join(part if part[-1] in ".!?" else part + "." for part in (video_caption, audio_caption) if part)


def words(uri: str) -> str:
    """The words of a file's name: `dog-barks_03.mp4` -> `dog barks`."""
    stem = printable(PurePosixPath(uri.split("?")[0]).stem)
    return " ".join(re.findall(r"[^\W\d_]+", stem)) or stem
