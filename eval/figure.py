"""Small drawings for the report, as inline SVG: sound over motion with matched events, and intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from syncflow.eval.measure import ClipMeasures
from syncflow.eval.onset_offset import HEADLINE_MS, Events
from syncflow.sync import match_events

WIDTH, HEIGHT = 640, 168
_TOP, _BOTTOM = 26, 142
_MIDDLE = (_TOP + _BOTTOM) / 2


def timeline(measures: ClipMeasures, events: Events) -> str:
    """Waveform (area) over motion energy (line), visible events above, onsets below, matched ones joined."""
    duration_s = max(measures.duration_s, 1e-3)

    def x(time_s: float) -> float:
        return round(min(max(time_s / duration_s, 0.0), 1.0) * WIDTH, 1)

    pairs = match_events(events.visual_s, events.audio_s, HEADLINE_MS / 1000)
    seen, heard = {i for i, _ in pairs}, {j for _, j in pairs}
    parts = [
        f'<svg class="timeline" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{len(pairs)} of {len(events.visual_s)} visible events matched by {len(events.audio_s)} onsets">',
        _axis(duration_s, x),
        f'<path class="wave" d="{_wave(measures.envelope)}"/>',
        f'<path class="motion" d="{_line(measures.energy, measures.fps, x)}"/>',
    ]
    for i, j in pairs:
        a, b = x(events.visual_s[i]), x(events.audio_s[j])
        late_ms = 1000 * (events.audio_s[j] - events.visual_s[i])
        parts.append(f'<path class="join" d="M{a} {_TOP}L{b} {_BOTTOM}"><title>{late_ms:+.0f} ms</title></path>')
    for i, t in enumerate(events.visual_s):
        a, kind = x(t), "met" if i in seen else "lone"
        parts.append(f'<path class="{kind}" d="M{a - 5} {_TOP - 12}h10l-5 10z"><title>seen at {t:.3f} s</title></path>')
    for j, t in enumerate(events.audio_s):
        a, kind = x(t), "met" if j in heard else "lone"
        parts.append(
            f'<path class="{kind}" d="M{a - 5} {_BOTTOM + 12}h10l-5 -10z"><title>heard at {t:.3f} s</title></path>'
        )
    return "".join([*parts, "</svg>"])


def _axis(duration_s: float, x: Callable[[float], float]) -> str:
    step = next(s for s in (0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 600, 1e9) if duration_s / s <= 10)
    marks = []
    for k in range(1, int(duration_s / step + 1e-6) + 1):
        at = x(k * step)
        if at < WIDTH - 20:
            marks.append(
                f'<path class="grid" d="M{at} {_TOP}V{_BOTTOM}"/><text x="{at}" y="{HEIGHT - 2}">{k * step:g} s</text>'
            )
    return "".join(marks)


def _wave(envelope: Sequence[float]) -> str:
    if not envelope:
        return ""
    top = max(max(envelope), 1e-6)
    half = (_BOTTOM - _TOP) / 2 - 2
    xs = np.linspace(0, WIDTH, len(envelope))
    upper = [f"{a:.1f} {_MIDDLE - half * e / top:.1f}" for a, e in zip(xs, envelope, strict=True)]
    lower = [f"{a:.1f} {_MIDDLE + half * e / top:.1f}" for a, e in zip(xs[::-1], envelope[::-1], strict=True)]
    return "M" + "L".join(upper + lower) + "Z"


def _line(energy: Sequence[float], fps: float, x: Callable[[float], float]) -> str:
    if not energy:
        return ""
    top = max(max(energy), 1e-6)
    height = _BOTTOM - _TOP - 4
    points = [f"{x((k + 0.5) / fps)} {_BOTTOM - 2 - height * e / top:.1f}" for k, e in enumerate(energy)]
    return "M" + "L".join(points)


def whisker(value: float, low: float | None, high: float | None, span: tuple[float, float]) -> str:
    """An interval as a line with a dot, on a scale shared by all sets."""
    first, last = span
    scale = 110 / max(last - first, 1e-12)

    def x(v: float) -> float:
        return round(5 + (min(max(v, first), last) - first) * scale, 1)

    zero = f'<path class="grid" d="M{x(0)} 1V15"/>' if first < 0 < last else ""
    bar = f'<path class="bar" d="M{x(low)} 8H{x(high)}"/>' if low is not None and high is not None else ""
    return f'<svg class="whisker" viewBox="0 0 120 16">{zero}{bar}<circle cx="{x(value)}" cy="8" r="3.5"/></svg>'
