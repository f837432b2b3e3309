"""What training says of itself: per-step numbers summed over ranks, to the tracker and to the terminal or log."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from syncflow.config import is_terminal
from syncflow.tracker import Tracker
from syncflow.train.collate import MicroBatch
from syncflow.train.config import PARTS, StageConfig
from syncflow.train.engine import all_sum
from syncflow.train.history import History
from syncflow.train.objective import T_BINS

_LINE_S = 5.0


@dataclass
class Totals:
    """A step, over all ranks."""

    loss: dict[str, float]
    """Mean loss of each modality that has a weight."""
    by_t: dict[str, float]
    """Mean loss per modality and quarter of t, where clips fell into it."""
    norms: dict[str, float]
    """Gradient norm of each part that learns."""
    norm: float
    """Gradient norm of all."""
    waited_s: float
    """Waiting for data, mean over ranks."""
    stop: bool
    """Some rank was asked to stop."""
    unsaved: bool
    """Some rank could not save."""


class Meter:
    """Adds up a step's losses on this rank; `reduce` is the step's one small all-reduce."""

    def __init__(self, config: StageConfig, device: torch.device) -> None:
        self.config = config
        self.modalities = [
            name
            for name, weight in (("video", config.flow.video_weight), ("audio", config.flow.audio_weight))
            if weight
        ]
        self.bins = torch.zeros(3, T_BINS, dtype=torch.float64, device=device)  # video, audio, clips

    def add(self, batch: MicroBatch, video: Tensor, audio: Tensor) -> None:
        place = (batch.t.to(video.device) * T_BINS).long().clamp(0, T_BINS - 1)  # (B,)
        self.bins.index_add_(1, place, torch.stack([video, audio, torch.ones_like(video)]).double())

    def reduce(self, squares: Tensor, waited_s: float, stop: bool, unsaved: bool) -> Totals:
        extra = torch.tensor([waited_s, float(stop), float(unsaved), 1.0], dtype=torch.float64)
        flat = torch.cat([self.bins.flatten(), squares.double(), extra.to(squares.device)])
        values = all_sum(flat).cpu()
        bins = values[: 3 * T_BINS].view(3, T_BINS)
        total_squares = values[3 * T_BINS : 3 * T_BINS + len(PARTS)]
        waited, stopped, failed, ranks = values[-4:].tolist()
        clips = bins[2].sum().item()
        loss = {
            name: bins[i].sum().item() / clips for i, name in enumerate(("video", "audio")) if name in self.modalities
        }
        by_t = {
            f"{name}/t{b}": bins[i, b].item() / bins[2, b].item()
            for i, name in enumerate(("video", "audio"))
            if name in self.modalities
            for b in range(T_BINS)
            if bins[2, b] > 0
        }
        norms = {
            str(part): math.sqrt(s)
            for part, s in zip(PARTS, total_squares.tolist(), strict=True)
            if part in self.config.trains
        }
        norm = math.sqrt(total_squares.sum().item()) if torch.isfinite(total_squares).all() else math.nan
        return Totals(loss, by_t, norms, norm, waited / ranks, stopped > 0, failed > 0)


@dataclass
class Report:
    """Collects steps of the first rank and tells of them every `log_every` steps."""

    config: StageConfig
    tracker: Tracker
    tokens_per_clip: int
    media_s_per_clip: float
    flops_per_clip: float
    peak_flops: float
    """Of all devices together; 0 where it is not known."""
    history: History
    steps: list[Totals] = field(default_factory=list)
    step_s: list[float] = field(default_factory=list)
    _line_at: float = 0.0

    def step(self, step: int, totals: Totals, lr: float, seconds: float, skipped: int) -> None:
        self.steps.append(totals)
        self.step_s.append(seconds)
        weights = {"video": self.config.flow.video_weight, "audio": self.config.flow.audio_weight}
        loss = sum(weights[name] * value for name, value in totals.loss.items())
        metrics = {"loss": loss, **{f"loss/{name}": value for name, value in totals.loss.items()}}
        last = step == self.config.steps
        if is_terminal() and (last or time.monotonic() - self._line_at > 0.2):
            self._line_at = time.monotonic()
            print(f"\r\x1b[K{self._line(step, totals, lr)}", end="\n" if last else "", file=sys.stderr, flush=True)
        if step % self.config.log_every == 0 or last:
            metrics |= self._metrics(lr, skipped)
            if not is_terminal() and (last or time.monotonic() - self._line_at > _LINE_S):
                self._line_at = time.monotonic()
                print(self._line(step, totals, lr), file=sys.stderr, flush=True)
            self.steps.clear()
            self.step_s.clear()
        self.tracker.log(metrics, step)
        self.history.add(step, metrics)

    def validated(self, step: int, metrics: dict[str, float], files: list[str]) -> None:
        """What a validation found; `files` are kept with the run."""
        self.tracker.log(metrics, step)
        self.history.add(step, metrics)
        for path in files:
            self.tracker.artifact(Path(path), f"samples/step-{step:08d}")
        shown = [key for key in metrics if key.startswith("val/loss/") and key.count("/") == 2]
        shown += [key for key in metrics if key.endswith("/event_f1")]
        self.say(f"step {step}: " + ", ".join(f"{key.removeprefix('val/')} {metrics[key]:.3f}" for key in shown))

    def say(self, line: str) -> None:
        """A line of its own."""
        print(
            f"{chr(13) + chr(27) + '[K' if is_terminal() else ''}{self.config.name}: {line}",
            file=sys.stderr,
            flush=True,
        )

    def _metrics(self, lr: float, skipped: int) -> dict[str, float]:
        seconds = sum(self.step_s)
        clips = self.config.batch_size * len(self.steps)
        metrics = {
            "lr": lr,
            "grad_norm": _mean([t.norm for t in self.steps]),
            "clips_per_s": clips / seconds,
            "tokens_per_s": clips * self.tokens_per_clip / seconds,
            "media_s_per_s": clips * self.media_s_per_clip / seconds,
            "step_s": seconds / len(self.steps),
            "data_wait_share": sum(t.waited_s for t in self.steps) / seconds,
            "skipped_steps": float(skipped),
            "memory_gb": _memory_gb(),
        }
        if self.peak_flops:
            metrics["mfu"] = clips * self.flops_per_clip / seconds / self.peak_flops
        for key in {k for t in self.steps for k in t.by_t}:
            metrics[f"loss/{key}"] = _mean([t.by_t[key] for t in self.steps if key in t.by_t])
        for part in {k for t in self.steps for k in t.norms}:
            metrics[f"grad_norm/{part}"] = _mean([t.norms[part] for t in self.steps])
        return metrics

    def _line(self, step: int, totals: Totals, lr: float) -> str:
        recent = self.step_s[-20:]
        speed = self.config.batch_size * len(recent) / sum(recent)
        left = (self.config.steps - step) * sum(recent) / len(recent)
        losses = "  ".join(f"{name} {value:.4f}" for name, value in totals.loss.items())
        return (
            f"{self.config.name}  step {step}/{self.config.steps}  loss {losses}  grad {totals.norm:.3g}  "
            f"lr {lr:.2e}  {speed:.1f} clips/s  {_clock(left)} left"
        )


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _memory_gb() -> float:
    """Peak memory of this rank: of the GPU where there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
