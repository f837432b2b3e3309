"""Autoencoders of video and of sound behind one small protocol (protocol.py), one file per family."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from syncflow.config import Config
from syncflow.errors import UserError
from syncflow.models.autoencoders.codec import load_dac, load_encodec
from syncflow.models.autoencoders.image import load_image
from syncflow.models.autoencoders.oobleck import load_oobleck
from syncflow.models.autoencoders.opensora import load_opensora, temporal_config
from syncflow.models.autoencoders.protocol import AudioAutoencoder, Posterior, VideoAutoencoder
from syncflow.models.autoencoders.video import load_cogvideox, load_hunyuan, load_ltx, load_wan
from syncflow.models.resolve import check_identity, identity_hash, located, resolve
from syncflow.samples import EncoderIdentity, first_line

__all__ = [
    "AudioAutoencoder",
    "AutoencoderSpec",
    "Posterior",
    "VideoAutoencoder",
    "identify_audio_autoencoder",
    "identify_video_autoencoder",
    "load_audio_autoencoder",
    "load_video_autoencoder",
]


class AutoencoderSpec(Config):
    """Which autoencoder, and where its weights are."""

    kind: str
    """Video: image (frame by frame), opensora, wan, cogvideox, ltx, hunyuan. Audio: oobleck, encodec, dac."""
    path: str
    """Folder of weights, hub repository OWNER/NAME[@REVISION], or package:MODULE/FOLDER."""
    subfolder: str = ""
    """Folder inside of `path`, for example vae."""
    frames_at_once: int = 32
    """Frames (kinds image and opensora) coded together: less needs less memory and gives the same latents."""
    tiling: bool = False
    """Code large pictures, or minutes of sound, in overlapping tiles: less memory, slight differences at seams."""
    sha256: str = ""
    """Identity hash that the weights must have; empty accepts any."""

    def located(self, base: Path) -> AutoencoderSpec:
        """With `path` made absolute where it is relative to the model directory `base`."""
        return self.model_copy(update={"path": located(self.path, base)})


@dataclass(frozen=True)
class Family:
    """A kind of autoencoder: how it is loaded, and how many latent channels its configuration says."""

    load: Callable[[AutoencoderSpec, Path, EncoderIdentity, torch.device, torch.dtype], Any]
    channels: Callable[[dict[str, Any]], int]


VIDEO = {
    "image": Family(load_image, lambda config: config["latent_channels"]),
    "opensora": Family(load_opensora, lambda config: temporal_config(config).embed_dim),
    "wan": Family(load_wan, lambda config: config["z_dim"]),
    "cogvideox": Family(load_cogvideox, lambda config: config["latent_channels"]),
    "ltx": Family(load_ltx, lambda config: config["latent_channels"]),
    "hunyuan": Family(load_hunyuan, lambda config: config["latent_channels"]),
}
AUDIO = {
    "oobleck": Family(load_oobleck, lambda config: config["decoder_input_channels"]),
    "encodec": Family(load_encodec, lambda config: config["hidden_size"]),
    "dac": Family(load_dac, lambda config: config["encoder_hidden_size"] * 2 ** len(config["downsampling_ratios"])),
}


def load_video_autoencoder(
    spec: AutoencoderSpec, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> VideoAutoencoder:
    """
    Raises:
        UserError: an unknown kind, weights that cannot be found or read, or not those `spec.sha256` names.
    """
    return _load(VIDEO, "video_autoencoder", spec, device, dtype)


def load_audio_autoencoder(
    spec: AutoencoderSpec, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> AudioAutoencoder:
    """
    Raises:
        UserError: an unknown kind, weights that cannot be found or read, or not those `spec.sha256` names.
    """
    return _load(AUDIO, "audio_autoencoder", spec, device, dtype)


def identify_video_autoencoder(spec: AutoencoderSpec) -> EncoderIdentity:
    """The `identity` of the autoencoder that would be loaded, from its files alone.

    Raises:
        UserError: as `load_video_autoencoder`.
    """
    return _identify(VIDEO, "video_autoencoder", spec)[0]


def identify_audio_autoencoder(spec: AutoencoderSpec) -> EncoderIdentity:
    """The `identity` of the autoencoder that would be loaded, from its files alone.

    Raises:
        UserError: as `load_audio_autoencoder`.
    """
    return _identify(AUDIO, "audio_autoencoder", spec)[0]


def _identify(kinds: dict[str, Family], field: str, spec: AutoencoderSpec) -> tuple[EncoderIdentity, Path]:
    if spec.kind not in kinds:
        raise UserError(f"{field}.kind: {spec.kind!r} is not known; choose from {', '.join(kinds)}")
    folder = resolve(spec.path, field=f"{field}.path", subfolder=spec.subfolder)
    try:
        channels = kinds[spec.kind].channels(json.loads((folder / "config.json").read_text()))
    except FileNotFoundError:
        raise UserError(f"{field}.path: {folder} has no config.json, so it is not a saved autoencoder") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{field}.path: {folder}/config.json is not that of kind {spec.kind}") from error
    identity = EncoderIdentity(kind=spec.kind, path=spec.path, sha256=identity_hash(folder), channels=channels)
    check_identity(identity, spec.sha256, f"{field}.path")
    return identity, folder


def _load(
    kinds: dict[str, Family], field: str, spec: AutoencoderSpec, device: torch.device | str, dtype: torch.dtype
) -> Any:
    identity, folder = _identify(kinds, field, spec)
    try:
        autoencoder = kinds[spec.kind].load(spec, folder, identity, torch.device(device), dtype)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise UserError(f"{field}.path: {folder} cannot be read as kind {spec.kind}: {first_line(error)}") from error
    if spec.tiling:
        tile = getattr(autoencoder.net, "enable_tiling", None)
        if tile is None:
            raise UserError(f"{field}.tiling: kind {spec.kind} has no tiling; leave it off")
        tile()
    return autoencoder
