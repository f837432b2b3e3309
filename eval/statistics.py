"""Intervals: how far a number could move if other clips of the same kind had been drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

FEW_CLIPS = 30
"""Below this many clips an interval is itself uncertain, and the report says so."""


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval; low and high are None where one clip leaves nothing to resample."""

    value: float
    low: float | None
    high: float | None


def bootstrap(
    rows: np.ndarray, statistic: Callable[[np.ndarray], float], seed: int, resamples: int = 1000, level: float = 0.95
) -> Interval:
    """`statistic(rows)` and its percentile interval over `resamples` draws of the N rows with replacement.

    Source: Efron & Tibshirani, "An introduction to the bootstrap", 1993, ch. 13.
    """
    value = float(statistic(rows))
    if len(rows) < 2 or resamples < 2:
        return Interval(value, None, None)
    rng = np.random.default_rng(seed)
    drawn = [float(statistic(rows[rng.integers(len(rows), size=len(rows))])) for _ in range(resamples)]
    low, high = np.percentile(drawn, [50 * (1 - level), 50 * (1 + level)])
    return Interval(value, float(low), float(high))


def bootstrap_mean(values: np.ndarray, seed: int, resamples: int = 1000) -> Interval:
    """Mean of (N,) values with its bootstrap interval."""
    return bootstrap(np.asarray(values, float), lambda drawn: float(drawn.mean()), seed, resamples)


def derangement(n: int, seed: int) -> np.ndarray:
    """A seeded permutation of range(n) that leaves nothing in place (n > 1): which clip lends its sound to which."""
    if n < 2:
        raise ValueError(f"{n} clips cannot be shuffled")
    order = np.random.default_rng(seed).permutation(n)
    shuffled = np.empty(n, dtype=int)
    shuffled[order] = np.roll(order, 1)
    return shuffled
