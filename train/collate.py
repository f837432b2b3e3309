"""Stored clips to what a training step sees: micro-batches as stored, then drawn, normalised, with t and noise.

Loader processes stack what was read; the draws (posterior, noise) are made on the device, for they cost more than the
reading. Everything random about a clip comes from (seed, clip id, visit), so that a step is the same on any number of
ranks and after any resume.

Shapes: B clips of a micro-batch, C channels, T_v / T_a latent frames, L text tokens, D text width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from syncflow.models.flow import sample_t, shift_ratio
from syncflow.models.latents import normalise
from syncflow.samples import Batch, ChannelStats, ClipRecord, StoredSample
from syncflow.train.config import StageConfig

_TOKEN_MULTIPLE = 16


@dataclass
class Example:
    """A micro-batch as the objective sees it."""

    batch: Batch
    t: Tensor  # (B,) float32, shared by both modalities
    video_noise: Tensor  # (B, C_v, T_v, H, W) float32
    audio_noise: Tensor  # (B, C_a, T_a) float32
    padded: bool
    """Whether any mask is false somewhere; without masks attention is faster."""


@dataclass
class MicroBatch:
    """A micro-batch as stored, on its way from the disk to the device."""

    ids: list[str]
    captions: list[str]
    """Where the data set stores no text: `captions.py` embeds these."""
    tensors: dict[str, Tensor]
    """Posteriors and text in their stored type; all else that `Batch` names; t; seeds (B, 2) of video and audio."""
    padded: bool
    stats: tuple[ChannelStats, ChannelStats | None]
    """By which the latents of video and audio are normalised."""

    @property
    def t(self) -> Tensor:
        return self.tensors["t"]

    def to(self, device: torch.device | str) -> MicroBatch:
        # Seeds stay: they are read, not computed with.
        return self._each(
            lambda tensor: tensor if tensor.dtype == torch.int64 else tensor.to(device, non_blocking=True)
        )

    def pin_memory(self) -> MicroBatch:
        """Called by torch's DataLoader where there is a GPU."""
        return self._each(Tensor.pin_memory)

    def draw(self) -> Example:
        """Latents from their posteriors, and the noise at t = 0. Without audio in it, the batch has none."""
        values = dict(self.tensors)
        t, seeds = values.pop("t"), values.pop("seeds").T.tolist()
        video, video_noise = _draw(values.pop("video_mean"), values.pop("video_std"), seeds[0], self.stats[0])
        if "audio_mean" in values:
            audio, audio_noise = _draw(values.pop("audio_mean"), values.pop("audio_std"), seeds[1], self.stats[1])
        else:
            audio = audio_noise = video.new_empty(len(video), 0, 0)
        values["text"] = values["text"].float()
        return Example(
            Batch(ids=self.ids, video=video, audio=audio, **values), t, video_noise, audio_noise, self.padded
        )

    def __reduce__(self) -> tuple:
        # Between processes every tensor costs a file descriptor and a handshake, so all travel as one.
        order = sorted(self.tensors, key=lambda name: -self.tensors[name].element_size())  # aligned without gaps
        flat = torch.cat([self.tensors[name].reshape(-1).view(torch.uint8) for name in order])
        layout = [(name, self.tensors[name].dtype, self.tensors[name].shape) for name in order]
        return _from_flat, (flat, layout, replace(self, tensors={}).__dict__)

    def _each(self, change: Callable[[Tensor], Tensor]) -> MicroBatch:
        return replace(self, tensors={name: change(tensor) for name, tensor in self.tensors.items()})


def _from_flat(flat: Tensor, layout: list[tuple[str, torch.dtype, torch.Size]], rest: dict) -> MicroBatch:
    parts = flat.split([shape.numel() * dtype.itemsize for _, dtype, shape in layout])
    tensors = {name: part.view(dtype).view(shape) for part, (name, dtype, shape) in zip(parts, layout, strict=True)}
    return MicroBatch(**{**rest, "tensors": tensors})


def collate(
    config: StageConfig, stats: tuple[ChannelStats, ChannelStats | None], samples: list[tuple[StoredSample, int]]
) -> MicroBatch:
    """Stored clips, each with the number of its visit.

    A stage without a loss of sound does not look at it: its batches have no audio, whether the data has or not.
    """
    records = [sample.record for sample, _ in samples]
    numbers = [_numbers(config.seed, sample.record.id, visit) for sample, visit in samples]
    uniform = torch.tensor([[(n >> 40) / 2**24 for n in row[:2]] for row in numbers])  # (B, 2) in [0, 1)
    kinds = ["video", "audio"] if config.flow.audio_weight else ["video"]
    names = [f"{kind}_{what}" for kind in kinds for what in ("mean", "std", "time_s")]
    tensors = {name: torch.stack([sample.tensors[name] for sample, _ in samples]) for name in names}
    if "audio" in kinds:
        tensors["audio_mask"] = _audio_mask(records, tensors["audio_time_s"])
    else:
        tensors["audio_time_s"] = torch.empty(len(samples), 0, 2)
        tensors["audio_mask"] = torch.ones(len(samples), 0, dtype=torch.bool)
    tensors["video_mask"] = _video_mask(records, tensors["video_time_s"])
    captions = []
    if "text" in samples[0][0].tensors:
        texts = [sample.tensors["text"] for sample, _ in samples]
        tensors["text"], tensors["text_mask"] = pad_text(texts, config.data.max_tokens)
    else:
        captions = [record.caption for record in records]
    ratio = torch.tensor([shift_ratio(r.width * r.height, r.num_frames, config.flow) for r in records])
    tensors |= {
        "t": sample_t(uniform[:, 0], config.flow, ratio=ratio),
        "null_text": uniform[:, 1] < config.data.caption_dropout,
        "fps": torch.tensor([float(record.fps) for record in records]),
        "size": torch.tensor([[float(record.height), float(record.width)] for record in records]),
        "seeds": torch.tensor([[n >> 1 for n in row[2:]] for row in numbers]),
    }
    padded = not bool(tensors["video_mask"].all() and tensors["audio_mask"].all())
    return MicroBatch([record.id for record in records], captions, tensors, padded, stats)


def _draw(mean: Tensor, std: Tensor, seeds: list[int], stats: ChannelStats | None) -> tuple[Tensor, Tensor]:
    """A normalised sample of N(mean, std²) and a noise, both (B, C, …) float32; row b depends on its seed only."""
    drawn = torch.empty(len(mean), 2, *mean.shape[1:], device=mean.device)
    generator = torch.Generator(mean.device)
    for row, seed in zip(drawn, seeds, strict=True):
        row.normal_(generator=generator.manual_seed(seed))
    return normalise(mean.float() + std.float() * drawn[:, 0], stats), drawn[:, 1]


def pad_text(texts: list[Tensor], limit: int) -> tuple[Tensor, Tensor]:
    """(B, L, D) and its mask; L is a multiple of 16, so that few shapes occur."""
    lengths = [min(len(text), limit) for text in texts]
    length = max(1, min(limit, -(-max(lengths) // _TOKEN_MULTIPLE) * _TOKEN_MULTIPLE))
    padded = pad_sequence([text[:limit] for text in texts], batch_first=True)
    padded = pad(padded, (0, 0, 0, length - padded.shape[1]))
    return padded, torch.arange(length) < torch.tensor(lengths)[:, None]


def _video_mask(records: list[ClipRecord], time_s: Tensor) -> Tensor:
    """(B, T_v): latents that start before the source's last real frame ends."""
    ends_s = torch.tensor([record.valid_frames / float(record.fps) for record in records])
    return time_s[:, :, 0] < ends_s[:, None]


def _audio_mask(records: list[ClipRecord], time_s: Tensor) -> Tensor:
    """(B, T_a): latents that overlap the samples the source really has."""
    valid_s = torch.tensor([[n / record.sample_rate for n in record.valid_samples] for record in records])  # (B, 2)
    return (time_s[:, :, 0] < valid_s[:, 1:]) & (time_s[:, :, 1] > valid_s[:, :1])


def _numbers(*key: object) -> list[int]:
    """Four 64-bit numbers that depend on nothing but `key`: for t, caption dropout, video and audio."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=32).digest()
    return [int.from_bytes(digest[i : i + 8], "little") for i in range(0, 32, 8)]
