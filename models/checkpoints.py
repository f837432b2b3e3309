"""A model directory: `model.safetensors` and `syncflow.json`, which says all that is needed to use it. No pickle."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import safetensors.torch
import torch
from pydantic import BaseModel
from torch import Tensor

from syncflow.config import Config, validate
from syncflow.errors import UserError
from syncflow.models.autoencoders import AutoencoderSpec
from syncflow.models.config import ModelConfig
from syncflow.models.d_dit import DualDiT
from syncflow.models.flow import FlowConfig
from syncflow.models.text import TextEncoderSpec
from syncflow.models.weights import mismatches, read_weights
from syncflow.samples import ChannelStats

WEIGHTS, CARD = "model.safetensors", "syncflow.json"


class ModelCard(Config):
    """`syncflow.json`: the network, the encoders whose latents it speaks, and what it was trained to make.

    Paths are absolute or relative to the model directory.
    """

    model: ModelConfig
    """The network."""
    video_autoencoder: AutoencoderSpec
    """Frames <-> video latents."""
    audio_autoencoder: AutoencoderSpec
    """Waveform <-> audio latents."""
    text_encoder: TextEncoderSpec = TextEncoderSpec()
    """Caption -> token states."""
    fps: Fraction = Fraction(16)
    """Frames per second it was trained at."""
    sample_rate: int = 16000
    """Audio samples per second."""
    width: int = 64
    """Pixels."""
    height: int = 64
    """Pixels."""
    num_frames: int = 32
    """Frames of a clip."""
    video_stats: ChannelStats | None = None
    """Latents are (z - mean) / std per channel; None: as they are."""
    audio_stats: ChannelStats | None = None
    """As for video."""
    flow: FlowConfig = FlowConfig()
    """At which t it was trained; sampling spends its steps there too, where `flow.shift` is on."""
    guidance: float = 1.5
    """Classifier-free guidance that suits it: what `generate` uses unless told."""


def save_model(folder: Path, state: Mapping[str, Tensor], card: ModelCard) -> None:
    """Write a model directory; one that a reader sees is whole, also after a crash.

    Other files in an existing folder (lineage, metrics) are kept.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        tensors = {name: tensor.detach().contiguous() for name, tensor in state.items()}
        safetensors.torch.save_file(tensors, staging / WEIGHTS, metadata={"format": "pt"})
        (staging / CARD).write_text(json.dumps(card.model_dump(mode="json"), indent=2) + "\n")
        # Temporary folders and safetensors are for their owner alone; a model is as readable as any other file.
        mode = (staging / CARD).stat().st_mode & 0o777
        (staging / WEIGHTS).chmod(mode)
        staging.chmod(mode | mode >> 2 & 0o111)
        _sync(staging / WEIGHTS)
        if folder.is_dir():
            # The card goes last: with the old card and new weights a reader is told of a mismatch, not misled.
            for name in (WEIGHTS, CARD):
                os.replace(staging / name, folder / name)
        else:
            os.rename(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def load_card(folder: Path | str) -> ModelCard:
    """
    Raises:
        UserError: not a model directory, or a card that cannot be read.
    """
    folder = Path(folder)
    path = folder / CARD
    if not folder.is_dir():
        raise UserError(f"{folder}: no such model directory; `syncflow train` writes one, at OUTPUT/model")
    if not path.is_file():
        inside = folder / "model" / CARD
        hint = f"; did you mean {inside.parent}?" if inside.is_file() else ""
        raise UserError(f"{folder} is not a model directory: it has no {CARD}{hint}")
    try:
        values = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold a JSON object")
    return validate(ModelCard, values, str(path))


def load_weights(folder: Path | str) -> dict[str, Tensor]:
    """The tensors of a model directory, on the CPU.

    Raises:
        UserError: missing or damaged, or with a NaN among them.
    """
    path = Path(folder) / WEIGHTS
    if not path.is_file():
        raise UserError(f"{folder} has no {WEIGHTS}; the training that should have written it did not finish")
    state = read_weights(path)
    for name, tensor in state.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(f"{path}: {name} holds NaN or infinity; training diverged, use an earlier checkpoint")
    return state


def load_model(folder: Path | str, expected: ModelConfig | None = None) -> tuple[DualDiT, ModelCard]:
    """The model of a directory and its card.

    Args:
        expected: the configuration it must have, where the caller has one of its own.
    Raises:
        UserError: it cannot be read, or its configuration differs (each difference is named).
    """
    card = load_card(folder)
    if expected is not None:
        check_same(card.model, expected, str(folder))
    state = load_weights(folder)
    with torch.device("meta"):
        model = DualDiT(card.model)
    problems = mismatches(model.state_dict(), state)
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise UserError(f"{folder}: {WEIGHTS} does not fit {CARD}: {'; '.join(problems[:3])}{more}")
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)
    return model, card


def check_same(found: ModelConfig, expected: ModelConfig, where: str) -> None:
    """
    Raises:
        UserError: the configurations differ; says which field, and both values.
    """
    differences = config_differences(found, expected)
    if differences:
        raise UserError(f"{where} was made by another configuration: " + "; ".join(differences))


def config_differences(found: BaseModel, expected: BaseModel) -> list[str]:
    """Fields whose values differ, as `video.depth is 4 there, 8 here`."""

    def flat(value: object, prefix: str) -> dict[str, object]:
        if isinstance(value, dict):
            return {k: v for key, inner in value.items() for k, v in flat(inner, f"{prefix}.{key}").items()}
        return {prefix.lstrip("."): value}

    theirs, ours = flat(found.model_dump(mode="json"), ""), flat(expected.model_dump(mode="json"), "")
    return [f"{key} is {theirs.get(key)} there, {ours.get(key)} here"
            for key in sorted(theirs.keys() | ours.keys()) if theirs.get(key) != ours.get(key)]  # fmt: skip


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
