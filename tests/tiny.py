"""A model directory with random weights, made in a second: what tests need where quality does not matter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from syncflow.models.autoencoders import AutoencoderSpec
from syncflow.models.autoencoders.nano import (
    NanoAudioConfig,
    NanoVideoConfig,
    new_nano_audio_autoencoder,
    new_nano_video_autoencoder,
)
from syncflow.models.checkpoints import ModelCard, save_model
from syncflow.models.config import AdaptorConfig, AudioTowerConfig, ModelConfig, VideoTowerConfig
from syncflow.models.d_dit import DualDiT

TINY = ModelConfig(
    video=VideoTowerConfig(
        hidden_size=32,
        depth=2,
        num_heads=2,
        caption_channels=384,
        model_max_length=128,
        input_sq_size=64,
        patch_norm=True,
    ),
    adaptor=AdaptorConfig(cells=(4, 4), group=(4, 4)),
    audio=AudioTowerConfig(in_channels=8, hidden_size=32, num_heads=2),
)
"""Speaks nano's latents and MiniLM's text."""


def random_model(config: ModelConfig = TINY, seed: int = 0) -> DualDiT:
    """Random weights everywhere: the zero start of the output layers would hide what a test looks for."""
    torch.manual_seed(seed)
    model = DualDiT(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.7 * parameter[0].numel() ** -0.5)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def smallest_autoencoders(folder: Path) -> dict[str, Any]:
    """The two settings of preprocessing that name autoencoders, of the kinds nano uses, saved in `folder`."""
    new_nano_video_autoencoder(0, NanoVideoConfig(block_out_channels=(8, 8, 8, 8))).save_pretrained(folder / "video")
    new_nano_audio_autoencoder(0, NanoAudioConfig(decoder_channels=4)).save_pretrained(folder / "audio")
    return {
        "video_autoencoder": AutoencoderSpec(kind="image", path=str(folder / "video")),
        "audio_autoencoder": AutoencoderSpec(kind="oobleck", path=str(folder / "audio")),
    }


def make_model_dir(folder: Path, config: ModelConfig = TINY, seed: int = 0) -> Path:
    """`folder` as a model directory: random towers, random nano autoencoders, MiniLM."""
    small = NanoVideoConfig(fold=2, block_out_channels=(8, 8, 16), norm_num_groups=4)
    new_nano_video_autoencoder(seed, small).save_pretrained(folder / "video_autoencoder")
    new_nano_audio_autoencoder(seed).save_pretrained(folder / "audio_autoencoder")
    card = ModelCard(
        model=config,
        video_autoencoder=AutoencoderSpec(kind="image", path="video_autoencoder"),
        audio_autoencoder=AutoencoderSpec(kind="oobleck", path="audio_autoencoder"),
    )
    save_model(folder, random_model(config, seed).state_dict(), card)
    return folder
