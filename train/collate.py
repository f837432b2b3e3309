"""Stored clips to what a training step sees: micro-batches as stored, then drawn, normalised, with t and noise.

Loader processes stack what was read; the draws (posterior, noise) are made on the device, for they cost more than the
reading. Everything random about a clip comes from (seed, clip id, visit), so that a step is the same on any number of
ranks and after any resume.

Shapes: B clips of a micro-batch, C channels, T_v / T_a latent frames, L text tokens, D text width.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from syncflow.errors import UserError
from syncflow.models.flow import FlowConfig, sample_t, shift_ratio
from syncflow.models.latents import normalise
from syncflow.samples import Batch, ChannelStats
from syncflow.train.config import StageConfig
from syncflow.train.reading import Facts, Place, RawClip

_TOKEN_MULTIPLE = 16
_FOUR = struct.Struct("<4Q")


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
        flat = torch.cat([self.tensors[name].contiguous().view(-1).view(torch.uint8) for name in order])
        layout = [(name, self.tensors[name].dtype, self.tensors[name].shape) for name in order]
        return _from_flat, (flat, layout, replace(self, tensors={}).__dict__)

    def _each(self, change: Callable[[Tensor], Tensor]) -> MicroBatch:
        return replace(self, tensors={name: change(tensor) for name, tensor in self.tensors.items()})


def _from_flat(flat: Tensor, layout: list[tuple[str, torch.dtype, torch.Size]], rest: dict) -> MicroBatch:
    parts = flat.split([shape.numel() * dtype.itemsize for _, dtype, shape in layout])
    tensors = {name: part.view(dtype).view(shape) for part, (name, dtype, shape) in zip(parts, layout, strict=True)}
    return MicroBatch(**{**rest, "tensors": tensors})


def collate(
    config: StageConfig, stats: tuple[ChannelStats, ChannelStats | None], visits: list[tuple[RawClip, int]]
) -> MicroBatch:
    """Clips as read, each with the number of its visit.

    A stage without a loss of sound does not look at it: its batches have no audio, whether the data has or not.

    Raises:
        UserError: a clip lacks a tensor, or has it in another shape than the others.
    """
    clips = [clip for clip, _ in visits]
    facts = [clip.facts for clip in clips]
    numbers = [_numbers(config.seed, fact.id, visit) for fact, (_, visit) in zip(facts, visits, strict=True)]
    # Small arrays are numpy's: torch takes twice as long for each, together longer than the reading.
    rows = np.array([_row(config.flow, fact, n) for fact, n in zip(facts, numbers, strict=True)], np.float32)
    for_t, for_dropout, ratio, fps, video_end_s, audio_start_s, audio_end_s = rows.T[:7, :, None]  # (B, 1) each
    kinds = ["video", "audio"] if config.flow.audio_weight else ["video"]
    tensors = {
        f"{kind}_{what}": _stack(clips, f"{kind}_{what}") for kind in kinds for what in ("mean", "std", "time_s")
    }
    # Latents that start before the source's last real frame ends.
    video_mask = tensors["video_time_s"].numpy()[:, :, 0] < video_end_s  # (B, T_v)
    if "audio" in kinds:
        # Latents that overlap the samples the source really has.
        start_s, end_s = tensors["audio_time_s"].numpy().transpose(2, 0, 1)
        audio_mask = (start_s < audio_end_s) & (end_s > audio_start_s)  # (B, T_a)
    else:
        tensors["audio_time_s"] = torch.empty(len(clips), 0, 2)
        audio_mask = np.ones((len(clips), 0), bool)
    captions = []
    if "text" in clips[0].layout:
        tensors["text"], tensors["text_mask"] = _stack_text(clips, config.data.max_tokens)
    else:
        captions = [fact.caption for fact in facts]
    tensors["t"] = sample_t(torch.from_numpy(for_t[:, 0]), config.flow, ratio=torch.from_numpy(ratio[:, 0]))
    small = {
        "video_mask": video_mask,
        "audio_mask": audio_mask,
        "null_text": for_dropout[:, 0] < config.data.caption_dropout,
        "fps": fps[:, 0],
        "size": rows[:, -2:],
        "seeds": np.array([n[2:] for n in numbers]),
    }
    tensors |= {name: torch.from_numpy(array) for name, array in small.items()}
    padded = not (video_mask.all() and audio_mask.all())
    return MicroBatch([fact.id for fact in facts], captions, tensors, padded, stats)


def _row(flow: FlowConfig, fact: Facts, numbers: list[int]) -> list[float]:
    """In [0, 1) for t and caption dropout; shift ratio, frames/s; ends of what the source really has, in seconds."""
    first, end = fact.valid_samples
    return [
        (numbers[0] >> 39) / 2**24,
        (numbers[1] >> 39) / 2**24,
        shift_ratio(fact.width * fact.height, fact.num_frames, flow),
        fact.fps_hz,
        fact.valid_frames / fact.fps_hz,
        first / fact.sample_rate,
        end / fact.sample_rate,
        fact.height,
        fact.width,
    ]


def _stack(clips: list[RawClip], name: str) -> Tensor:
    """(B, …) of the clips' tensors of this name: their bytes laid end to end."""
    place = _same(clips, name, 0)
    flat = bytearray().join([clip.bytes_of(name) for clip in clips])
    return torch.frombuffer(flat, dtype=place.dtype).view(len(clips), *place.shape)


def _stack_text(clips: list[RawClip], limit: int) -> tuple[Tensor, Tensor]:
    """As `pad_text`, of stored text."""
    place = _same(clips, "text", 1)
    lengths, length = _text_lengths([clip.layout["text"].shape[0] for clip in clips], limit)
    token = place.shape[1] * place.dtype.itemsize
    parts = list[memoryview | bytes]()
    for clip, n in zip(clips, lengths, strict=True):
        parts += [clip.bytes_of("text")[: n * token], bytes((length - n) * token)]
    text = torch.frombuffer(bytearray().join(parts), dtype=place.dtype).view(len(clips), length, place.shape[1])
    return text, torch.from_numpy(np.arange(length) < np.array(lengths)[:, None])


def _same(clips: list[RawClip], name: str, free: int) -> Place:
    """Where `name` lies in the first clip, of which the others have the same type and shape but for `free` axes."""
    first = clips[0].layout.get(name)
    for clip in clips:
        place = clip.layout.get(name)
        if not place or not first or place.dtype != first.dtype or place.shape[free:] != first.shape[free:]:
            raise UserError(
                f"clips of one bucket must be alike: {name} of {clip.facts.id} is {_said(place)}, of "
                f"{clips[0].facts.id} {_said(first)}; preprocess again"
            )
    assert first
    return first


def _said(place: Place | None) -> str:
    return f"{str(place.dtype).removeprefix('torch.')} {list(place.shape)}" if place else "missing"


def _draw(mean: Tensor, std: Tensor, seeds: list[int], stats: ChannelStats | None) -> tuple[Tensor, Tensor]:
    """A normalised sample of N(mean, std²) and a noise, both (B, C, …) float32; row b depends on its seed only."""
    drawn = torch.empty(len(mean), 2, *mean.shape[1:], device=mean.device)
    generator = torch.Generator(mean.device)
    for row, seed in zip(drawn, seeds, strict=True):
        row.normal_(generator=generator.manual_seed(seed))
    return normalise(mean.float() + std.float() * drawn[:, 0], stats), drawn[:, 1]


def pad_text(texts: list[Tensor], limit: int) -> tuple[Tensor, Tensor]:
    """(B, L, D) and its mask; L is a multiple of 16, so that few shapes occur."""
    lengths, length = _text_lengths([len(text) for text in texts], limit)
    padded = pad_sequence([text[:limit] for text in texts], batch_first=True)
    padded = pad(padded, (0, 0, 0, length - padded.shape[1]))
    return padded, torch.arange(length) < torch.tensor(lengths)[:, None]


def _text_lengths(lengths: list[int], limit: int) -> tuple[list[int], int]:
    """What is kept of each text, and L."""
    kept = [min(length, limit) for length in lengths]
    return kept, max(1, min(limit, -(-max(kept) // _TOKEN_MULTIPLE) * _TOKEN_MULTIPLE))


def _numbers(*key: object) -> list[int]:
    """Four 63-bit numbers that depend on nothing but `key`: for t, caption dropout, video and audio."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=32).digest()
    return [n >> 1 for n in _FOUR.unpack(digest)]
