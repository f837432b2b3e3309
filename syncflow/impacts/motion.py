"""When things strike and how they move in between: rhythms, a bouncing ball, a swinging tool. Times in seconds."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Strike:
    """One thing touching another for the first time."""

    time_s: float
    force: float
    """Speed of impact against the fastest there is, in (0, 1]."""
    x: float = 0.0
    """Where, in the world of `draw`."""
    y: float = 0.0


def rhythm(rng: np.random.Generator, duration_s: float, shortest_gap_s: float = 0.2) -> list[float]:
    """Times of one or more strikes in a clip: regular, uneven, speeding up or slowing down.

    The first leaves room to see it coming, the last to hear it ring; a short clip has one strike in its middle.
    """
    first_s, last_s = min(0.3, duration_s * 0.3), duration_s - min(0.25, duration_s * 0.25)
    gap_s = math.exp(rng.uniform(math.log(shortest_gap_s), math.log(1.0)))
    pattern = rng.choice(["regular", "regular", "regular", "uneven", "faster", "slower"])
    wanted = int(rng.integers(1, max(2, int((last_s - first_s) / gap_s) + 2)))
    gaps = np.full(max(0, wanted - 1), gap_s)
    steps = np.arange(len(gaps))
    if pattern == "uneven":
        gaps = gaps * rng.uniform(0.7, 1.5, len(gaps))
    elif pattern == "faster":
        gaps = gaps * 1.6 * 0.78**steps
    elif pattern == "slower":
        gaps = gaps * 1.28**steps
    offsets = np.concatenate([[0.0], np.cumsum(np.maximum(gaps, shortest_gap_s))])
    offsets = offsets[offsets <= last_s - first_s]
    start_s = rng.uniform(first_s, last_s - offsets[-1])
    return [float(start_s + offset) for offset in offsets]


def forces(rng: np.random.Generator, count: int) -> list[float]:
    """A force for each strike: about the same, growing or fading."""
    base = rng.uniform(0.3, 0.9)
    trend = rng.choice([0, 0, 0, 1, -1]) if count >= 3 else 0
    ramp = np.linspace(-1, 1, count) * trend * 0.3
    return [float(f) for f in np.clip(base + ramp + rng.uniform(-0.05, 0.05, count), 0.2, 1.0)]


@dataclass(frozen=True)
class Bounce:
    """A ball that falls, touches the floor at `contacts`, stays for `dwell_s` while it is squashed, and rises.

    Between contacts i and i+1 its height is v_i·τ - g·τ²/2 with v_i the speed at which it left the floor and
    τ the time since; it met the floor at speeds[i].
    """

    gravity: float
    drop_height: float
    restitution: float
    """Speed kept at the last contact; 0 where the ball comes to rest."""
    dwell_s: float
    contacts: tuple[float, ...]
    speeds: tuple[float, ...]

    @classmethod
    def plan(cls, first_s: float, drop_height: float, gravity: float, restitution: float, duration_s: float) -> Bounce:
        """Contacts before `duration_s` of a ball dropped so as to land at `first_s`; slow ones end the bouncing."""
        dwell_s = 0.05
        fastest = math.sqrt(2 * gravity * drop_height)
        contacts, speeds = [first_s], [fastest]
        while True:
            leaving = speeds[-1] * restitution
            flight_s = 2 * leaving / gravity
            if flight_s < 0.14 or contacts[-1] + dwell_s + flight_s >= duration_s:
                break
            contacts.append(contacts[-1] + dwell_s + flight_s)
            speeds.append(leaving)
        if flight_s < 0.14:
            restitution = 0.0
        return cls(gravity, drop_height, restitution, dwell_s, tuple(contacts), tuple(speeds))

    def at(self, time_s: float) -> tuple[float, float]:
        """Height of the underside above the floor, and how squashed it is in [0, 1]."""
        i = bisect_right(self.contacts, time_s) - 1
        if i < 0:
            since_apex = time_s - self.contacts[0] + self.speeds[0] / self.gravity
            return self.drop_height - self.gravity * max(0.0, since_apex) ** 2 / 2, 0.0
        since = time_s - self.contacts[i]
        fastest = self.speeds[0]
        if since < self.dwell_s:
            return 0.0, self.speeds[i] / fastest * math.sin(math.pi * since / self.dwell_s)
        leaving = self.speeds[i + 1] if i + 1 < len(self.speeds) else self.speeds[i] * self.restitution
        flight = since - self.dwell_s
        return max(0.0, leaving * flight - self.gravity * flight**2 / 2), 0.0


@dataclass(frozen=True)
class Swing:
    """A tool that is lifted and brought down on its strikes: its angle is 0 exactly at each strike.

    Down: angle A·(1 - u²) over `down_s` (u from 0 to 1), so it lands at full speed 2·A/down_s; up: it recoils
    at once and slows as it rises.
    """

    strikes: tuple[Strike, ...]
    down_s: float = 0.16
    lift: float = 1.0
    """Angle in radians from which the hardest blow falls."""

    def _raised(self, strike: Strike) -> float:
        return self.lift * (0.25 + 0.75 * strike.force)

    def angle(self, time_s: float) -> float:
        i = bisect_right([s.time_s for s in self.strikes], time_s)
        before = self.strikes[i - 1] if i else None
        after = self.strikes[i] if i < len(self.strikes) else None
        if after is None:
            if before is None:
                return self.lift * 0.5
            rest = 0.3 * self.lift
            return rest * (1 - math.exp(-(time_s - before.time_s) / 0.09))
        down_s = self.down_s if before is None else min(self.down_s, 0.5 * (after.time_s - before.time_s))
        top = self._raised(after)
        if time_s >= after.time_s - down_s:
            u = 1 - (after.time_s - time_s) / down_s
            return top * (1 - u * u)
        if before is None:
            return top
        u = (time_s - before.time_s) / (after.time_s - down_s - before.time_s)
        return top * math.sin(math.pi / 2 * u) ** 0.8


def since_last(strikes: Sequence[Strike], time_s: float) -> tuple[float, Strike | None]:
    """Seconds since the latest strike at or before `time_s`, and that strike."""
    i = bisect_right([s.time_s for s in strikes], time_s) - 1
    return (time_s - strikes[i].time_s, strikes[i]) if i >= 0 else (math.inf, None)
