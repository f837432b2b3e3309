"""The report: one page with players side by side, timelines, tables with intervals and the protocol."""

from __future__ import annotations

import base64
import mimetypes
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from syncflow.eval.figure import timeline, whisker
from syncflow.eval.onset_offset import clip_f1
from syncflow.eval.scores import ClipScore, Score
from syncflow.files import replacing, write_whole

if TYPE_CHECKING:
    from syncflow.eval.config import EvaluateConfig
    from syncflow.eval.outputs import Evaluation, JudgedSet

EMBED_BYTES = 2_000_000
EMBED_TOTAL_BYTES = 48_000_000
TITLES = {
    "av_align": "AV-Align",
    "onset_offset": "Onset offset",
    "onset_f1": "Event F1",
    "onset_precision": "Event precision",
    "onset_recall": "Event recall",
    "within_40ms": "Within ±40 ms",
    "within_80ms": "Within ±80 ms",
    "within_160ms": "Within ±160 ms",
    "loudness": "Loudness",
    "motion": "Motion",
    "clip_score": "CLIP score",
    "clap_score": "CLAP score",
    "desync": "DeSync",
}
ARROWS = {"higher": "↑", "lower": "↓", "zero": "→ 0", "": ""}


@dataclass
class Media:
    """Gives each video a place in the page: inside it while they are small, else a copy beside it."""

    folder: Path
    left: int = EMBED_TOTAL_BYTES

    def source(self, path: Path, sha256: str) -> str:
        size = path.stat().st_size
        kind = mimetypes.guess_type(path.name)[0] or "video/mp4"
        if size <= min(EMBED_BYTES, self.left):
            self.left -= size
            return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
        copy = self.folder / f"{sha256[:16]}{path.suffix.lower()}"
        if not copy.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(copy) as part:
                shutil.copyfile(path, part)
        return f"{self.folder.name}/{copy.name}"


def write_report(result: Evaluation, config: EvaluateConfig) -> None:
    """Write report.html into the output folder."""
    from jinja2 import Environment, FileSystemLoader, select_autoescape

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=select_autoescape(["j2"]), trim_blocks=True
    )
    judged = [one for one in result.sets if one.role != "baseline"]
    page = environment.get_template("report.html.j2").render(
        sets=result.sets,
        judged=judged,
        failures=[(one.name, failure) for one in judged for failure in one.files.failures],
        table=_table(result.sets),
        missing=_missing(result.sets),
        cards=_cards(judged, Media(config.output / "media"), config.shown),
        hidden=max(0, len({s.clip.name for one in judged for s in one.scores}) - config.shown),
        warnings=result.warnings,
        notes=sorted({note for one in judged for score in one.metrics.values() for note in score.notes}),
        protocols=_protocols(judged),
        protocol=result.protocol,
    )
    write_whole(config.output / "report.html", page)


def _table(sets: list[JudgedSet]) -> list[dict[str, Any]]:
    rows = []
    for name in dict.fromkeys(name for one in sets for name in one.metrics):
        scores = [one.metrics.get(name) for one in sets]
        known = [s for s in scores if s is not None and s.value is not None]
        if not known:
            continue
        ends = [v for s in known for v in (s.value, s.low, s.high) if v is not None]
        if known[0].unit in ("IoU", "of events") or known[0].unit.startswith("±"):
            ends += [0.0, 1.0]
        span = (min(ends), max(ends))
        rows.append(
            {
                "title": TITLES.get(name, name.replace("_", " ")),
                "unit": known[0].unit,
                "arrow": ARROWS[known[0].better],
                "cells": [_cell(score, span) for score in scores],
            }
        )
    return rows


def _cell(score: Score | None, span: tuple[float, float]) -> dict[str, str]:
    if score is None or score.value is None:
        return {"value": "–", "why": score.not_computed if score else ""}
    signed = "+" if score.better == "zero" else ""
    digits = {"ms": ".0f", "LUFS": ".1f"}.get(score.unit, ".3f")
    between = ""
    if score.low is not None and score.high is not None:
        between = f"{score.low:{signed}{digits}} … {score.high:{signed}{digits}}"
    return {
        "value": f"{score.value:{signed}{digits}}",
        "between": between,
        "clips": str(score.clips),
        "figure": whisker(score.value, score.low, score.high, span),
    }


def _missing(sets: list[JudgedSet]) -> list[tuple[str, str, str]]:
    return [
        (one.name, TITLES.get(name, name), score.not_computed)
        for one in sets
        if one.role != "baseline"
        for name, score in one.metrics.items()
        if score.value is None
    ]


def _cards(judged: list[JudgedSet], media: Media, shown: int) -> list[dict[str, Any]]:
    """One card per clip name, with a panel for each set that has it."""
    panels: dict[str, list[dict[str, Any]]] = {}
    captions: dict[str, str] = {}
    for one in judged:
        for score in one.scores:
            if score.clip.name in panels or len(panels) < shown:
                captions[score.clip.name] = captions.get(score.clip.name) or score.clip.caption
                panels.setdefault(score.clip.name, []).append(_panel(one, score, media))
    return [{"name": name, "caption": captions[name], "panels": found} for name, found in panels.items()]


def _panel(one: JudgedSet, score: ClipScore, media: Media) -> dict[str, Any]:
    f1 = clip_f1(score.events)
    facts = [
        ("AV-Align", "–" if score.av_align is None else f"{score.av_align:.3f}"),
        ("offset", f"{score.events.offset_ms:+.0f} ms" if score.events.confidence > 0 else "–"),
        ("confidence", f"{score.events.confidence:.2f}"),
        ("F1 ±80 ms", "–" if f1 is None else f"{f1:.2f}"),
    ]
    measures = score.measures
    return {
        "set": one.name,
        "role": one.role,
        "source": media.source(score.clip.path, measures.sha256),
        "figure": timeline(measures, score.events),
        "facts": facts,
        "notes": score.notes,
        "events": "known" if score.events_known else "seen",
        "about": f"{measures.width}×{measures.height} · {measures.fps:g} fps · "
        f"{measures.sample_rate / 1000:g} kHz · {measures.duration_s:.2f} s",
    }


def _protocols(judged: list[JudgedSet]) -> list[dict[str, Any]]:
    rows = []
    for one in judged:
        for name, score in one.metrics.items():
            if score.protocol is not None:
                rows.append({"set": one.name, "title": TITLES.get(name, name), "p": score.protocol})
    return rows
