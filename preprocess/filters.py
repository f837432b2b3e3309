"""Filters that need no weights: each stores its scores and, where a limit is set, drops clips beyond it.

Shapes: T frames of H x W pixels, L samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from syncflow.media import MediaError
from syncflow.preprocess.config import FiltersConfig, PreprocessConfig
from syncflow.preprocess.loudness import loudness_lufs
from syncflow.preprocess.work import Stage, Work
from syncflow.sync import measure_offset, small_grey

BLACK = 20.0  # grey level (of 255) below which a whole frame counts as black
FROZEN = 0.1  # mean change of grey level below which a frame repeats the one before
CLIPPED = 0.999


class Filter:
    """Scores stored under names of their own, then compared with the limits that are set."""

    name = ""
    batched = False

    def setup(self, config: PreprocessConfig, device: str) -> None:
        self.limits: FiltersConfig = config.filters

    def __call__(self, works: Sequence[Work]) -> None:
        for work in works:
            self.judge(work)

    def judge(self, work: Work) -> None:
        raise NotImplementedError

    def at_most(self, work: Work, reason: str, score: float, limit: float | None) -> None:
        if limit is not None and score > limit:
            raise MediaError(reason, work.plan.source.uri, f"{score:.4g} is more than {limit:g}")

    def at_least(self, work: Work, reason: str, score: float, limit: float | None) -> None:
        if limit is not None and score < limit:
            raise MediaError(reason, work.plan.source.uri, f"{score:.4g} is less than {limit:g}")


class PictureFilter(Filter):
    """black, frozen: share of frames; motion: mean change of grey level per second."""

    name = "filter_picture"

    def judge(self, work: Work) -> None:
        """
        Raises:
            MediaError: black, frozen, static.
        """
        clip = work.decoded
        scores = picture_scores(clip.frames[: clip.valid_frames], float(clip.fps))
        work.scores.update(scores)
        self.at_most(work, "black", scores["black"], self.limits.max_black)
        if "motion" in scores:
            self.at_most(work, "frozen", scores["frozen"], self.limits.max_frozen)
            self.at_least(work, "static", scores["motion"], self.limits.min_motion)


class SoundFilter(Filter):
    """loudness_lufs by EBU R128; silent, clipped: share of the sound."""

    name = "filter_sound"

    def judge(self, work: Work) -> None:
        """
        Raises:
            MediaError: too_quiet, silent, clipped.
        """
        if not work.bucket.sound:
            return
        clip = work.decoded
        first, end = clip.valid_samples
        scores = sound_scores(clip.waveform[first:end], clip.sample_rate)
        work.scores.update(scores)
        self.at_least(work, "too_quiet", scores["loudness_lufs"], self.limits.min_loudness_lufs)
        self.at_most(work, "silent", scores["silent"], self.limits.max_silent)
        self.at_most(work, "clipped", scores["clipped"], self.limits.max_clipped)


class SyncFilter(Filter):
    """How far the sound lies behind the picture; believed only where it is measured with confidence."""

    name = "filter_sync"

    def judge(self, work: Work) -> None:
        """
        Raises:
            MediaError: out_of_sync, drifting, sync_unknown.
        """
        if not work.bucket.sound:
            return
        clip = work.decoded
        sync = measure_offset(clip.frames, clip.fps, clip.waveform, clip.sample_rate)
        work.sync = sync
        self.at_least(work, "sync_unknown", sync.confidence, self.limits.min_sync_confidence)
        if sync.confidence >= self.limits.believe_sync_from:
            self.at_most(work, "out_of_sync", abs(sync.offset_ms), self.limits.max_offset_ms)
            self.at_most(work, "drifting", abs(sync.drift_ms_per_s), self.limits.max_drift_ms_per_s)


def picture_scores(frames: np.ndarray, fps: float) -> dict[str, float]:
    """Of (T, H, W, 3) uint8 frames; of a single one only how black it is."""
    grey = small_grey(frames)  # (T, h, w)
    black = float((grey.max((1, 2)) < BLACK).mean())
    if len(grey) == 1:
        return {"black": black}
    change = np.abs(np.diff(grey, axis=0)).mean((1, 2))  # (T-1,)
    return {"black": black, "frozen": float((change < FROZEN).mean()), "motion": float(change.mean() * fps)}


def sound_scores(waveform: np.ndarray, sample_rate: int) -> dict[str, float]:
    """Of (L,) mono."""
    block = max(1, sample_rate // 50)
    blocks = waveform[: len(waveform) // block * block].reshape(-1, block)
    level = np.sqrt((blocks.astype(np.float64) ** 2).mean(1)) if len(blocks) else np.zeros(1)  # RMS of 20 ms
    return {
        "loudness_lufs": loudness_lufs(waveform, sample_rate),
        "silent": float((level < 1e-3).mean()),
        "clipped": float((np.abs(waveform) >= CLIPPED).mean()) if len(waveform) else 0.0,
    }


def filter_stages(config: FiltersConfig) -> list[Stage]:
    """Those that are on, cheap ones first."""
    chosen: list[tuple[bool, Callable[[], Stage]]] = [
        (config.picture, PictureFilter),
        (config.sound, SoundFilter),
        (config.sync, SyncFilter),
    ]
    return [make() for is_on, make in chosen if is_on]
