"""The only door to DeepSpeed: ranks, ZeRO 0 to 3 on GPUs (NCCL) or CPUs (gloo), one optimizer step.

What is particular to DeepSpeed stays in this file: how to import it without compiling anything, its JSON, and where
ZeRO keeps each rank's *piece* of every trained parameter (fp32 master, Adam moments, gradient). EMA, checkpoints and
exports are written against pieces and work the same for every ZeRO stage.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import socket
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from syncflow.models.d_dit import DualDiT
from syncflow.process import keep_freed_memory
from syncflow.train.collate import MicroBatch
from syncflow.train.config import PARTS, StageConfig
from syncflow.train.objective import Objective

ALONE = "SYNCFLOW_ALONE"  # set where the rank's environment is our own making, not a launcher's
MOMENTS = ("exp_avg", "exp_avg_sq")
_PLACE = {str(part): i for i, part in enumerate(PARTS)}
_GATHER_NUMEL = 32 * 1024 * 1024


@dataclass(frozen=True)
class Ranks:
    """This process among all that train together."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def first(self) -> bool:
        return self.rank == 0


@dataclass(frozen=True)
class Piece:
    """This rank's part of one trained parameter: elements [start, start + len(master)) of it, flattened."""

    name: str
    shape: torch.Size
    start: int
    master: Tensor  # (n,) fp32, a view into ZeRO's own memory
    moments: tuple[Tensor, ...]  # views of Adam's state
    owner: bool
    """Whether this rank writes it; replicas (ZeRO 0) do not."""

    @property
    def part(self) -> str:
        return self.name.split(".", 1)[0]


def start_ranks(config: StageConfig) -> Ranks:
    """Join the other ranks (torchrun's environment), or be the only one."""
    deepspeed = _import_deepspeed()
    cuda = torch.cuda.is_available()
    if not dist.is_initialized() and ("RANK" not in os.environ or ALONE in os.environ):
        # Under plain python DeepSpeed would look for MPI.
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        os.environ[ALONE] = "1"
        atexit.register(_leave)
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    local = int(os.environ["LOCAL_RANK"])
    if cuda:
        torch.cuda.set_device(local)
    else:
        torch.set_num_threads(config.engine.threads)
        keep_freed_memory()
    if not dist.is_initialized():
        backend = deepspeed.accelerator.get_accelerator().communication_backend_name()
        # The watchdog reports a stall before the collective's own timeout kills without a name.
        timeout = timedelta(seconds=2 * config.guard.stall_s + 60)
        deepspeed.init_distributed(dist_backend=backend if cuda else "gloo", timeout=timeout, verbose=False)
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    return Ranks(dist.get_rank(), dist.get_world_size(), device)


def stop_ranks() -> None:
    # A lone process may train again, and DeepSpeed cannot join twice.
    if dist.is_initialized() and ALONE not in os.environ:
        dist.destroy_process_group()


def _leave() -> None:
    """Threads of a process group that is there at the very end can abort the process, and hide its exit code."""
    if dist.is_initialized():
        dist.destroy_process_group()


def building(config: StageConfig) -> Any:
    """Context to build the model in: with `zero_init` its parameters are partitioned as they are made."""
    if not config.engine.zero_init:
        return contextlib.nullcontext()
    return _import_deepspeed().zero.Init(config_dict_or_path=deepspeed_json(config, dist.get_world_size()))


def load_weights(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Copy a whole state into a model that is not yet, or already (`zero_init`), partitioned."""
    deepspeed = _import_deepspeed()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if hasattr(tensor, "ds_id"):
            with deepspeed.zero.GatheredParameters([tensor], modifier_rank=0), torch.no_grad():
                if dist.get_rank() == 0:
                    tensor.copy_(state[name])
        else:
            tensor.detach().copy_(state[name])


class Engine:
    """A model under ZeRO with its AdamW: `backward` per micro-batch, then one `update`."""

    def __init__(self, model: DualDiT, config: StageConfig, ranks: Ranks) -> None:
        deepspeed = _import_deepspeed()
        self.config, self.ranks = config, ranks
        for name, part in model.parts().items():
            part.requires_grad_(name in config.trains)
        model.checkpoint_activations(config.engine.activation_checkpointing)
        # Any: ZeRO hangs its own attributes on parameters.
        self.trained: dict[str, Any] = {name: p for name, p in model.named_parameters() if p.requires_grad}
        optimizer = torch.optim.AdamW(
            _decay_groups(self.trained, config.optimizer.weight_decay),
            lr=config.optimizer.lr,
            betas=config.optimizer.betas,
            eps=config.optimizer.eps,
        )
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        settings = deepspeed_json(config, ranks.world_size)
        # DeepSpeed sets aside a buffer of so many gradients, by default of 2 GB, however small the model is.
        elements = sum(_shape(p).numel() for p in self.trained.values())
        settings["zero_optimization"]["reduce_bucket_size"] = min(elements, 500_000_000)
        self.engine, *_ = deepspeed.initialize(model=Objective(model, config), optimizer=optimizer, config=settings)
        for name, buffer in buffers.items():
            # With bf16 DeepSpeed rounds buffers too, and with them the frequencies of positions.
            owner, _, key = name.rpartition(".")
            setattr(model.get_submodule(owner), key, buffer.to(ranks.device))
        if config.engine.compile:
            self.engine.compile()
        self.stage = config.engine.zero_stage
        self.pieces = list(self._find_pieces())
        self._pending: tuple[Tensor, ...] = ()

    def backward(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """Forward and backward of a micro-batch; returns video and audio losses (B,).

        Every micro-batch but the last of a step must be followed by `accumulate`, the last by `update`.
        """
        loss, video, audio = self.engine(batch.to(self.ranks.device).draw())
        self.engine.backward(loss)
        return video, audio

    def accumulate(self) -> None:
        """DeepSpeed counts micro-batches by its own step."""
        self.engine.step()

    def update(self, lr: float, skip: bool) -> None:
        """Clip and apply the accumulated gradients, or drop them and leave weights and moments as they were."""
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        if skip:
            self._spoil_gradients()
        self.engine.step()

    def gradient_squares(self) -> Tensor:
        """(len(PARTS),) float32: this rank's share of the squared gradient norm of each part."""
        squares = torch.zeros(len(PARTS), device=self.ranks.device)
        for name, gradient in self._local_gradients():
            squares[_PLACE[name.split(".", 1)[0]]] += gradient.detach().float().square().sum().to(squares.device)
        return squares

    def gather(self, values: Sequence[Tensor]) -> dict[str, Tensor]:
        """Whole CPU tensors by name from one value per piece (for example the EMA), on every rank."""
        mine = {piece.name: (piece, value) for piece, value in zip(self.pieces, values, strict=True) if piece.owner}
        whole: dict[str, Tensor] = {}
        for names in _chunks(self.trained, _GATHER_NUMEL):
            sizes = [numel(self.trained[name]) for name in names]
            flat = torch.zeros(sum(sizes), device=self.ranks.device)
            offset = 0
            for name, size in zip(names, sizes, strict=True):
                if name in mine:
                    piece, value = mine[name]
                    flat[offset + piece.start : offset + piece.start + value.numel()] = value
                offset += size
            dist.all_reduce(flat)  # each element comes from one rank; the others add zeros
            for name, tensor in zip(names, flat.cpu().split(sizes), strict=True):
                whole[name] = tensor.view(_shape(self.trained[name])).clone()
        return whole

    @property
    def adam_step(self) -> int:
        """How many updates AdamW has applied (for its bias correction)."""
        return max((int(state["step"]) for state in self._optimizer.state.values() if "step" in state), default=0)

    @adam_step.setter
    def adam_step(self, value: int) -> None:
        for state in self._optimizer.state.values():
            state["step"].fill_(float(value))

    @property
    def _optimizer(self) -> torch.optim.Optimizer:
        return getattr(self.engine.optimizer, "optimizer", self.engine.optimizer)

    def _find_pieces(self) -> Iterator[Piece]:
        zero, rank = self.engine.optimizer, self.ranks.rank
        for name, p in self.trained.items():
            if self.stage == 3:
                group, offset, length = zero.grad_position[zero.get_param_id(p)]
                flat, start = zero.fp32_partitioned_groups_flat[group], rank * length
                length = max(0, min(length, p.ds_numel - start))  # the last rank's piece is padded
                yield self._piece(name, p.ds_shape, start, flat, offset, length, True)
            elif self.stage in (1, 2):
                mapping = p._hp_mapping
                if mapping is not None:
                    low, high = mapping.lp_fragment_address, mapping.hp_fragment_address
                    flat = zero.single_partition_of_fp32_groups[mapping.param_group_index]
                    yield self._piece(name, p.shape, low.start, flat, high.start, high.numel, True)
            else:
                yield self._piece(name, p.shape, 0, p, 0, p.numel(), rank == 0)

    def _piece(
        self, name: str, shape: torch.Size, start: int, flat: Tensor, offset: int, length: int, owner: bool
    ) -> Piece:
        state = self._optimizer.state[flat]
        if not state:
            # What AdamW would make in its first step; made now so that a checkpoint can be loaded into it.
            state["step"] = torch.tensor(0.0)
            state.update({moment: torch.zeros_like(flat, memory_format=torch.preserve_format) for moment in MOMENTS})
        views = [tensor.detach().view(-1).narrow(0, offset, length) for tensor in (flat, *(state[m] for m in MOMENTS))]
        return Piece(name, shape, start, views[0], tuple(views[1:]), owner)

    def _local_gradients(self) -> Iterator[tuple[str, Tensor]]:
        zero = self.engine.optimizer
        if self.stage == 3 and self.config.engine.offload_optimizer:
            for piece in self.pieces:
                gradient = zero.get_local_fp32_grad_for_param(self.trained[piece.name])
                yield piece.name, gradient[: piece.master.numel()]
        elif self.stage == 3:
            names = {id(p): name for name, p in self.trained.items()}
            for group, params in enumerate(zero.fp16_groups):
                for p, gradient in zip(params, zero.averaged_gradients[group], strict=True):
                    yield names[id(p)], gradient
        elif self.stage in (1, 2):
            for piece in self.pieces:
                p = self.trained[piece.name]
                gradient = p._hp_mapping.get_lp_grad_fragment(p._index_in_param_group)
                yield piece.name, gradient
        elif self.ranks.first:
            for name, p in self.trained.items():
                if p.grad is not None:
                    yield name, p.grad

    def _spoil_gradients(self) -> None:
        """ZeRO drops a step whose gradients are not finite, and leaves everything else alone."""
        if self.stage == 0:
            for p in self.trained.values():
                p.grad = None
            return
        for _, gradient in self._local_gradients():
            gradient.fill_(float("nan"))


def deepspeed_json(config: StageConfig, world_size: int) -> dict[str, Any]:
    """DeepSpeed's configuration, made from ours."""
    micro, accumulation = config.micro(world_size)
    engine = config.engine
    zero: dict[str, Any] = {"stage": engine.zero_stage, "contiguous_gradients": True}
    if engine.zero_stage == 3:
        zero["stage3_param_persistence_threshold"] = engine.persistence_threshold
    if engine.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {
        "train_batch_size": micro * accumulation * world_size,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": config.optimizer.clip,
        "zero_optimization": zero,
        # DeepSpeed's own Adam compiles a kernel for two minutes; torch's fused AdamW is as fast.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": engine.precision == "bf16", "check_grad_overflow": True},
        "steps_per_print": 10**9,
    }


def all_sum(values: Tensor) -> Tensor:
    dist.all_reduce(values)
    return values


def barrier() -> None:
    dist.barrier()


def everyones(value: Any, ranks: Ranks) -> list[Any]:
    """`value` of every rank, on every rank."""
    gathered: list[Any] = [None] * ranks.world_size
    dist.all_gather_object(gathered, value)
    return gathered


def _import_deepspeed() -> Any:
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("DS_DISABLE_LOGS", "1")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.|deepspeed")
    import deepspeed
    import deepspeed.ops

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # Else it compiles a shared-memory all-reduce for a minute at the first start.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def _decay_groups(trained: dict[str, nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    matrices = [p for p in trained.values() if len(_shape(p)) > 1]
    vectors = [p for p in trained.values() if len(_shape(p)) <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _shape(p: Tensor) -> torch.Size:
    return getattr(p, "ds_shape", p.shape)


def numel(p: Tensor) -> int:
    """Elements of a parameter, also of one that ZeRO has partitioned."""
    return _shape(p).numel()


def _chunks(trained: dict[str, nn.Parameter], limit: int) -> Iterable[list[str]]:
    chunk: list[str] = []
    size = 0
    for name, p in trained.items():
        if chunk and size + numel(p) > limit:
            yield chunk
            chunk, size = [], 0
        chunk.append(name)
        size += numel(p)
    if chunk:
        yield chunk
