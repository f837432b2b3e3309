"""Open-Sora's VAE 1.2: an image autoencoder frame by frame, then a causal temporal one over chunks of 17 frames.

    z = (temporal(0.18215 · spatial(frame)) − shift) / scale

Source: hub repository hpcai-tech/OpenSora-VAE-v1.2, whose folder (config.json, model.safetensors) is read here.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from syncflow.clock import LatentGrid, causal_grid
from syncflow.errors import UserError
from syncflow.models.autoencoders.opensora_temporal import TemporalConfig, TemporalVAE
from syncflow.models.autoencoders.protocol import Posterior, check_frames
from syncflow.models.resolve import hash_of
from syncflow.models.weights import read_weights
from syncflow.samples import EncoderIdentity

if TYPE_CHECKING:
    from syncflow.models.autoencoders import AutoencoderSpec

SPATIAL_SCALE = 0.18215
SHIFT = (-0.10, 0.34, 0.27, 0.98)
SCALE = (3.85, 2.32, 2.33, 3.06)
# The spatial half is SDXL's architecture, which the hub's configuration names but does not spell out.
SPATIAL: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "norm_num_groups": 32,
}


class _Frames(nn.Module):
    """Holds the image autoencoder under its public name, `spatial_vae.module`."""

    def __init__(self, spatial: Mapping[str, Any]) -> None:
        from diffusers import AutoencoderKL

        super().__init__()
        self.module: Any = AutoencoderKL(**spatial)


class OpenSoraNet(nn.Module):
    """The public weights' module tree.

    `config` is config.json; `spatial` (AutoencoderKL's own names) and `temporal` (`TemporalConfig`) in it override.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        spatial = {**SPATIAL, **config.get("spatial", {})}
        temporal = temporal_config(config, in_out_channels=spatial["latent_channels"])
        self.spatial_vae = _Frames({key: value for key, value in spatial.items() if not key.startswith("_")})
        self.temporal_vae = TemporalVAE(temporal)
        for name, default in (("shift", SHIFT), ("scale", SCALE)):
            value = torch.tensor(config.get(name, default), dtype=torch.float32).view(1, -1, 1, 1, 1)
            self.register_buffer(name, value.expand(1, temporal.embed_dim, 1, 1, 1).clone())

    def enable_tiling(self) -> None:
        self.spatial_vae.module.enable_tiling()


class OpenSoraAutoencoder:
    """32 frames become 5 + 4 latent frames; the first of each chunk of 17 holds a single frame."""

    def __init__(
        self, net: OpenSoraNet, identity: EncoderIdentity, chunk_frames: int | None = 17, frames_at_once: int = 4
    ) -> None:
        """`chunk_frames` None codes a video as one chunk, however long."""
        self.net = net
        self.identity = identity
        self.chunk_frames = chunk_frames
        self.frames_at_once = frames_at_once
        self.stride = net.temporal_vae.config.stride
        self.channels = net.temporal_vae.config.embed_dim
        self.spatial_multiple = 2 ** (len(net.spatial_vae.module.config.block_out_channels) - 1)
        self.dtype = next(net.parameters()).dtype

    @classmethod
    def from_open_sora(
        cls,
        weights: str | Path,
        config: Mapping[str, Any] | str | Path | None = None,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        frames_at_once: int = 32,
    ) -> OpenSoraAutoencoder:
        """The autoencoder with Open-Sora's public weights.

        Args:
            weights: a .safetensors file, or a folder in the hub's layout (config.json, one file or shards).
            config: their configuration as a mapping or a JSON file; None: config.json beside the weights.
        Raises:
            UserError: it cannot be read, or the weights are not of this configuration.
        """
        path = Path(weights)
        state = read_weights(path)
        if not isinstance(config, Mapping):
            config = _read_config(Path(config) if config else (path if path.is_dir() else path.parent) / "config.json")
        files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
        channels = temporal_config(config).embed_dim
        identity = EncoderIdentity(kind="opensora", path=str(path), sha256=hash_of([config], files), channels=channels)
        net = opensora_net(config, state).to(device, dtype)
        return cls(net, identity, config.get("micro_frame_size", 17), frames_at_once)

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Posterior:
        b, _, t, h, w = frames.shape
        self.latent_shape(t, h, w)
        images = frames.transpose(1, 2).flatten(0, 1).to(self.dtype)  # (B·T, 3, H, W)
        modes = [self.net.spatial_vae.module.encode(x).latent_dist.mode() for x in images.split(self.frames_at_once)]
        spatial = SPATIAL_SCALE * torch.cat(modes).unflatten(0, (b, t)).transpose(1, 2)  # (B, C, T, H', W')
        coded = [self.net.temporal_vae.encode(spatial[:, :, first : first + n]) for first, n in self._chunks(t)]
        mean, std = (torch.cat(parts, dim=2) for parts in zip(*coded, strict=True))  # (B, C, T_v, H', W')
        return Posterior((mean - self.net.shift) / self.net.scale, std / self.net.scale)

    @torch.no_grad()
    def decode(self, latents: Tensor, num_frames: int) -> Tensor:
        lengths = [-(-n // self.stride) for _, n in self._chunks(num_frames)]
        if latents.shape[2] != sum(lengths):
            raise ValueError(f"{num_frames} frames have {sum(lengths)} latent frames, got {latents.shape[2]}")
        z = latents.to(self.dtype) * self.net.scale + self.net.shift
        chunks = zip(z.split(lengths, dim=2), self._chunks(num_frames), strict=True)
        spatial = torch.cat([self.net.temporal_vae.decode(part, n) for part, (_, n) in chunks], dim=2)
        images = spatial.transpose(1, 2).flatten(0, 1) / SPATIAL_SCALE  # (B·T, C, H', W')
        decoded = [self.net.spatial_vae.module.decode(x).sample for x in images.split(self.frames_at_once)]
        return torch.cat(decoded).unflatten(0, (len(latents), num_frames)).transpose(1, 2)  # (B, 3, T, H, W)

    def _chunks(self, num_frames: int) -> Iterator[tuple[int, int]]:
        """(first frame, number of frames) of each chunk."""
        chunk = self.chunk_frames or num_frames
        for first in range(0, num_frames, chunk):
            yield first, min(chunk, num_frames - first)

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        check_frames(num_frames, height, width, self.spatial_multiple)
        frames = sum(-(-n // self.stride) for _, n in self._chunks(num_frames))
        return self.channels, frames, height // self.spatial_multiple, width // self.spatial_multiple

    def grid(self, num_frames: int, fps: Fraction) -> LatentGrid:
        return causal_grid(num_frames, self.stride, fps, self.chunk_frames)


def load_opensora(
    spec: AutoencoderSpec, folder: Path, identity: EncoderIdentity, device: torch.device, dtype: torch.dtype
) -> OpenSoraAutoencoder:
    """The autoencoder in a folder of the hub's layout: config.json and safetensors."""
    loaded = OpenSoraAutoencoder.from_open_sora(folder, device=device, dtype=dtype, frames_at_once=spec.frames_at_once)
    loaded.identity = identity
    return loaded


def temporal_config(config: Mapping[str, Any], **defaults: Any) -> TemporalConfig:
    """Of the temporal half, from config.json.

    Raises:
        UserError: it names what that half does not have.
    """
    given = {key: tuple(v) if isinstance(v, list) else v for key, v in config.get("temporal", {}).items()}
    # How the public code builds and activates it; the one activation of the public weights is ours too.
    for key in ("type", "from_pretrained"):
        given.pop(key, None)
    if given.pop("activation_fn", "swish") != "swish":
        raise UserError("temporal.activation_fn of this Open-Sora VAE is not swish, the only one known here")
    known = [field.name for field in dataclasses.fields(TemporalConfig)]
    unknown = sorted(given.keys() - known)
    if unknown:
        raise UserError(f"temporal.{unknown[0]} of this Open-Sora VAE is not known; known: {', '.join(known)}")
    return TemporalConfig(**{**defaults, **given})


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; it should hold the configuration of the Open-Sora VAE") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise UserError(f"{path} must hold a JSON object")
    return config


def opensora_net(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> OpenSoraNet:
    """The network with `weights`, every one of which has a place.

    Raises:
        UserError: weights are missing, left over or of other shapes.
    """
    net = OpenSoraNet(config)
    given = dict(weights)
    for name in ("shift", "scale"):
        value = given.get(name, net.get_buffer(name)).view(1, -1, 1, 1, 1)
        given[name] = value.expand_as(net.get_buffer(name)) if value.numel() == 1 else value
    try:
        net.load_state_dict(given)
    except RuntimeError as error:
        problem = str(error).splitlines()[1].strip()
        raise UserError(f"these are not the weights of an Open-Sora VAE 1.2 of this configuration: {problem}") from None
    return net.eval().requires_grad_(False)
