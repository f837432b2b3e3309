"""What a stage leaves behind: a model directory with its lineage, and the marker that says it is done.

OUTPUT/model/        model.safetensors, syncflow.json, autoencoders; config.yaml, lineage.json, metrics.json
OUTPUT/config.yaml   the resolved configuration
OUTPUT/done.json     written last: the steps done, and the hash of the model handed on
"""

from __future__ import annotations

import hashlib
import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel
from torch import Tensor

from syncflow import __version__
from syncflow.config import save
from syncflow.errors import UserError
from syncflow.files import write_whole
from syncflow.models.autoencoders import AutoencoderSpec
from syncflow.models.checkpoints import ModelCard, save_model
from syncflow.models.text import TextEncoderSpec
from syncflow.process import git_commit
from syncflow.samples import EncoderIdentity
from syncflow.train.config import StageConfig
from syncflow.train.loader import Source

_NO_SOUND = "none-trained-without-sound"
_COPY_BYTES = 256 * 1024 * 1024


class Lineage(BaseModel):
    """Where a model came from."""

    stage: str
    trained: list[str]
    steps: int
    parent: str
    """Model directory it started from; empty from scratch."""
    parent_sha256: str
    datasets: dict[str, str]
    """Fingerprint by path."""
    clips_seen: int
    git_commit: str
    syncflow: str
    created: str


class Done(BaseModel):
    """`done.json`."""

    steps: int
    sha256: str
    parent_sha256: str


def read_done(output: Path) -> Done | None:
    path = output / "done.json"
    return Done.model_validate_json(path.read_text()) if path.is_file() else None


def find_model(init_from: str) -> Path:
    """The model directory that `init_from` names: itself, or that of a finished stage's output.

    Raises:
        UserError: neither.
    """
    folder = Path(init_from)
    for candidate in (folder / "model", folder):
        if (candidate / "syncflow.json").is_file():
            return candidate.resolve()
    if folder.is_dir() and (folder / "checkpoints").is_dir():
        raise UserError(f"init_from {folder}: this stage is not finished; run it to its end first")
    raise UserError(f"init_from {folder}: no model there; give the output of a finished stage or a model directory")


def write_outputs(
    output: Path,
    config: StageConfig,
    source: Source,
    state: dict[str, Tensor],
    parent: Path | None,
    parent_sha256: str,
    metrics: dict[str, float],
) -> None:
    """Everything, the marker last."""
    folder = output / "model"
    save_model(folder, state, model_card(config, source, folder))
    lineage = Lineage(
        stage=config.name,
        trained=list(config.trains),
        steps=config.steps,
        parent=str(parent or ""),
        parent_sha256=parent_sha256,
        datasets={dataset.path: dataset.card.fingerprint for dataset in source.datasets},
        clips_seen=config.steps * config.batch_size,
        git_commit=git_commit(),
        syncflow=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    write_whole(folder / "lineage.json", lineage.model_dump_json(indent=2) + "\n")
    write_whole(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    save(config, folder / "config.yaml")
    done = Done(steps=config.steps, sha256=file_sha256(folder / "model.safetensors"), parent_sha256=parent_sha256)
    write_whole(output / "done.json", done.model_dump_json() + "\n")


def model_card(config: StageConfig, source: Source, folder: Path) -> ModelCard:
    """Small autoencoders are copied into the model directory, so that it can be moved and needs nothing else."""
    card = source.card
    bucket = max((b for d in source.datasets for b in d.card.buckets), key=lambda b: b.samples)
    text = card.text_encoder
    return ModelCard(
        model=config.model,
        video_autoencoder=_bring(card.video_autoencoder, folder, "video_autoencoder"),
        audio_autoencoder=_bring(card.audio_autoencoder, folder, "audio_autoencoder")
        if card.audio_autoencoder
        else AutoencoderSpec(kind="oobleck", path=_NO_SOUND),
        text_encoder=TextEncoderSpec(
            kind=text.kind,  # type: ignore[arg-type]
            path=text.path,
            max_tokens=config.model.video.model_max_length,
            sha256=text.sha256,
        )
        if text
        else config.data.text_encoder.model_copy(update={"max_tokens": config.model.video.model_max_length}),
        fps=card.fps,
        sample_rate=card.sample_rate,
        width=bucket.width,
        height=bucket.height,
        num_frames=bucket.num_frames,
        video_stats=source.video_stats,
        audio_stats=source.audio_stats,
        flow=config.flow,
    )


def _bring(identity: EncoderIdentity, folder: Path, name: str) -> AutoencoderSpec:
    origin = Path(identity.path)
    path = identity.path
    if origin.is_dir():
        path = str(origin.resolve())
        if sum(p.stat().st_size for p in origin.rglob("*") if p.is_file()) <= _COPY_BYTES:
            shutil.copytree(origin, folder / name, dirs_exist_ok=True)
            path = name
    return AutoencoderSpec(kind=identity.kind, path=path, sha256=identity.sha256)


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()
