"""Add a finished job up: the data set's card with latent statistics, and the list of what was dropped."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from syncflow import __version__
from syncflow.preprocess.config import FiltersConfig, PreprocessConfig
from syncflow.preprocess.plan import Surveyed
from syncflow.preprocess.store import Store
from syncflow.preprocess.worker import Encoders
from syncflow.samples import ChannelStats, DatasetCard, Reject, ShardMarker

BELIEVE_FROM = FiltersConfig().believe_sync_from
MAX_SCORES = 20_000  # of each kind, whatever the size of the data set


@dataclass
class Totals:
    """Sums over markers."""

    kept: int = 0
    rejected: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By stage and reason."""
    samples: Counter[str] = field(default_factory=Counter)
    """By bucket."""
    sums: dict[str, list[float]] = field(default_factory=dict)
    scores: dict[str, list[float]] = field(default_factory=dict)
    """By name, of the first clips: for histograms."""
    durations_s: list[float] = field(default_factory=list)
    """Of the first sources."""
    tars: dict[str, set[str]] = field(default_factory=dict)
    """Tars that count, by bucket."""

    def add_survey(self, found: Surveyed) -> None:
        self.durations_s += found.durations_s[: MAX_SCORES - len(self.durations_s)]
        for name, value in found.seconds.items():
            self._sum(f"seconds.{name}", [value])

    def add(self, marker: ShardMarker) -> None:
        self.kept += len(marker.samples)
        self.samples[marker.bucket] += len(marker.samples)
        self.tars.setdefault(marker.bucket, set()).add(marker.tar)
        for name, values in marker.stats.items():
            if name.startswith(("score.", "sync.")):
                known = self.scores.setdefault(name, [])
                known += values[: MAX_SCORES - len(known)]
                continue
            self._sum(name, values)

    def channel_stats(self, kind: Literal["video", "audio"]) -> ChannelStats:
        """Mean and standard deviation per channel of latents drawn from the stored posteriors."""
        count = self.sums[f"{kind}_count"][0]
        mean = [s / count for s in self.sums[f"{kind}_sum"]]
        var = [max(0.0, q / count - m * m) for q, m in zip(self.sums[f"{kind}_square"], mean, strict=True)]
        return ChannelStats(mean=mean, std=[math.sqrt(v) for v in var])

    def _sum(self, name: str, values: list[float]) -> None:
        mine = self.sums.setdefault(name, [0.0] * len(values))
        for i, value in enumerate(values):
            mine[i] += value

    @property
    def hours(self) -> float:
        return self.sums.get("duration_s", [0.0])[0] / 3600


def markers(store: Store, names: Iterable[str]) -> Iterator[ShardMarker]:
    for name in names:
        data = store.read(name)
        assert data is not None, f"{name} is missing though the job is over"
        yield ShardMarker.model_validate_json(data)


def write_rejects(store: Store, rejects: Iterable[Reject], totals: Totals) -> None:
    """`rejects.jsonl`, in the order of the plan; counts go to `totals`."""
    path = store.wip("rejects.jsonl")
    with path.open("w", encoding="utf-8") as file:
        for item in rejects:
            totals.rejected[item.stage, item.reason] += 1
            file.write(item.model_dump_json() + "\n")
    store.put(path, "rejects.jsonl")


def by_reason(rejected: Counter[tuple[str, str]]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for (_, reason), count in rejected.items():
        counts[reason] += count
    return dict(counts.most_common())


def write_card(store: Store, config: PreprocessConfig, encoders: Encoders, totals: Totals) -> DatasetCard:
    identities = encoders.identities
    rejected = by_reason(totals.rejected)
    encoding = ("video_autoencoder", "audio_autoencoder", "text_encoder")
    sounding = "audio_count" in totals.sums  # where no clip has sound, nobody needs to know who would have encoded it
    card = DatasetCard(
        created_by=f"syncflow {__version__}",
        video_autoencoder=identities["video_autoencoder"],
        audio_autoencoder=identities["audio_autoencoder"] if sounding else None,
        text_encoder=identities.get("text_encoder"),
        networks={name: identity for name, identity in identities.items() if name not in encoding},
        fps=config.rate,
        sample_rate=config.sample_rate,
        dtype=config.dtype,
        buckets=[
            bucket.model_copy(update={"samples": totals.samples[bucket.name]})
            for bucket in encoders.buckets
            if totals.samples[bucket.name]
        ],
        read=totals.kept + sum(rejected.values()),
        kept=totals.kept,
        rejected=rejected,
        hours=totals.hours,
        video_stats=totals.channel_stats("video"),
        audio_stats=totals.channel_stats("audio") if sounding else None,
    )
    store.write("dataset.json", card.model_dump_json(indent=1).encode())
    return card


def believed(offsets_ms: Sequence[float], confidences: Sequence[float]) -> list[float]:
    """Offsets of the clips that show one."""
    return [o for o, c in zip(offsets_ms, confidences, strict=True) if c >= BELIEVE_FROM]


def remove_orphans(store: Store, totals: Totals) -> None:
    """Tars that no marker names: of workers killed between showing a tar and committing it."""
    for bucket, tars in totals.tars.items():
        for name in store.names(bucket):
            if name.endswith(".tar") and name not in tars:
                store.remove(f"{bucket}/{name}")
