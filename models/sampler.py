"""Solvers of dz/dt = v(z, t) from noise (t = 0) to data (t = 1), for any tuple of tensors moved together.

`v` is asked once a step by euler and ab2, twice by heun and midpoint, four times by rk4.
Source: Hairer, Nørsett, Wanner, "Solving Ordinary Differential Equations I".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from syncflow.models.flow import shift_t

State = tuple[Tensor, ...]
Velocity = Callable[[State, float], State]
Step = Callable[[Velocity, State, float, float], State]


def time_grid(steps: int, ratio: float = 1.0) -> list[float]:
    """steps + 1 times from 0 to 1, denser near noise where ratio > 1 (see `flow.shift_ratio`)."""
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    return shift_t(torch.linspace(0, 1, steps + 1, dtype=torch.float64), ratio).tolist()


def integrate(
    velocity: Velocity,
    z0: State,
    times: Sequence[float],
    solver: str = "euler",
    on_step: Callable[[int], None] | None = None,
) -> State:
    """z at the last of `times`, from z0 at the first; `on_step(i)` after the i-th step (from 1)."""
    step = SOLVERS[solver]()
    z = z0
    for i, (t, following) in enumerate(pairwise(times)):
        z = step(velocity, z, t, following - t)
        if on_step is not None:
            on_step(i + 1)
    return z


def _euler(v: Velocity, z: State, t: float, h: float) -> State:
    """z + h·v(z, t); order 1."""
    return _add(z, (h, v(z, t)))


def _midpoint(v: Velocity, z: State, t: float, h: float) -> State:
    """z + h·v(z + h/2·v(z, t), t + h/2); order 2."""
    middle = _add(z, (h / 2, v(z, t)))
    return _add(z, (h, v(middle, t + h / 2)))


def _heun(v: Velocity, z: State, t: float, h: float) -> State:
    """The mean of the velocities at both ends of an Euler step; order 2."""
    k1 = v(z, t)
    k2 = v(_add(z, (h, k1)), t + h)
    return _add(z, (h / 2, k1), (h / 2, k2))


def _rk4(v: Velocity, z: State, t: float, h: float) -> State:
    """The classical Runge-Kutta method; order 4."""
    k1 = v(z, t)
    k2 = v(_add(z, (h / 2, k1)), t + h / 2)
    k3 = v(_add(z, (h / 2, k2)), t + h / 2)
    k4 = v(_add(z, (h, k3)), t + h)
    return _add(z, (h / 6, k1), (h / 3, k2), (h / 3, k3), (h / 6, k4))


class _AdamsBashforth:
    """Second order at one evaluation a step: extrapolates from the step before, for unequal steps too.

    z + h·((1 + w/2)·v_n - w/2·v_{n-1}), w = h_n / h_{n-1}; the first step is Euler's.
    """

    def __init__(self) -> None:
        self.before: tuple[State, float] | None = None

    def __call__(self, v: Velocity, z: State, t: float, h: float) -> State:
        now = v(z, t)
        if self.before is None:
            moved = _add(z, (h, now))
        else:
            earlier, h_before = self.before
            half = h / h_before / 2
            moved = _add(z, (h * (1 + half), now), (-h * half, earlier))
        self.before = (now, h)
        return moved


SOLVERS: dict[str, Callable[[], Step]] = {
    "euler": lambda: _euler,
    "midpoint": lambda: _midpoint,
    "heun": lambda: _heun,
    "rk4": lambda: _rk4,
    "ab2": _AdamsBashforth,
}


def _add(z: State, *terms: tuple[float, State]) -> State:
    """z + Σ weight·k, tensor by tensor."""
    out = list(z)
    for weight, k in terms:
        out = [a + weight * b for a, b in zip(out, k, strict=True)]
    return tuple(out)
