"""Looks at the averaged weights during training, on held-out clips: loss on fixed noise at fixed t, videos with
sound, and their sync.

The loss hardly shows sync, so events are counted: the sound generated for a known video, and the video and sound
generated together, are matched against what is seen. Beside them stands the stored sound, decoded: the most that
the autoencoder lets the others reach.

Shapes: C channels, T_v / T_a latent frames, T frames of H x W pixels, L samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from syncflow.eval.onset_offset import HEADLINE_MS, Events, hits, known_events, weighted_median
from syncflow.media import write_mp4
from syncflow.models.autoencoders import AutoencoderSpec, load_audio_autoencoder, load_video_autoencoder
from syncflow.models.d_dit import DualDiT
from syncflow.models.flow import shift_ratio
from syncflow.models.generation import generate_joint, generate_sound, make_setting
from syncflow.models.guidance import Guidance
from syncflow.models.latents import denormalise
from syncflow.models.sampler import time_grid
from syncflow.samples import EncoderIdentity, StoredSample
from syncflow.sync import audio_onsets, motion_peaks
from syncflow.train.captions import Captions
from syncflow.train.collate import Example, collate
from syncflow.train.config import StageConfig
from syncflow.train.ema import Ema
from syncflow.train.engine import Engine, Ranks, all_sum, everyones
from syncflow.train.loader import Source
from syncflow.train.objective import Objective
from syncflow.train.reading import ShardReader
from syncflow.train.report import Report


@dataclass
class Validation:
    """Made once per stage; called with the number of steps done, by all ranks together. Each looks at its share of
    the clips with a model of its own, whole: nothing of the training state is touched but read."""

    config: StageConfig
    source: Source
    ranks: Ranks
    engine: Engine
    ema: Ema
    start: Callable[[], dict[str, Tensor]]
    """The state that the stage started from, for what it does not train."""
    report: Report | None
    """On the first rank."""
    phase: Callable[[str], None]
    """Told of every clip: samples may take longer than the watchdog waits."""
    captions: Captions | None
    """Embeds captions where the data set stores no text."""

    @cached_property
    def readers(self) -> list[ShardReader]:
        data = self.config.data
        return [ShardReader(d, data.cache_dir, int(data.cache_gb * 1e9)) for d in self.source.datasets]

    def __call__(self, step: int) -> None:
        device = self.ranks.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            model = DualDiT(self.config.model)
            model.load_state_dict(self.start() | self.engine.gather(self.ema.values))
            model.to(device).eval()
            metrics = self.losses(model)
            files: list[str] = []
            if self.config.validation.samples:
                found, files = self.samples(model, Path(self.config.output) / "samples" / f"step-{step:08d}")
                metrics |= found
        if self.report:
            self.report.validated(step, metrics, files)

    @torch.no_grad()
    def losses(self, model: DualDiT) -> dict[str, float]:
        """Mean over the same clips, posterior draws, noise and t every time; ranks share the clips out."""
        times, weights = self.config.validation.times, self.config.flow
        objective = Objective(model, self.config)
        sums = torch.zeros(len(times), 3, dtype=torch.float64, device=self.ranks.device)  # video, audio, clips
        for example, _ in self._mine(len(self.source.held_out)):
            for i, t in enumerate(times):
                _, video, audio = objective(replace(example, t=torch.tensor([t], device=self.ranks.device)))
                sums[i] += torch.stack([video[0], audio[0], torch.ones_like(video[0])]).double()
        sums = all_sum(sums).cpu()
        metrics = {}
        for column, (name, weight) in enumerate((("video", weights.video_weight), ("audio", weights.audio_weight))):
            if weight:
                metrics[f"val/loss/{name}"] = (sums[:, column].sum() / sums[:, 2].sum()).item()
                for t, row in zip(times, sums, strict=True):
                    metrics[f"val/loss/{name}/t{t:g}"] = (row[column] / row[2]).item()
        return metrics

    def samples(self, model: DualDiT, folder: Path) -> tuple[dict[str, float], list[str]]:
        """Held-out clips generated anew, as mp4 files in `folder`: sync metrics, and the names of the files."""
        folder.mkdir(parents=True, exist_ok=True)
        maker = Maker(self.config, self.source, model, self.ranks.device)
        mine: list[tuple[str, str, Events | None]] = []
        for example, stored in self._mine(self.config.validation.samples):
            for task, clip in maker(example, stored):
                path = folder / f"{stored.record.id}-{task}.mp4"
                write_mp4(path, clip.frames, stored.record.fps, clip.waveform, stored.record.sample_rate)
                mine.append((task, str(path), clip.events))
        everything = [item for rank in everyones(mine, self.ranks) for item in rank]
        metrics: dict[str, float] = {}
        for task in sorted({task for task, _, _ in everything}):
            events = [e for name, _, e in everything if name == task and e is not None]
            metrics |= {f"val/sync/{task}/{name}": value for name, value in sync_metrics(events).items()}
        return metrics, [path for _, path, _ in everything]

    def _mine(self, n: int) -> Iterator[tuple[Example, StoredSample]]:
        """This rank's share of the first n held-out clips, as an example each: the same draws every time."""
        data = self.config.data.model_copy(update={"caption_dropout": 0.0})
        captioned = self.config.model_copy(update={"data": data})
        for d, shard, place in self.source.held_out[:n][self.ranks.rank :: self.ranks.world_size]:
            self.phase("validation")
            clip = self.readers[d].read_raw(shard, place)
            batch = collate(captioned, self.source.stats, [(clip, -1)])
            yield (self.captions.embed(batch) if self.captions else batch).to(self.ranks.device).draw(), clip.sample()


@dataclass
class Made:
    """A sample: what is seen, what is heard (None: the stage has no sound), and when."""

    frames: np.ndarray  # (T, H, W, 3) uint8
    waveform: np.ndarray | None  # (L,)
    events: Events | None


class Maker:
    """Generates in latents: captions and videos as they are stored, so that no text encoder is loaded beside the
    training and the tower sees what it is trained on."""

    def __init__(self, config: StageConfig, source: Source, model: DualDiT, device: torch.device) -> None:
        self.config, self.model, self.device, self.stats = config, model, device, source.stats
        card = source.card
        self.video = load_video_autoencoder(_spec(card.video_autoencoder), device)
        self.with_sound = config.flow.audio_weight > 0
        if self.with_sound:
            assert card.audio_autoencoder is not None  # checked before the first step
            self.audio = load_audio_autoencoder(_spec(card.audio_autoencoder), device)

    @torch.no_grad()
    def __call__(self, example: Example, stored: StoredSample) -> Iterator[tuple[str, Made]]:
        """(task, sample) of one clip: what this stage learns to make, and the stored sound where there is one."""
        batch, validation = example.batch, self.config.validation
        video_noise, audio_noise = example.video_noise, example.audio_noise
        audio_time_s = batch.audio_time_s
        if not self.with_sound:
            # Sound does not act on the picture: one frame of it stands in.
            audio_noise = torch.zeros(1, self.config.model.audio.in_channels, 1, device=self.device)
            audio_time_s = batch.video_time_s[:, :1]
        setting = make_setting(
            self.model, [batch.text[0, batch.text_mask[0]]], batch.video_time_s, audio_time_s, batch.fps, batch.size
        )
        record, noise = stored.record, (video_noise, audio_noise)
        ratio = shift_ratio(record.width * record.height, record.num_frames, self.config.flow)
        times = time_grid(validation.sample_steps, ratio)
        guidance = Guidance(video=validation.guidance, audio=validation.guidance)
        if self.config.flow.video_weight:
            video, audio = generate_joint(self.model, setting, noise, times, guidance=guidance)
            frames = self._frames(video, stored)
            yield "text_to_av" if self.with_sound else "text_to_video", self._made(frames, audio, None, stored)
        if self.with_sound:
            frames = self._frames(batch.video, stored)
            sound = generate_sound(self.model, setting, batch.video, noise, times, guidance=guidance)
            yield "video_to_audio", self._made(frames, sound, record.events_s, stored)
            yield "stored", self._made(frames, batch.audio, record.events_s, stored)

    def _made(self, frames: np.ndarray, audio: Tensor, events_s: list[float] | None, stored: StoredSample) -> Made:
        if not self.with_sound:
            return Made(frames, None, None)
        record = stored.record
        waveform = self.audio.decode(denormalise(audio, self.stats[1]), record.num_samples)[0]
        heard = waveform.float().clamp(-1, 1).cpu().numpy()
        seen_s = motion_peaks(frames, record.fps) if events_s is None else events_s
        heard_s, duration_s = audio_onsets(heard, record.sample_rate), float(len(frames) / record.fps)
        events = known_events(list(seen_s), list(heard_s), duration_s)
        return Made(frames, heard, events)

    def _frames(self, latents: Tensor, stored: StoredSample) -> np.ndarray:
        """(1, C, T_v, H', W') normalised latents -> (T, H, W, 3) uint8."""
        pixels = self.video.decode(denormalise(latents, self.stats[0]), stored.record.num_frames)[0]  # (3, T, H, W)
        return ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 3, 0).cpu().numpy()


def sync_metrics(clips: list[Events]) -> dict[str, float]:
    """Share of events both seen and heard within 80 ms, how late the sound is, and how much is heard at all.

    What no clip has events for is left out.
    """
    seen, heard = (sum(len(getattr(e, name)) for e in clips) for name in ("visual_s", "audio_s"))
    metrics = {}
    if seen + heard:
        metrics["event_f1"] = 2 * sum(hits(e, HEADLINE_MS) for e in clips) / (seen + heard)
    if seen:
        metrics["heard_per_seen"] = heard / seen
    sure = [e for e in clips if e.confidence > 0]
    if sure:
        offsets, confidences = (np.array([getattr(e, name) for e in sure]) for name in ("offset_ms", "confidence"))
        metrics["offset_ms"] = weighted_median(offsets, confidences)
    return metrics


def _spec(identity: EncoderIdentity) -> AutoencoderSpec:
    return AutoencoderSpec(kind=identity.kind, path=identity.path, sha256=identity.sha256)
