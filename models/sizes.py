"""The sizes a model comes in, by name: `nano` for a CPU, `base`, and `xl` with the tower of OpenSora-STDiT-v3."""

from __future__ import annotations

import difflib
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from syncflow.clock import causal_grid, ticks_in, uniform_grid
from syncflow.config import Config, load
from syncflow.errors import UserError
from syncflow.models.config import AdaptorConfig, AudioTowerConfig, ModelConfig, VideoTowerConfig

if TYPE_CHECKING:
    from syncflow.models.flops import Lengths

SIZES: dict[str, ModelConfig] = {
    # 64x64 frames through an 8x image autoencoder (4 channels), MiniLM text, 8 audio channels at 40 Hz.
    "nano": ModelConfig(
        video=VideoTowerConfig(
            hidden_size=128,
            depth=4,
            num_heads=4,
            caption_channels=384,
            model_max_length=128,
            input_sq_size=64,
            patch_norm=True,
        ),
        adaptor=AdaptorConfig(cells=(4, 4), group=(4, 4)),
        audio=AudioTowerConfig(in_channels=8, hidden_size=128, num_heads=4),
    ),
    "base": ModelConfig(
        video=VideoTowerConfig(hidden_size=512, depth=16, num_heads=8, input_sq_size=256, patch_norm=True),
        adaptor=AdaptorConfig(cells=(16, 16), group=(4, 4)),
        audio=AudioTowerConfig(in_channels=64, hidden_size=512, num_heads=8),
    ),
    # The public video weights load into this one.
    "xl": ModelConfig(
        video=VideoTowerConfig(hidden_size=1152, depth=28, num_heads=16, input_sq_size=512),
        adaptor=AdaptorConfig(cells=(16, 16), group=(2, 2)),
        audio=AudioTowerConfig(in_channels=64, hidden_size=768, num_heads=12),
    ),
}

ADAPTORS = ("figure", "time", "residual", "aligned", "rotary")
"""From the figure's adaptor to ours, one change at a time; rotary has positions in seconds by rotation instead."""


def model_config(size: str, adaptor: str = "aligned") -> ModelConfig:
    """The configuration of a named size with a named adaptor.

    Raises:
        UserError: no such size or adaptor, with the nearest one.
    """
    for name, known, what in ((size, SIZES, "size"), (adaptor, ADAPTORS, "adaptor")):
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise UserError(
                f"no {what} {name!r}; " + (f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}")
            )
    model = SIZES[size]
    aligned = model.adaptor
    changes: dict[str, dict[str, object]] = {
        "figure": {"residual": False, "group": None, "time": "none"},
        "time": {"residual": False, "group": None},
        "residual": {"group": None},
        "aligned": {},
        "rotary": {"time": "rotary"},
    }
    return model.model_copy(update={"adaptor": aligned.model_copy(update=changes[adaptor])})


class SizesConfig(Config):
    """Parameters and FLOPs of each model size, by resolution, and what the adaptors cost.

    FLOPs are of one evaluation of the model on one clip (2 per multiply-add); a training step costs three times that.
    """

    sizes: tuple[str, ...] = ()
    """Sizes to list (default: all)."""
    adaptors: tuple[str, ...] = ("figure", "aligned")
    """Adaptors to compare."""
    resolutions: tuple[str, ...] = ()
    """WIDTHxHEIGHT, several are allowed (default: by size)."""
    duration: Annotated[float, Field(gt=0, le=3600)] = 2.0
    """Seconds, at 16 frames per second."""
    text_tokens: Annotated[int, Field(ge=1)] = 40
    """Tokens of a caption."""


# Latents of the autoencoders that each size speaks: frames per latent (Open-Sora's chunks of 17 where 4), audio Hz.
_LATENTS = {"nano": (1, Fraction(40)), "base": (4, Fraction(44100, 2048)), "xl": (4, Fraction(44100, 2048))}
_RESOLUTIONS = {"nano": ("64x64", "96x96", "128x128"), "base": ("128x128", "256x256"), "xl": ("256x256", "512x512")}


def main(argv: list[str]) -> int:
    config = load(SizesConfig, None, argv, "syncflow sizes")
    print(table(config))
    return 0


def lengths_of(size: str, width: int, height: int, duration_s: Fraction, text_tokens: int) -> Lengths:
    """Sequence lengths of a clip at 16 fps in the latents that `size` speaks (8 × 8 pixels in space)."""
    from syncflow.models.flops import Lengths

    if width % 8 or height % 8 or not width or not height:
        raise UserError(f"{width}x{height}: sides must be multiples of 8, as the autoencoders need")
    stride, audio_hz = _LATENTS[size]
    num_frames = ticks_in(duration_s, Fraction(16))
    grid = (
        causal_grid(num_frames, stride, Fraction(16), 17) if stride > 1 else uniform_grid(num_frames, 1, Fraction(16))
    )
    return Lengths(len(grid), height // 8, width // 8, ticks_in(duration_s, audio_hz), text_tokens)


def table(config: SizesConfig) -> str:
    """One row per size, adaptor and resolution."""
    import torch

    from syncflow.models.d_dit import DualDiT
    from syncflow.models.flops import forward_cost
    from syncflow.models.prompts import parse_size

    titles = ["size", "adaptor", "clip", "video M", "adapt M", "audio M"]
    titles += ["v tokens", "a tokens", "GFLOPs", "video", "adapt", "audio"]
    rows, duration_s = [titles], Fraction(str(config.duration))
    for size in config.sizes or tuple(SIZES):
        for adaptor in config.adaptors:
            model_cfg = model_config(size, adaptor)
            with torch.device("meta"):
                parts = DualDiT(model_cfg).parts().values()
            millions = [f"{sum(p.numel() for p in part.parameters()) / 1e6:.1f}" for part in parts]
            for resolution in config.resolutions or _RESOLUTIONS[size]:
                lengths = lengths_of(size, *parse_size(resolution), duration_s, config.text_tokens)
                cost = forward_cost(model_cfg, lengths)
                shares = [f"{part / cost.total:.0%}" for part in (cost.video, cost.adaptors, cost.audio)]
                tokens = [f"{n:,}" for n in (cost.video_tokens, cost.adaptor_tokens)]
                rows.append([size, adaptor, resolution, *millions, *tokens, f"{cost.total / 1e9:,.1f}", *shares])
    widths = [max(len(row[i]) for row in rows) for i in range(len(titles))]
    lines = []
    for row in rows:
        cells = zip(row, widths, strict=True)
        lines.append("  ".join(cell.ljust(w) if i < 3 else cell.rjust(w) for i, (cell, w) in enumerate(cells)))
    return "\n".join(lines)
