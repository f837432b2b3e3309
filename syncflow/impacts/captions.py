"""Captions from what truly happens: what, on what, how often, how fast and how hard."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from syncflow.impacts.scene import Scene, pick

_NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]


@dataclass(frozen=True)
class Captions:
    both: str
    video: str
    audio: str


def write(scene: Scene, rng: np.random.Generator) -> Captions:
    """One of several phrasings, each with the count, the pace and the force of the strikes."""
    words, count = scene.words, len(scene.strikes)
    times = "once" if count == 1 else "twice" if count == 2 else f"{number(count)} times"
    verb = words.verb[0 if count == 1 else 1]
    preposition = {"lands": "on", "bounces": "on", "falls": "into", "fall": "into"}.get(verb, "")
    act = f"{verb} {preposition} {words.target}" if preposition else f"{verb} {words.target}"
    how = _how(scene)
    manner = f" {how}" if how else ""
    seen = words.seen
    video = f"{seen} {act} {times}{manner}, {words.setting}."
    sounds = f"{number(count)} {words.heard}{'' if count == 1 else 's'}"
    heard_how = _heard(scene)
    audio = pick(
        rng,
        [
            f"{sounds}{heard_how}.",
            f"the sound of {words.source}, {times}{heard_how}.",
            f"{words.source}: {sounds}{heard_how}.",
        ],
    )
    both = pick(
        rng,
        [
            f"{seen} {act} {times}{manner}.",
            f"{seen} {act} {times}{manner}, with {sounds}.",
            f"{seen} {act}{manner}, {times}.",
            f"{sounds} as {seen} {act}{manner}.",
        ],
    )
    return Captions(_sentence(both), _sentence(video), _sentence(audio))


def number(count: int) -> str:
    return _NUMBERS[count] if count < len(_NUMBERS) else str(count)


def pace(scene: Scene) -> str:
    """quickly, steadily or slowly by the median time between strikes; empty for one strike."""
    gaps = np.diff([s.time_s for s in scene.strikes])
    if not len(gaps):
        return ""
    middle = float(np.median(gaps))
    return "quickly" if middle < 0.32 else "slowly" if middle > 0.65 else "steadily"


def force(scene: Scene) -> str:
    """hard, gently or empty, by the mean force of the strikes."""
    mean = float(np.mean([s.force for s in scene.strikes]))
    return "hard" if mean > 0.72 else "gently" if mean < 0.42 else ""


def trend(scene: Scene) -> str:
    """louder, softer or empty: whether force clearly and always grows or fades."""
    steps = np.diff([s.force for s in scene.strikes])
    if len(steps) < 2 or abs(scene.strikes[-1].force - scene.strikes[0].force) < 0.2:
        return ""
    return "louder" if (steps > 0).all() else "softer" if (steps < 0).all() else ""


def _how(scene: Scene) -> str:
    return " and ".join(filter(None, [pace(scene), force(scene)]))


def _heard(scene: Scene) -> str:
    parts = []
    if pace(scene) == "quickly":
        parts.append("in quick succession")
    elif pace(scene) == "slowly":
        parts.append("far apart")
    if trend(scene):
        parts.append(f"getting {trend(scene)}")
    elif force(scene):
        parts.append({"hard": "loud", "gently": "soft"}[force(scene)])
    return (", " + " and ".join(parts)) if parts else ""


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]
