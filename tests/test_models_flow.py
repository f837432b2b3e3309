"""Laws of the flow, its solvers and its guidance."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from syncflow.models.flow import (
    FlowConfig,
    flow_loss,
    interpolate,
    sample_t,
    shift_ratio,
    shift_t,
    target_velocity,
)
from syncflow.models.guidance import Guidance, guide
from syncflow.models.sampler import SOLVERS, State, integrate, time_grid

ORDER = {"euler": 1, "midpoint": 2, "heun": 2, "ab2": 2, "rk4": 4}
CALLS = {"euler": 1, "midpoint": 2, "heun": 2, "ab2": 1, "rk4": 4}


def test_path_ends_in_noise_and_data_and_has_the_target_as_its_slope() -> None:
    z0, z1 = torch.randn(2, 3, 4, 5, 5), torch.randn(2, 3, 4, 5, 5)
    assert torch.equal(interpolate(z0, z1, torch.zeros(2)), z0)
    assert torch.equal(interpolate(z0, z1, torch.ones(2)), z1)
    t, h = torch.tensor([0.2, 0.7]), 0.1
    slope = (interpolate(z0, z1, t + h) - interpolate(z0, z1, t)) / h
    torch.testing.assert_close(slope, target_velocity(z0, z1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("ratio", [1.0, 3.0])
def test_solvers_follow_a_straight_path_exactly(solver: str, ratio: float) -> None:
    z0, z1 = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    calls = 0

    def velocity(state: State, t: float) -> State:
        nonlocal calls
        calls += 1
        return (z1 - z0,)

    (end,) = integrate(velocity, (z0,), time_grid(7, ratio), solver)
    torch.testing.assert_close(end, z1, atol=1e-12, rtol=1e-12)
    assert calls == 7 * CALLS[solver]


@pytest.mark.parametrize("solver", SOLVERS)
def test_solvers_converge_with_their_order(solver: str) -> None:
    """z' = 3z(1 - z)/(1 + t), z(0) = 0.1, solved by z/(1 - z) = (1 + t)³/9: half the step, 2^order less error."""

    def error(steps: int) -> float:
        z0 = (torch.full((1,), 0.1, dtype=torch.float64),)
        (z,) = integrate(lambda z, t: (3 * z[0] * (1 - z[0]) / (1 + t),), z0, time_grid(steps), solver)
        return abs(float(z) - 8 / 17)

    found = math.log2(error(40) / error(80))
    assert abs(found - ORDER[solver]) < 0.25


def test_solvers_move_modalities_of_different_shapes_together() -> None:
    """A velocity of the one that depends on the other: (x, y)' = (-y, x) turns by one radian."""
    x, y = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    x1, y1 = integrate(lambda z, t: (-z[1], z[0]), (x, y), time_grid(50), "rk4")
    assert abs(float(x1) - math.cos(1)) < 1e-8
    assert abs(float(y1) - math.sin(1)) < 1e-8


def test_time_grid_runs_from_noise_to_data_and_shift_spends_it_near_noise() -> None:
    for ratio in (1.0, 2.5):
        times = time_grid(10, ratio)
        assert times[0] == 0
        assert times[-1] == 1
        assert all(a < b for a, b in pairwise(times))
    assert time_grid(10, 2.5)[5] < 0.5
    with pytest.raises(ValueError, match="at least 1"):
        time_grid(0)


def test_shift_fixes_the_ends_and_composes() -> None:
    t = torch.linspace(0, 1, 11)
    shifted = shift_t(t, 3.0)
    assert shifted[0] == 0
    assert shifted[-1] == 1
    torch.testing.assert_close(shift_t(shift_t(t, 2.0), 1.5), shifted)
    torch.testing.assert_close(shift_t(shifted, 1 / 3.0), t)
    config = FlowConfig(shift=True)
    assert shift_ratio(256 * 256, 32, config) == 1
    assert shift_ratio(512 * 512, 32, config) == 2
    assert shift_ratio(256 * 256, 128, config) == 2
    assert shift_ratio(512 * 512, 32, FlowConfig()) == 1


def test_times_are_drawn_as_configured_and_repeatably() -> None:
    def draw(config: FlowConfig, ratio: float = 1.0) -> Tensor:
        return sample_t(torch.rand(20_000, generator=torch.Generator().manual_seed(3)), config, ratio=ratio)

    uniform, normal = draw(FlowConfig()), draw(FlowConfig(t_sampling="logit_normal", t_mean=0.5))
    assert torch.equal(uniform, draw(FlowConfig()))
    for t in (uniform, normal):
        assert (t >= 0).all()
        assert (t <= 1).all()
    assert abs(float(uniform.mean()) - 0.5) < 0.01
    assert abs(float(uniform.var()) - 1 / 12) < 0.005
    assert abs(float(normal.median()) - float(torch.sigmoid(torch.tensor(0.5)))) < 0.01
    assert draw(FlowConfig(), 3.0).mean() < uniform.mean()


def test_loss_is_the_mean_over_what_is_there() -> None:
    v, target = torch.randn(3, 4, 6, 2, 2), torch.randn(3, 4, 6, 2, 2)
    torch.testing.assert_close(flow_loss(v, target), ((v - target) ** 2).mean(dim=(1, 2, 3, 4)))
    mask = torch.arange(6)[None] < torch.tensor([[6], [2], [0]])
    masked = flow_loss(v, target, mask)
    torch.testing.assert_close(masked[1], ((v - target)[1, :, :2] ** 2).mean())
    assert masked[2] == 0
    v[1, :, 2:] = 1e6
    torch.testing.assert_close(flow_loss(v, target, mask)[1], masked[1])
    torch.testing.assert_close(flow_loss(v[..., 0, 0], target[..., 0, 0], mask)[2], torch.tensor(0.0))


def test_guidance_of_one_is_conditional_and_of_zero_is_not() -> None:
    c, u = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    torch.testing.assert_close(guide(c, u, 1.0), c)
    torch.testing.assert_close(guide(c, u, 0.0), u)
    torch.testing.assert_close(guide(c, u, 3.0) - u, 3 * (c - u))
    rescaled = guide(c, u, 3.0, rescale=1.0)
    torch.testing.assert_close(rescaled.std((1, 2)), c.std((1, 2)))


def test_guidance_is_active_within_its_interval_only() -> None:
    guidance = Guidance(video=1.0, audio=2.0, interval=(0.2, 0.8))
    assert [guidance.active(t) for t in (0.0, 0.2, 0.5, 0.8, 1.0)] == [False, True, True, False, False]
    assert not Guidance(video=1.0, audio=1.0).active(0.5)
    for wrong in ({"video": -1.0}, {"interval": (0.8, 0.2)}, {"rescale": 2.0}):
        with pytest.raises(ValueError, match="must"):
            Guidance(**wrong)
