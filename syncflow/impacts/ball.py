"""A ball bounces on a wooden table."""

from __future__ import annotations

import math

import numpy as np

from syncflow.impacts import sound
from syncflow.impacts.draw import Canvas, Colour, colour, ellipse, mix, outside, rectangle, shade
from syncflow.impacts.motion import Bounce, Strike
from syncflow.impacts.scene import COLOURS, WALLS, Words, ball_shading, paint_shadow, paint_wall, pick, pick_wall

WOODS = {
    "pale wooden": colour(0.87, 0.71, 0.49),
    "brown wooden": colour(0.66, 0.43, 0.24),
    "dark wooden": colour(0.40, 0.25, 0.15),
}
_FLOOR = 0.30
_TABLE_TOP = 0.16
_FASTEST = math.sqrt(2 * 9.5 * 0.62)


def _plan_bounce(rng: np.random.Generator, duration_s: float) -> Bounce:
    """A fall and bounces none of which is so near the end of the clip that it would hardly be seen or heard."""
    for _ in range(50):
        gravity = float(rng.uniform(5.0, 9.5))
        height = float(rng.uniform(0.30, 0.62))
        first_s = float(rng.uniform(0.6, 1.0)) * min(math.sqrt(2 * height / gravity), 0.5 * duration_s)
        lively = bool(rng.random() < 0.3)
        restitution = 1.0 if lively else float(rng.uniform(0.62, 0.86))
        bounce = Bounce.plan(first_s, height, gravity, restitution, duration_s)
        if bounce.contacts[-1] < duration_s - min(0.1, 0.1 * duration_s):
            break
    return bounce


class BallOnWood:
    label = "ball on wood"
    material = "wood"

    def __init__(self, rng: np.random.Generator, duration_s: float) -> None:
        self.colour_name = pick(rng, list(COLOURS))
        wood, wall = pick(rng, list(WOODS)), pick_wall(rng)
        self.base, self.wood, self.wall = COLOURS[self.colour_name], WOODS[wood], WALLS[wall]
        self.radius = float(rng.uniform(0.075, 0.125))
        self.bounce = _plan_bounce(rng, duration_s)
        self.speed_x = float(rng.uniform(-0.16, 0.16)) / max(1.0, duration_s / 2)
        self.spin = float(rng.uniform(-5, 5))
        self.start_x = -self.speed_x * duration_s / 2 + float(rng.uniform(-0.08, 0.08))
        self.stripe = mix(self.base, colour(1, 1, 1) if self.colour_name != "white" else colour(0.2, 0.3, 0.7), 0.85)
        self.voice = sound.wood(rng)
        self.strikes = [
            Strike(t, min(1.0, v / _FASTEST), self._x(t), _FLOOR)
            for t, v in zip(self.bounce.contacts, self.bounce.speeds, strict=True)
        ]
        self.words = Words(
            seen=f"a {self.colour_name} ball",
            verb=("lands", "bounces"),
            target=f"a {wood} table",
            heard="woody knock",
            source="a ball on wood",
            setting=f"in front of a {wall} wall",
        )

    def _x(self, time_s: float) -> float:
        return self.start_x + self.speed_x * time_s

    def backdrop(self, canvas: Canvas) -> None:
        paint_wall(canvas, self.wall)
        top = outside(canvas, below=_TABLE_TOP)

        def grain(x: np.ndarray, y: np.ndarray) -> Colour:
            depth = (y - _TABLE_TOP) / 0.4 + 0.45
            across = x / depth
            plank = np.floor(across * 2.2 + 0.37)
            tone = 0.07 * np.sin(plank * 12.9898) + 0.035 * np.sin(across * 47 + 3 * np.sin(y * 9 + plank * 5))
            seam = np.abs(across * 2.2 + 0.37 - np.round(across * 2.2 + 0.37)) < 0.02
            light = 0.10 - 0.25 * (y - _TABLE_TOP) + tone - 0.22 * seam
            return np.clip(self.wood * (1 + light[..., None]), 0, 1).astype(np.float32)

        canvas.paint(top, grain)
        canvas.paint(rectangle(0, _TABLE_TOP, 9, 0.006), shade(self.wood, 0.25), alpha=0.7)

    def picture(self, canvas: Canvas, time_s: float) -> None:
        height, squash = self.bounce.at(time_s)
        x = self._x(time_s)
        ry = self.radius * (1 - 0.38 * squash)
        rx = self.radius * (1 + 0.24 * squash)
        cy = _FLOOR - height - ry
        paint_shadow(canvas, x, _FLOOR, rx * 0.95, 0.6, height)
        for strike in self.strikes:
            since = time_s - strike.time_s
            if 0 <= since < 0.16:
                u = since / 0.16
                puff = strike.force * (1 - u)
                for side in (-1, 1):
                    canvas.paint(
                        ellipse(
                            strike.x + side * (self.radius * 0.9 + 0.13 * u), _FLOOR - 0.015, 0.03 + 0.03 * u, 0.018
                        ),
                        shade(self.wood, 0.5),
                        alpha=0.8 * puff,
                        blur=0.03,
                    )
        canvas.paint(ellipse(x, cy, rx, ry), ball_shading(self.base, x, cy, rx, ry))
        turn = math.sin(self.spin * time_s) * 0.55
        band = ellipse(x + rx * turn, cy, rx * 0.16 * math.sqrt(max(0.0, 1 - turn * turn)) + 0.004, ry * 0.93)
        canvas.paint(band, self.stripe, alpha=0.75)
