"""The data contract: what a shard holds, what a batch holds, a data set's card and its fingerprint.

    DATASET/dataset.json                      the card: who encoded it, rates, buckets, counts, latent statistics
    DATASET/rejects.jsonl                     every dropped clip: id, source, stage, reason
    DATASET/<bucket>/shard-000123.json        the commit marker: which tar, its index, its rejects
    DATASET/<bucket>/shard-000123-ab12cd34.tar  plain WebDataset: ID.json + ID.safetensors per clip

A tar counts only if a marker names it. Clips in a bucket have latents of one shape.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import fsspec
import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from syncflow.errors import UserError

FORMAT_VERSION = 1
TENSORS = ("video_mean", "video_std", "audio_mean", "audio_std", "text", "video_time_s", "audio_time_s")


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SyncMeasure(_Record):
    """How far a clip's sound lies behind its picture."""

    offset_ms: float
    """Positive: the sound is late."""
    drift_ms_per_s: float = 0.0
    confidence: float
    """0 (nothing to measure by) to 1."""
    method: str


class ClipRecord(_Record):
    """What is known of one stored clip (`ID.json`). Times are seconds on the source's clock (see clock.py)."""

    id: str
    source: str
    """URI the clip was read from."""
    start_s: Fraction
    end_s: Fraction
    fps: Fraction
    width: int
    height: int
    num_frames: int
    valid_frames: int
    """Frames that the source really has; the rest, at the end, repeat the last."""
    sample_rate: int
    num_samples: int
    """0 for a clip without sound."""
    valid_samples: tuple[int, int]
    """[first, end) samples that the source really has; the rest are silence."""
    caption: str
    video_caption: str = ""
    audio_caption: str = ""
    label: str = ""
    sync: SyncMeasure | None = None
    scores: dict[str, float] = Field(default_factory=dict)
    """Quality scores by filter name, for example motion, loudness_lufs, aesthetic."""
    events_s: list[float] | None = None
    """Times of visible impacts from the start of the clip, where they are known (rendered clips)."""
    provenance: dict[str, str] = Field(default_factory=dict)


@dataclass
class StoredSample:
    """One clip as a shard holds it: its record and the tensors named in `TENSORS` (text and audio may be left out)."""

    record: ClipRecord
    tensors: dict[str, Tensor]
    """video_mean, video_std (C, T_v, H, W); audio_mean, audio_std (C, T_a); text (L, D) unpadded;
    video_time_s, audio_time_s (T, 2) float32."""


def pack(sample: StoredSample) -> dict[str, bytes]:
    """The tar members of a sample by extension."""
    contiguous = {name: tensor.contiguous() for name, tensor in sample.tensors.items()}
    return {"json": sample.record.model_dump_json().encode(), "safetensors": safetensors.torch.save(contiguous)}


def unpack(members: Mapping[str, bytes]) -> StoredSample:
    record = ClipRecord.model_validate_json(members["json"])
    return StoredSample(record, safetensors.torch.load(members["safetensors"]))


@dataclass
class Batch:
    """What a model sees of B clips: latents of one shape, padded text, and when everything happens.

    Posteriors are already sampled and normalised. Masks are true where there is something.
    """

    ids: list[str]
    video: Tensor  # (B, C_v, T_v, H, W)
    video_mask: Tensor  # (B, T_v) bool
    video_time_s: Tensor  # (B, T_v, 2) float32, [start, end) of each latent frame
    audio: Tensor  # (B, C_a, T_a)
    audio_mask: Tensor  # (B, T_a) bool
    audio_time_s: Tensor  # (B, T_a, 2) float32
    text: Tensor  # (B, L, D)
    text_mask: Tensor  # (B, L) bool
    null_text: Tensor  # (B,) bool: the caption is dropped, for classifier-free guidance
    fps: Tensor  # (B,) float32
    size: Tensor  # (B, 2) float32: height, width in pixels

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Batch:
        """On `device`; latents and text in `dtype`, times and masks as they are."""
        cast = {"video", "audio", "text"}
        moved = {
            name: value.to(device, dtype if name in cast else None, non_blocking=True)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return Batch(ids=self.ids, **moved)


class EncoderIdentity(_Record):
    """Which network made a tensor: two data sets may be mixed only where these agree."""

    kind: str
    """Class of encoder, for example image, wan, oobleck, minilm, t5."""
    path: str
    """Where its weights came from (not part of the identity)."""
    sha256: str
    """Hash of its configuration and weights."""
    channels: int
    """Latent channels, or width of the text embedding."""


class Bucket(_Record):
    """Clips of one size and length, stored together."""

    name: str
    width: int
    height: int
    num_frames: int
    video_shape: tuple[int, int, int, int]
    """(C_v, T_v, H, W) of the latents."""
    audio_shape: tuple[int, int] | None = None
    """(C_a, T_a) of the latents; None where the clips have no sound: silent videos, or images (one frame each)."""
    samples: int = 0


class ChannelStats(_Record):
    """Per-channel mean and standard deviation of latents, over every clip of a data set."""

    mean: list[float]
    std: list[float]


class DatasetCard(_Record):
    """`dataset.json`: what a data set is, so that a trainer can refuse one it cannot use."""

    format_version: int = FORMAT_VERSION
    created_by: str
    video_autoencoder: EncoderIdentity
    audio_autoencoder: EncoderIdentity | None = None
    """None where no bucket has sound."""
    text_encoder: EncoderIdentity | None
    """None where the text is embedded during training (`text: online`)."""
    networks: dict[str, EncoderIdentity] = Field(default_factory=dict)
    """Networks that filtered or captioned, by the configuration's name for them; latents mean the same without."""
    fps: Fraction
    sample_rate: int
    dtype: str
    buckets: list[Bucket]
    read: int
    kept: int
    rejected: dict[str, int]
    """Dropped clips by reason; kept + sum(rejected) = read."""
    hours: float
    video_stats: ChannelStats
    audio_stats: ChannelStats | None = None

    @property
    def fingerprint(self) -> str:
        """16 hex digits over all that decides whether two data sets' latents mean the same."""
        return fingerprint(self)

    def differences(self, other: DatasetCard) -> list[str]:
        """What keeps the two from being mixed, one line each; empty where they agree."""
        mine, theirs = _meaning(self), _meaning(other)
        silent = self.audio_autoencoder is None or other.audio_autoencoder is None
        compared = [key for key in mine if not (silent and key in ("audio_autoencoder", "sample_rate"))]
        return [f"{key}: {mine[key]} against {theirs[key]}" for key in compared if mine[key] != theirs[key]]


def _meaning(card: DatasetCard) -> dict[str, object]:
    def encoder(identity: EncoderIdentity | None, absent: str) -> str:
        return f"{identity.kind}:{identity.sha256}:{identity.channels}" if identity else absent

    return {
        "format_version": card.format_version,
        "video_autoencoder": encoder(card.video_autoencoder, ""),
        "audio_autoencoder": encoder(card.audio_autoencoder, "none"),
        "text_encoder": encoder(card.text_encoder, "online"),
        "fps": str(card.fps),
        "sample_rate": card.sample_rate,
    }


def fingerprint(card: DatasetCard) -> str:
    return hashlib.sha256(json.dumps(_meaning(card), sort_keys=True).encode()).hexdigest()[:16]


class Member(_Record):
    """Where a file lies in its tar."""

    offset: int
    size: int
    crc32: int


class IndexedSample(_Record):
    id: str
    members: dict[str, Member]
    """By extension: json, safetensors."""


class Reject(_Record):
    """A clip that was dropped: one line of `rejects.jsonl`."""

    id: str
    source: str
    stage: str
    reason: str
    """A short, countable name such as no_audio."""
    detail: str = ""


class ShardMarker(_Record):
    """`shard-000123.json`, written last: from then on the shard exists."""

    shard: str
    """For example 000123; unique in its bucket."""
    bucket: str
    tar: str
    """Name of the tar beside the marker; empty where every clip was rejected."""
    fingerprint: str
    """Of the configuration that made it."""
    samples: list[IndexedSample]
    rejects: list[Reject]
    stats: dict[str, list[float]] = Field(default_factory=dict)
    """Sums from which latent statistics and counts of the data set are added up."""


class Dataset:
    """A written data set, read through its index: `len`, iteration, `read(i)`. Local or any fsspec URL."""

    def __init__(self, path: str) -> None:
        self.path = str(path)
        self.root = fsspec.core.url_to_fs(self.path)[1].rstrip("/")
        card = f"{self.root}/dataset.json"
        if not self.fs.exists(card):
            raise UserError(
                f"{path}: no dataset.json here; give the --output folder of a finished `syncflow preprocess`"
            )
        try:
            self.card = DatasetCard.model_validate_json(self.fs.cat_file(card))
        except ValueError as error:
            raise UserError(f"{path}/dataset.json cannot be read: {first_line(error)}") from error
        if self.card.format_version != FORMAT_VERSION:
            raise UserError(
                f"{path} has format {self.card.format_version}, this version reads {FORMAT_VERSION}: preprocess again"
            )

    @property
    def fs(self) -> fsspec.AbstractFileSystem:
        """Asked for anew each time (fsspec keeps them): that of an object store does not survive a fork."""
        return fsspec.core.url_to_fs(self.path)[0]

    @cached_property
    def shards(self) -> list[ShardMarker]:
        """Markers of every shard with samples, by bucket and number."""
        found: list[ShardMarker] = []
        self.fs.invalidate_cache()  # object stores remember listings, also those of an unfinished job
        for bucket in sorted(bucket.name for bucket in self.card.buckets):
            for name in sorted(self.fs.glob(f"{self.root}/{bucket}/shard-*.json")):
                marker = ShardMarker.model_validate_json(self.fs.cat_file(name))
                if marker.samples:
                    found.append(marker)
        return found

    @cached_property
    def _index(self) -> list[tuple[int, int]]:
        return [(s, i) for s, shard in enumerate(self.shards) for i in range(len(shard.samples))]

    def __len__(self) -> int:
        return len(self._index)

    def __iter__(self) -> Iterator[StoredSample]:
        return (self.read(i) for i in range(len(self)))

    def tar_path(self, shard: ShardMarker) -> str:
        return f"{self.root}/{shard.bucket}/{shard.tar}"

    def read(self, i: int) -> StoredSample:
        """The i-th sample.

        Raises:
            UserError: the shard is missing, short, or its checksum does not match.
        """
        shard_number, place = self._index[i]
        shard = self.shards[shard_number]
        return unpack(self.read_members(shard, shard.samples[place]))

    def read_members(self, shard: ShardMarker, sample: IndexedSample) -> dict[str, bytes]:
        members: dict[str, bytes] = {}
        path = self.tar_path(shard)
        for extension, member in sample.members.items():
            try:
                data = self.fs.cat_file(path, start=member.offset, end=member.offset + member.size)
            except FileNotFoundError:
                raise UserError(f"{path} is missing: restore it, or delete its marker and preprocess again") from None
            if len(data) != member.size or zlib.crc32(data) != member.crc32:
                raise UserError(f"{path}: {sample.id}.{extension} is damaged (checksum); preprocess this shard again")
            members[extension] = data
        return members

    def verify(self) -> Iterator[tuple[str, str]]:
        """(sample id, problem) for every sample that cannot be read whole; problem is "" where all is well."""
        for shard in self.shards:
            for sample in shard.samples:
                try:
                    unpack(self.read_members(shard, sample))
                    yield sample.id, ""
                except (UserError, ValueError, OSError) as error:
                    yield sample.id, first_line(error)


def open_dataset(path: str) -> Dataset:
    """Open a data set that `syncflow preprocess` wrote, to look at it or to train on it."""
    return Dataset(path)


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
