"""Encode: pictures, sound and captions to what a model learns from; batches filled across clips of a bucket.

Shapes: B clips, T frames of H x W pixels, L samples, C latent channels, T_v / T_a latent frames, D text width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from syncflow.models.autoencoders import (
    Posterior,
    identify_audio_autoencoder,
    identify_video_autoencoder,
    load_audio_autoencoder,
    load_video_autoencoder,
)
from syncflow.models.text import identify_text_encoder, load_text_encoder
from syncflow.preprocess.config import BucketSize, PreprocessConfig
from syncflow.preprocess.work import Work
from syncflow.samples import EncoderIdentity

R = TypeVar("R")


def identities(config: PreprocessConfig) -> dict[str, EncoderIdentity]:
    """Whose latents these would be, by the hash of their weights; nothing is loaded.

    Raises:
        UserError: weights that cannot be found or read.
    """
    found = {
        "video_autoencoder": identify_video_autoencoder(config.video_autoencoder),
    }
    if config.sound != "none":
        found["audio_autoencoder"] = identify_audio_autoencoder(config.audio_autoencoder)
    if config.text == "stored":
        found["text_encoder"] = identify_text_encoder(config.text_encoder)
    return found


class Encode:
    """The autoencoders' posteriors and the text encoder's states."""

    name = "encode"
    batched = True

    def setup(self, config: PreprocessConfig, device: str) -> None:
        # Weights in full precision; autocast chooses where less will do.
        self.config, self.device = config, torch.device(device)
        self.stored = getattr(torch, config.dtype)
        self.video = load_video_autoencoder(config.video_autoencoder, self.device, torch.float32)
        self.audio, self.text = None, None
        if config.sound != "none":
            self.audio = load_audio_autoencoder(config.audio_autoencoder, self.device, torch.float32)
        if config.text == "stored":
            self.text = load_text_encoder(config.text_encoder, self.device, torch.float32)
        self._grids: dict[BucketSize, dict[str, Tensor]] = {}

    def identities(self) -> dict[str, EncoderIdentity]:
        networks = {"video_autoencoder": self.video, "audio_autoencoder": self.audio, "text_encoder": self.text}
        return {name: network.identity for name, network in networks.items() if network is not None}

    def latent_shapes(self, bucket: BucketSize) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
        """Of video (C, T_v, H', W') and, with sound, of audio (C, T_a) of a clip in `bucket`."""
        video = self.video.latent_shape(bucket.num_frames, bucket.height, bucket.width)
        if not bucket.sound:
            return video, None
        assert self.audio is not None
        return video, self.audio.latent_shape(self.config.num_samples(bucket))

    @torch.no_grad()
    def __call__(self, works: Sequence[Work]) -> None:
        pictures = halving(self._video, [work.decoded.frames for work in works])
        sounding = works[0].bucket.sound  # a batch is of one bucket
        sounds = halving(self._audio, [work.decoded.waveform for work in works]) if sounding else [None] * len(works)
        texts = halving(self._text, [work.caption for work in works]) if self.text else [None] * len(works)
        for work, picture, sound, text in zip(works, pictures, sounds, texts, strict=True):
            tensors = {"video_mean": picture.mean, "video_std": picture.std}
            if sound is not None:
                tensors |= {"audio_mean": sound.mean, "audio_std": sound.std}
            if text is not None:
                tensors["text"] = text  # (L, D)
            tensors = {name: value.to("cpu", self.stored) for name, value in tensors.items()}
            if bad := [name for name, value in tensors.items() if not torch.isfinite(value).all()]:
                work.drop(self.name, "not_finite", f"{', '.join(bad)} overflow {self.config.dtype} or are not numbers")
                continue
            work.tensors = {**tensors, **self._times(work.bucket)}

    def _video(self, frames: Sequence[np.ndarray]) -> list[Posterior]:
        pixels = torch.from_numpy(np.stack(frames)).to(self.device)  # (B, T, H, W, 3) uint8
        pixels = pixels.permute(0, 4, 1, 2, 3).float() / 127.5 - 1  # (B, 3, T, H, W)
        with self._autocast():
            return _each(self.video.encode(pixels))

    def _audio(self, waveforms: Sequence[np.ndarray]) -> list[Posterior]:
        assert self.audio is not None
        with self._autocast():
            return _each(self.audio.encode(torch.from_numpy(np.stack(waveforms)).to(self.device)))

    def _text(self, captions: Sequence[str]) -> list[Tensor]:
        assert self.text is not None
        with self._autocast():
            return self.text.encode(list(captions))

    def _autocast(self) -> Any:
        return torch.autocast("cuda", torch.bfloat16) if self.device.type == "cuda" else nullcontext()

    def _times(self, bucket: BucketSize) -> dict[str, Tensor]:
        """video_time_s (T_v, 2) and, with sound, audio_time_s (T_a, 2)."""
        if bucket not in self._grids:
            grids = {"video_time_s": self.video.grid(bucket.num_frames, self.config.rate)}
            if bucket.sound:
                assert self.audio is not None
                grids["audio_time_s"] = self.audio.grid(self.config.num_samples(bucket))
            self._grids[bucket] = {name: torch.from_numpy(grid.array()) for name, grid in grids.items()}
        return self._grids[bucket]


def halving(encode: Callable[[Sequence[Any]], list[R]], items: Sequence[Any]) -> list[R]:
    """`encode(items)` in as many parts as memory asks for."""
    try:
        return encode(items)
    except torch.OutOfMemoryError:
        if len(items) == 1:
            raise
    torch.cuda.empty_cache()
    middle = len(items) // 2
    return halving(encode, items[:middle]) + halving(encode, items[middle:])


def _each(posterior: Posterior) -> list[Posterior]:
    return [Posterior(m.float(), s.float()) for m, s in zip(posterior.mean, posterior.std, strict=True)]
