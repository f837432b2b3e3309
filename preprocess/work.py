"""A clip on its way through the stages, and the stages' common form.

A stage is cheap to construct and set up on its worker. It is called with a few clips and fills them in or drops
them; a failure of one clip drops that clip alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from torch import Tensor

from syncflow.media import Clip, MediaError
from syncflow.preprocess.config import BucketSize, PreprocessConfig
from syncflow.preprocess.plan import ClipPlan, reject
from syncflow.samples import ClipRecord, Reject, StoredSample, SyncMeasure, first_line


@dataclass
class Work:
    """One clip, from its plan to what a shard holds of it."""

    plan: ClipPlan
    bucket: BucketSize
    clip: Clip | None = None
    caption: str = ""
    video_caption: str = ""
    audio_caption: str = ""
    sync: SyncMeasure | None = None
    scores: dict[str, float] = field(default_factory=dict)
    provenance: dict[str, str] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    reject: Reject | None = None

    def drop(self, stage: str, reason: str, detail: str = "") -> None:
        self.reject = reject(self.plan, stage, reason, detail)

    @property
    def decoded(self) -> Clip:
        assert self.clip is not None, "the decode stage comes first"
        return self.clip

    def even_frames(self, count: int) -> np.ndarray:
        """(count, H, W, 3): pictures evenly over what the source really has of the clip."""
        frames = self.decoded.frames[: self.decoded.valid_frames]
        return frames[((np.arange(count) + 0.5) * len(frames) / count).astype(int)]

    def sample(self, sample_rate: int) -> StoredSample:
        """What a shard holds; `sample_rate` is the data set's, which a clip without sound does not tell."""
        clip, source, span = self.decoded, self.plan.source, self.plan.span
        events = None
        if source.events_s is not None:
            events = [t - float(span.start_s) for t in source.events_s if span.start_s <= t < span.end_s]
        record = ClipRecord(
            id=self.plan.id,
            source=reject(self.plan, "", "").source,
            start_s=span.start_s,
            end_s=span.end_s,
            fps=clip.fps,
            width=self.bucket.width,
            height=self.bucket.height,
            num_frames=len(clip.frames),
            valid_frames=clip.valid_frames,
            sample_rate=sample_rate,
            num_samples=len(clip.waveform),
            valid_samples=clip.valid_samples,
            caption=self.caption,
            video_caption=self.video_caption,
            audio_caption=self.audio_caption,
            label=source.label,
            sync=self.sync,
            scores=self.scores,
            events_s=events,
            provenance={**source.provenance, "source_id": source.id, **self.provenance},
        )
        return StoredSample(record, self.tensors)


class Stage(Protocol):
    name: str
    batched: bool
    """Called with up to a batch of clips; otherwise with one at a time."""

    def setup(self, config: PreprocessConfig, device: str) -> None:
        """Load what it needs, once per worker."""

    def __call__(self, works: Sequence[Work]) -> None: ...


Watch = Callable[[Sequence[str]], AbstractContextManager[None]]
"""Entered while clips with these ids are worked on, so that a crash or a hang is laid at their door."""


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Adds what passes within the context to `seconds[name]`."""
    began = time.perf_counter()
    try:
        yield
    finally:
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - began


def run_stage(stage: Stage, works: Sequence[Work], watch: Watch, seconds: dict[str, float]) -> None:
    """Send the clips that are still in through a stage; where a batch fails, find out which clip it is."""
    live = [work for work in works if work.reject is None]
    if not live:
        return
    with timed(seconds, stage.name):
        for group in [live] if stage.batched else [[work] for work in live]:
            with watch([work.plan.id for work in group]):
                _run_group(stage, group)


def _run_group(stage: Stage, group: Sequence[Work]) -> None:
    try:
        stage(group)
    except MediaError as error:
        if len(group) == 1:
            return group[0].drop(stage.name, error.reason, error.detail)
        for work in group:
            _run_group(stage, [work])
    except (ArithmeticError, LookupError, TypeError, ValueError, RuntimeError) as error:
        if len(group) == 1:
            return group[0].drop(stage.name, "failed", f"{type(error).__name__}: {first_line(error)}")
        for work in group:
            _run_group(stage, [work])


def batches(works: Iterator[Work], size: int) -> Iterator[list[Work]]:
    """Up to `size` clips that are still in, with the dropped ones among them."""
    batch: list[Work] = []
    for work in works:
        batch.append(work)
        if sum(w.reject is None for w in batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
