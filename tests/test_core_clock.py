"""Laws of time: exact rates, windows on the frame grid, grids of latent frames."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syncflow.clock import Span, causal_grid, parse_rate, snap, ticks_in, uniform_grid, windows

few = settings(max_examples=40, deadline=None)
rates = st.one_of(
    st.integers(1, 240).map(Fraction),
    st.sampled_from([Fraction(24000, 1001), Fraction(30000, 1001), Fraction(60000, 1001), Fraction(25, 2)]),
)
times = st.fractions(min_value=0, max_value=1000, max_denominator=90_000)
durations = st.fractions(min_value=Fraction(1, 1000), max_value=100, max_denominator=48_000)


@pytest.mark.parametrize(
    ("written", "rate"),
    [
        ("30000/1001", Fraction(30000, 1001)),
        (23.976, Fraction(24000, 1001)),
        ("23.98", Fraction(24000, 1001)),
        ("29.97", Fraction(30000, 1001)),
        (59.94, Fraction(60000, 1001)),
        ("119.88", Fraction(120000, 1001)),
        (16, Fraction(16)),
        ("25", Fraction(25)),
        (24, Fraction(24)),
        ("30", Fraction(30)),
        (12.5, Fraction(25, 2)),
        (Fraction(24000, 1001), Fraction(24000, 1001)),
        (30000 / 1001, Fraction(30000, 1001)),
    ],
)
def test_rates_are_exact(written: str | float | Fraction, rate: Fraction) -> None:
    assert parse_rate(written) == rate


@pytest.mark.parametrize("written", ["", "fast", "1/0", 0, -25, "nan", float("inf"), float("nan"), None])
def test_bad_rates_are_refused(written: object) -> None:
    with pytest.raises(ValueError, match="rate"):
        parse_rate(written)  # type: ignore[arg-type]


@few
@given(rates)
def test_a_rate_survives_writing(rate: Fraction) -> None:
    assert parse_rate(str(rate)) == rate
    assert parse_rate(rate) == rate


@few
@given(durations, rates)
def test_ticks_in_counts_the_ticks(duration_s: Fraction, rate_hz: Fraction) -> None:
    n = ticks_in(duration_s, rate_hz)
    assert n == 0 or (n - 1) / rate_hz < duration_s
    assert n / rate_hz >= duration_s
    assert ticks_in(n / rate_hz, rate_hz) == n


def test_ticks_in_nothing() -> None:
    assert ticks_in(Fraction(0), Fraction(16)) == 0
    assert ticks_in(Fraction(-1), Fraction(16)) == 0


@few
@given(times, rates)
def test_snapping_moves_half_a_tick_at_most(time_s: Fraction, rate_hz: Fraction) -> None:
    snapped = snap(time_s, rate_hz)
    assert abs(snapped - time_s) <= 1 / (2 * rate_hz)
    assert (snapped * rate_hz).denominator == 1
    assert snap(snapped, rate_hz) == snapped


@few
@given(times, durations, times, durations)
def test_intersection_is_what_both_contain(a: Fraction, da: Fraction, b: Fraction, db: Fraction) -> None:
    one, two = Span(a, a + da), Span(b, b + db)
    both = one.intersect(two)
    assert both == two.intersect(one)
    for time_s in (a, b, a + da, b + db, a + da / 2, b + db / 2):
        assert (both is not None and both.contains(time_s)) == (one.contains(time_s) and two.contains(time_s))


def test_spans_end_after_they_start() -> None:
    for end in (Fraction(1), Fraction(1, 2)):
        with pytest.raises(ValueError, match="end after"):
            Span(Fraction(1), end)
    assert Span(0, 2).duration_s == 2  # type: ignore[arg-type]


@few
@given(times, durations, durations, rates, st.one_of(st.none(), durations))
def test_windows_fit_and_start_on_ticks(
    start: Fraction, length: Fraction, duration_s: Fraction, rate_hz: Fraction, stride_s: Fraction | None
) -> None:
    length = min(length, 8 * duration_s, 8 * (stride_s or duration_s))
    span = Span(start, start + length)
    found = windows(span, duration_s, rate_hz, stride_s)
    for k, window in enumerate(found):
        assert window.duration_s == duration_s
        assert span.start_s <= window.start_s
        assert window.end_s <= span.end_s
        assert (window.start_s * rate_hz).denominator == 1
        wanted = span.start_s + k * (stride_s or duration_s)
        assert 0 <= window.start_s - wanted < 1 / rate_hz
    if stride_s is None:
        assert all(b.start_s > a.end_s - 1 / rate_hz for a, b in pairwise(found))
    # None more would fit.
    following = span.start_s + len(found) * (stride_s or duration_s)
    assert Fraction(math.ceil(following * rate_hz)) / rate_hz + duration_s > span.end_s


def test_windows_of_a_real_clip() -> None:
    ten = Span(Fraction(0), Fraction("10.01"))
    assert windows(ten, Fraction(2), Fraction(16)) == [Span(Fraction(k), Fraction(k + 2)) for k in (0, 2, 4, 6, 8)]
    assert len(windows(ten, Fraction(2), Fraction(16), Fraction(1))) == 9
    assert windows(Span(Fraction(0), Fraction(1)), Fraction(2), Fraction(16)) == []
    for wrong in (Fraction(0), Fraction(-1)):
        with pytest.raises(ValueError, match="positive"):
            windows(ten, wrong, Fraction(16))
        with pytest.raises(ValueError, match="positive"):
            windows(ten, Fraction(2), Fraction(16), wrong)


def covers(grid_spans: tuple[Span, ...], end_s: Fraction) -> None:
    assert grid_spans[0].start_s == 0
    assert grid_spans[-1].end_s == end_s
    assert all(a.end_s == b.start_s for a, b in pairwise(grid_spans))


@few
@given(st.integers(1, 300), st.integers(1, 20), rates)
def test_uniform_grids_adjoin_and_cover(n: int, stride: int, rate_hz: Fraction) -> None:
    grid = uniform_grid(n, stride, rate_hz)
    assert len(grid) == -(-n // stride)
    covers(grid.spans, n / rate_hz)


@few
@given(st.integers(1, 300), st.integers(1, 8), rates, st.one_of(st.none(), st.integers(1, 40)))
def test_causal_grids_adjoin_and_cover(n: int, stride: int, rate_hz: Fraction, chunk: int | None) -> None:
    grid = causal_grid(n, stride, rate_hz, chunk)
    covers(grid.spans, n / rate_hz)
    assert all(span.duration_s <= stride / rate_hz for span in grid.spans)
    whole, rest = divmod(n, chunk or n)
    assert len(grid) == whole * -(-(chunk or n) // stride) + -(-rest // stride)


def test_open_soras_grid() -> None:
    """32 frames in chunks of 17 and 15, each padded in front to a multiple of 4: 5 + 4 latents."""
    grid = causal_grid(32, 4, Fraction(16), chunk_frames=17)
    edges = [0, 1, 5, 9, 13, 17, 20, 24, 28, 32]
    assert grid.spans == tuple(Span(Fraction(a, 16), Fraction(b, 16)) for a, b in pairwise(edges))
    assert len(causal_grid(17, 4, Fraction(24), chunk_frames=17)) == 5
    assert len(causal_grid(51, 4, Fraction(24), chunk_frames=17)) == 15


def test_causal_grid_of_wan() -> None:
    grid = causal_grid(81, 4, Fraction(16))
    assert len(grid) == 21
    assert grid.spans[0] == Span(Fraction(0), Fraction(1, 16))
    assert {span.duration_s for span in grid.spans[1:]} == {Fraction(1, 4)}


def test_a_grid_as_an_array() -> None:
    array = uniform_grid(32, 1, Fraction(16)).array()
    assert (array.shape, array.dtype) == ((32, 2), np.float32)
    assert array[1].tolist() == [1 / 16, 2 / 16]
