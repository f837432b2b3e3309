"""`syncflow inspect DATASET [--verify] [--decode N -o DIR]`: the card, every checksum, samples back to mp4."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from PIL import Image
from pydantic import Field
from tqdm import tqdm

from syncflow import config as configs
from syncflow.config import Config, is_terminal
from syncflow.errors import UserError
from syncflow.media import write_mp4
from syncflow.models.autoencoders import (
    AudioAutoencoder,
    AutoencoderSpec,
    VideoAutoencoder,
    load_audio_autoencoder,
    load_video_autoencoder,
)
from syncflow.preprocess.card import believed
from syncflow.samples import Dataset, EncoderIdentity, StoredSample, open_dataset

PROG = "syncflow inspect"


class InspectConfig(Config):
    """Look at a data set that `syncflow preprocess` wrote."""

    dataset: tyro.conf.Positional[str]
    """Folder or URL of the data set."""
    verify: bool = False
    """Read every sample and compare its checksums; exit code 1 if any is damaged."""
    decode: int = Field(default=0, ge=0)
    """Decode so many samples, spread over the data set, back to mp4 (still images to png)."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("inspected")
    """Folder for decoded samples and their manifest.jsonl."""
    video_autoencoder: str = ""
    """Where the video autoencoder's weights are now, if they were moved."""
    audio_autoencoder: str = ""
    """Where the audio autoencoder's weights are now, if they were moved."""


def main(argv: list[str]) -> int:
    config = configs.load(InspectConfig, None, argv, PROG)
    dataset = open_dataset(config.dataset)
    print(describe(dataset))
    if config.verify and (damaged := verify(dataset)):
        for clip, problem in damaged[:20]:
            print(f"damaged: {clip}: {problem}")
        print(f"{len(damaged)} of {len(dataset)} samples are damaged")
        return 1
    if config.verify:
        print(f"all {len(dataset)} samples are whole")
    if config.decode:
        count = decode(dataset, config)
        print(f"{count} clips decoded into {config.output}")
    return 0


def describe(dataset: Dataset) -> str:
    """The card, for people."""
    card = dataset.card
    text = card.text_encoder
    sound = f"{card.sample_rate} Hz, " if card.audio_autoencoder else ""
    lines = [
        f"{dataset.path}: {card.kept} clips, {card.hours * 3600:.0f} s ({card.hours:.2f} h), "
        f"{float(card.fps):g} fps, {sound}{card.dtype}; format {card.format_version}, "
        f"fingerprint {card.fingerprint}, {card.created_by}",
        f"video latents by {_encoder(card.video_autoencoder)}",
        f"audio latents by {_encoder(card.audio_autoencoder)}" if card.audio_autoencoder else "no sound",
        f"text by {_encoder(text)}" if text else "text is embedded during training",
        *(f"{name} by {who.kind} {who.sha256[:12]} ({who.path})" for name, who in card.networks.items()),
    ]
    for bucket in card.buckets:
        heard = f"audio {_shape(bucket.audio_shape)}" if bucket.audio_shape else "no sound"
        lines.append(f"bucket {bucket.name}: {bucket.samples} clips, video {_shape(bucket.video_shape)}, {heard}")
    shards = dataset.shards
    size = sum(member.size for s in shards for sample in s.samples for member in sample.members.values())
    lines.append(f"{len(shards)} shards, {size / 1e6:.1f} MB")
    for kind, stats in (("video", card.video_stats), ("audio", card.audio_stats)):
        if stats:
            lines.append(f"{kind} latent mean {_numbers(stats.mean)} std {_numbers(stats.std)}")
    measured, sure = (
        [x for shard in shards for x in shard.stats.get(f"sync.{name}", [])] for name in ("offset_ms", "confidence")
    )
    if measured:
        shown = believed(measured, sure)
        middle = f", median |offset| {np.median(np.abs(shown)):.0f} ms" if shown else ""
        lines.append(f"sound against picture: {len(shown)} of {len(measured)} clips show a common rhythm{middle}")
    dropped = card.read - card.kept
    lines.append(f"read {card.read} = kept {card.kept} + dropped {dropped}" + (":" if dropped else ""))
    lines += [f"  {count:5d}  {reason}" for reason, count in Counter(card.rejected).most_common()]
    return "\n".join(lines)


def verify(dataset: Dataset) -> list[tuple[str, str]]:
    """(clip, problem) of every damaged sample."""
    checks = tqdm(dataset.verify(), total=len(dataset), unit=" clips", disable=not is_terminal())
    return [(clip, problem) for clip, problem in checks if problem]


def decode(dataset: Dataset, config: InspectConfig) -> int:
    """Samples spread over the data set, from their latents back to mp4, with a manifest that evaluate reads."""
    card = dataset.card
    video = load_video_autoencoder(_spec(card.video_autoencoder, config.video_autoencoder, "video_autoencoder"))
    audio = None
    if card.audio_autoencoder is not None:
        audio = load_audio_autoencoder(_spec(card.audio_autoencoder, config.audio_autoencoder, "audio_autoencoder"))
    config.output.mkdir(parents=True, exist_ok=True)
    count = min(config.decode, len(dataset))
    rows = []
    # By chance, not in step: what is looked at must not depend on a rhythm in the data.
    chosen = sorted(random.Random(0).sample(range(len(dataset)), count))
    for k in tqdm(chosen, unit=" clips", disable=not is_terminal()):
        sample = dataset.read(k)
        record = sample.record
        frames, waveform = decode_sample(sample, video, audio)
        name = f"{record.id}.{'mp4' if record.num_frames > 1 else 'png'}"
        if record.num_frames > 1:
            write_mp4(config.output / name, frames, record.fps, waveform, record.sample_rate)
        else:
            Image.fromarray(frames[0]).save(config.output / name)
        row = {"uri": name, "id": record.id, "caption": record.caption, "label": record.label}
        rows.append({**row, **({} if record.events_s is None else {"events_s": record.events_s})})
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (config.output / "manifest.jsonl").write_text(lines, encoding="utf-8")
    return count


@torch.no_grad()
def decode_sample(
    sample: StoredSample, video: VideoAutoencoder, audio: AudioAutoencoder | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """(T, H, W, 3) uint8 and (L,) float32 of the posterior's mean; None for a clip without sound."""
    record, tensors = sample.record, sample.tensors
    pixels = video.decode(tensors["video_mean"].float()[None], record.num_frames)[0]  # (3, T, H, W)
    frames = ((pixels.permute(1, 2, 3, 0) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    if audio is None or "audio_mean" not in tensors:
        return frames.numpy(), None
    waveform = audio.decode(tensors["audio_mean"].float()[None], record.num_samples)[0]  # (L,)
    return frames.numpy(), waveform.float().clamp(-1, 1).numpy()


def _spec(identity: EncoderIdentity, moved: str, field: str) -> AutoencoderSpec:
    spec = AutoencoderSpec(kind=identity.kind, path=moved or identity.path, sha256=identity.sha256)
    try:
        spec = spec.located(Path.cwd())
    except UserError as error:
        raise UserError(f"{error}; give its folder as --{field}") from error
    return spec


def _encoder(identity: EncoderIdentity) -> str:
    return f"{identity.kind} {identity.sha256[:12]} ({identity.channels} channels, {identity.path})"


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _numbers(values: Sequence[float]) -> str:
    return "[" + ", ".join(f"{value:.3g}" for value in values) + "]"
