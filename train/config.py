"""What a training stage is: one frozen object that says what it trains, from what, on what, and how long."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveInt, model_validator

from syncflow.config import Config, load
from syncflow.errors import UserError
from syncflow.models.config import ModelConfig
from syncflow.models.flow import FlowConfig
from syncflow.models.sizes import model_config
from syncflow.models.text import TextEncoderSpec
from syncflow.tracker import TrackingConfig

Part = Literal["video", "adaptors", "audio"]
PARTS: tuple[Part, ...] = ("video", "adaptors", "audio")


class DatasetConfig(Config):
    """One data set and its share of the training steps."""

    path: str
    """As data.path."""
    weight: float = Field(default=1.0, gt=0)
    """Share of the steps that draw from this data set, relative to the others."""


class DataConfig(Config):
    """What is trained on, and how it is read."""

    path: str = ""
    """The data set: output folder of `syncflow preprocess`, a local path or an fsspec URL such as s3://bucket/set."""
    datasets: tuple[DatasetConfig, ...] = ()
    """Several data sets instead, mixed by weight."""
    workers: int = Field(default=1, ge=0)
    """Loader processes per rank; 0 reads in the training process."""
    prefetch: PositiveInt = 4
    """Batches each worker keeps ready."""
    shuffle_window: PositiveInt = 1024
    """Clips within which a lane's order is shuffled, after the shards were."""
    caption_dropout: float = Field(default=0.1, ge=0, le=1)
    """Share of clips whose caption is replaced by the null caption, so that guidance works."""
    max_tokens: PositiveInt = 300
    """Longer captions are cut."""
    text_encoder: TextEncoderSpec = TextEncoderSpec()
    """Embeds the captions of data sets that were preprocessed without (`text: online`)."""
    held_out: int = Field(default=0, ge=0)
    """So many clips, the last of the largest bucket and at most a quarter of it, are never trained on: validation
    looks at them."""
    cache_dir: str = ""
    """Where shards of remote data sets are kept; empty reads every clip by range request."""
    cache_gb: float = Field(default=50.0, gt=0)
    """Bound of that cache; the shards used longest ago go first."""


class OptimizerConfig(Config):
    """AdamW."""

    lr: float = Field(default=1e-4, gt=0)
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Decay of the two moments."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the root of the second moment."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Of matrices; vectors (biases, norms) are not decayed."""
    clip: float = Field(default=1.0, ge=0)
    """Largest global gradient norm; 0 does not clip."""


class ScheduleConfig(Config):
    """Learning rate over the stage: a linear warm-up, then constant, or down to `final`."""

    kind: Literal["constant", "cosine", "linear"] = "constant"
    """Shape after the warm-up."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps from 0 to the peak."""
    final: float = Field(default=0.1, ge=0, le=1)
    """Last rate as a share of the peak (cosine, linear)."""


class EngineConfig(Config):
    """How DeepSpeed runs it."""

    zero_stage: Literal[0, 1, 2, 3] = 3
    """0 replicates, 1 shards optimizer states, 2 also gradients, 3 also parameters."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 keeps fp32 master weights."""
    persistence_threshold: int = Field(default=100_000, ge=0)
    """ZeRO-3 keeps parameters smaller than this whole on every rank."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: a third more compute for much less memory."""
    offload_optimizer: bool = False
    """Keep optimizer states and masters in CPU memory (ZeRO 1-3)."""
    zero_init: bool = False
    """Partition parameters while the model is built (ZeRO-3): no rank ever holds it whole."""
    compile: bool = False
    """torch.compile the model: slow to start, faster steps."""
    threads: PositiveInt = 1
    """CPU threads per rank where there is no GPU."""


class CheckpointConfig(Config):
    """When the state is saved, for resuming."""

    every: PositiveInt = 1000
    """Steps between checkpoints."""
    keep: PositiveInt = 2
    """Newest checkpoints kept."""


class ValidationConfig(Config):
    """Looks at the EMA weights while training goes on, on clips that are not trained on (`data.held_out`)."""

    every: int = Field(default=0, ge=0)
    """Steps between validations; 0 never."""
    times: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
    """The fixed t at which the loss of the held-out clips is measured, on fixed noise."""
    samples: int = Field(default=0, ge=0)
    """Held-out clips that are generated anew, measured for sync and kept as artifacts."""
    sample_steps: PositiveInt = 20
    """Solver steps of a sample."""
    guidance: float = Field(default=1.0, ge=0)
    """Guidance of a sample."""


class GuardConfig(Config):
    """What to do when a step goes wrong."""

    spike: float = Field(default=10.0, gt=1)
    """A gradient norm above this many medians of the last 64 steps is skipped."""
    max_skipped: PositiveInt = 10
    """Stop after this many skipped steps in a row."""
    stall_s: float = Field(default=600.0, gt=0)
    """Stop, naming the rank, when no step ends for this long."""


class StageConfig(Config):
    """A training stage. YAML files under configs/ hold one each; every field is also a flag."""

    job: Literal["stage"] = "stage"
    """Kind of job (`autoencoders` is the other)."""
    name: str = ""
    """Name of the stage; empty takes the file's."""
    size: str = "nano"
    """Model size: nano, base or xl (`syncflow sizes`)."""
    adaptor: str = "aligned"
    """How the audio tower is shown the video: aligned, or an ablation (figure, time, residual, rotary)."""
    model: ModelConfig
    """The network; what is not given is that of `size` and `adaptor`."""
    trains: list[Part]
    """Parts that learn: video, adaptors, audio."""
    freezes: list[Part]
    """Parts that stay as they are; run without gradients, or not at all where no loss needs them."""
    init_from: str = ""
    """Stage output or model directory to start from; `previous`: the stage before in a folder; empty: from scratch."""
    output: str = ""
    """Folder for the model, checkpoints and metrics. Given to a folder of stages, each has a folder in it."""
    data: DataConfig = DataConfig()
    flow: FlowConfig = FlowConfig()
    steps: PositiveInt = 1000
    """Optimizer steps."""
    batch_size: PositiveInt = 8
    """Clips per optimizer step over all ranks; the number of ranks may change, this is what training depends on."""
    micro_batch: PositiveInt = 4
    """Most clips a rank holds at once; the rest of its share is accumulated."""
    seed: int = 0
    """Of initial weights, order, noise and everything else drawn."""
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    ema_decay: float = Field(default=0.999, ge=0, lt=1)
    """Of the averaged weights that the stage hands on; approached as (1 + n) / (10 + n); 0 hands on the last ones."""
    ranks: PositiveInt = 1
    """Processes per node (one per GPU)."""
    nodes: PositiveInt = 1
    """Machines; start the same command on each with the same `rendezvous`."""
    rendezvous: str = ""
    """host:port of the first machine, for nodes > 1."""
    engine: EngineConfig = EngineConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    validation: ValidationConfig = ValidationConfig()
    guard: GuardConfig = GuardConfig()
    tracking: TrackingConfig = TrackingConfig()
    log_every: PositiveInt = 10
    """Steps between plain log lines (on a terminal one line is kept up to date)."""
    dry_run: bool = False
    """Print parameters, memory, tokens, FLOPs and GPU-hours, and stop."""
    hardware: Literal["cpu", "a100-40", "a100", "h100", "h200", "b200"] = "h100"
    """What a dry run reckons with."""
    memory_gib: float = Field(default=0, ge=0)
    """Memory of a rank, beyond which a dry run refuses; 0 takes that of `hardware` (cpu: this machine's, shared)."""
    mfu: float = Field(default=0.35, gt=0, le=1)
    """Share of the peak FLOP/s a dry run reckons with."""

    @model_validator(mode="before")
    @classmethod
    def _complete_model(cls, values: Any) -> Any:
        if not isinstance(values, dict) or isinstance(values.get("model"), ModelConfig):
            return values
        try:
            named = model_config(values.get("size", "nano"), values.get("adaptor", "aligned"))
        except UserError as error:
            raise ValueError(str(error)) from error
        return {**values, "model": _merge(named.model_dump(), values.get("model") or {})}

    @model_validator(mode="after")
    def _fits_together(self) -> StageConfig:
        if sorted([*self.trains, *self.freezes]) != sorted(PARTS):
            raise ValueError(
                f"trains {self.trains} and freezes {self.freezes} must name each of {', '.join(PARTS)} exactly once"
            )
        if not self.trains:
            raise ValueError("trains is empty: name at least one part")
        if (
            "video" in self.trains
            and not self.flow.video_weight
            and not (self.flow.audio_weight and "adaptors" in self.trains)
        ):
            raise ValueError("flow.video_weight is 0 but trains names video: give it a weight or freeze video")
        if {"adaptors", "audio"} & set(self.trains) and not self.flow.audio_weight:
            raise ValueError(
                "flow.audio_weight is 0 but trains names adaptors or audio: give it a weight or freeze them"
            )
        if self.flow.video_weight and "video" not in self.trains:
            raise ValueError("flow.video_weight is not 0 but freezes names video: set flow.video_weight: 0")
        if self.flow.audio_weight and not {"adaptors", "audio"} & set(self.trains):
            raise ValueError("flow.audio_weight is not 0 but adaptors and audio are frozen: set flow.audio_weight: 0")
        share, rest = divmod(self.batch_size, self.world_size)
        if rest:
            raise ValueError(f"batch_size {self.batch_size} must be a multiple of ranks × nodes = {self.world_size}")
        if share > self.micro_batch and share % self.micro_batch:
            raise ValueError(
                f"micro_batch {self.micro_batch} must divide a rank's share of batch_size, which is {share}"
            )
        if self.engine.precision == "bf16" and self.engine.zero_stage == 0:
            raise ValueError("engine.precision bf16 needs master weights: set engine.zero_stage to 1, 2 or 3")
        if self.engine.zero_init and self.engine.zero_stage != 3:
            raise ValueError("engine.zero_init needs engine.zero_stage: 3")
        if self.engine.offload_optimizer and self.engine.zero_stage == 0:
            raise ValueError("engine.offload_optimizer needs engine.zero_stage 1, 2 or 3")
        if self.nodes > 1 and not self.rendezvous:
            raise ValueError("nodes is above 1: give rendezvous as host:port of the first machine")
        if self.data.path and self.data.datasets:
            raise ValueError("data.path and data.datasets are both given: keep one")
        if not self.validation.times or not all(0 <= t <= 1 for t in self.validation.times):
            raise ValueError(f"validation.times must lie in [0, 1], got {self.validation.times}")
        if self.validation.every and self.data.held_out < max(1, self.validation.samples):
            raise ValueError(
                f"validation needs clips that are not trained on: set data.held_out to "
                f"{max(1, self.validation.samples)} or more, or validation.every: 0"
            )
        return self

    @property
    def world_size(self) -> int:
        return self.ranks * self.nodes

    def micro(self, world_size: int) -> tuple[int, int]:
        """(clips per micro-batch, micro-batches per step) of a rank among `world_size`."""
        share = self.batch_size // world_size
        micro = min(self.micro_batch, share)
        return micro, share // micro

    @property
    def datasets(self) -> tuple[DatasetConfig, ...]:
        return (DatasetConfig(path=self.data.path),) if self.data.path else self.data.datasets


def load_stage(path: Path, argv: list[str]) -> StageConfig:
    """The stage in a YAML file, with flags on top, its name filled in.

    Raises:
        UserError: an unknown field, or fields that do not fit together (named).
    """
    config = load(StageConfig, path, argv, prog=f"syncflow train {path}")
    return config if config.name else config.model_copy(update={"name": path.stem})


def learning_rate(config: StageConfig, step: int) -> float:
    """The rate of step `step`, counted from 0."""
    peak, schedule = config.optimizer.lr, config.schedule
    if step < schedule.warmup_steps:
        return peak * (step + 1) / schedule.warmup_steps
    done = (step - schedule.warmup_steps) / max(1, config.steps - schedule.warmup_steps)
    if schedule.kind == "cosine":
        return peak * (schedule.final + (1 - schedule.final) * 0.5 * (1 + math.cos(math.pi * done)))
    if schedule.kind == "linear":
        return peak * (schedule.final + (1 - schedule.final) * (1 - done))
    return peak


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        merged[key] = _merge(base[key], value) if isinstance(value, dict) and isinstance(base.get(key), dict) else value
    return merged
