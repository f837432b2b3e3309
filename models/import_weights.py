"""`syncflow import`: public Open-Sora weights -> a model directory that training starts from."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Annotated

import tyro

from syncflow.config import Config, load
from syncflow.errors import UserError
from syncflow.models.outputs import check_folder


class ImportConfig(Config):
    """Public Open-Sora 1.2 video weights -> a SyncFlow model directory to start stage 2 from.

    The video tower is theirs; adaptors and audio tower are new. Give the downloaded repositories:

    syncflow import --weights OpenSora-STDiT-v3 --video-autoencoder OpenSora-VAE-v1.2 \\
        --audio-autoencoder stable-audio-open/vae --text-encoder t5-v1_1-xxl -o runs/xl/imported
    """

    weights: Path
    """Folder of hpcai-tech/OpenSora-STDiT-v3 (config.json and .safetensors), or its .safetensors file."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """Model directory to write."""
    config: Path | None = None
    """Their config.json, where it is not beside the weights."""
    size: str = "xl"
    """Size whose adaptors and audio tower are made; layers and width follow the weights."""
    adaptor: str = "aligned"
    """figure, time, residual, aligned or rotary."""
    video_autoencoder: str = "hpcai-tech/OpenSora-VAE-v1.2"
    """Folder or hub repository of the autoencoder that the weights speak."""
    audio_autoencoder: str = "stabilityai/stable-audio-open-1.0"
    """Folder or hub repository of an AutoencoderOobleck."""
    audio_subfolder: str = "vae"
    """Folder of it inside the repository."""
    audio_channels: int = 64
    """Channels of its latents."""
    sample_rate: int = 44100
    """Its samples per second."""
    text_encoder: str = "DeepFloyd/t5-v1_1-xxl"
    """Folder or hub repository of T5 v1.1 XXL."""
    seed: int = 0
    """Start of the adaptors and the audio tower."""


def main(argv: list[str]) -> int:
    config = load(ImportConfig, None, argv, "syncflow import")
    check_folder(config.output)
    if config.output.exists() and any(config.output.iterdir()):
        raise UserError(f"{config.output} is not empty; choose another -o, or remove it")
    import torch

    from syncflow.models.autoencoders import AutoencoderSpec
    from syncflow.models.checkpoints import ModelCard, save_model
    from syncflow.models.d_dit import DualDiT
    from syncflow.models.flow import FlowConfig
    from syncflow.models.sizes import model_config
    from syncflow.models.text import TextEncoderSpec
    from syncflow.models.video_tower import VideoTower

    tower = VideoTower.from_open_sora(config.weights, config.config)
    chosen = model_config(config.size, config.adaptor)
    audio = chosen.audio.model_copy(update={"in_channels": config.audio_channels})
    model_cfg = chosen.model_copy(update={"video": tower.config, "audio": audio})
    torch.manual_seed(config.seed)
    model = DualDiT(model_cfg)
    model.video = tower
    card = ModelCard(
        model=model_cfg,
        video_autoencoder=AutoencoderSpec(kind="opensora", path=_place(config.video_autoencoder)),
        audio_autoencoder=AutoencoderSpec(
            kind="oobleck", path=_place(config.audio_autoencoder), subfolder=config.audio_subfolder
        ),
        text_encoder=TextEncoderSpec(
            kind="t5", path=_place(config.text_encoder), max_tokens=tower.config.model_max_length
        ),
        fps=Fraction(16),
        sample_rate=config.sample_rate,
        width=256,
        height=256,
        num_frames=32,
        # As Open-Sora trains and samples: from 512 x 512 and one latent frame, of which 17 frames make 5.
        flow=FlowConfig(shift=True, base_pixels=512 * 512, base_frames=17 / 5),
        guidance=5.0,
    )
    save_model(config.output, model.state_dict(), card)
    for name, part in model.parts().items():
        new = "from Open-Sora" if name == "video" else "new"
        print(f"{name:<9}{sum(p.numel() for p in part.parameters()) / 1e6:9.1f} M parameters, {new}")
    print(f"written to {config.output}; start from it with init_from: {config.output}")
    return 0


def _place(path: str) -> str:
    """A folder on this machine by its full path (the card may lie elsewhere); anything else as it is."""
    return str(Path(path).resolve()) if Path(path).is_dir() else path
