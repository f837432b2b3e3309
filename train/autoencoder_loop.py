"""One autoencoder's training: a pure function of its task's seed, resumed exactly after any interruption."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor
from tqdm import tqdm

from syncflow.config import is_terminal
from syncflow.errors import UserError
from syncflow.tracker import Tracker

REPORT_EVERY_S = 5.0


@dataclass
class Task:
    """What is trained and by what: the loss of a step depends on the step's generator alone."""

    name: str
    net: torch.nn.Module
    loss: Callable[[torch.Generator], dict[str, Tensor]]
    """Named terms, already weighted; their sum is minimised."""
    validate: Callable[[], dict[str, float]]
    samples: Callable[[Path], list[Path]]
    """Write reconstructions into a folder."""
    steps: int
    lr: float
    seed: int


def fit(task: Task, folder: Path, tracker: Tracker, *, checkpoint_every: int, validate_every: int) -> dict[str, float]:
    """Train from the last checkpoint in `folder`, or from the start; the last validation's metrics.

    AdamW, 20 steps of warm-up, then a cosine to zero. Random numbers come from (seed, step), so the step is all of the
    random state there is.
    """
    parameters = [p for p in task.net.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=task.lr, betas=(0.9, 0.99), weight_decay=1e-4)
    checkpoint = folder / f"{task.name}.safetensors"
    first = _restore(checkpoint, task.net, optimizer) if checkpoint.exists() else 0
    bar = tqdm(total=task.steps, initial=first, desc=f"{task.name} autoencoder", unit="step", disable=not is_terminal())
    reported_s = time.monotonic()
    metrics: dict[str, float] = {}
    for step in range(first, task.steps):
        for group in optimizer.param_groups:
            group["lr"] = task.lr * _schedule(step, task.steps)
        terms = task.loss(torch.Generator().manual_seed(task.seed * 1_000_003 + step))
        loss = torch.stack(list(terms.values())).sum()
        if not loss.isfinite():
            raise UserError(f"{task.name} autoencoder: the loss of step {step} is {loss.item()}; lower {task.name}.lr")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

        done = step + 1
        values = {f"{task.name}/loss": loss.item()} | {f"{task.name}/{k}": v.item() for k, v in terms.items()}
        bar.update()
        if done % validate_every == 0 or done == task.steps:
            metrics = task.validate()
            values |= {f"{task.name}/{key}": value for key, value in metrics.items()}
            for file in task.samples(folder.parent / "samples" / f"{task.name}-{done:06d}"):
                tracker.artifact(file, f"samples/{task.name}-{done:06d}")
        tracker.log(values, done)
        if not is_terminal() and (time.monotonic() - reported_s > REPORT_EVERY_S or done == task.steps):
            shown = " ".join(f"{key} {value:.3f}" for key, value in ({"loss": loss.item()} | metrics).items())
            tqdm.write(f"{task.name} autoencoder: step {done}/{task.steps}, {shown}")
            reported_s = time.monotonic()
        bar.set_postfix({key: f"{value:.2f}" for key, value in ({"loss": loss.item()} | metrics).items()})
        if done % checkpoint_every == 0 or done == task.steps:
            _save(checkpoint, task.net, optimizer, done)
    bar.close()
    return metrics or task.validate()


def _schedule(step: int, steps: int, warmup: int = 20) -> float:
    return min(1.0, (step + 1) / warmup) * (0.5 + 0.5 * math.cos(math.pi * step / steps))


def _save(path: Path, net: torch.nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Weights, Adam's moments and the step in one file, complete or absent."""
    tensors = {f"net.{name}": value for name, value in net.state_dict().items()}
    for name, parameter in net.named_parameters():
        for key, value in optimizer.state[parameter].items():
            tensors[f"adam.{key}.{name}"] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    contiguous = {name: value.detach().contiguous().cpu() for name, value in tensors.items()}
    safetensors.torch.save_file(contiguous, partial, metadata={"progress": json.dumps({"step": step})})
    partial.replace(path)


def _restore(path: Path, net: torch.nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """The step that `_save` wrote, with the net and optimizer as they were then."""
    try:
        with safe_open(path, "pt") as file:
            step = json.loads(file.metadata()["progress"])["step"]
            tensors: dict[str, Any] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        net.load_state_dict({k.removeprefix("net."): v for k, v in tensors.items() if k.startswith("net.")})
    except (OSError, KeyError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} is no checkpoint of this configuration; remove it to start anew") from error
    for name, parameter in net.named_parameters():
        state = {key: tensors[f"adam.{key}.{name}"] for key in ("step", "exp_avg", "exp_avg_sq")}
        optimizer.state[parameter] = {
            "step": state["step"],
            "exp_avg": state["exp_avg"].to(parameter),
            "exp_avg_sq": state["exp_avg_sq"].to(parameter),
        }
    return step
