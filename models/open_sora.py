"""Reading Open-Sora's public STDiT3 weights: one safetensors file, or a folder as the hub lays it out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from syncflow.config import validate
from syncflow.errors import UserError
from syncflow.models.config import VideoTowerConfig
from syncflow.models.weights import mismatches, read_weights

if TYPE_CHECKING:
    from syncflow.models.video_tower import VideoTower

# Of Open-Sora's configuration these say how to run or train it, not what it is.
_NOT_SHAPE = {
    "input_size", "class_dropout_prob", "drop_path", "enable_flash_attn", "enable_flashattn", "freeze_y_embedder",
    "enable_layernorm_kernel", "enable_sequence_parallelism", "only_train_temporal", "skip_y_embedder", "dtype",
    "architectures", "auto_map", "model_type", "torch_dtype", "transformers_version", "_name_or_path",
}  # fmt: skip


def load_tower(
    cls: type[VideoTower],
    weights: str | Path,
    config: VideoTowerConfig | Mapping[str, Any] | str | Path | None,
    sigma: bool,
) -> VideoTower:
    """See `VideoTower.from_open_sora`."""
    # The public position buffers are computed, not learned, and some exports hold them.
    state = {name: tensor for name, tensor in read_weights(Path(weights)).items() if name != "pos_embed.inv_freq"}
    public = read_config(Path(weights), config)
    keeps_sigma = "final_layer.linear.weight" in state and _has_sigma(state, public)
    if sigma and not keeps_sigma:
        raise UserError(f"{weights} has no sigma half; load it without sigma=True")
    if keeps_sigma and not sigma:
        state = drop_sigma(state, public)
    tower = cls(public.model_copy(update={"pred_sigma": sigma}))
    wrong = mismatches(tower.state_dict(), state)
    if wrong:
        more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
        raise UserError(f"{weights} does not fit its configuration: {'; '.join(wrong[:3])}{more}")
    tower.load_state_dict(state)
    return tower


def read_config(weights: Path, config: VideoTowerConfig | Mapping[str, Any] | str | Path | None) -> VideoTowerConfig:
    """The configuration given, or config.json beside the weights."""
    if isinstance(config, VideoTowerConfig):
        return config
    if config is None:
        config = (weights if weights.is_dir() else weights.parent) / "config.json"
    if not isinstance(config, Mapping):
        path = Path(config)
        if not path.is_file():
            raise UserError(f"{path}: no such file; it should hold the configuration of the Open-Sora weights as JSON")
        try:
            config = json.loads(path.read_text())
        except ValueError as error:
            raise UserError(f"{path} is not JSON: {error}") from error
    if isinstance(config, Mapping) and isinstance(config.get("config"), Mapping):
        config = config["config"]
    assert isinstance(config, Mapping)
    if config.get("skip_y_embedder"):
        raise UserError("these Open-Sora weights were saved without their caption embedder (skip_y_embedder)")
    known = {key: value for key, value in config.items() if key not in _NOT_SHAPE}
    # Open-Sora's own defaults: the sigma half is there and queries are not normalised unless the file says so.
    return validate(VideoTowerConfig, {"pred_sigma": True, "qk_norm": False, **known}, "Open-Sora configuration")


def drop_sigma(state: dict[str, Tensor], config: VideoTowerConfig) -> dict[str, Tensor]:
    """The output layer without its sigma half: rows are (patch, 2·channels), the first half of channels is kept."""
    state = dict(state)
    for name in ("final_layer.linear.weight", "final_layer.linear.bias"):
        rows = state[name].unflatten(0, (-1, 2 * config.in_channels))
        state[name] = rows[:, : config.in_channels].flatten(0, 1).clone()
    return state


def _has_sigma(state: Mapping[str, Tensor], config: VideoTowerConfig) -> bool:
    pt, ph, pw = config.patch_size
    return state["final_layer.linear.weight"].shape[0] == 2 * config.in_channels * pt * ph * pw
