"""The demo's one page: what went in, how training went, what came out, how it was judged. Self-contained."""

from __future__ import annotations

import base64
import io
import json
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from syncflow import __version__
from syncflow.errors import UserError
from syncflow.files import write_whole

if TYPE_CHECKING:
    from syncflow.infra.demo import DemoConfig

STAGES = ("1_video", "2_audio", "3_joint")
TASKS = {"text_to_av": "text → video + sound", "video_to_audio": "silent video → sound"}


def write_report(config: DemoConfig, out: Path) -> Path:
    """Write `report.html` from what the steps left in `out`, and return its path."""
    import jinja2

    template = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    ).get_template("demo_report.html.j2")
    generated = [_clip(out / "generated", row) for row in _rows(out / "generated" / "manifest.jsonl")]
    page = template.render(
        version=__version__,
        source=str(config.videos) if config.videos else f"{config.clips} rendered impacts",
        card=json.loads((out / "dataset" / "dataset.json").read_text()),
        rejects=_rows(out / "dataset" / "rejects.jsonl")[:50],
        reference=[_clip(out / "reference", row) for row in _rows(out / "reference" / "manifest.jsonl")][:8],
        generated=generated,
        tasks=TASKS,
        curves=[(stage, curves(out / "train" / stage / "spool.jsonl")) for stage in STAGES],
        metrics=table(out / "evaluation" / "metrics.json"),
        steps=[(path.stem, json.loads(path.read_text())["seconds"]) for path in _by_time(out / "steps")],
        database=str(out / "mlflow.db"),
    )
    path = out / "report.html"
    write_whole(path, page)
    return path


def _by_time(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime)


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _clip(folder: Path, row: dict[str, Any]) -> dict[str, Any]:
    """A row of a manifest with its video as a data URI, so that the page can be mailed around."""
    path = folder / row["uri"]
    if not path.is_file():
        raise UserError(f"{path} is in {folder / 'manifest.jsonl'} but not on disk; delete {folder} and run again")
    return {**row, "data": f"data:video/mp4;base64,{base64.b64encode(path.read_bytes()).decode()}"}


def curves(spool: Path) -> str:
    """Losses over steps of one stage, as inline SVG."""
    from matplotlib.figure import Figure

    series: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for line in _rows(spool):
        if line["kind"] == "metrics":
            for name, value in line["values"].items():
                if "loss" in name and "/t" not in name:
                    series[name].append((line["step"], value))
    if not series:
        raise UserError(f"{spool} has no losses; delete its folder and run the demo again")
    figure = Figure(figsize=(4.2, 2.6), layout="tight")
    axes = figure.subplots()
    for name in sorted(series):
        step, value = zip(*series[name], strict=True)
        axes.plot(step, value, linewidth=1.2, label=name)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.legend(fontsize=7, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :]


def table(path: Path) -> dict[str, Any]:
    """The evaluation's numbers as a table: a row per metric, a column per set of clips."""
    sets = json.loads(path.read_text())["sets"]
    names = list(dict.fromkeys(name for one in sets for name in one["metrics"]))
    rows = [
        {"name": name.replace("_", " "), "cells": [_cell(one["metrics"].get(name)) for one in sets]} for name in names
    ]
    return {"sets": [f"{one['name']} ({one['clips']} clips)" for one in sets], "rows": rows}


def _cell(metric: dict[str, Any] | None) -> str:
    if metric is None:
        return ""
    if metric.get("not_computed"):
        return f"not computed: {metric['not_computed']}"
    text = f"{metric['value']:.3g} {metric.get('unit', '')}".strip()
    if metric.get("low") is not None:
        text += f" ({metric['low']:.3g} to {metric['high']:.3g})"
    return text
