"""Distances between sets of features, and scores of class probabilities: pure functions of arrays.

Letters: N, M samples, D feature dimensions, K classes. All in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from syncflow.eval.statistics import Interval


def frechet_gaussians(mean_a: np.ndarray, cov_a: np.ndarray, mean_b: np.ndarray, cov_b: np.ndarray) -> float:
    """Squared Fréchet distance of two Gaussians: `|μa - μb|² + tr(Σa + Σb - 2 (Σa Σb)^½)`.

    The trace of the root is the sum of singular values of `Σa^½ Σb^½`, which stays real and exact
    for singular covariances.

    Args:
        mean_a, mean_b: (D,). cov_a, cov_b: (D, D).

    Source: Dowson & Landau, "The Fréchet distance between multivariate normal distributions", 1982.
    """
    roots = np.linalg.svd(_root(cov_a) @ _root(cov_b), compute_uv=False)
    gap = mean_a - mean_b
    return float(max(0.0, gap @ gap + np.trace(cov_a) + np.trace(cov_b) - 2 * roots.sum()))


def _root(cov: np.ndarray) -> np.ndarray:
    """The symmetric root of a positive semi-definite matrix."""
    values, vectors = np.linalg.eigh((cov + cov.T) / 2)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Fréchet distance of the Gaussians fitted to features (N, D) and (M, D): FVD, FAD, FID.

    Covariances are unbiased (N - 1), as in the published implementations. With `A`, `B` centred features over
    √(N-1) the root's trace is the nuclear norm of `A Bᵀ`, so nothing larger than min(N, D) is decomposed and
    fewer samples than dimensions are no trouble to compute (they are one to estimate: see `frechet_infinity`).
    """
    a, b = _features(a), _features(b)
    centred = [(x - x.mean(axis=0)) / np.sqrt(len(x) - 1) for x in (a, b)]
    # orthonormal factors shrink both to at most D rows without changing the singular values
    small = [np.asarray(np.linalg.qr(x, mode="r")) if len(x) > x.shape[1] else x for x in centred]
    roots = np.linalg.svd(small[0] @ small[1].T, compute_uv=False)
    gap = a.mean(axis=0) - b.mean(axis=0)
    spread = sum(float((x**2).sum()) for x in centred)
    return float(max(0.0, gap @ gap + spread - 2 * roots.sum()))


@dataclass(frozen=True)
class FrechetInfinity:
    """The Fréchet distance at the sample size given and extrapolated to infinitely many samples."""

    value: float
    at_n: float
    points: list[tuple[int, float]]
    """(samples drawn, mean distance) behind the line."""
    residual: float
    """Root mean square of the points about the line, of their mean."""


def frechet_infinity(
    a: np.ndarray, b: np.ndarray, seed: int, sizes: int = 8, draws: int = 5, least: int | None = None
) -> FrechetInfinity:
    """FD∞: the distance of random subsets of `a` (N, D) to `b`, on a line in 1/n, read at 1/n = 0.

    The distance of finite sets is too large by a term that falls as 1/n; the intercept removes it. Small values
    may come out slightly below zero, which says "no distance seen".

    Source: Chong & Forsyth, "Effectively unbiased FID and Inception score and where to find them", 2020.
    """
    a, b = _features(a), _features(b)
    n = len(a)
    least = max(2, n // 3) if least is None else least
    rng = np.random.default_rng(seed)
    counts = np.unique(np.linspace(least, n, sizes).round().astype(int))
    points = []
    for count in counts:
        repeats = 1 if count == n else draws
        distances = [frechet_distance(a[rng.choice(n, count, replace=False)], b) for _ in range(repeats)]
        points.append((int(count), float(np.mean(distances))))
    at_n = points[-1][1]
    if len(points) < 3:
        return FrechetInfinity(at_n, at_n, points, 0.0)
    x, y = 1 / np.array([p[0] for p in points]), np.array([p[1] for p in points])
    slope, intercept = np.polyfit(x, y, 1)
    residual = float(np.sqrt(np.mean((slope * x + intercept - y) ** 2)) / max(abs(y.mean()), 1e-12))
    return FrechetInfinity(float(intercept), at_n, points, residual)


def polynomial_mmd(a: np.ndarray, b: np.ndarray, degree: int = 3, offset: float = 1.0) -> float:
    """Unbiased squared maximum mean discrepancy with the kernel `(x·y / D + 1)³`.

    `Σ_{i≠j} k(aᵢ,aⱼ) / N(N-1) + Σ_{i≠j} k(bᵢ,bⱼ) / M(M-1) - 2 Σ k(aᵢ,bⱼ) / NM`; may be negative.

    Source: Bińkowski et al., "Demystifying MMD GANs", 2018.
    """
    a, b = _features(a), _features(b)
    n, m, dimensions = len(a), len(b), a.shape[1]

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (x @ y.T / dimensions + offset) ** degree

    aa, bb = kernel(a, a), kernel(b, b)
    within = (aa.sum() - np.trace(aa)) / (n * (n - 1)) + (bb.sum() - np.trace(bb)) / (m * (m - 1))
    return float(within - 2 * kernel(a, b).mean())


def kernel_distance(a: np.ndarray, b: np.ndarray, seed: int, subsets: int = 100, size: int = 1000) -> Interval:
    """KID / KVD: mean of `polynomial_mmd` over random subsets, with the 95 % interval of that mean.

    Where `size` takes in all samples there is only one subset, and the interval is left open.
    """
    a, b = _features(a), _features(b)
    size = min(size, len(a), len(b))
    if size == len(a) == len(b):
        return Interval(polynomial_mmd(a, b), None, None)
    rng = np.random.default_rng(seed)
    values = np.array(
        [
            polynomial_mmd(a[rng.choice(len(a), size, replace=False)], b[rng.choice(len(b), size, replace=False)])
            for _ in range(subsets)
        ]
    )
    half = 1.96 * values.std(ddof=1) / np.sqrt(subsets)
    return Interval(float(values.mean()), float(values.mean() - half), float(values.mean() + half))


def inception_score(probabilities: np.ndarray, splits: int = 1) -> tuple[float, float]:
    """(mean, standard deviation) over splits of `exp(mean_n KL(p(k|n) ‖ p(k)))`, of (N, K) class probabilities.

    Source: Salimans et al., "Improved techniques for training GANs", 2016.
    """
    scores = []
    for part in np.array_split(np.asarray(probabilities, np.float64), splits):
        marginal = part.mean(axis=0, keepdims=True)
        scores.append(np.exp(np.mean(_kl_rows(part, np.broadcast_to(marginal, part.shape)))))
    return float(np.mean(scores)), float(np.std(scores))


def paired_kl(reference: np.ndarray, generated: np.ndarray, floor: float = 1e-6) -> np.ndarray:
    """(N,) `KL(p_reference ‖ p_generated)` of class probabilities (N, K), clip by clip, in nats.

    Both are floored and renormalised so that a class never given cannot make it infinite. For taggers with
    independent classes, normalise the rows to sum to 1 first.

    Source: Iashin & Rahtu, "Taming visually guided sound generation", 2021 (MKL).
    """
    rows = []
    for p in (reference, generated):
        p = np.maximum(np.asarray(p, np.float64), floor)
        rows.append(p / p.sum(axis=1, keepdims=True))
    return _kl_rows(rows[0], rows[1])


def _kl_rows(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p > 0, p * (np.log(p) - np.log(q)), 0.0)
    return terms.sum(axis=1)


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N,) cosine of the angle between paired rows of (N, D); 0 where a row is zero."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    scale = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return np.divide((a * b).sum(axis=-1), scale, out=np.zeros(scale.shape), where=scale > 0)


def _features(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, np.float64)
    if x.ndim != 2 or len(x) < 2:
        raise ValueError(f"a distance needs features (N, D) of at least 2 samples, got shape {x.shape}")
    if not np.isfinite(x).all():
        raise ValueError("features hold values that are not finite")
    return x
