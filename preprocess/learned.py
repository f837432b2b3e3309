"""Filters that need weights, off by default: each stores its score and, where a limit is set, drops clips beyond it.

Letters: T frames of H x W pixels, L samples, D dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import numpy as np

from syncflow.clock import Span
from syncflow.errors import UserError
from syncflow.media import MediaError, decode_span, probe
from syncflow.models.perception.aesthetic import Aesthetic
from syncflow.models.perception.clap import LaionClap, TransformersClap
from syncflow.models.perception.clip import Clip
from syncflow.models.perception.synchformer import FPS, SAMPLE_RATE, Synchformer
from syncflow.preprocess.config import FiltersConfig, PreprocessConfig
from syncflow.preprocess.fetch import Fetcher
from syncflow.preprocess.filters import Filter
from syncflow.preprocess.networks import weights_file
from syncflow.preprocess.work import Stage, Work
from syncflow.samples import first_line


class NetworkFilter(Filter):
    """Called after the stages of one clip each, by one thread, in the order of the list: captions come between."""

    batched = True

    def __call__(self, works: Sequence[Work]) -> None:
        for work in works:
            try:
                self.judge(work)
            except MediaError as error:
                work.drop(self.name, error.reason, error.detail)


class AestheticFilter(NetworkFilter):
    """aesthetic: the mean over frames of what LAION's head makes of CLIP's features."""

    name = "filter_aesthetic"

    def setup(self, config: PreprocessConfig, device: str) -> None:
        self.settings = config.filters.aesthetic
        field = "filters.aesthetic"
        self.head = Aesthetic(weights_file(self.settings.path, f"{field}.path"))
        self.clip = load_clip(
            weights_file(self.settings.clip_path, f"{field}.clip_path"), self.settings.architecture, device, field
        )
        try:
            self.head(self.clip.frames(np.zeros((1, 32, 32, 3), np.uint8)))
        except ValueError as error:
            raise UserError(f"{field}: {self.settings.clip_path} does not go with the head: {error}") from error

    def judge(self, work: Work) -> None:
        """
        Raises:
            MediaError: unaesthetic.
        """
        score = float(self.head(self.clip.frames(work.even_frames(self.settings.frames))).mean())
        work.scores["aesthetic"] = score
        self.at_least(work, "unaesthetic", score, self.settings.min_score)


class ClipFilter(NetworkFilter):
    """clip_match: the mean over frames of the cosine between CLIP's features of frame and caption.

    Of the caption, the part that says what is seen is taken, where there is one. Without a caption: no score.
    """

    name = "filter_clip"

    def setup(self, config: PreprocessConfig, device: str) -> None:
        self.settings = config.filters.clip
        path = weights_file(self.settings.path, "filters.clip.path")
        self.clip = load_clip(path, self.settings.architecture, device, "filters.clip")

    def judge(self, work: Work) -> None:
        """
        Raises:
            MediaError: clip_mismatch.
        """
        if text := work.video_caption or work.caption:
            pictures = self.clip.frames(work.even_frames(self.settings.frames))  # (T, D)
            score = float(cosines(pictures, self.clip.texts([text])).mean())
            work.scores["clip_match"] = score
            self.at_least(work, "clip_mismatch", score, self.settings.min_match)


class ClapFilter(NetworkFilter):
    """clap_match: the cosine between CLAP's features of sound and caption, as ClipFilter."""

    name = "filter_clap"

    def setup(self, config: PreprocessConfig, device: str) -> None:
        self.settings = config.filters.clap
        path = weights_file(self.settings.path, "filters.clap.path")
        try:
            self.clap: TransformersClap | LaionClap = (
                TransformersClap(path, device=device) if path.is_dir() else LaionClap(path, device=device)
            )
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            raise UserError(f"filters.clap.path: {path} cannot be read as CLAP: {first_line(error)}") from error

    def judge(self, work: Work) -> None:
        """
        Raises:
            MediaError: clap_mismatch.
        """
        text = work.audio_caption or work.caption
        if text and work.bucket.sound:
            sound = self.clap.sound(work.decoded.waveform, work.decoded.sample_rate)  # (D,)
            score = float(cosines(sound[None], self.clap.texts([text])).mean())
            work.scores["clap_match"] = score
            self.at_least(work, "clap_mismatch", score, self.settings.min_match)


class SynchformerFilter(NetworkFilter):
    """synchformer_offset_s and synchformer_confidence, from the source at the rates that the network wants.

    It looks at 4.8 s around the clip; in a shorter source there is nothing to look at, and no score.
    """

    name = "filter_synchformer"

    def __init__(self, fetcher: Fetcher) -> None:
        self.fetcher = fetcher

    def setup(self, config: PreprocessConfig, device: str) -> None:
        self.settings = config.filters.synchformer
        path = weights_file(self.settings.path, "filters.synchformer.path")
        try:
            self.network = Synchformer(path, device=device)
        except (OSError, RuntimeError, ValueError, KeyError, EOFError) as error:
            raise UserError(f"filters.synchformer.path: {path} is not Synchformer's: {first_line(error)}") from error

    def judge(self, work: Work) -> None:
        """
        Raises:
            MediaError: out_of_sync.
        """
        info = probe(self.fetcher.local(work.plan.source.uri))
        length_s = Fraction(self.network.seconds).limit_denominator(1000)
        span = around(work.plan.span, length_s, info.duration_s)
        if span is None or not work.bucket.sound:
            return
        clip = decode_span(info, span, fps=Fraction(FPS), size=(256, 256), sample_rate=SAMPLE_RATE, threads=1)
        offset_s, confidence = self.network.offset(clip.frames, clip.waveform)
        work.scores |= {"synchformer_offset_s": offset_s, "synchformer_confidence": confidence}
        if confidence >= self.settings.believe_from:
            self.at_most(work, "out_of_sync", abs(offset_s), self.settings.max_offset_s)


def around(span: Span, length_s: Fraction, duration_s: Fraction) -> Span | None:
    """`length_s` about the middle of `span`, moved to lie inside the source; None where that is shorter."""
    if duration_s < length_s:
        return None
    start_s = min(max(Fraction(0), (span.start_s + span.end_s - length_s) / 2), duration_s - length_s)
    return Span(start_s, start_s + length_s)


def media_stages(config: FiltersConfig, fetcher: Fetcher) -> list[Stage]:
    """Those that are on and need no caption, so that captions are written for what is kept."""
    stages: list[Stage] = []
    if config.synchformer.on:
        stages.append(SynchformerFilter(fetcher))
    if config.aesthetic.on:
        stages.append(AestheticFilter())
    return stages


def match_stages(config: FiltersConfig) -> list[Stage]:
    """Those that are on and compare with the caption."""
    stages: list[Stage] = []
    if config.clip.on:
        stages.append(ClipFilter())
    if config.clap.on:
        stages.append(ClapFilter())
    return stages


def cosines(ones: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(T, D) and (N, D) -> (T, N)."""
    unit, other = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (ones, others))
    return unit @ other.T


@lru_cache(maxsize=2)
def load_clip(path: Path, architecture: str, device: str, field: str) -> Clip:
    """
    Raises:
        UserError: the file does not hold that network.
    """
    try:
        return Clip(path, architecture, device)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise UserError(f"{field}: {path} cannot be read as {architecture}: {first_line(error)}") from error
