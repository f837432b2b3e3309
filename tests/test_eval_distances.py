"""Distances against closed forms, scipy, and laws they must obey."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import linalg, stats

from syncflow.eval.distances import (
    cosine,
    frechet_distance,
    frechet_gaussians,
    frechet_infinity,
    inception_score,
    kernel_distance,
    paired_kl,
    polynomial_mmd,
)
from syncflow.eval.statistics import bootstrap_mean, derangement

RNG = np.random.default_rng(0)


def random_cov(dimensions: int, rank: int | None = None) -> np.ndarray:
    factor = RNG.normal(size=(dimensions, rank or dimensions))
    return factor @ factor.T


def test_frechet_of_commuting_gaussians_is_the_closed_form() -> None:
    mean_a, mean_b = RNG.normal(size=7), RNG.normal(size=7)
    std_a, std_b = RNG.uniform(0.1, 3, 7), RNG.uniform(0.1, 3, 7)
    closed = np.sum((mean_a - mean_b) ** 2) + np.sum((std_a - std_b) ** 2)
    assert frechet_gaussians(mean_a, np.diag(std_a**2), mean_b, np.diag(std_b**2)) == pytest.approx(closed, abs=1e-6)


@pytest.mark.parametrize("rank", [None, 3])
def test_frechet_agrees_with_the_matrix_root(rank: int | None) -> None:
    cov_a, cov_b = random_cov(8), random_cov(8, rank)
    mean_a, mean_b = RNG.normal(size=8), RNG.normal(size=8)
    root = np.real(linalg.sqrtm(cov_a @ cov_b))
    expected = np.sum((mean_a - mean_b) ** 2) + np.trace(cov_a + cov_b - 2 * root)
    assert frechet_gaussians(mean_a, cov_a, mean_b, cov_b) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("n", "m", "dimensions"), [(200, 150, 12), (9, 300, 40), (10, 12, 64)])
def test_frechet_of_features_is_that_of_their_gaussians(n: int, m: int, dimensions: int) -> None:
    """Also with fewer samples than dimensions, where the covariances are singular."""
    a, b = RNG.normal(size=(n, dimensions)), RNG.normal(0.3, 1.2, size=(m, dimensions))
    expected = frechet_gaussians(a.mean(0), np.cov(a, rowvar=False), b.mean(0), np.cov(b, rowvar=False))
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, a + 2.0) == pytest.approx(4 * dimensions, rel=1e-9)


def test_frechet_infinity_removes_the_bias_of_few_samples() -> None:
    many = RNG.normal(size=(6000, 16))
    a = RNG.normal(size=(300, 16))
    found = frechet_infinity(a, many, seed=0)
    assert found.at_n > 0.2
    assert abs(found.value) < 0.25 * found.at_n
    assert found == frechet_infinity(a, many, seed=0)


def test_polynomial_mmd_is_its_definition() -> None:
    a, b = RNG.normal(size=(6, 4)), RNG.normal(size=(5, 4))

    def k(x: np.ndarray, y: np.ndarray) -> float:
        return float((x @ y / 4 + 1) ** 3)

    within_a = np.mean([k(x, y) for i, x in enumerate(a) for j, y in enumerate(a) if i != j])
    within_b = np.mean([k(x, y) for i, x in enumerate(b) for j, y in enumerate(b) if i != j])
    across = np.mean([k(x, y) for x in a for y in b])
    assert polynomial_mmd(a, b) == pytest.approx(within_a + within_b - 2 * across, abs=1e-9)


def test_kernel_distance_is_unbiased_and_repeatable() -> None:
    a, b = RNG.normal(size=(800, 8)), RNG.normal(size=(700, 8))
    same = kernel_distance(a, b, seed=1, subsets=50, size=200)
    assert abs(same.value) < 0.05
    assert same == kernel_distance(a, b, seed=1, subsets=50, size=200)
    assert kernel_distance(a, b + 1, seed=1, subsets=20, size=200).value > 0.5


def test_inception_score_of_known_cases() -> None:
    assert inception_score(np.eye(5))[0] == pytest.approx(5, abs=1e-6)
    assert inception_score(np.full((9, 5), 0.2))[0] == pytest.approx(1, abs=1e-6)
    half = np.array([[1.0, 0, 0, 0], [0, 1.0, 0, 0]] * 4)
    assert inception_score(half, splits=2)[0] == pytest.approx(2, abs=1e-6)


def test_kl_agrees_with_scipy() -> None:
    p, q = RNG.dirichlet(np.ones(10), 6), RNG.dirichlet(np.ones(10), 6)
    expected = [stats.entropy(x, y) for x, y in zip(p, q, strict=True)]
    np.testing.assert_allclose(paired_kl(p, q, floor=1e-300), expected, atol=1e-6)
    np.testing.assert_allclose(paired_kl(p, p), 0, atol=1e-12)


def test_order_of_samples_does_not_matter() -> None:
    a, b = RNG.normal(size=(40, 6)), RNG.normal(size=(50, 6))
    mixed = a[RNG.permutation(40)]
    assert frechet_distance(mixed, b) == pytest.approx(frechet_distance(a, b), rel=1e-9)
    assert polynomial_mmd(mixed, b) == pytest.approx(polynomial_mmd(a, b), rel=1e-9)


def test_cosine_of_zero_is_zero() -> None:
    np.testing.assert_allclose(cosine(np.array([[3.0, 4], [0, 0]]), np.array([[4.0, 3], [1, 1]])), [0.96, 0])


def test_too_few_or_broken_features_are_named() -> None:
    with pytest.raises(ValueError, match="at least 2 samples"):
        frechet_distance(np.zeros((1, 3)), np.zeros((4, 3)))
    with pytest.raises(ValueError, match="not finite"):
        frechet_distance(np.full((3, 3), np.nan), np.zeros((4, 3)))


def test_bootstrap_covers_the_mean() -> None:
    covered = 0
    for trial in range(100):
        drawn = np.random.default_rng(trial).normal(size=40)
        interval = bootstrap_mean(drawn, seed=trial, resamples=200)
        assert interval.low is not None
        assert interval.high is not None
        covered += interval.low <= 0 <= interval.high
    assert 85 <= covered <= 99
    assert bootstrap_mean(np.array([2.0]), 0).low is None


def test_shuffling_moves_every_clip() -> None:
    for n in (2, 3, 10):
        order = derangement(n, seed=n)
        assert sorted(order) == list(range(n))
        assert all(order != np.arange(n))


def test_distances_and_score_are_those_of_torch_fidelity() -> None:
    """What torch-fidelity 0.4.0 gives for these features: `fid_statistics_to_metric`, `kernel_mmd` with the cubic
    kernel, and `isc_features_to_metric` without shuffling."""
    i, j = np.arange(64)[:, None], np.arange(10)[None]
    a = np.sin(1.7 * i + 0.9 * j * j) + 0.05 * j
    b = np.cos(1.1 * i * (j + 1)) * 1.2 + 0.3
    assert frechet_distance(a, b) == pytest.approx(7.434338106174688, abs=1e-6)
    assert frechet_distance(a[:6], b) == pytest.approx(7.67760662222721, abs=1e-6)
    assert polynomial_mmd(a, b) == pytest.approx(0.45901200973220346, abs=1e-9)
    exponentials = np.exp(4 * a)
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    assert inception_score(probabilities) == pytest.approx((2.337604787945863, 0.0), abs=1e-9)
    assert inception_score(probabilities, splits=4) == pytest.approx((2.3280505996684613, 0.0214706766636), abs=1e-9)
