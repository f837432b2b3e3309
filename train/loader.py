"""Batches for a rank, built in worker processes; and the checks of a stage's data before its first step."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch.utils.data import DataLoader, Dataset

from syncflow.errors import UserError
from syncflow.models.text import identify_text_encoder
from syncflow.process import die_with_parent, keep_freed_memory
from syncflow.samples import ChannelStats, DatasetCard, ShardMarker, open_dataset
from syncflow.samples import Dataset as ClipDataset
from syncflow.train.collate import MicroBatch, collate
from syncflow.train.config import StageConfig
from syncflow.train.order import Order, Pick, Stream
from syncflow.train.reading import ShardReader


@dataclass(frozen=True)
class Source:
    """Everything the loader needs to know of the data, found before step 1."""

    datasets: list[ClipDataset]
    streams: list[Stream]
    buckets: list[tuple[int, str]]
    """Data set and bucket of each stream."""
    shards: list[list[ShardMarker]]
    """Of each stream, without what is held out."""
    held_out: list[tuple[int, ShardMarker, int]]
    """Data set, shard and place in it of the clips that are not trained on."""
    video_stats: ChannelStats
    audio_stats: ChannelStats | None
    """None where no data set has sound."""

    @property
    def card(self) -> DatasetCard:
        """Of the first data set with sound, or of the first: they agree, but sound may be missing from some."""
        return next((d.card for d in self.datasets if d.card.audio_autoencoder), self.datasets[0].card)

    @property
    def stats(self) -> tuple[ChannelStats, ChannelStats | None]:
        return self.video_stats, self.audio_stats


class MicroBatches(Dataset):
    """Item k is rank r's micro-batch k % n of step k // n; worker processes build whole items."""

    def __init__(
        self, config: StageConfig, source: Source, rank: int, world_size: int, order: Order | None = None
    ) -> None:
        self.config, self.source, self.rank, self.world_size = config, source, rank, world_size
        self.size, self.per_step = config.micro(world_size)
        self.order = order or Order(source.streams, config.batch_size, config.seed, config.data.shuffle_window)

    @cached_property
    def readers(self) -> list[ShardReader]:
        data = self.config.data
        return [ShardReader(d, data.cache_dir, int(data.cache_gb * 1e9)) for d in self.source.datasets]

    def __getitem__(self, k: int) -> MicroBatch | UserError:
        step, micro = divmod(k, self.per_step)
        mine = self.order.at(step)[self.rank :: self.world_size]
        try:
            return self.build(mine[micro * self.size : (micro + 1) * self.size])
        except UserError as error:
            # Raised where it is one line, in the training process: a worker would wrap it in a traceback.
            return error

    def build(self, picks: list[Pick]) -> MicroBatch:
        visits = []
        for pick in picks:
            reader = self.readers[self.source.buckets[pick.stream][0]]
            visits.append((reader.read_raw(self.source.shards[pick.stream][pick.shard], pick.place), pick.visit))
        return collate(self.config, self.source.stats, visits)


def training_batches(
    config: StageConfig, source: Source, rank: int, world_size: int, first_step: int
) -> Iterator[list[MicroBatch]]:
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
        worker_init_fn=partial(_begin_worker, os.getpid()) if workers else None,
        collate_fn=_unchanged,
    )
    step: list[MicroBatch] = []
    for item in loader:
        if isinstance(item, UserError):
            raise item
        step.append(item)
        if len(step) == batches.per_step:
            yield step
            step = []


def _unchanged(item: object) -> object:
    return item


def _begin_worker(parent: int, worker: int) -> None:
    die_with_parent(parent)
    keep_freed_memory()
    # Who stops a job often signals all its processes (systemd, Slurm, Ctrl-C): the rank still needs its batches to
    # finish the step and save; it ends its workers itself.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def open_source(
    config: StageConfig, parent_stats: tuple[ChannelStats | None, ChannelStats | None] = (None, None)
) -> Source:
    """Open the stage's data sets and check that they can be trained on, before any step.

    Latents are normalised by the parent's statistics where there are some, so that they mean what they meant to
    it; else by those of the data sets, pooled by weight.

    Raises:
        UserError: no data set, data sets that do not fit each other or the model, a missing field, no clips.
    """
    if not config.datasets:
        raise UserError("no data set: give --data.path DATASET, or data.datasets in the YAML")
    datasets = [open_dataset(item.path) for item in config.datasets]
    for i, one in enumerate(datasets):
        for other in datasets[i + 1 :]:
            if wrong := one.card.differences(other.card):
                raise UserError(f"{one.path} and {other.path} cannot be mixed: {'; '.join(wrong)}")
        _check_model_fits(config, one)
    streams, buckets, shards = [], [], []
    for d, (dataset, item) in enumerate(zip(datasets, config.datasets, strict=True)):
        # A stage that learns sound passes over the clips without.
        usable = [bucket for bucket in dataset.card.buckets if bucket.audio_shape or not config.flow.audio_weight]
        names = {bucket.name for bucket in usable}
        total = sum(len(shard.samples) for shard in dataset.shards if shard.bucket in names)
        if not total:
            raise UserError(f"{dataset.path} holds no clips: see its rejects.jsonl")
        for bucket in usable:
            if found := [shard for shard in dataset.shards if shard.bucket == bucket.name]:
                shards.append(found)
                streams.append(Stream(_sizes(found), item.weight * sum(_sizes(found)) / total))
                buckets.append((d, bucket.name))
                _check_fields(config, dataset, found[0])
    largest = max(range(len(streams)), key=lambda s: streams[s].samples)
    held_out = min(config.data.held_out, streams[largest].samples // 4)
    if config.validation.every and not held_out:
        raise UserError(
            f"{datasets[buckets[largest][0]].path} has too few clips to hold some out for validation: give more, or "
            "set validation.every: 0"
        )
    shards[largest], held = _hold_out(shards[largest], held_out)
    streams[largest] = Stream(_sizes(shards[largest]), streams[largest].weight)
    weights = [item.weight for item in config.datasets]
    video = parent_stats[0] or _pool_stats([d.card.video_stats for d in datasets], weights)
    audio = parent_stats[1] or _pool_stats([d.card.audio_stats for d in datasets], weights)
    assert video is not None  # every data set has pictures
    held_in = buckets[largest][0]
    return Source(datasets, streams, buckets, shards, [(held_in, *place) for place in held], video, audio)


def _sizes(shards: list[ShardMarker]) -> tuple[int, ...]:
    return tuple(len(shard.samples) for shard in shards)


def _hold_out(shards: list[ShardMarker], n: int) -> tuple[list[ShardMarker], list[tuple[ShardMarker, int]]]:
    """The shards without their last n clips, and those: the last, since clips of one source lie side by side."""
    kept, held = list(shards), list[tuple[ShardMarker, int]]()
    while len(held) < n:
        shard = kept.pop()
        size = max(0, len(shard.samples) - (n - len(held)))
        held += [(shard, place) for place in range(size, len(shard.samples))]
        if size:
            kept.append(shard.model_copy(update={"samples": shard.samples[:size]}))
    return kept, held


def _check_model_fits(config: StageConfig, dataset: ClipDataset) -> None:
    card, model = dataset.card, config.model
    if config.flow.audio_weight and card.audio_autoencoder is None:
        raise UserError(
            f"{dataset.path} has no sound, and this stage learns sound (flow.audio_weight is "
            f"{config.flow.audio_weight:g}): silent videos and images are for a stage that trains video alone"
        )
    text = card.text_encoder or identify_text_encoder(config.data.text_encoder)
    for what, field, needed, found in (
        ("video latent channels", "model.video.in_channels", model.video.in_channels, card.video_autoencoder.channels),
        (
            "audio latent channels",
            "model.audio.in_channels",
            model.audio.in_channels,
            card.audio_autoencoder.channels if card.audio_autoencoder else model.audio.in_channels,
        ),
        ("text width", "model.video.caption_channels", model.video.caption_channels, text.channels),
    ):
        if needed != found:
            raise UserError(f"{dataset.path} has {found} {what}, {field} is {needed}: change {field} or the data set")


def _check_fields(config: StageConfig, dataset: ClipDataset, shard: ShardMarker) -> None:
    sample = ShardReader(dataset, config.data.cache_dir, int(config.data.cache_gb * 1e9)).read(shard, 0)
    needed = ["video_mean", "video_std", "video_time_s"]
    if config.flow.audio_weight:
        needed += ["audio_mean", "audio_std", "audio_time_s"]
    if dataset.card.text_encoder:
        needed.append("text")
    if missing := [name for name in needed if name not in sample.tensors]:
        raise UserError(
            f"{dataset.path}: clips of {shard.bucket} have no {', '.join(missing)}, which this stage needs; "
            "preprocess again"
        )


def _pool_stats(stats: Sequence[ChannelStats | None], weights: list[float]) -> ChannelStats | None:
    """Mean and deviation of the mixture of data sets with these weights; of those that have any."""
    known = [(s, weight) for s, weight in zip(stats, weights, strict=True) if s]
    if len(known) < 2:
        return known[0][0] if known else None
    share = torch.tensor([weight for _, weight in known], dtype=torch.float64)  # (n,)
    share /= share.sum()
    means = torch.tensor([s.mean for s, _ in known], dtype=torch.float64)  # (n, C)
    variances = torch.tensor([s.std for s, _ in known], dtype=torch.float64) ** 2
    mean = (share[:, None] * means).sum(0)
    std = (share[:, None] * (variances + means**2)).sum(0).sub(mean**2).clamp_min(1e-12).sqrt()
    return ChannelStats(mean=mean.tolist(), std=std.tolist())
