"""Two sticks take turns on a drum."""

from __future__ import annotations

import math

import numpy as np

from syncflow.impacts import sound
from syncflow.impacts.draw import Canvas, Colour, capsule, colour, ellipse, mix, outside, rectangle, ring, shade
from syncflow.impacts.motion import Strike, Swing, forces, rhythm, since_last
from syncflow.impacts.scene import COLOURS, WALLS, Words, paint_shadow, paint_wall, pick, pick_wall

_HEAD_Y = 0.10
_FLOOR = 0.42


class StickOnDrum:
    label = "stick on drum"
    material = "skin"

    def __init__(self, rng: np.random.Generator, duration_s: float) -> None:
        name, wall = pick(rng, [c for c in COLOURS if c != "white"]), pick_wall(rng)
        self.shell, self.wall = COLOURS[name], WALLS[wall]
        self.radius = float(rng.uniform(0.24, 0.34))
        self.height = float(rng.uniform(0.16, 0.27))
        times = rhythm(rng, duration_s, shortest_gap_s=0.16)
        both = bool(rng.random() < 0.6) and len(times) > 1
        sides = [(i % 2 * 2 - 1) if both else 1 for i in range(len(times))]
        self.strikes = [
            Strike(t, f, side * 0.07, _HEAD_Y) for t, f, side in zip(times, forces(rng, len(times)), sides, strict=True)
        ]
        self.sticks = {
            side: Swing(
                tuple(s for s, at in zip(self.strikes, sides, strict=True) if at == side), down_s=0.12, lift=0.8
            )
            for side in sorted(set(sides))
        }
        self.voice = sound.drum(rng)
        self.words = Words(
            seen="a pair of drumsticks" if both else "a drumstick",
            verb=("hit" if both else "hits", "hit" if both else "hits"),
            target=f"a {name} drum",
            heard="drum beat",
            source="a stick on a drum",
            setting=f"in front of a {wall} wall",
        )

    def backdrop(self, canvas: Canvas) -> None:
        paint_wall(canvas, self.wall)
        canvas.paint(outside(canvas, below=0.27), shade(self.wall, -0.35))
        paint_shadow(canvas, 0, _HEAD_Y + self.height + 0.07, self.radius * 1.15, 0.6)

        def lacquer(x: np.ndarray, y: np.ndarray) -> Colour:
            u = x / self.radius
            light = np.clip(0.55 - 0.55 * u - 0.6 * u * u, 0, 1) + 0.35 * np.exp(-((u + 0.45) ** 2) / 0.02) + 0 * y
            return mix(shade(self.shell, -0.5), shade(self.shell, 0.2), np.clip(light, 0, 1))

        squeeze = 0.24
        bottom = _HEAD_Y + self.height
        canvas.paint(ellipse(0, bottom, self.radius, self.radius * squeeze), lacquer)
        canvas.paint(rectangle(0, (_HEAD_Y + bottom) / 2, self.radius, self.height / 2), lacquer)
        chrome = colour(0.82, 0.83, 0.86)
        for u in (-0.75, -0.28, 0.28, 0.75):
            dip = squeeze * self.radius * math.sqrt(1 - u * u)
            x = u * self.radius
            canvas.paint(capsule(x, _HEAD_Y + dip, x, bottom + dip - 0.015, 0.007), chrome)
        canvas.paint(
            ellipse(0, _HEAD_Y + 0.012, self.radius * 1.035, self.radius * squeeze * 1.07), shade(chrome, -0.35)
        )
        canvas.paint(ellipse(0, _HEAD_Y, self.radius * 1.035, self.radius * squeeze * 1.07), chrome)

    def picture(self, canvas: Canvas, time_s: float) -> None:
        since, strike = since_last(self.strikes, time_s)
        shake = 0.0
        if strike is not None:
            shake = strike.force * math.exp(-since / 0.09)
        skin = mix(colour(0.93, 0.89, 0.80), colour(1, 0.98, 0.86), shake)
        sunk = 0.012 * shake * math.cos(2 * math.pi * 9 * since) if shake > 1e-3 else 0.0
        rx, ry = self.radius * 0.97, self.radius * 0.225
        canvas.paint(ellipse(0, _HEAD_Y, rx, ry), shade(skin, -0.12))
        canvas.paint(ellipse(0, _HEAD_Y + sunk, rx * 0.96, ry * 0.94), skin)
        if strike is not None and since < 0.22:
            u = since / 0.22
            wave = ellipse(strike.x * (1 - u), _HEAD_Y + sunk, 0.03 + rx * 0.9 * u, (0.03 + rx * 0.9 * u) * 0.23)
            canvas.paint(ring(wave, 0.018), colour(0.55, 0.45, 0.35), alpha=0.9 * strike.force * (1 - u))
            canvas.paint(
                ellipse(strike.x, _HEAD_Y, 0.09, 0.03),
                colour(1, 0.85, 0.45),
                alpha=strike.force * (1 - u) ** 3,
                blur=0.05,
            )
        for side, swing in self.sticks.items():
            self._stick(canvas, side, swing.angle(time_s))

    def _stick(self, canvas: Canvas, side: int, angle: float) -> None:
        """From a hand at the side to a tip that rests on the skin at angle 0, sloping down by 0.35 rad."""
        tip_r, length = 0.02, 0.5
        slope = 0.35
        tip_x, tip_y = side * 0.07, _HEAD_Y - tip_r
        hand_x, hand_y = tip_x + side * length * math.cos(slope), tip_y - length * math.sin(slope)
        a = slope - angle
        x, y = hand_x - side * length * math.cos(a), hand_y + length * math.sin(a)
        if angle < 0.5:
            paint_shadow(canvas, x, _HEAD_Y + 0.005, 0.03, 0.35 * (1 - angle / 0.5))
        wood = colour(0.80, 0.60, 0.36)
        canvas.paint(capsule(hand_x, hand_y, x, y, 0.02, 0.011), wood)
        canvas.paint(capsule(hand_x, hand_y - 0.006, x, y - 0.004, 0.005, 0.003), shade(wood, 0.4), alpha=0.8)
        canvas.paint(ellipse(x, y, tip_r, tip_r), shade(wood, 0.25))
