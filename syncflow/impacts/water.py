"""Drops fall from a tap into water."""

from __future__ import annotations

import math

import numpy as np

from syncflow.impacts import sound
from syncflow.impacts.draw import Canvas, Colour, colour, ellipse, mix, outside, rectangle, ring, shade
from syncflow.impacts.motion import Strike, forces, rhythm
from syncflow.impacts.scene import WALLS, Words, ball_shading, paint_wall, pick, pick_wall

WATERS = {
    "blue": colour(0.16, 0.42, 0.68),
    "turquoise": colour(0.13, 0.56, 0.60),
    "green": colour(0.18, 0.46, 0.34),
    "dark": colour(0.10, 0.17, 0.28),
}
_SURFACE = 0.22
_SHORE = 0.02
_NOZZLE = -0.40
_GRAVITY = 7.0
_HANG_S = 0.35


class DropIntoWater:
    label = "drop into water"
    material = "water"

    def __init__(self, rng: np.random.Generator, duration_s: float) -> None:
        water, wall = pick(rng, list(WATERS)), pick_wall(rng)
        self.water, self.wall = WATERS[water], WALLS[wall]
        self.x = float(rng.uniform(-0.14, 0.14))
        times = rhythm(rng, duration_s, shortest_gap_s=0.24)
        self.strikes = [Strike(t, f, self.x, _SURFACE) for t, f in zip(times, forces(rng, len(times)), strict=True)]
        self.splash_seed = int(rng.integers(2**31))
        self.voice = sound.water(rng)
        self.words = Words(
            seen="a drop of water" if len(times) == 1 else "drops of water",
            verb=("falls", "fall"),
            target=f"a pool of {water} water",
            heard="watery plop",
            source="a drop falling into water",
            setting=f"in front of a {wall} wall",
        )

    def backdrop(self, canvas: Canvas) -> None:
        paint_wall(canvas, self.wall)

        def deep(x: np.ndarray, y: np.ndarray) -> Colour:
            near = np.clip((y - _SHORE) / 0.5, 0, 1)
            glint = 0.05 * np.sin(y * 120 / (0.4 + near) + 2 * np.sin(x * 7)) * (1 - near)
            reflection = mix(shade(self.water, 0.35), self.wall, 0.25)
            return mix(reflection, shade(self.water, -0.3), np.clip(near + glint + 0 * x, 0, 1))

        canvas.paint(outside(canvas, below=_SHORE), deep)
        canvas.paint(rectangle(0, _SHORE, 9, 0.005), shade(self.wall, -0.35), alpha=0.7)
        steel = colour(0.72, 0.74, 0.78)
        top = -canvas.half_height - 0.1
        canvas.paint(
            rectangle(self.x, (top + _NOZZLE) / 2, 0.035, (_NOZZLE - top) / 2, radius=0.01), shade(steel, -0.2)
        )
        canvas.paint(rectangle(self.x - 0.012, (top + _NOZZLE) / 2, 0.01, (_NOZZLE - top) / 2), shade(steel, 0.5))
        canvas.paint(rectangle(self.x, _NOZZLE - 0.012, 0.045, 0.014, radius=0.006), steel)

    def picture(self, canvas: Canvas, time_s: float) -> None:
        for strike in self.strikes:
            since = time_s - strike.time_s
            if since < 0:
                self._drop(canvas, -since, strike)
            elif since < 1.6:
                self._ripples(canvas, since, strike)
        for strike in self.strikes:
            since = time_s - strike.time_s
            if 0 <= since < 0.45:
                self._splash(canvas, since, strike)

    def _drop(self, canvas: Canvas, before_s: float, strike: Strike) -> None:
        radius = 0.026 + 0.026 * strike.force
        fall = _SURFACE - _NOZZLE - radius
        speed = 0.8 + 1.4 * strike.force  # thrown by the tap's pressure, so that the force shows
        fall_s = (-speed + math.sqrt(speed**2 + 2 * _GRAVITY * fall)) / _GRAVITY
        if before_s > fall_s + _HANG_S:
            return
        if before_s > fall_s:
            grown = 1 - (before_s - fall_s) / _HANG_S
            r = radius * grown
            y = _NOZZLE + r * 0.6
            stretch = 1.0
        else:
            falling = fall_s - before_s
            y = _NOZZLE + speed * falling + _GRAVITY * falling**2 / 2
            r = radius
            stretch = 1 + 0.12 * (speed + _GRAVITY * falling)
            # The lowest point touches the surface exactly at the strike, however long the drop has grown.
            y -= r * (stretch - 1) * falling / fall_s
        bright = mix(shade(self.water, 0.55), colour(1, 1, 1), 0.15)
        if before_s < fall_s:
            near = 1 - (_SURFACE - y) / (_SURFACE - _NOZZLE)
            canvas.paint(
                ellipse(self.x, _SURFACE, r * 1.2, r * 0.3), shade(self.water, -0.5), alpha=0.5 * near, blur=0.02
            )
        canvas.paint(
            ellipse(self.x, y, r / math.sqrt(stretch), r * stretch), ball_shading(bright, self.x, y, r, r * stretch)
        )

    def _ripples(self, canvas: Canvas, since: float, strike: Strike) -> None:
        for delay_s, strength in ((0.0, 1.0), (0.12, 0.7), (0.26, 0.45)):
            age = since - delay_s
            if age <= 0:
                continue
            r = 0.02 + 0.42 * age**0.85
            fade = strike.force * strength * math.exp(-age / 0.45)
            width = 0.016 + 0.02 * age
            wave = ellipse(strike.x, _SURFACE, r, r * 0.3)
            canvas.paint(ring(wave, width), shade(self.water, 0.75), alpha=min(1.0, 1.2 * fade))
            inner = ellipse(strike.x, _SURFACE + 0.006, max(0.01, r - width), max(0.004, (r - width) * 0.3))
            canvas.paint(ring(inner, width * 0.8), shade(self.water, -0.45), alpha=0.7 * fade)

    def _splash(self, canvas: Canvas, since: float, strike: Strike) -> None:
        rng = np.random.default_rng((self.splash_seed, round(strike.time_s * 1e6)))
        spray = mix(shade(self.water, 0.75), colour(1, 1, 1), 0.4)
        if since < 0.12:
            flash = 1 - since / 0.12
            canvas.paint(
                ellipse(strike.x, _SURFACE, 0.09, 0.03), colour(1, 1, 1), alpha=0.9 * flash * strike.force, blur=0.04
            )
        rise = strike.force * 0.16 * math.sin(math.pi * min(1.0, since / 0.3))
        if rise > 0.01:
            canvas.paint(ellipse(strike.x, _SURFACE - rise / 2, 0.014, rise / 2 + 0.008), spray, alpha=0.95)
        for _ in range(5 + int(9 * strike.force)):
            vx = float(rng.normal(0, 0.42)) * (0.4 + strike.force)
            vy = -float(rng.uniform(0.5, 1.5)) * (0.35 + strike.force)
            r = float(rng.uniform(0.007, 0.015))
            x, y = strike.x + vx * since, _SURFACE + vy * since + _GRAVITY * since**2 / 2
            if y < _SURFACE + 0.01:
                canvas.paint(ellipse(x, y, r, r), spray, alpha=0.95)
