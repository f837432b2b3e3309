"""Reading Open-Sora's public STDiT3 weights: one safetensors file, or a folder as the hub lays it out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
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
    "architectures", "auto_map", "model_type", "torch_dtype", "transformers_version",
}  # fmt: skip


def load_tower(
    cls: type[VideoTower],
    weights: str | Path,
    config: VideoTowerConfig | Mapping[str, Any] | str | Path | None,
    sigma: bool,
) -> VideoTower:
    """See `VideoTower.from_open_sora`."""
    state = _plain_names(read_weights(Path(weights)))
    public = read_config(Path(weights), config, qk_norm=any(name.endswith(".attn.q_norm.weight") for name in state))
    keeps_sigma = "final_layer.linear.weight" in state and _has_sigma(state, public)
    if sigma and not keeps_sigma:
        raise UserError(f"{weights} has no sigma half; load it without sigma=True")
    if keeps_sigma and not sigma:
        state = drop_sigma(state, public)
    tower = cls(public.model_copy(update={"pred_sigma": sigma}))
    freqs, exact = state.get("rope.freqs"), tower.rope.freqs
    if freqs is None or (freqs.dtype != exact.dtype and torch.allclose(freqs.float(), exact, rtol=0.01)):
        # Constants that some exports leave out or round; rounded ones would turn late frames to wrong places.
        state["rope.freqs"] = exact
    wrong = mismatches(tower.state_dict(), state)
    if wrong:
        more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
        raise UserError(f"{weights} does not fit its configuration: {'; '.join(wrong[:3])}{more}")
    tower.load_state_dict(state)
    return tower


def read_config(
    weights: Path, config: VideoTowerConfig | Mapping[str, Any] | str | Path | None, qk_norm: bool
) -> VideoTowerConfig:
    """The configuration given, or config.json beside the weights; `qk_norm` where it does not say."""
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
    if not isinstance(config, Mapping):
        raise UserError(f"the Open-Sora configuration must be a JSON object, found {type(config).__name__}")
    if config.get("skip_y_embedder"):
        raise UserError("these Open-Sora weights were saved without their caption embedder (skip_y_embedder)")
    known = {key: value for key, value in config.items() if key not in _NOT_SHAPE and not key.startswith("_")}
    if known.keys() - VideoTowerConfig.model_fields.keys():
        # A configuration saved in full has what every model of the hub has, from label names to decoding options.
        from transformers import PretrainedConfig

        of_any_model = PretrainedConfig().to_dict().keys()
        known = {key: value for key, value in known.items() if key not in of_any_model}
    return validate(VideoTowerConfig, {"pred_sigma": True, "qk_norm": qk_norm, **known}, "Open-Sora configuration")


def _plain_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefix that wrappers put before every name, and without position buffers, which are computed."""
    for prefix in ("module.", "model."):
        if state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return {name: tensor for name, tensor in state.items() if name != "pos_embed.inv_freq"}


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
