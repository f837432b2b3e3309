"""A hammer strikes an anvil or a metal plate."""

from __future__ import annotations

import math

import numpy as np

from syncflow.impacts import sound
from syncflow.impacts.draw import Canvas, Colour, capsule, colour, convex, ellipse, mix, outside, rectangle, shade
from syncflow.impacts.motion import Strike, Swing, forces, rhythm, since_last
from syncflow.impacts.scene import WALLS, Words, paint_shadow, paint_wall, pick, pick_wall

METALS = {
    "grey steel": colour(0.52, 0.55, 0.60),
    "yellow brass": colour(0.80, 0.64, 0.25),
    "copper": colour(0.76, 0.43, 0.28),
    "black iron": colour(0.22, 0.23, 0.26),
}
HANDLES = {
    "red": colour(0.78, 0.17, 0.17),
    "wooden": colour(0.72, 0.50, 0.28),
    "blue": colour(0.16, 0.34, 0.72),
    "yellow": colour(0.93, 0.75, 0.15),
}
_TOP = 0.12
_GROUND = 0.40
_HEAD = 0.085


class HammerOnMetal:
    label = "hammer on metal"
    material = "metal"

    def __init__(self, rng: np.random.Generator, duration_s: float) -> None:
        metal, handle, wall = pick(rng, list(METALS)), pick(rng, list(HANDLES)), pick_wall(rng)
        self.anvil = bool(rng.random() < 0.6)
        self.metal, self.handle, self.wall = METALS[metal], HANDLES[handle], WALLS[wall]
        self.side = 1 if rng.random() < 0.5 else -1
        times = rhythm(rng, duration_s)
        self.hit_x = float(rng.uniform(-0.12, 0.02)) * self.side
        self.strikes = [Strike(t, f, self.hit_x, _TOP) for t, f in zip(times, forces(rng, len(times)), strict=True)]
        self.swing = Swing(tuple(self.strikes), down_s=0.15, lift=1.05)
        self.spark_seed = int(rng.integers(2**31))
        self.voice = sound.metal(rng)
        target = "anvil" if self.anvil else "plate"
        article = "an" if metal[0] in "aeiou" else "a"
        self.words = Words(
            seen=f"a hammer with a {handle} handle",
            verb=("strikes", "strikes"),
            target=f"{article} {metal} {target}",
            heard="bright metallic clang",
            source="a hammer on metal",
            setting=f"in front of a {wall} wall",
        )

    def backdrop(self, canvas: Canvas) -> None:
        paint_wall(canvas, self.wall)
        ground = shade(self.wall, -0.5)
        canvas.paint(outside(canvas, below=0.3), ground)
        canvas.paint(rectangle(0, 0.3, 9, 0.004), shade(self.wall, -0.2))
        paint_shadow(canvas, 0, _GROUND, 0.36, 0.6)

        def steel(x: np.ndarray, y: np.ndarray) -> Colour:
            light = np.clip(0.6 - (y - _TOP) * 1.6 - 0.35 * np.abs(x), 0, 1)
            return mix(shade(self.metal, -0.45), shade(self.metal, 0.2), light)

        if self.anvil:
            s = self.side
            canvas.paint(convex([(-0.24, 0.35), (0.24, 0.35), (0.27, _GROUND), (-0.27, _GROUND)]), steel)
            canvas.paint(convex([(-0.11, 0.22), (0.11, 0.22), (0.17, 0.36), (-0.17, 0.36)]), steel)
            canvas.paint(rectangle(0, _TOP + 0.06, 0.25, 0.06, radius=0.012), steel)
            horn = capsule(-s * 0.22, _TOP + 0.045, -s * 0.38, _TOP + 0.025, 0.045, 0.012)
            canvas.paint(horn, steel)
            canvas.paint(rectangle(0, _TOP + 0.007, 0.245, 0.006), shade(self.metal, 0.45))
        else:
            for x in (-0.24, 0.24):
                canvas.paint(rectangle(x, 0.29, 0.05, 0.12, radius=0.01), shade(colour(0.5, 0.33, 0.2), -0.1))
            canvas.paint(rectangle(0, _TOP + 0.025, 0.36, 0.026, radius=0.008), steel)
            canvas.paint(rectangle(0, _TOP + 0.006, 0.355, 0.005), shade(self.metal, 0.45))

    def picture(self, canvas: Canvas, time_s: float) -> None:
        since, strike = since_last(self.strikes, time_s)
        if strike is not None and since < 0.25:
            self._sparks(canvas, since, strike)
        angle = self.swing.angle(time_s) * self.side
        # The handle lies level at contact, its pivot (the hand) to the side; the head hangs at its end.
        pivot_x, pivot_y = self.hit_x + self.side * 0.46, _TOP - _HEAD
        turn = math.pi if self.side > 0 else 0.0

        def place(along: float, across: float) -> tuple[float, float]:
            a = turn + angle
            return (
                pivot_x + along * math.cos(a) - across * self.side * -math.sin(a),
                pivot_y + along * math.sin(a) - across * self.side * math.cos(a),
            )

        x0, y0 = place(-0.12, 0)
        x1, y1 = place(0.46, 0)
        canvas.paint(capsule(x0, y0, x1, y1, 0.024, 0.018), self.handle)
        canvas.paint(capsule(x0, y0 - 0.006, x1, y1 - 0.006, 0.006), shade(self.handle, 0.35), alpha=0.8)
        head = colour(0.36, 0.38, 0.42)
        canvas.paint(rectangle(x1, y1, 0.05, _HEAD, radius=0.014, angle=angle), head)
        canvas.paint(
            rectangle(x1 - 0.018, y1, 0.012, _HEAD * 0.86, radius=0.01, angle=angle), shade(head, 0.4), alpha=0.8
        )
        if strike is not None and since < 0.09:
            glow = strike.force * (1 - since / 0.09)
            canvas.paint(ellipse(self.hit_x, _TOP, 0.16, 0.07), colour(1, 0.93, 0.6), alpha=0.85 * glow, blur=0.12)

    def _sparks(self, canvas: Canvas, since: float, strike: Strike) -> None:
        rng = np.random.default_rng((self.spark_seed, round(strike.time_s * 1e6)))
        fade = 1 - since / 0.25
        for _ in range(4 + int(10 * strike.force)):
            direction = math.pi * float(rng.uniform(0.08, 0.92))
            speed = float(rng.uniform(0.5, 1.7)) * (0.4 + strike.force)
            vx, vy = speed * math.cos(direction), -speed * math.sin(direction)
            start_x = strike.x + math.copysign(0.05, vx)
            x, y = start_x + vx * since, _TOP + vy * since + 4 * since**2
            if y < _TOP + 0.02:
                tail_x, tail_y = x - vx * 0.025, y - (vy + 8 * since) * 0.025
                canvas.paint(capsule(tail_x, tail_y, x, y, 0.002, 0.008), colour(1, 0.75, 0.25), alpha=fade)
