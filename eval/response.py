"""Response curves: what known damage does to a metric, and the smallest amount that it sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from syncflow.eval.damage import DAMAGES, undamaged
from syncflow.eval.distances import frechet_distance, paired_kl
from syncflow.eval.statistics import Interval, bootstrap_mean


@dataclass(frozen=True)
class Heard:
    """What the metrics take from its sound."""

    onsets_s: list[float]
    published_onsets_s: list[float]
    loudness_lufs: float | None
    embedding: np.ndarray | None
    """(384,) and (527,) of the tagger, where there is one."""
    probabilities: np.ndarray | None


@dataclass(frozen=True)
class Answer:
    """One clip after one damage."""

    metrics: dict[str, float | None]
    heard: Heard


def smallest_seen(amounts: Sequence[float], rows: Sequence[Sequence[float | None]], undamaged: int) -> float | None:
    """The least |amount| from which on a metric sees the damage; None where it never does.

    Seen: the 95 % interval of the mean change against the same clips undamaged leaves out 0, at this amount and
    at every larger one.

    Args:
        rows: per amount, the value of each clip (None where there is none).
    """
    least: float | None = None
    for k in sorted(range(len(amounts)), key=lambda k: -abs(amounts[k] - amounts[undamaged])):
        if k == undamaged:
            continue
        pairs = [(a, b) for a, b in zip(rows[k], rows[undamaged], strict=True) if a is not None and b is not None]
        if len(pairs) < 3:
            return least
        interval = bootstrap_mean(np.array([a - b for a, b in pairs]), seed=0)
        if interval.low is None or interval.high is None or interval.low <= 0 <= interval.high:
            return least
        least = abs(amounts[k] - amounts[undamaged])
    return least


def monotone(amounts: Sequence[float], means: Sequence[float | None], undamaged: int) -> float | None:
    """Spearman's rank correlation of |damage| with |change|: 1 where more damage always shows more."""
    from scipy.stats import spearmanr

    points = [
        (abs(a - amounts[undamaged]), abs(m - (means[undamaged] or 0.0)))
        for a, m in zip(amounts, means, strict=True)
        if m is not None
    ]
    if means[undamaged] is None or len(points) < 3 or len({p[1] for p in points}) < 2:
        return None
    return float(spearmanr(*zip(*points, strict=True)).statistic)


def sensitivity(rows: Sequence[Sequence[float | None]], undamaged: int) -> float | None:
    """Largest |mean change| over the amounts, in standard deviations of the metric over undamaged clips."""
    before = [value for value in rows[undamaged] if value is not None]
    spread = float(np.std(before)) if len(before) > 1 else 0.0
    changes = [
        abs(float(np.mean([a - b for a, b in pairs])))
        for row in rows
        if (pairs := [(a, b) for a, b in zip(row, rows[undamaged], strict=True) if a is not None and b is not None])
    ]
    return max(changes) / spread if spread > 1e-9 and changes else None


def summarise(answers: Sequence[dict[str, list[Answer]]], damages: Sequence[str], seed: int) -> dict[str, Any]:
    """Per damage and metric: mean with interval at each amount, smallest amount seen, order, sensitivity."""
    found: dict[str, Any] = {}
    for name in damages:
        _, amounts, axis = DAMAGES[name]
        none = undamaged(name)
        metrics: dict[str, Any] = {}
        for metric in answers[0][name][0].metrics:
            rows = [[one[name][k].metrics[metric] for one in answers] for k in range(len(amounts))]
            points = [_mean(row, seed) for row in rows]
            metrics[metric] = _curve(points, amounts, none) | {
                "smallest": smallest_seen(amounts, rows, none),
                "sensitivity": sensitivity(rows, none),
            }
        if answers[0][name][0].heard.embedding is not None:
            for metric, points in _distances([one[name] for one in answers], none, seed).items():
                metrics[metric] = _curve(points, amounts, none)
        found[name] = {"axis": axis, "amounts": list(amounts), "metrics": metrics}
    return {"damages": found}


def _curve(points: Sequence[Interval | None], amounts: Sequence[float], none: int) -> dict[str, Any]:
    return {
        "points": [None if p is None else [p.value, p.low, p.high] for p in points],
        "monotone": monotone(amounts, [None if p is None else p.value for p in points], none),
    }


def _distances(clips: Sequence[list[Answer]], none: int, seed: int) -> dict[str, list[Interval | None]]:
    """FAD of the damaged set to the undamaged one, and the mean KL of each clip to itself undamaged."""

    def stacked(field: str, k: int) -> np.ndarray:
        return np.stack([getattr(one[k].heard, field) for one in clips])  # (N, D)

    whole = stacked("embedding", none)
    found: dict[str, list[Interval | None]] = {"fad_efficientat": [], "kl_efficientat": []}
    for k in range(len(clips[0])):
        kl = paired_kl(stacked("probabilities", none), stacked("probabilities", k))
        found["fad_efficientat"].append(Interval(frechet_distance(stacked("embedding", k), whole), None, None))
        found["kl_efficientat"].append(bootstrap_mean(kl, seed, 300))
    return found


def _mean(row: Sequence[float | None], seed: int) -> Interval | None:
    known = np.array([value for value in row if value is not None])
    return bootstrap_mean(known, seed, 300) if len(known) else None
