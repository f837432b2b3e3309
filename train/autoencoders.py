"""`syncflow train configs/nano/0_autoencoders.yaml`: small autoencoders of video and of sound, from raw videos.

<output>/video/, <output>/audio/    diffusers folders, kinds image and oobleck
<output>/samples/                   reconstructions of held-out clips, source above or before decoded
<output>/done.json                  figures and identities; written last
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from syncflow import __version__, config
from syncflow.clock import parse_rate
from syncflow.config import Config
from syncflow.errors import UserError
from syncflow.media import write_wav
from syncflow.models.autoencoders import (
    AutoencoderSpec,
    identify_audio_autoencoder,
    identify_video_autoencoder,
)
from syncflow.models.autoencoders.nano import (
    NanoAudioConfig,
    NanoVideoConfig,
    new_nano_audio_autoencoder,
    new_nano_video_autoencoder,
)
from syncflow.models.autoencoders.oobleck import fold, unfold
from syncflow.process import keep_freed_memory
from syncflow.tracker import OpenTracker, TrackingConfig
from syncflow.train.autoencoder_data import Clips, frame_batch, list_sources, load_clips, sound_batch
from syncflow.train.autoencoder_loop import Task, fit
from syncflow.train.autoencoder_losses import edge_loss, kl_to_standard_normal, onset_f1, psnr_db, stft_distance
from syncflow.train.autoencoder_perceptual import LEAST_SIDE, PerceptualConfig, load_perceptual
from syncflow.train.autoencoder_start import start_as_components, start_at_unit_scale

START_FRAMES = 128  # looked at before the first step
START_CROPS = 8


class VideoTraining(Config):
    """Training of the video autoencoder: |error| weighted by motion + edges + what a VGG16 sees, if given, + KL."""

    net: NanoVideoConfig = NanoVideoConfig()
    """The network."""
    steps: Annotated[int, Field(ge=1)] = 80
    """Updates."""
    batch: Annotated[int, Field(ge=1)] = 12
    """Frames per update."""
    lr: float = 4e-4
    """Highest learning rate."""
    motion_weight: float = 2.0
    """How much more a pixel counts that differs from its clip's mean picture: small moving things are the subject."""
    edge_weight: float = 1.0
    """Weight of the multi-scale edge loss."""
    perceptual: PerceptualConfig = PerceptualConfig()
    """Distance of pictures in a trained network's features."""
    kl_weight: float = 1e-4
    """Weight of the KL divergence from a standard normal, per latent value."""


class AudioTraining(Config):
    """Training of the audio autoencoder: multi-resolution spectral distance + |error| + KL."""

    net: NanoAudioConfig = NanoAudioConfig()
    """The network."""
    steps: Annotated[int, Field(ge=1)] = 400
    """Updates."""
    batch: Annotated[int, Field(ge=1)] = 4
    """Crops per update."""
    crop_s: Annotated[float, Field(gt=0)] = 1.0
    """Seconds of sound in a crop."""
    lr: float = 3e-3
    """Highest learning rate."""
    waveform_weight: float = 0.0
    """Weight of |error| of samples: it asks for the phase, and a small network's best answer to that is silence."""
    kl_weight: float = 1e-3
    """Weight of the KL divergence from a standard normal, per latent value."""


class AutoencodersConfig(Config):
    """Train a video and an audio autoencoder from raw videos."""

    job: Literal["autoencoders"] = "autoencoders"
    """Which trainer reads this file."""
    input: str = ""
    """Folder of videos, or a .jsonl or .csv manifest with `uri`."""
    output: Annotated[str, tyro.conf.arg(aliases=["-o"])] = ""
    """Folder for the two autoencoders; the same command again goes on where it stopped."""
    seed: int = 0
    """Everything random follows from it."""
    fps: str = "16"
    """Frame rate at which videos are decoded."""
    width: int = 64
    """Pixels."""
    height: int = 64
    """Pixels."""
    clip_s: Annotated[float, Field(gt=0)] = 2.0
    """Seconds of a source taken as one clip."""
    clips: Annotated[int, Field(ge=1)] = 200
    """Clips decoded, at most; they stay in memory (0.5 MB each at 64x64)."""
    validation_clips: Annotated[int, Field(ge=1)] = 4
    """Clips held out for the figures and samples."""
    checkpoint_every: Annotated[int, Field(ge=1)] = 50
    """Steps between checkpoints."""
    validate_every: Annotated[int, Field(ge=1)] = 50
    """Steps between validations."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu or cuda."""
    video: VideoTraining = VideoTraining()
    """The video autoencoder."""
    audio: AudioTraining = AudioTraining()
    """The audio autoencoder."""
    tracking: TrackingConfig = TrackingConfig()
    """Where metrics are reported."""

    @model_validator(mode="after")
    def _fits(self) -> AutoencodersConfig:
        parse_rate(self.fps)
        multiple = self.video.net.fold * 2 ** (len(self.video.net.block_out_channels) - 1)
        if self.width % multiple or self.height % multiple:
            raise ValueError(f"width and height must be multiples of {multiple}, which video.net halves away")
        if self.video.perceptual.path and min(self.width, self.height) < LEAST_SIDE:
            raise ValueError(f"width and height must be at least {LEAST_SIDE} for video.perceptual")
        if self.audio.crop_s > self.clip_s:
            raise ValueError("audio.crop_s must not be longer than clip_s")
        if any(ratio % 2 for ratio in self.audio.net.downsampling_ratios):
            raise ValueError("audio.net.downsampling_ratios must be even, or decoded sound is a sample short")
        return self


def main(config_path: Path | str, argv: list[str], open_tracker: OpenTracker) -> int:
    """Train both autoencoders; 0 when `<output>/done.json` is there."""
    settings = config.load(AutoencodersConfig, config_path, argv, prog=f"syncflow train {config_path}")
    if not settings.output:
        raise UserError("--output is missing: give a folder for the autoencoders")
    output = Path(settings.output)
    _claim(output, settings)
    done = output / "done.json"
    if done.exists():
        print(f"{output} is done: {_summary(json.loads(done.read_text()))}", file=sys.stderr)
        return 0

    if _device(settings).type == "cpu":
        keep_freed_memory()
    sources = list_sources(settings.input)
    clips, problems = load_clips(
        sources,
        count=settings.clips,
        seed=settings.seed,
        clip_s=Fraction(str(settings.clip_s)),
        fps=parse_rate(settings.fps),
        size=(settings.width, settings.height),
        rate_hz=settings.audio.net.sample_rate,
    )
    for problem in problems[:5]:
        print(f"left out: {problem}", file=sys.stderr)
    if not clips.has_sound.any():
        raise UserError(f"--input {settings.input}: none of {len(clips)} clips has sound to train on")
    sounding = int(clips.has_sound.sum())
    print(f"{len(clips)} clips, {sounding} with sound, {len(problems)} videos left out", file=sys.stderr)

    tracker = open_tracker(settings.tracking, "autoencoders", output)
    try:
        tracker.params(settings.model_dump(mode="json"))
        tracker.tags({"job": "autoencoders", "syncflow": __version__})
        report: dict[str, Any] = {"clips": len(clips), "left_out": len(problems)}
        for name, make in (("video", _video_task), ("audio", _audio_task)):
            task = make(settings, *clips.split(settings.validation_clips))
            metrics = fit(
                task,
                output / "checkpoints",
                tracker,
                checkpoint_every=settings.checkpoint_every,
                validate_every=settings.validate_every,
            )
            _export(task, output / name)
            report[name] = {"metrics": metrics}
    finally:
        tracker.close()
    report["video"]["sha256"] = identify_video_autoencoder(AutoencoderSpec(kind="image", path=f"{output}/video")).sha256
    report["audio"]["sha256"] = identify_audio_autoencoder(
        AutoencoderSpec(kind="oobleck", path=f"{output}/audio")
    ).sha256
    _write_json(done, report)
    print(f"{output}: {_summary(report)}", file=sys.stderr)
    return 0


def _claim(output: Path, settings: AutoencodersConfig) -> None:
    """Write the resolved configuration, or make sure that the run in `output` has the same one."""
    path = output / "config.yaml"
    mine = settings.model_dump(mode="json", exclude={"tracking", "output", "device"})
    if path.exists():
        theirs = AutoencodersConfig.model_validate(config.read_yaml(path)).model_dump(mode="json")
        changed = [key for key in mine if mine[key] != theirs[key]]
        if changed:
            raise UserError(
                f"{output} holds a run with another {', '.join(changed)}; choose another --output, or remove it"
            )
        return
    output.mkdir(parents=True, exist_ok=True)
    config.save(settings, path)


def _device(settings: AutoencodersConfig) -> torch.device:
    name = settings.device
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def _video_task(settings: AutoencodersConfig, clips: Clips, held_out: Clips) -> Task:
    training, device, fold = settings.video, _device(settings), settings.video.net.fold
    net = new_nano_video_autoencoder(settings.seed, training.net)
    if len(training.net.block_out_channels) == 1:
        start = frame_batch(clips, START_FRAMES, torch.Generator().manual_seed(settings.seed))[0]
        start_as_components(net, pixel_unshuffle(start, fold))
    net = net.to(device, memory_format=torch.channels_last)
    perceptual = None
    if training.perceptual.path:
        perceptual, identity = load_perceptual(training.perceptual)
        perceptual = perceptual.to(device).to(memory_format=torch.channels_last)
        print(f"pictures are judged by VGG16 {identity.sha256[:16]} as well", file=sys.stderr)
    else:
        print("no perceptual network (video.perceptual.path is empty): edges stand in for it", file=sys.stderr)

    def code(frames: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        folded = pixel_unshuffle(frames.to(device), fold).contiguous(memory_format=torch.channels_last)
        posterior = net.encode(folded).latent_dist
        mean, std = posterior.mean, posterior.std
        latents = mean if generator is None else mean + std * torch.randn(mean.shape, generator=generator).to(device)
        return pixel_shuffle(net.decode(latents).sample, fold), mean, std

    def loss(generator: torch.Generator) -> dict[str, Tensor]:
        frames, motion = (x.to(device) for x in frame_batch(clips, training.batch, generator))
        decoded, mean, std = code(frames, generator)
        terms = {
            "pixels": ((1 + training.motion_weight * motion) * (decoded - frames).abs()).mean(),
            "edges": training.edge_weight * edge_loss(decoded, frames),
            "kl": training.kl_weight * kl_to_standard_normal(mean, std),
        }
        if perceptual is not None:
            terms["perceptual"] = training.perceptual.weight * perceptual(decoded, frames)
        return terms

    shown = held_out.frames[:, :: max(1, held_out.frames.shape[1] // 8)].flatten(0, 1).float() / 127.5 - 1

    @torch.no_grad()
    def validate() -> dict[str, float]:
        decoded, mean, std = code(shown, None)
        figures = {
            "psnr_db": psnr_db(decoded, shown.to(device)).item(),
            "latent_std": mean.std().item(),
            "posterior_std": std.mean().item(),
        }
        if perceptual is not None:
            figures["perceptual_distance"] = perceptual(decoded, shown.to(device)).item()
        return figures

    @torch.no_grad()
    def samples(folder: Path) -> list[Path]:
        from PIL import Image

        decoded = code(shown, None)[0].clamp(-1, 1).cpu()
        rows = [torch.cat(list(part[i : i + 8]), dim=-1) for i in range(0, len(shown), 8) for part in (shown, decoded)]
        picture = ((torch.cat(rows, dim=-2) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / "frames.png")
        return [folder / "frames.png"]

    return Task("video", net, loss, validate, samples, training.steps, training.lr, settings.seed)


def _audio_task(settings: AutoencodersConfig, clips: Clips, held_out: Clips) -> Task:
    training, device = settings.audio, _device(settings)
    hop, folded = training.net.hop, training.net.fold
    crop = max(2, round(training.crop_s * training.net.sample_rate / hop)) * hop
    net = new_nano_audio_autoencoder(settings.seed, training.net)
    crop = min(crop, clips.waveform.shape[1] // hop * hop)
    start = sound_batch(clips, START_CROPS, crop, torch.Generator().manual_seed(settings.seed))
    start_at_unit_scale(net, fold(start, folded))
    net = net.to(device)

    def code(waves: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        posterior = net.encode(fold(waves.to(device), folded)).latent_dist
        mean, std = posterior.mean, posterior.std
        latents = mean if generator is None else mean + std * torch.randn(mean.shape, generator=generator).to(device)
        return unfold(net.decode(latents).sample), mean, std

    def loss(generator: torch.Generator) -> dict[str, Tensor]:
        waves = sound_batch(clips, training.batch, crop, generator).to(device)
        decoded, mean, std = code(waves, generator)
        return {
            "waveform": training.waveform_weight * (decoded - waves).abs().mean(),
            "spectrum": stft_distance(decoded, waves),
            "kl": training.kl_weight * kl_to_standard_normal(mean, std),
        }

    heard = held_out if held_out.has_sound.any() else clips
    shown = heard.waveform[heard.has_sound][:4]
    shown = shown[:, : shown.shape[1] // hop * hop]

    @torch.no_grad()
    def validate() -> dict[str, float]:
        decoded, mean, std = code(shown, None)
        return {
            "stft_distance": stft_distance(decoded, shown.to(device)).item(),
            "onset_f1": onset_f1(shown.numpy(), decoded.cpu().numpy(), training.net.sample_rate),
            "latent_std": mean.std().item(),
            "posterior_std": std.mean().item(),
        }

    @torch.no_grad()
    def samples(folder: Path) -> list[Path]:
        decoded = code(shown, None)[0].clamp(-1, 1).cpu()
        folder.mkdir(parents=True, exist_ok=True)
        for i, (source, ours) in enumerate(zip(shown.numpy(), decoded.numpy(), strict=True)):
            pause = np.zeros(training.net.sample_rate // 4, dtype=np.float32)
            write_wav(folder / f"sound-{i}.wav", np.concatenate([source, pause, ours]), training.net.sample_rate)
        return [folder / f"sound-{i}.wav" for i in range(len(shown))]

    return Task("audio", net, loss, validate, samples, training.steps, training.lr, settings.seed)


def _export(task: Task, folder: Path) -> None:
    """The trained network as diffusers saves it, complete or absent."""
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    net: Any = task.net.cpu().to(memory_format=torch.contiguous_format)
    net.save_pretrained(partial)
    if folder.exists():
        shutil.rmtree(folder)
    partial.replace(folder)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(value, indent=1))
    partial.replace(path)


def _summary(report: dict[str, Any]) -> str:
    video, audio = report["video"]["metrics"], report["audio"]["metrics"]
    return (
        f"video PSNR {video['psnr_db']:.1f} dB, audio spectral distance {audio['stft_distance']:.2f}, "
        f"onset F1 {audio['onset_f1']:.2f}"
    )
