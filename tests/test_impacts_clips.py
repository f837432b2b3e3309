"""Rendered clips: their truth is true, in motion, in sound and in words."""

from __future__ import annotations

import hashlib
import math
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syncflow.impacts import captions, render_clip, sound
from syncflow.impacts.clip import KINDS, draw, plan_clip
from syncflow.impacts.motion import Bounce, Strike, Swing, forces, rhythm

SEEDS = st.integers(0, 2**31)
few = settings(max_examples=60, deadline=None)


def digest(seed: int, index: int) -> str:
    clip = render_clip(seed, index)
    return hashlib.sha256(clip.frames.tobytes() + clip.waveform.tobytes() + clip.caption.encode()).hexdigest()


def test_the_same_bytes_in_any_process_and_order() -> None:
    wanted = {(seed, index): digest(seed, index) for seed, index in ((0, 0), (0, 5), (7, 2), (7, 3))}
    code = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('clips', {__file__!r})\n"
        "clips = importlib.util.module_from_spec(spec)\n"
        "sys.modules['clips'] = clips\n"
        "spec.loader.exec_module(clips)\n"
        "for pair in ((7, 3), (7, 2), (0, 5), (0, 0)): print(*pair, clips.digest(*pair))\n"
    )
    lines = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.splitlines()
    found = {(int(a), int(b)): value for a, b, value in (line.split() for line in lines)}
    assert found == wanted
    assert len(set(wanted.values())) == 4


@pytest.mark.parametrize("index", range(4))
def test_sampling_does_not_change_what_happens(index: int) -> None:
    base = render_clip(1, index)
    other = render_clip(1, index, size=(160, 96), fps=Fraction(30000, 1001), sample_rate=44100)
    assert (other.events_s, other.caption, other.label) == (base.events_s, base.caption, base.label)
    assert base.frames.shape == (32, 64, 64, 3)
    assert other.frames.shape == (60, 96, 160, 3)
    assert (len(base.waveform), len(other.waveform)) == (32000, 88200)
    assert base.frames.dtype == np.uint8
    assert base.waveform.dtype == np.float32
    assert 0.05 < np.abs(base.waveform).max() <= 1


@few
@given(SEEDS, st.integers(0, 3), st.sampled_from(["1/4", "1", "2", "2.56", "10"]))
def test_events_lie_in_the_clip_in_order(seed: int, index: int, duration: str) -> None:
    plan = plan_clip(seed, index, Fraction(duration))
    times = [s.time_s for s in plan.scene.strikes]
    assert times
    assert times == sorted(times)
    assert times[0] > 0
    assert times[-1] < float(Fraction(duration))
    assert min(np.diff(times), default=1) > 0.1
    assert all(0 < s.force <= 1 for s in plan.scene.strikes)


@few
@given(SEEDS, st.floats(0.25, 30))
def test_rhythms_leave_room(seed: int, duration_s: float) -> None:
    times = rhythm(np.random.default_rng(seed), duration_s)
    assert times[0] >= min(0.3, duration_s * 0.3) - 1e-9
    assert times[-1] <= duration_s - min(0.25, duration_s * 0.25) + 1e-9
    assert min(np.diff(times), default=1) >= 0.2 - 1e-9
    assert all(0.2 <= f <= 1 for f in forces(np.random.default_rng(seed), len(times)))


@few
@given(st.floats(0.1, 0.4), st.floats(0.3, 0.6), st.floats(5, 10), st.floats(0.5, 1.0))
def test_a_ball_obeys_gravity(first_s: float, height: float, gravity: float, restitution: float) -> None:
    bounce = Bounce.plan(first_s, height, gravity, restitution, 5.0)
    assert bounce.speeds[0] ** 2 == pytest.approx(2 * gravity * height)
    for i, contact in enumerate(bounce.contacts):
        assert bounce.at(contact) == (0, 0)
        before, speed = bounce.at(contact - 1e-4)[0], bounce.speeds[i]
        assert before == pytest.approx(speed * 1e-4, rel=0.01)  # it arrives at its speed of impact
        if i:
            assert speed == pytest.approx(bounce.speeds[i - 1] * restitution)
            leaving_s = bounce.contacts[i - 1] + bounce.dwell_s
            apex = bounce.at((leaving_s + contact) / 2)[0]
            assert apex == pytest.approx(speed**2 / (2 * gravity))
    assert all(bounce.at(t)[0] >= 0 for t in np.linspace(0, 5, 300))


@few
@given(SEEDS)
def test_a_tool_touches_exactly_at_its_strikes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    times = rhythm(rng, 4.0)
    swing = Swing(tuple(Strike(t, f) for t, f in zip(times, forces(rng, len(times)), strict=True)))
    for time_s in times:
        assert swing.angle(time_s) == pytest.approx(0, abs=1e-9)
        assert swing.angle(time_s - 0.01) > 0.01
        assert swing.angle(time_s + 0.02) > 0.01
    touching = [t for t in np.arange(0, 4, 0.001) if swing.angle(t) < 1e-3]
    assert all(min(abs(t - strike) for strike in times) < 0.002 for t in touching)


@pytest.mark.parametrize("kind", list(KINDS))
def test_sound_begins_at_the_event_to_a_fraction_of_a_sample(kind: str) -> None:
    plan = plan_clip(5, list(KINDS).index(kind), Fraction(2))
    strikes, voice = plan.scene.strikes[:1], plan.scene.voice

    def at(sample_rate: int) -> np.ndarray:
        rng = np.random.default_rng(1)
        return sound.synthesise(voice, strikes, rng, sample_rate, 2 * sample_rate, floor=0)

    time_s = strikes[0].time_s
    fine = at(192_000)
    first = math.ceil(time_s * 192_000)
    assert not fine[:first].any()
    assert np.abs(fine[first : first + 192]).max() > 0.1 * np.abs(fine).max()  # loud within 1 ms
    assert np.abs(at(48_000) - fine[::4]).max() < 1e-5  # the same curve, sampled
    # Moved by less than a sample, the sound moves by as much.
    moved = replace(strikes[0], time_s=time_s + 1 / 192_000)
    late = sound.synthesise(voice, [moved], np.random.default_rng(1), 192_000, 2 * 192_000, floor=0)
    assert np.abs(late[1:] - fine[:-1]).max() < 1e-6


@pytest.mark.parametrize("kind", list(KINDS))
def test_force_is_heard_in_loudness_and_brightness(kind: str) -> None:
    voice = plan_clip(0, list(KINDS).index(kind), Fraction(2)).scene.voice

    def hit(force: float) -> np.ndarray:
        return sound.synthesise(voice, [Strike(0.1, force)], np.random.default_rng(0), 48_000, 48_000, floor=0)

    def centroid_hz(waveform: np.ndarray) -> float:
        power = np.abs(np.fft.rfft(waveform)) ** 2
        return float((power * np.arange(len(power))).sum() / power.sum())

    soft, hard = hit(0.3), hit(1.0)
    assert np.abs(hard).max() > 2 * np.abs(soft).max()
    assert centroid_hz(hard) > centroid_hz(soft)


def test_materials_differ() -> None:
    ring_s = {}
    for index, kind in enumerate(KINDS):
        clip = sound.synthesise(
            plan_clip(0, index, Fraction(2)).scene.voice,
            [Strike(0.1, 0.8)],
            np.random.default_rng(0),
            16000,
            32000,
            floor=0,
        )
        energy = np.cumsum(clip.astype(float) ** 2)
        ring_s[kind] = np.searchsorted(energy, 0.95 * energy[-1]) / 16000 - 0.1
    assert ring_s["hammer"] > 2 * ring_s["drum"] > 2 * ring_s["ball"]


@pytest.mark.parametrize("index", range(8))
def test_the_picture_moves_most_where_things_strike(index: int) -> None:
    """At 100 frames a second, the frame of each event differs from the one before as few others do."""
    plan = plan_clip(2, index, Fraction(2))
    times = [k / 100 for k in range(200)]
    frames = draw(replace(plan, grain=0.0), times, (64, 64)).astype(np.int16)
    change = np.abs(np.diff(frames, axis=0)).sum(axis=(1, 2, 3))
    for strike in plan.scene.strikes:
        k = math.ceil(strike.time_s * 100)  # the first frame that may show contact
        assert change[k - 2 : k + 2].max() > np.median(change)


@few
@given(SEEDS, st.integers(0, 3))
def test_captions_tell_the_truth(seed: int, index: int) -> None:
    plan = plan_clip(seed, index, Fraction(4))
    count = len(plan.scene.strikes)
    number = captions.number(count)
    said = {1: ["once", "one"], 2: ["twice", "two"]}.get(count, [number])
    for text in (plan.captions.both, plan.captions.video, plan.captions.audio):
        words = text.lower().replace(",", "").replace(".", "").replace(":", "").split()
        assert set(said) & set(words) or (count == 1 and number in words), text
        for other in ("once", "twice"):
            assert (other in words) <= (other in said), text
        assert text[0].isupper() or text[0].isdigit()  # "14 drum beats."
        assert text.endswith(".")
    gaps = np.diff([s.time_s for s in plan.scene.strikes])
    if "quickly" in plan.captions.video:
        assert np.median(gaps) < 0.33
    if "slowly" in plan.captions.video:
        assert np.median(gaps) > 0.6
    mean = np.mean([s.force for s in plan.scene.strikes])
    assert ("hard" in plan.captions.video.split(",")[0].split()) <= (mean > 0.7)
    assert ("gently" in plan.captions.video) <= (mean < 0.45)
    material = {"ball": "wooden", "hammer": "hammer", "drum": "drum", "water": "water"}[list(KINDS)[index]]
    assert material in plan.captions.both
    assert material in plan.captions.video


def test_captions_vary() -> None:
    texts = {plan_clip(0, i, Fraction(2)).captions.both for i in range(200)}
    assert len(texts) > 150


@pytest.mark.parametrize("size", [(16, 16), (17, 31), (256, 144), (90, 160)])
def test_any_size_shows_the_scene(size: tuple[int, int]) -> None:
    for index in range(4):
        clip = render_clip(4, index, size=size, fps=Fraction(4))
        assert clip.frames.shape == (8, size[1], size[0], 3)
        assert clip.frames.std(axis=(1, 2)).mean() > 10
        for event in clip.events:
            assert 0 < float(event["x"]) < 1
            assert 0 < float(event["y"]) < 1
