"""Batches for a rank: step n's clips, read, drawn from their posteriors, normalised, padded, with t and noise.

Everything random about a clip (posterior, t, noise, caption dropout) comes from (seed, clip id, visit), so that a
step is the same on any number of ranks and after any resume.

Shapes: B clips of a micro-batch, C channels, T_v / T_a latent frames, L text tokens, D text width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from syncflow.errors import UserError
from syncflow.models.flow import sample_t, shift_ratio, shift_t
from syncflow.models.latents import normalise
from syncflow.samples import TENSORS, Batch, ChannelStats, ClipRecord, StoredSample, open_dataset
from syncflow.samples import Dataset as ClipDataset
from syncflow.train.config import StageConfig
from syncflow.train.order import Order, Pick, Stream
from syncflow.train.reading import ShardReader

_TOKEN_MULTIPLE = 16


@dataclass
class Example:
    """A micro-batch and what flow matching draws for it."""

    batch: Batch
    t: Tensor  # (B,) float32, shared by both modalities
    video_noise: Tensor  # (B, C_v, T_v, H, W) float32
    audio_noise: Tensor  # (B, C_a, T_a) float32
    padded: bool
    """Whether any mask is false somewhere; without masks attention is faster."""

    def to(self, device: torch.device | str) -> Example:
        t, video, audio = (x.to(device, non_blocking=True) for x in (self.t, self.video_noise, self.audio_noise))
        return Example(self.batch.to(device), t, video, audio, self.padded)


@dataclass(frozen=True)
class Source:
    """Everything the loader needs to know of the data, found before step 1."""

    datasets: list[ClipDataset]
    streams: list[Stream]
    buckets: list[tuple[int, str]]
    """Data set and bucket of each stream."""
    video_stats: ChannelStats
    audio_stats: ChannelStats


class MicroBatches(Dataset):
    """Item k is rank r's micro-batch k % n of step k // n; worker processes build whole items."""

    def __init__(
        self, config: StageConfig, source: Source, rank: int, world_size: int, order: Order | None = None
    ) -> None:
        self.config, self.source, self.rank, self.world_size = config, source, rank, world_size
        self.size, self.per_step = config.micro(world_size)
        self.order = order or Order(source.streams, config.batch_size, config.seed, config.data.shuffle_window)
        self.shards = [
            [shard for shard in source.datasets[d].shards if shard.bucket == bucket] for d, bucket in source.buckets
        ]

    @cached_property
    def readers(self) -> list[ShardReader]:
        data = self.config.data
        return [ShardReader(d, data.cache_dir, int(data.cache_gb * 1e9)) for d in self.source.datasets]

    def __getitem__(self, k: int) -> Example | UserError:
        step, micro = divmod(k, self.per_step)
        mine = self.order.at(step)[self.rank :: self.world_size]
        try:
            return self.build(mine[micro * self.size : (micro + 1) * self.size])
        except UserError as error:
            # Raised where it is one line, in the training process: a worker would wrap it in a traceback.
            return error

    def build(self, picks: list[Pick]) -> Example:
        samples = []
        for pick in picks:
            reader = self.readers[self.source.buckets[pick.stream][0]]
            samples.append((reader.read(self.shards[pick.stream][pick.shard], pick.place), pick.visit))
        return collate(self.config, self.source, samples)


def collate(config: StageConfig, source: Source, samples: list[tuple[StoredSample, int]]) -> Example:
    """Stored clips, each with the number of its visit, to what a training step sees."""
    records = [sample.record for sample, _ in samples]
    tensors = [sample.tensors for sample, _ in samples]
    video_mean, video_std, audio_mean, audio_std = (
        torch.stack([t[name] for t in tensors]).float()
        for name in ("video_mean", "video_std", "audio_mean", "audio_std")
    )
    # One draw per clip, cut into its four noises: many small calls would cost more than reading the clip.
    sizes = [video_mean[0].numel(), audio_mean[0].numel()] * 2
    noise = torch.empty(len(samples), sum(sizes))
    times, dropped = [], []
    for row, (sample, visit) in zip(noise, samples, strict=True):
        generator = _generator("draw", config.seed, sample.record.id, visit)
        torch.randn(row.shape, generator=generator, out=row)
        times.append(sample_t(1, config.flow, generator=generator))
        dropped.append(torch.rand(1, generator=generator))
    video_draw, audio_draw, video_noise, audio_noise = (
        part.reshape(like.shape) for part, like in zip(noise.split(sizes, 1), [video_mean, audio_mean] * 2, strict=True)
    )
    video_time_s = torch.stack([t["video_time_s"] for t in tensors]).float()  # (B, T_v, 2)
    audio_time_s = torch.stack([t["audio_time_s"] for t in tensors]).float()  # (B, T_a, 2)
    text, text_mask = _pad_text([t["text"] for t in tensors], config.data.max_tokens)
    batch = Batch(
        ids=[record.id for record in records],
        video=normalise(video_mean + video_std * video_draw, source.video_stats),
        video_mask=_video_mask(records, video_time_s),
        video_time_s=video_time_s,
        audio=normalise(audio_mean + audio_std * audio_draw, source.audio_stats),
        audio_mask=_audio_mask(records, audio_time_s),
        audio_time_s=audio_time_s,
        text=text,
        text_mask=text_mask,
        null_text=torch.cat(dropped) < config.data.caption_dropout,
        fps=torch.tensor([float(record.fps) for record in records]),
        size=torch.tensor([[float(record.height), float(record.width)] for record in records]),
    )
    padded = not bool(batch.video_mask.all() and batch.audio_mask.all())
    return Example(batch, _shift(config, records, torch.cat(times)), video_noise, audio_noise, padded)


def _shift(config: StageConfig, records: list[ClipRecord], t: Tensor) -> Tensor:
    """(B,) t moved towards noise for large and long clips, where the stage says so."""
    if not config.flow.shift:
        return t
    ratios = [shift_ratio(record.width * record.height, record.num_frames, config.flow) for record in records]
    return shift_t(t, torch.tensor(ratios))


def training_batches(
    config: StageConfig, source: Source, rank: int, world_size: int, first_step: int
) -> Iterator[list[Example]]:
    """The micro-batches of each step from `first_step` on, for ever.

    Raises:
        UserError: a shard is missing or damaged.
    """
    batches = MicroBatches(config, source, rank, world_size)
    workers = config.data.workers
    loader = DataLoader(
        batches,
        batch_size=None,
        sampler=range(first_step * batches.per_step, config.steps * batches.per_step),
        num_workers=workers,
        prefetch_factor=config.data.prefetch if workers else None,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_die_with_parent if workers else None,
        collate_fn=_unchanged,
    )
    step: list[Example] = []
    for item in loader:
        if isinstance(item, UserError):
            raise item
        step.append(item)
        if len(step) == batches.per_step:
            yield step
            step = []


def _unchanged(item: object) -> object:
    return item


def _die_with_parent(worker: int) -> None:
    from syncflow.train.launch import die_with_parent

    die_with_parent()


def open_source(config: StageConfig, parent_stats: tuple[ChannelStats, ChannelStats] | None = None) -> Source:
    """Open the stage's data sets and check that they can be trained on, before any step.

    Latents are normalised by the parent's statistics where there is a parent, so that they mean what they meant to
    it; else by those of the data sets, pooled by weight.

    Raises:
        UserError: no data set, data sets that do not fit each other or the model, a missing field, no clips.
    """
    if not config.datasets:
        raise UserError("no data set: give --data.path DATASET, or data.datasets in the YAML")
    datasets = [open_dataset(item.path) for item in config.datasets]
    for other in datasets[1:]:
        wrong = datasets[0].card.differences(other.card)
        if wrong:
            raise UserError(f"{datasets[0].path} and {other.path} cannot be mixed: {'; '.join(wrong)}")
    _check_model_fits(config, datasets[0])
    streams, buckets = [], []
    for d, (dataset, item) in enumerate(zip(datasets, config.datasets, strict=True)):
        total = sum(len(shard.samples) for shard in dataset.shards)
        if not total:
            raise UserError(f"{dataset.path} holds no clips: see its rejects.jsonl")
        for bucket in dataset.card.buckets:
            sizes = tuple(len(shard.samples) for shard in dataset.shards if shard.bucket == bucket.name)
            if sizes:
                streams.append(Stream(sizes, item.weight * sum(sizes) / total))
                buckets.append((d, bucket.name))
                _check_fields(config, dataset, bucket.name)
    stats = parent_stats or _pool_stats([d.card for d in datasets], [item.weight for item in config.datasets])
    return Source(datasets, streams, buckets, *stats)


def _check_model_fits(config: StageConfig, dataset: ClipDataset) -> None:
    card, model = dataset.card, config.model
    for what, field, needed, found in (
        ("video latent channels", "model.video.in_channels", model.video.in_channels, card.video_autoencoder.channels),
        ("audio latent channels", "model.audio.in_channels", model.audio.in_channels, card.audio_autoencoder.channels),
        (
            "text width",
            "model.video.caption_channels",
            model.video.caption_channels,
            card.text_encoder.channels if card.text_encoder else model.video.caption_channels,
        ),
    ):
        if needed != found:
            raise UserError(f"{dataset.path} has {found} {what}, {field} is {needed}: change {field} or the data set")


def _check_fields(config: StageConfig, dataset: ClipDataset, bucket: str) -> None:
    shard = next(shard for shard in dataset.shards if shard.bucket == bucket)
    sample = ShardReader(dataset, config.data.cache_dir, int(config.data.cache_gb * 1e9)).read(shard, 0)
    missing = [name for name in TENSORS if name not in sample.tensors]
    if missing:
        hint = "; preprocess again with text stored" if "text" in missing else ""
        raise UserError(f"{dataset.path}: clips of {bucket} have no {', '.join(missing)}, which this stage needs{hint}")


def _pool_stats(cards: list, weights: list[float]) -> tuple[ChannelStats, ChannelStats]:
    share = torch.tensor(weights, dtype=torch.float64) / sum(weights)  # (n,)
    pooled = []
    for stats in ([card.video_stats for card in cards], [card.audio_stats for card in cards]):
        means = torch.tensor([s.mean for s in stats], dtype=torch.float64)  # (n, C)
        variances = torch.tensor([s.std for s in stats], dtype=torch.float64) ** 2
        mean = (share[:, None] * means).sum(0)
        std = (share[:, None] * (variances + means**2)).sum(0).sub(mean**2).clamp_min(1e-12).sqrt()
        pooled.append(ChannelStats(mean=mean.tolist(), std=std.tolist()) if len(cards) > 1 else stats[0])
    return pooled[0], pooled[1]


def _pad_text(texts: list[Tensor], limit: int) -> tuple[Tensor, Tensor]:
    """(B, L, D) and its mask; L is a multiple of 16, so that few shapes occur."""
    lengths = [min(len(text), limit) for text in texts]
    length = max(1, min(limit, -(-max(lengths) // _TOKEN_MULTIPLE) * _TOKEN_MULTIPLE))
    padded = torch.zeros(len(texts), length, texts[0].shape[1])
    for row, text, n in zip(padded, texts, lengths, strict=True):
        row[:n] = text[:n]
    return padded, torch.arange(length) < torch.tensor(lengths)[:, None]


def _video_mask(records: list[ClipRecord], time_s: Tensor) -> Tensor:
    """(B, T_v): latents that start before the source's last real frame ends."""
    ends_s = torch.tensor([record.valid_frames / float(record.fps) for record in records])
    return time_s[:, :, 0] < ends_s[:, None]


def _audio_mask(records: list[ClipRecord], time_s: Tensor) -> Tensor:
    """(B, T_a): latents that overlap the samples the source really has."""
    valid_s = torch.tensor([[n / record.sample_rate for n in record.valid_samples] for record in records])  # (B, 2)
    return (time_s[:, :, 0] < valid_s[:, 1:]) & (time_s[:, :, 1] > valid_s[:, :1])


def _generator(*key: object) -> torch.Generator:
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
