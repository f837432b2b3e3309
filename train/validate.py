"""Looks at the averaged weights during training: loss on fixed noise at fixed t, videos with sound, and their sync.

The loss hardly shows sync, so events are counted: the sound generated for known videos, and for videos generated
with it, is matched against what is seen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from syncflow.eval.onset_offset import clip_f1, known_events
from syncflow.media import write_mp4
from syncflow.models.d_dit import DualDiT
from syncflow.models.pipeline import Generated, SyncFlowPipeline
from syncflow.samples import StoredSample
from syncflow.sync import audio_onsets, motion_peaks
from syncflow.tracker import Tracker
from syncflow.train.config import StageConfig
from syncflow.train.ema import Ema
from syncflow.train.engine import Engine, Ranks, all_sum, barrier
from syncflow.train.loader import MicroBatches, Source, collate
from syncflow.train.objective import Objective
from syncflow.train.order import Order
from syncflow.train.outputs import model_card


@dataclass
class Validation:
    """Made once per stage; called with the number of steps done, by all ranks together."""

    config: StageConfig
    source: Source
    ranks: Ranks
    engine: Engine
    ema: Ema
    frozen: Callable[[], dict[str, Tensor]]
    """The state that the stage started from, for what it does not train."""
    output: Path
    tracker: Tracker | None

    def __call__(self, step: int) -> None:
        state = self.frozen() | self.engine.gather(self.ema.values)
        model = DualDiT(self.config.model)
        model.load_state_dict(state)
        model.to(self.ranks.device).eval()
        metrics = self.losses(model)
        if self.ranks.first and self.config.validation.samples:
            metrics |= self.samples(model, step)
        if self.tracker:
            self.tracker.log(metrics, step)
        barrier()

    @torch.no_grad()
    def losses(self, model: DualDiT) -> dict[str, float]:
        """Mean over the same clips, posterior draws, noise and t every time; ranks share the clips out."""
        validation = self.config.validation
        objective = Objective(model, replace_dropout(self.config))
        sums = torch.zeros(len(validation.times), 3, dtype=torch.float64, device=self.ranks.device)  # video, audio, n
        for sample in self._clips(validation.clips)[self.ranks.rank :: self.ranks.world_size]:
            example = collate(replace_dropout(self.config), self.source, [(sample, -1)])
            for i, t in enumerate(validation.times):
                _, video, audio = objective(replace(example, t=torch.tensor([t])).to(self.ranks.device))
                sums[i] += torch.stack([video[0], audio[0], torch.ones_like(video[0])]).double()
        sums = all_sum(sums).cpu()
        metrics = {}
        weights = (self.config.flow.video_weight, self.config.flow.audio_weight)
        for column, (name, weight) in enumerate(zip(("video", "audio"), weights, strict=True)):
            if weight:
                metrics[f"val/loss/{name}"] = (sums[:, column].sum() / sums[:, 2].sum()).item()
                for t, row in zip(validation.times, sums, strict=True):
                    metrics[f"val/loss/{name}/t{t:g}"] = (row[column] / row[2]).item()
        return metrics

    def samples(self, model: DualDiT, step: int) -> dict[str, float]:
        """mp4 files under samples/, as artifacts, and how well what is heard meets what is seen in them."""
        config, folder = self.config, self.output / "samples" / f"step-{step:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        card = model_card(config, self.source, self.output / "samples")
        card = card.model_copy(
            update={
                name: getattr(card, name).located(self.output / "samples")
                for name in ("video_autoencoder", "audio_autoencoder")
            }
        )
        pipe = SyncFlowPipeline(model, card, self.ranks.device)
        settings = {"steps": config.validation.sample_steps, "guidance": config.validation.guidance}
        with_sound = bool(config.flow.audio_weight)
        found: dict[str, list[float]] = {"joint": [], "video_to_audio": []}
        for seed, stored in enumerate(self._clips(config.validation.samples)):
            prompt = stored.record.caption or "a clip"
            [clip] = pipe(prompt, seed=seed, **settings)  # type: ignore[arg-type]
            self._keep(folder / f"{seed}-joint.mp4", clip, with_sound)
            if with_sound:
                found["joint"] += _f1(clip, None)
                frames = self._decode(pipe, stored)
                [clip] = pipe(prompt, seed=seed, video=frames, fps=stored.record.fps, **settings)  # type: ignore[arg-type]
                self._keep(folder / f"{seed}-video-to-audio.mp4", clip, True)
                found["video_to_audio"] += _f1(clip, stored.record.events_s)
        return {f"val/sync/{task}/event_f1": float(np.mean(f1)) for task, f1 in found.items() if f1}

    def _keep(self, path: Path, clip: Generated, with_sound: bool) -> None:
        write_mp4(path, clip.frames, clip.fps, clip.waveform if with_sound else None, clip.sample_rate)
        if self.tracker:
            self.tracker.artifact(path, f"samples/{path.parent.name}")

    def _decode(self, pipe: SyncFlowPipeline, stored: StoredSample) -> np.ndarray:
        """(T, H, W, 3) uint8 of a stored clip's video latents."""
        mean = stored.tensors["video_mean"].float()[None].to(self.ranks.device)
        with torch.no_grad():
            frames = pipe.video_autoencoder.decode(mean, stored.record.num_frames)  # (1, 3, T, H, W)
        return ((frames[0].clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 3, 0).cpu().numpy()

    def _clips(self, n: int) -> list[StoredSample]:
        """The same n clips of the largest bucket at every call."""
        batches = MicroBatches(self.config, self.source, 0, 1)
        largest = max(range(len(self.source.streams)), key=lambda s: self.source.streams[s].samples)
        order = Order([self.source.streams[largest]], n, seed=0)
        reader = batches.readers[self.source.buckets[largest][0]]
        n = min(n, self.source.streams[largest].samples)
        return [reader.read(batches.shards[largest][pick.shard], pick.place) for pick in order.at(0)[:n]]


def replace_dropout(config: StageConfig) -> StageConfig:
    """The same stage, every caption seen."""
    return config.model_copy(update={"data": config.data.model_copy(update={"caption_dropout": 0.0})})


def _f1(clip: Generated, events_s: list[float] | None) -> list[float]:
    """Share of events seen and heard within 80 ms, in a list; empty where nothing happens."""
    seen = motion_peaks(clip.frames, clip.fps) if events_s is None else np.array(events_s)
    duration_s = len(clip.frames) / float(clip.fps)
    f1 = clip_f1(known_events(list(seen), list(audio_onsets(clip.waveform, clip.sample_rate)), duration_s))
    return [] if f1 is None else [f1]
