"""What every kind of scene offers, and the colours and walls they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from syncflow.impacts.draw import Canvas, Colour, Paint, colour, ellipse, mix, outside, shade
from syncflow.impacts.motion import Strike
from syncflow.impacts.sound import Voice

COLOURS = {
    "red": colour(0.87, 0.22, 0.21),
    "orange": colour(0.96, 0.53, 0.16),
    "yellow": colour(0.97, 0.80, 0.22),
    "green": colour(0.24, 0.66, 0.36),
    "blue": colour(0.20, 0.42, 0.84),
    "purple": colour(0.54, 0.32, 0.76),
    "pink": colour(0.95, 0.48, 0.65),
    "white": colour(0.96, 0.95, 0.93),
}
WALLS = {
    "pale blue": colour(0.70, 0.82, 0.92),
    "cream": colour(0.94, 0.90, 0.80),
    "grey": colour(0.66, 0.68, 0.71),
    "mint green": colour(0.72, 0.88, 0.79),
    "dark blue": colour(0.16, 0.21, 0.35),
    "lilac": colour(0.82, 0.77, 0.91),
    "dark green": colour(0.15, 0.28, 0.25),
}


@dataclass(frozen=True)
class Words:
    """The parts that captions are made of."""

    seen: str
    """What acts, with its colour: "a red ball"."""
    verb: tuple[str, str]
    """Once and repeated: ("hits", "hits")."""
    target: str
    """On what, with colour: "a dark wooden table"."""
    heard: str
    """One sound: "woody knock"."""
    source: str
    """What makes it, without colours: "a ball on wood"."""
    setting: str
    """Where: "in front of a cream wall"."""


class Scene(Protocol):
    """A planned clip: what happens is settled, drawing and sounding it may be done at any size and rate."""

    label: str
    material: str
    strikes: list[Strike]
    voice: Voice
    words: Words

    def backdrop(self, canvas: Canvas) -> None:
        """Paint what never moves."""

    def picture(self, canvas: Canvas, time_s: float) -> None:
        """Paint what moves, as it is at `time_s`, over the backdrop."""


def pick(rng: np.random.Generator, names: Sequence[str]) -> str:
    return str(names[int(rng.integers(len(names)))])


def pick_wall(rng: np.random.Generator) -> str:
    return pick(rng, list(WALLS))


def paint_wall(canvas: Canvas, base: Colour) -> None:
    """A wall lit from the upper left, darker towards the corners."""
    everything = outside(canvas, below=-canvas.half_height - 0.5)

    def light(x: np.ndarray, y: np.ndarray) -> Colour:
        glow = np.exp(-((x + 0.2) ** 2 + (y + 0.25) ** 2) / 0.5)
        return mix(shade(base, -0.22), shade(base, 0.18), glow)

    canvas.paint(everything, light)


def paint_shadow(canvas: Canvas, x: float, y: float, half_width: float, strength: float, height: float = 0.0) -> None:
    """What a thing `height` above a surface casts on it: wider, fainter and softer the higher it is."""
    spread = 1 + 0.8 * height
    soft = 0.02 + 0.08 * height
    rx, ry = half_width * spread, half_width * 0.28 * spread
    canvas.paint(ellipse(x, y, rx, ry), colour(0.05, 0.04, 0.06), alpha=strength / (1 + 4 * height), blur=soft)


def ball_shading(base: Colour, cx: float, cy: float, rx: float, ry: float) -> Paint:
    """Colour of a lit sphere: a soft gradient from the upper left and a small highlight."""

    def at(x: np.ndarray, y: np.ndarray) -> Colour:
        u, v = (x - cx) / max(rx, 1e-4), (y - cy) / max(ry, 1e-4)
        light = np.clip(0.75 - 0.45 * u - 0.55 * v - 0.35 * (u * u + v * v), 0, 1)
        body = mix(shade(base, -0.45), shade(base, 0.12), light)
        spot = np.exp(-((u + 0.38) ** 2 + (v + 0.42) ** 2) / 0.05) * 0.75
        return mix(body, colour(1, 1, 1), spot)

    return at
