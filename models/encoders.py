"""Between files and latents: a model's autoencoders and text encoder, with the latents scaled as the model has them.

T frames of H × W pixels, L samples; latents are (1, C, T_v, H', W') of video and (1, C, T_a) of sound.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from syncflow.clock import LatentGrid
from syncflow.errors import UserError
from syncflow.models.autoencoders import load_audio_autoencoder, load_video_autoencoder
from syncflow.models.beginning import covered, read_beginning
from syncflow.models.checkpoints import ModelCard
from syncflow.models.generation import Known
from syncflow.models.latents import denormalise, normalise
from syncflow.models.shapes import Shape
from syncflow.models.text import load_text_encoder

log = logging.getLogger("syncflow")


class Encoders:
    """The encoders that a model card names.

    Raises:
        UserError: one cannot be read, or has other channels than the model was trained with.
    """

    def __init__(self, card: ModelCard, device: torch.device, dtype: torch.dtype) -> None:
        self.card, self.device, self.dtype = card, device, dtype
        self.video = load_video_autoencoder(card.video_autoencoder, device)
        self.audio = load_audio_autoencoder(card.audio_autoencoder, device)
        self.text = load_text_encoder(card.text_encoder, device)
        for what, wanted, found in (
            ("video_autoencoder", card.model.video.in_channels, self.video.identity.channels),
            ("audio_autoencoder", card.model.audio.in_channels, self.audio.identity.channels),
            ("text_encoder", card.model.video.caption_channels, self.text.width),
        ):
            if wanted != found:
                raise UserError(f"{what} has {found} channels where this model was trained with {wanted}")

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move the networks; `dtype` is the towers', the encoders stay in float32."""
        self.device, self.dtype = device, dtype
        for encoder in (self.video, self.audio, self.text):
            encoder.net.to(device)

    def text_states(self, prompt: str) -> Tensor:
        """(L, D) states of a prompt, cut with a note where it is too long."""
        states = self.text.encode([prompt])[0]
        limit = min(self.card.model.video.model_max_length, self.card.text_encoder.max_tokens)
        if len(states) >= limit:
            log.warning("prompt %r is cut at %d tokens", prompt[:40] + "…", limit)
        return states[:limit].to(self.device, self.dtype)

    def times(self, shape: Shape, batch: int) -> tuple[Tensor, Tensor]:
        """(B, T_v, 2) and (B, T_a, 2): start and end in seconds of each latent frame."""
        grids: tuple[LatentGrid, ...] = (
            self.video.grid(shape.num_frames, shape.fps),
            self.audio.grid(shape.num_samples),
        )
        video, audio = (torch.from_numpy(grid.array()).to(self.device).expand(batch, -1, -1) for grid in grids)
        return video, audio

    def noise(self, shape: Shape, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Standard normal latents (B, …), each clip's from a generator of its own on the CPU."""
        video_shape = self.video.latent_shape(shape.num_frames, shape.height, shape.width)
        audio_shape = self.audio.latent_shape(shape.num_samples)
        video, audio = [], []
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            audio.append(torch.randn(audio_shape, generator=generator))
            video.append(torch.randn(video_shape, generator=generator))
        return torch.stack(video).to(self.device), torch.stack(audio).to(self.device)

    def known(self, beginning: str | Path, shape: Shape) -> tuple[Known | None, Known | None]:
        """The video and audio latents that a clip's beginning decides.

        Raises:
            UserError: it is shorter than the first latent frame.
        """
        given = read_beginning(beginning, shape, self.card.sample_rate)
        video = audio = None
        if given.frames is not None:
            mask = covered(self.video.grid(shape.num_frames, shape.fps), given.end_s).to(self.device)
            video = Known(self.video_latents(given.frames), mask)
        if given.waveform is not None:
            mask = covered(self.audio.grid(shape.num_samples), given.end_s).to(self.device)
            audio = Known(self.audio_latents(given.waveform), mask)
        first = video or audio
        if first is None or not first.mask.any():
            what = "audio" if video is None else "video"
            raise UserError(
                f"{beginning} is shorter than one latent frame of the {what} autoencoder; give a longer one"
            )
        return video, audio

    def video_latents(self, frames: np.ndarray) -> Tensor:
        """Of (T, H, W, 3) uint8."""
        pixels = torch.from_numpy(np.ascontiguousarray(frames)).to(self.device).permute(3, 0, 1, 2)[None]
        return normalise(self.video.encode(pixels / 127.5 - 1).mean.float(), self.card.video_stats)

    def audio_latents(self, waveform: np.ndarray) -> Tensor:
        """Of (L,) in [-1, 1]."""
        sound = torch.from_numpy(waveform).to(self.device)[None]
        return normalise(self.audio.encode(sound).mean.float(), self.card.audio_stats)

    def frames(self, latents: Tensor, shape: Shape) -> np.ndarray:
        """(T, H, W, 3) uint8."""
        pixels = self.video.decode(denormalise(latents, self.card.video_stats), shape.num_frames)
        pixels = ((pixels[0].float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        return pixels.permute(1, 2, 3, 0).cpu().numpy()

    def waveform(self, latents: Tensor, shape: Shape) -> np.ndarray:
        """(L,) in [-1, 1]."""
        waveform = self.audio.decode(denormalise(latents, self.card.audio_stats), shape.num_samples)
        return waveform[0].float().clamp(-1, 1).cpu().numpy()
