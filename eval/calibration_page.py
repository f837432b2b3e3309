"""The page of `syncflow calibrate`: response curves as inline SVG."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from syncflow.files import write_whole

_W, _H, _LEFT, _RIGHT, _TOP, _BOTTOM = 300, 150, 46, 8, 8, 26
_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #5d6672; --line: #dfe3e8; --card: #f7f8fa;
  --page: #fff; --accent: #3867c8; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --soft: #98a2ae; --line: #2c333c; --card: #151a21;
  --page: #0e1217; --accent: #83a8f5; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); max-width: 1180px;
  margin: 0 auto; padding: 28px 18px 64px; }
h1 { font-size: 26px; margin: 0; } h2 { font-size: 18px; margin: 36px 0 8px; }
.soft { color: var(--soft); font-size: 13px; }
.row { display: grid; grid-template-columns: repeat(auto-fill, minmax(260px, 1fr)); gap: 14px; }
figure { margin: 0; border: 1px solid var(--line); background: var(--card); border-radius: 10px; padding: 10px 12px; }
figcaption { font-size: 13px; } figcaption b { font-weight: 600; } svg { width: 100%; height: auto; display: block; }
.band { fill: var(--accent); opacity: .18; } .curve { fill: none; stroke: var(--accent); stroke-width: 2; }
circle { fill: var(--accent); } .axis { stroke: var(--line); } text { font-size: 11px; fill: var(--soft); }
"""


def write_page(result: dict[str, Any], path: Path) -> None:
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>SyncFlow calibration</title>',
        f"<style>{_STYLE}</style></head><body><h1>Calibration</h1>",
        f'<p class="soft">{result["clips"]} clips, visible events {escape(result["events"])}, seed {result["seed"]}, '
        f"SyncFlow {escape(result['version'])}{', ' + escape(result['network']) if result['network'] else ''}.</p>",
        '<p class="soft">Curves: mean over clips, with its 95 % interval. <b>Sees 40</b>: from an amount of 40 on, the '
        "change against the same clips undamaged is more than chance (its 95 % interval leaves out 0). "
        "<b>Order</b>: Spearman's rank correlation of damage with change; 1 where more damage always shows more. "
        "<b>Moves</b>: largest mean change, in standard deviations of the metric over undamaged clips. Distances of "
        "network features are to the undamaged clips themselves, so they start at 0 and no change is chance.</p>",
    ]
    for name, damage in result["damages"].items():
        title = f'{escape(name.replace("_", " "))} <span class="soft">{escape(damage["axis"])}</span>'
        parts.append(f'<h2>{title}</h2><div class="row">')
        for metric, curve in damage["metrics"].items():
            facts = []
            if "smallest" in curve:
                facts.append("does not see it" if curve["smallest"] is None else f"sees {curve['smallest']:g}")
            if curve["monotone"] is not None:
                facts.append(f"order {curve['monotone']:.2f}")
            if curve.get("sensitivity") is not None:
                facts.append(f"moves {curve['sensitivity']:.1f} sd")
            label = f'<b>{escape(metric.replace("_", " "))}</b> <span class="soft">{" · ".join(facts)}</span>'
            drawing = _curve(damage["amounts"], curve["points"])
            parts.append(f"<figure>{drawing}<figcaption>{label}</figcaption></figure>")
        parts.append("</div>")
    for failure in result["failed"]:
        parts.append(f'<p class="soft">{escape(failure["clip"])}: {escape(failure["detail"])}</p>')
    write_whole(path, "".join([*parts, "</body></html>"]))


def _curve(amounts: Sequence[float], points: Sequence[Sequence[float | None] | None]) -> str:
    """Amounts evenly spaced (they are not on one scale), values from least to most."""
    ends = [v for p in points if p for v in p if v is not None]
    if not ends:
        return '<p class="soft">no clip gives a value</p>'
    low, high = min(ends), max(ends)
    span = high - low or max(abs(high), 1.0)

    def x(k: int) -> float:
        return round(_LEFT + k * (_W - _LEFT - _RIGHT) / max(1, len(amounts) - 1), 1)

    def y(value: float) -> float:
        return round(_H - _BOTTOM - (value - low) / span * (_H - _TOP - _BOTTOM), 1)

    known = [(k, p) for k, p in enumerate(points) if p]
    line = "M" + "L".join(f"{x(k)} {y(p[0] or 0.0)}" for k, p in known)
    wide = [(k, p) for k, p in known if p[1] is not None and p[2] is not None]
    band = ""
    if len(wide) > 1:
        upper = [f"{x(k)} {y(p[2] or 0.0)}" for k, p in wide]
        lower = [f"{x(k)} {y(p[1] or 0.0)}" for k, p in reversed(wide)]
        band = f'<path class="band" d="M{"L".join(upper + lower)}Z"/>'
    step = max(1, -(-len(amounts) // 6))
    shown = [(k, a) for k, a in enumerate(amounts) if k % step == 0]
    marks = "".join(f'<text x="{x(k)}" y="{_H - 8}" text-anchor="middle">{a:g}</text>' for k, a in shown)
    scale = "".join(f'<text x="{_LEFT - 5}" y="{y(v) + 4}" text-anchor="end">{v:.3g}</text>' for v in (low, high))
    dots = "".join(f'<circle cx="{x(k)}" cy="{y(p[0] or 0.0)}" r="2.5"/>' for k, p in known)
    return (
        f'<svg viewBox="0 0 {_W} {_H}">'
        f'<path class="axis" d="M{_LEFT} {_TOP}V{_H - _BOTTOM}H{_W - _RIGHT}" fill="none"/>'
        f'{band}<path class="curve" d="{line}"/>{dots}{marks}{scale}</svg>'
    )
