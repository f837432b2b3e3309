"""The sizes a model comes in, by name: `nano` for a CPU, `base`, and `xl` with the tower of OpenSora-STDiT-v3."""

from __future__ import annotations

import difflib

from syncflow.errors import UserError
from syncflow.models.config import AdaptorConfig, AudioTowerConfig, ModelConfig, VideoTowerConfig

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
