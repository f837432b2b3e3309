"""One rendered clip: a pure function of (seed, index) and of how it is to be sampled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from syncflow.clock import ticks_in
from syncflow.impacts import captions, sound
from syncflow.impacts.ball import BallOnWood
from syncflow.impacts.draw import Canvas
from syncflow.impacts.drum import StickOnDrum
from syncflow.impacts.hammer import HammerOnMetal
from syncflow.impacts.scene import Scene
from syncflow.impacts.water import DropIntoWater

KINDS: dict[str, Callable[[np.random.Generator, float], Scene]] = {
    "ball": BallOnWood,
    "hammer": HammerOnMetal,
    "drum": StickOnDrum,
    "water": DropIntoWater,
}


@dataclass
class ImpactClip:
    """Pictures and sound that start together, and what truly happens in them."""

    id: str
    frames: np.ndarray
    """(T, H, W, 3) uint8; frame k shows the world at k / fps."""
    fps: Fraction
    waveform: np.ndarray
    """(L,) float32 mono."""
    sample_rate: int
    events_s: list[float]
    """Times of first contact, exact; each sound begins then."""
    caption: str
    video_caption: str
    audio_caption: str
    label: str
    events: list[dict[str, float | str]]
    """Per event: time_s, force in (0, 1], material, and where it happens as x, y in [0, 1] of the picture."""


@dataclass(frozen=True)
class Plan:
    """A clip before it is drawn."""

    id: str
    scene: Scene
    captions: captions.Captions
    hiss: float
    grain: float
    sound_seed: int


def plan_clip(seed: int, index: int, duration_s: Fraction) -> Plan:
    """What happens in clip `index` of `seed`; kinds take turns so that any stretch of clips holds all."""
    rng = np.random.default_rng((seed, index))
    kind = list(KINDS)[index % len(KINDS)]
    scene = KINDS[kind](rng, float(duration_s))
    return Plan(
        id=f"impact-s{seed}-{index:05d}",
        scene=scene,
        captions=captions.write(scene, rng),
        hiss=float(10 ** rng.uniform(-3.6, -2.6)),
        grain=float(rng.uniform(0, 0.012)),
        sound_seed=int(rng.integers(2**63)),
    )


def render_clip(
    seed: int,
    index: int,
    *,
    size: tuple[int, int] = (64, 64),
    fps: Fraction = Fraction(16),
    duration_s: Fraction = Fraction(2),
    sample_rate: int = 16000,
) -> ImpactClip:
    """Clip `index` of the endless series that `seed` begins.

    The same seed, index and duration give the same events and captions at any size, frame rate and sample
    rate; the same arguments give the same bytes in any process.

    Args:
        size: (width, height).
    """
    fps, duration_s = Fraction(fps), Fraction(duration_s)
    plan = plan_clip(seed, index, duration_s)
    frames = draw(plan, [float(k / fps) for k in range(ticks_in(duration_s, fps))], size)
    waveform = sound.synthesise(
        plan.scene.voice,
        plan.scene.strikes,
        np.random.default_rng(plan.sound_seed),
        sample_rate,
        ticks_in(duration_s, Fraction(sample_rate)),
        plan.hiss,
    )
    return ImpactClip(
        id=plan.id,
        frames=frames,
        fps=fps,
        waveform=waveform,
        sample_rate=sample_rate,
        events_s=[strike.time_s for strike in plan.scene.strikes],
        caption=plan.captions.both,
        video_caption=plan.captions.video,
        audio_caption=plan.captions.audio,
        label=plan.scene.label,
        events=events(plan, size),
    )


def draw(plan: Plan, times_s: list[float], size: tuple[int, int]) -> np.ndarray:
    """(T, H, W, 3) uint8: the world at each of `times_s`."""
    width, height = size
    canvas = Canvas(width, height)
    plan.scene.backdrop(canvas)
    backdrop = canvas.image.copy()
    rng = np.random.default_rng(plan.sound_seed + 1)
    grain = (plan.grain * rng.standard_normal((height, width, 1))).astype(np.float32)
    frames = np.empty((len(times_s), height, width, 3), dtype=np.uint8)  # (T, H, W, 3)
    for k, time_s in enumerate(times_s):
        canvas.image[:] = backdrop
        plan.scene.picture(canvas, time_s)
        # The same grain, moved about: new noise for every pixel of every frame would cost more than the scene.
        canvas.image += np.roll(grain, rng.integers(0, (height, width)), axis=(0, 1))
        frames[k] = canvas.to_uint8()
    return frames


def events(plan: Plan, size: tuple[int, int]) -> list[dict[str, float | str]]:
    short = min(size)
    return [
        {
            "time_s": strike.time_s,
            "force": round(strike.force, 4),
            "material": plan.scene.material,
            "x": round(0.5 + strike.x * short / size[0], 4),
            "y": round(0.5 + strike.y * short / size[1], 4),
        }
        for strike in plan.scene.strikes
    ]
