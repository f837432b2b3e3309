"""Small data sets for the tests of training, written by hand in the layout of syncflow/samples.py."""

from __future__ import annotations

import io
import json
import tarfile
import zlib
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Literal

import torch
import yaml

from syncflow.clock import uniform_grid
from syncflow.models.autoencoders import (
    AutoencoderSpec,
    identify_audio_autoencoder,
    identify_video_autoencoder,
)
from syncflow.models.autoencoders.nano import (
    NanoVideoConfig,
    new_nano_audio_autoencoder,
    new_nano_video_autoencoder,
)
from syncflow.models.text import TextEncoder
from syncflow.samples import (
    Bucket,
    ChannelStats,
    ClipRecord,
    DatasetCard,
    EncoderIdentity,
    IndexedSample,
    Member,
    ShardMarker,
    StoredSample,
    pack,
)
from syncflow.tracker import TrackingConfig

FPS, RATE = Fraction(16), 16000


def write_dataset(
    folder: Path,
    clips: int = 24,
    per_shard: int = 6,
    *,
    frames: int = 8,
    side: int = 8,
    buckets: int = 1,
    seed: int = 0,
    video_sha: str = "aa",
    sound: bool = True,
    text: TextEncoder | Literal["noise"] | None = "noise",
    autoencoders: Path | None = None,
) -> Path:
    """`clips` clips per bucket of learnable latents (a blob that moves, audio that follows it).

    text: states of an encoder, random ones, or none (`text: online`). autoencoders: folders video and audio.
    """
    generator = torch.Generator().manual_seed(seed)
    cards = []
    for b in range(buckets):
        n_frames, name = frames + 2 * b, f"b{b}"
        samples = [_sample(f"s{seed}-{name}-{i:04d}", n_frames, side, generator) for i in range(clips)]
        for sample in samples:
            if not sound:
                sample.tensors = {name: t for name, t in sample.tensors.items() if not name.startswith("audio")}
            if text is None:
                del sample.tensors["text"]
            elif text != "noise":
                sample.tensors["text"] = text.encode([sample.record.caption])[0].half()
        for s in range(0, clips, per_shard):
            _write_shard(folder / name, name, s // per_shard, samples[s : s + per_shard])
        cards.append(
            Bucket(
                name=name,
                width=8 * side,
                height=8 * side,
                num_frames=n_frames,
                video_shape=(4, n_frames, side, side),
                audio_shape=(8, n_frames * 40 // 16) if sound else None,
                samples=clips,
            )
        )
    video = EncoderIdentity(kind="image", path="nowhere/video", sha256=video_sha, channels=4)
    audio = EncoderIdentity(kind="oobleck", path="nowhere/audio", sha256="bb", channels=8)
    if autoencoders:
        video = identify_video_autoencoder(AutoencoderSpec(kind="image", path=str(autoencoders / "video")))
        audio = identify_audio_autoencoder(AutoencoderSpec(kind="oobleck", path=str(autoencoders / "audio")))
    states = EncoderIdentity(kind="minilm", path="package:x/y", sha256="cc", channels=384)
    card = DatasetCard(
        created_by="test",
        video_autoencoder=video,
        audio_autoencoder=audio if sound else None,
        text_encoder=None if text is None else states,
        fps=FPS,
        sample_rate=RATE,
        dtype="float16",
        buckets=cards,
        read=clips * buckets,
        kept=clips * buckets,
        rejected={},
        hours=0.1,
        video_stats=ChannelStats(mean=[0.1] * 4, std=[0.9] * 4),
        audio_stats=ChannelStats(mean=[0.0] * 8, std=[1.1] * 8) if sound else None,
    )
    (folder / "dataset.json").write_text(card.model_dump_json())
    return folder


def write_autoencoders(folder: Path) -> Path:
    """Untrained ones that speak these latents."""
    small = NanoVideoConfig(fold=2, block_out_channels=(8, 8, 16), norm_num_groups=4)
    new_nano_video_autoencoder(0, small).save_pretrained(folder / "video")
    new_nano_audio_autoencoder(0).save_pretrained(folder / "audio")
    return folder


def _sample(clip_id: str, frames: int, side: int, generator: torch.Generator) -> StoredSample:
    phase = float(torch.rand((), generator=generator)) * 6.28
    time_s = torch.arange(frames) / float(FPS)
    row = (torch.sin(6.28 * time_s + phase) * 0.5 + 0.5) * (side - 1)
    grid = torch.arange(side).float()
    blob = torch.exp(-((grid[None] - row[:, None]) ** 2))  # (T_v, H)
    video = blob[None, :, :, None].expand(4, frames, side, side).contiguous()
    n_audio = frames * 40 // 16
    audio = torch.sin(6.28 * torch.arange(n_audio) / 40 + phase).expand(8, n_audio).contiguous()
    record = ClipRecord(
        id=clip_id,
        source=f"{clip_id}.mp4",
        start_s=Fraction(0),
        end_s=Fraction(frames) / FPS,
        fps=FPS,
        width=8 * side,
        height=8 * side,
        num_frames=frames,
        valid_frames=frames,
        sample_rate=RATE,
        num_samples=frames * 1000,
        valid_samples=(0, frames * 1000),
        caption=f"a ball bounces, {clip_id}",
        events_s=[0.1, 0.3],
    )
    tensors = {
        "video_mean": video.half(),
        "video_std": torch.full_like(video, 0.05).half(),
        "audio_mean": audio.half(),
        "audio_std": torch.full_like(audio, 0.05).half(),
        "text": torch.randn(5 + int(phase * 2), 384, generator=generator).half(),
        "video_time_s": torch.from_numpy(uniform_grid(frames, 1, FPS).array()),
        "audio_time_s": torch.from_numpy(uniform_grid(frames * 1000, 400, Fraction(RATE)).array()),
    }
    return StoredSample(record, tensors)


def _write_shard(folder: Path, bucket: str, number: int, samples: list[StoredSample]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"shard-{number:06d}-{number:08x}.tar"
    payloads: list[tuple[str, str, bytes]] = []
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            for extension, data in pack(sample).items():
                info = tarfile.TarInfo(f"{sample.record.id}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
                payloads.append((sample.record.id, extension, data))
    with tarfile.open(path) as tar:
        offsets = {member.name: member.offset_data for member in tar}
    index: dict[str, dict[str, Member]] = {}
    for clip_id, extension, data in payloads:
        member = Member(offset=offsets[f"{clip_id}.{extension}"], size=len(data), crc32=zlib.crc32(data))
        index.setdefault(clip_id, {})[extension] = member
    marker = ShardMarker(
        shard=f"{number:06d}",
        bucket=bucket,
        tar=path.name,
        fingerprint="test",
        samples=[IndexedSample(id=clip_id, members=members) for clip_id, members in index.items()],
        rejects=[],
    )
    (folder / f"shard-{number:06d}.json").write_text(marker.model_dump_json())


def read_losses(output: Path, metric: str) -> dict[int, float]:
    """A metric by step, from the tracker's spool: its whole lines, if it is there yet."""
    path = output / "spool.jsonl"
    data = path.read_text() if path.exists() else ""
    lines = [json.loads(line) for line in data[: data.rfind("\n") + 1].splitlines()]
    rows = [(line["step"], line["values"]) for line in lines if line["kind"] == "metrics"]
    return {step: values[metric] for step, values in rows if metric in values}


# A model of a few thousand parameters, so that a step takes milliseconds.
TINY: dict[str, object] = {
    "size": "nano",
    "model": {
        "video": {"hidden_size": 32, "depth": 1, "num_heads": 2},
        "audio": {"hidden_size": 32, "num_heads": 2},
    },
    "steps": 12,
    "batch_size": 4,
    "micro_batch": 4,
    "optimizer": {"lr": 2e-3},
    "ema_decay": 0.9,
    "engine": {"persistence_threshold": 0},
    "data": {"workers": 0},
    "log_every": 1,
    "tracking": {"enabled": False},
}


def write_stages(folder: Path, **changes: object) -> Path:
    """The three stages of configs/nano, tiny."""
    stages: dict[str, dict[str, object]] = {
        "1_video": {
            "trains": ["video"],
            "freezes": ["adaptors", "audio"],
            "flow": {"video_weight": 1.0, "audio_weight": 0.0},
        },
        "2_audio": {
            "trains": ["adaptors", "audio"],
            "freezes": ["video"],
            "flow": {"video_weight": 0.0, "audio_weight": 1.0},
            "init_from": "previous",
        },
        "3_joint": {"trains": ["video", "adaptors", "audio"], "freezes": [], "init_from": "previous"},
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, stage in stages.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({**TINY, **stage, **changes}))
    return folder


class ListTracker:
    """Keeps what it is told, and writes metrics to the spool's file as the real one does."""

    def __init__(self) -> None:
        self.param_values: dict[str, object] = {}
        self.tag_values: dict[str, str] = {}
        self.metrics: list[tuple[int, str, float]] = []
        self.artifacts: list[Path] = []
        self.folder = Path()
        self.closed = False

    def open(self, config: TrackingConfig, run_name: str, spool_dir: Path) -> ListTracker:
        self.folder = spool_dir
        return self

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.metrics += [(step, name, value) for name, value in metrics.items()]
        with (self.folder / "spool.jsonl").open("a") as file:
            file.write(json.dumps({"kind": "metrics", "step": step, "values": dict(metrics)}) + "\n")

    def params(self, values: Mapping[str, object]) -> None:
        self.param_values |= values

    def tags(self, values: Mapping[str, str]) -> None:
        self.tag_values |= values

    def artifact(self, path: Path, folder: str = "") -> None:
        self.artifacts.append(path)

    def close(self) -> None:
        self.closed = True


def train(argv: list[str], tracker: ListTracker | None = None) -> int:
    """`syncflow train` in this process."""
    from syncflow.train.command import main

    return main(argv, (tracker or ListTracker()).open)
