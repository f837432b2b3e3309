"""What a stage will cost, by arithmetic: parameters, memory, tokens, FLOPs, GPU-hours. Refuses what cannot fit.

Memory of a rank, for P parameters of which T learn, N ranks, w bytes per weight (fp32 4, bf16 2):

    weights     P·w, at ZeRO-3 P·w / N plus what is gathered at once (DeepSpeed keeps up to 1e9 parameters)
    gradients   T·w, from ZeRO-2 T·w / N
    optimizer   12·T (fp32 master and two moments; 8·T where the weights are the masters: ZeRO-0), from ZeRO-1 / N
    average     4·T, divided as the masters are
    activations per clip and token of a block about 34·E·w (16-fold less MLP and attention inputs kept once), all
                blocks kept; with recomputation 1·E·w per block and one block whole
    validation  4·P, when there are no activations: the average, whole on each rank

Source: ZeRO (arXiv 1910.02054), section 3; activations: "Reducing Activation Recomputation" (arXiv 2205.05198),
eq. 2 without the attention matrix, which flash attention does not keep.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from fractions import Fraction

import torch

from syncflow.errors import UserError
from syncflow.models.d_dit import DualDiT
from syncflow.models.flops import Cost, Lengths, forward_cost
from syncflow.models.sizes import lengths_of
from syncflow.train.config import PARTS, StageConfig
from syncflow.train.loader import Source

# GiB of memory (cpu: this machine's), peak dense bf16 TFLOP/s. Source: the makers' data sheets; a CPU rank's is a
# guess for two cores.
HARDWARE = {
    "a100-40": (40, 312.0),
    "a100": (80, 312.0),
    "h100": (80, 989.0),
    "h200": (141, 989.0),
    "b200": (180, 2250.0),
    "cpu": (0, 0.1),
}
_LIVE_PARAMETERS = 10**9
_RESERVED = 0.08
"""Share of a GPU's memory that CUDA, NCCL and fragmentation take."""
_GIB = 2**30


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank."""

    weights: float
    gradients: float
    optimizer: float
    average: float
    activations: float
    validation: float
    """While the activations are not there."""
    offloaded: float
    """In the host's memory."""

    @property
    def total(self) -> float:
        lasting = self.weights + self.gradients + self.optimizer + self.average
        return lasting + max(self.activations, self.validation)


def clip_lengths(config: StageConfig, source: Source | None) -> Lengths:
    """Of the commonest clip of the data, or of a 2 s clip of the size's own resolution."""
    if source is None:
        side = {"nano": 64}.get(config.size, 256)
        lengths = lengths_of(config.size, side, side, Fraction(2), 40)
        return lengths if config.flow.audio_weight else replace(lengths, audio_frames=0)
    bucket = max((b for d in source.datasets for b in d.card.buckets), key=lambda b: b.samples)
    _, frames, rows, cols = bucket.video_shape
    heard = bucket.audio_shape[1] if bucket.audio_shape and config.flow.audio_weight else 0
    return Lengths(frames, rows, cols, heard, 40)


def training_flops(config: StageConfig, cost: Cost) -> float:
    """Of one clip: a part that learns costs its forward pass three times, one that only runs once."""
    total = cost.video * (3.0 if "video" in config.trains else 1.0)
    if config.flow.audio_weight:
        total += cost.adaptors * (3.0 if "adaptors" in config.trains else 1.0)
        total += cost.audio * (3.0 if "audio" in config.trains else 1.0)
    if config.engine.activation_checkpointing:
        total *= 4 / 3
    return total


def peak_flops(ranks: int) -> float:
    """Of this job's GPUs together, for MFU; 0 on a CPU or a GPU that is not in the table."""
    if not torch.cuda.is_available():
        return 0.0
    name = torch.cuda.get_device_name().lower()
    return next((tflops * 1e12 * ranks for key, (_, tflops) in HARDWARE.items() if key in name), 0.0)


def count_parameters(config: StageConfig) -> dict[str, int]:
    with torch.device("meta"):
        parts = DualDiT(config.model).parts()
    return {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}


def memory(config: StageConfig, parameters: dict[str, int], cost: Cost, lengths: Lengths) -> Memory:
    engine, ranks = config.engine, config.world_size
    w = 2 if engine.precision == "bf16" else 4
    every = float(sum(parameters.values()))
    learn = float(sum(n for part, n in parameters.items() if part in config.trains))
    shards = ranks if engine.zero_stage else 1
    optimizer = (12 if engine.zero_stage else 8) * learn / shards
    average = 4 * learn / shards
    weights, gradients = every * w, learn * w
    if engine.zero_stage >= 2:
        gradients /= ranks
    if engine.zero_stage == 3:
        weights = every * w / ranks + min(every, _LIVE_PARAMETERS) * w * (ranks > 1)
    offloaded = 0.0
    if engine.offload_optimizer:
        offloaded, optimizer, average = optimizer + average, 0.0, 0.0
    micro, _ = config.micro(ranks)
    wide, narrow, depth = config.model.video.hidden_size, config.model.audio.hidden_size, config.model.video.depth
    block_video, block_seen = 34.0 * cost.video_tokens * wide * w, 34.0 * cost.adaptor_tokens * wide * w
    block_audio = 34.0 * lengths.audio_frames * narrow * w
    learning = [
        (block_video, 2 * depth) if "video" in config.trains else (block_video / depth, 1),
        (block_seen, depth) if config.flow.audio_weight else (0.0, 0),
        (block_audio, depth) if config.flow.audio_weight else (0.0, 0),
    ]
    if engine.activation_checkpointing:
        activations = sum(size / 34 * blocks for size, blocks in learning) + max(size for size, _ in learning)
    else:
        activations = sum(size * blocks for size, blocks in learning)
    validation = 4 * every if config.validation.every else 0.0
    return Memory(weights, gradients, optimizer, average, micro * activations, validation, offloaded)


def room_gib(config: StageConfig) -> float:
    """What a rank has: as told, of the hardware, or its share of this machine's memory."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GIB
    return config.memory_gib or HARDWARE[config.hardware][0] or machine / config.ranks


def check_fits(config: StageConfig, source: Source | None) -> None:
    """
    Raises:
        UserError: a rank would need more memory than it has; says what to change.
    """
    lengths = clip_lengths(config, source)
    need = memory(config, count_parameters(config), forward_cost(config.model, lengths), lengths)
    room = room_gib(config) * _GIB * (1 - _RESERVED)
    if need.total > room:
        raise UserError(
            f"{config.name} needs {need.total / _GIB:,.1f} GiB per rank, {config.hardware} has about "
            f"{room / _GIB:,.1f} to use: {_advice(config, need)}"
        )


def dry_run(config: StageConfig, source: Source | None) -> str:
    """What it would cost, as a table."""
    lengths = clip_lengths(config, source)
    cost = forward_cost(config.model, lengths)
    parameters = count_parameters(config)
    need = memory(config, parameters, cost, lengths)
    tflops = HARDWARE[config.hardware][1]
    flops = training_flops(config, cost) * config.batch_size * config.steps
    hours = flops / (tflops * 1e12 * config.mfu) / 3600
    tokens = (cost.video_tokens + lengths.audio_frames) * config.batch_size * config.steps
    ranks = config.world_size
    rows = [(f"{config.name}:", "")]
    for part in PARTS:
        state = "trained" if part in config.trains else "frozen"
        rows.append((f"  {part}", f"{parameters[part] / 1e6:,.1f} M parameters, {state}"))
    rows += [
        (
            "  ranks",
            f"{config.world_size} x {config.hardware}, ZeRO-{config.engine.zero_stage} {config.engine.precision}",
        ),
        ("  memory per rank", f"{need.total / _GIB:,.1f} GiB of {room_gib(config):,.0f}"),
    ]
    for name in ("weights", "gradients", "optimizer", "average", "activations", "validation"):
        rows.append((f"    {name}", f"{getattr(need, name) / _GIB:,.2f} GiB"))
    if need.offloaded:
        rows.append(("    in host memory", f"{need.offloaded / _GIB:,.2f} GiB"))
    micro, accumulation = config.micro(ranks)
    rows += [
        (
            "  steps",
            f"{config.steps:,} of {config.batch_size} clips ({ranks} ranks x {accumulation} x {micro})",
        ),
        ("  tokens", f"{tokens:,} ({cost.video_tokens:,} video + {lengths.audio_frames:,} audio per clip)"),
        ("  FLOPs", f"{flops:.3g}"),
        (
            "  device-hours",
            f"{hours:,.2f} at {config.mfu:.0%} of {tflops:g} TFLOP/s ({hours / ranks:,.2f} h)",
        ),
    ]
    return "\n".join(f"{left:<20}{right}" for left, right in rows)


def _advice(config: StageConfig, need: Memory) -> str:
    micro = config.micro(config.world_size)[0]
    if need.activations > need.total / 2:
        if not config.engine.activation_checkpointing:
            return "set engine.activation_checkpointing: true"
        if micro > 1:
            return f"lower micro_batch from {micro}"
    if config.engine.zero_stage < 3:
        return f"raise engine.zero_stage from {config.engine.zero_stage} to 3"
    if not config.engine.offload_optimizer and need.optimizer > need.total / 3:
        return "use more ranks, or set engine.offload_optimizer: true"
    if config.engine.precision == "fp32":
        return "use more ranks, or engine.precision: bf16"
    return "use more ranks, or set validation.every: 0" if need.validation > need.total / 2 else "use more ranks"
