"""What an evaluation found, and the files it writes: metrics.json, clips.csv, report.html."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from syncflow.config import is_terminal
from syncflow.errors import UserError
from syncflow.eval.clips import ClipSet
from syncflow.eval.onset_offset import TOLERANCES_MS, clip_f1, hits
from syncflow.eval.protocol import Protocol, refuse_unlike
from syncflow.eval.scores import ClipScore, Score
from syncflow.files import replacing, write_whole
from syncflow.media import printable

if TYPE_CHECKING:
    from syncflow.eval.config import EvaluateConfig


@dataclass
class JudgedSet:
    """A set of clips with everything that was found out about it."""

    files: ClipSet
    role: str
    """generated, reference or baseline."""
    name: str
    scores: list[ClipScore]
    metrics: dict[str, Score]


@dataclass
class Evaluation:
    """What an evaluation found; `as_json` is metrics.json."""

    sets: list[JudgedSet]
    protocol: dict[str, Any]
    warnings: list[str]
    against: list[dict[str, Any]] = field(default_factory=list)
    """Changes since an earlier evaluation."""

    def as_json(self) -> dict[str, Any]:
        return {
            "sets": [
                {
                    "name": one.name,
                    "role": one.role,
                    "folder": str(one.files.folder),
                    "clips": len(one.scores),
                    "failed": [vars(failure) for failure in one.files.failures] if one.role != "baseline" else [],
                    "metrics": {name: score.as_json() for name, score in one.metrics.items()},
                }
                for one in self.sets
            ],
            "warnings": self.warnings,
            "against": self.against,
            "protocol": self.protocol,
        }

    def flat(self) -> dict[str, float]:
        """For a tracker: `set/metric` -> value."""
        return {
            f"{_plain(one.name)}/{name}": score.value
            for one in self.sets
            for name, score in one.metrics.items()
            if score.value is not None
        }

    def summary(self, output: Path) -> str:
        lines = []
        for one in self.sets:
            failed = len(one.files.failures) if one.role != "baseline" else 0
            lines.append(f"{one.name}: {len(one.scores)} clips" + (f", {failed} could not be judged" if failed else ""))
            for name, score in one.metrics.items():
                lines.append(f"  {name:<16} {_told(score)}")
        lines += [f"note: {warning}" for warning in self.warnings]
        if not is_terminal():
            lines += [
                f"  {f.clip}: {f.reason}: {f.detail}"
                for one in self.sets
                for f in one.files.failures
                if one.role != "baseline"
            ]
        lines += [
            f"{row['set']}, {row['metric']}: {row['before']:.4g} before, {row['value']:.4g} now" for row in self.against
        ]
        return "\n".join([*lines, f"report: {output / 'report.html'}"])


def _plain(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_. " else "_" for c in name)


def _told(score: Score) -> str:
    if score.value is None:
        return f"not computed: {score.not_computed}"
    between = f"  [{score.low:.3g}, {score.high:.3g}]" if score.low is not None and score.high is not None else ""
    return f"{score.value:.4g} {score.unit}{between}  n={score.clips}"


def compare(sets: Sequence[JudgedSet], earlier: Path) -> list[dict[str, Any]]:
    """Numbers of an earlier metrics.json beside ours, for sets of the same name.

    Raises:
        UserError: the file is no metrics.json, has none of our sets, or a number was made by another protocol.
    """
    try:
        before = {one["name"]: one["metrics"] for one in json.loads(earlier.read_text())["sets"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{printable(earlier)} is not a metrics.json: {error}") from error
    rows = []
    for one in sets:
        for name, score in one.metrics.items():
            old = before.get(one.name, {}).get(name, {})
            if score.protocol and score.value is not None and old.get("protocol"):
                theirs = Protocol(**{key: value for key, value in old["protocol"].items() if key != "id"})
                refuse_unlike(str(earlier), score.protocol, theirs)
                rows.append({"set": one.name, "metric": name, "before": old["value"], "value": score.value})
    if not rows:
        raise UserError(f"{printable(earlier)} has no number of {', '.join(one.name for one in sets)} to compare with")
    return rows


COLUMNS = (
    "set clip caption av_align offset_ms offset_confidence lag_ms f1_80ms visible audible events "
    + " ".join(f"within_{t}ms" for t in TOLERANCES_MS)
    + " duration_s fps width height sample_rate motion peak notes sha256"
).split()


def clip_row(one: JudgedSet, score: ClipScore) -> dict[str, Any]:
    measures, events = score.measures, score.events
    f1 = clip_f1(events)
    row = {
        "set": one.name,
        "clip": score.clip.name,
        "caption": score.clip.caption,
        "av_align": "" if score.av_align is None else round(score.av_align, 6),
        "offset_ms": round(events.offset_ms, 2) if events.confidence > 0 else "",
        "offset_confidence": round(events.confidence, 4),
        # the best guess of every clip, also where it is not clear enough to count: what a shift moves
        "lag_ms": round(events.offset_ms, 2) if len(events.visual_s) and len(events.audio_s) else "",
        "f1_80ms": "" if f1 is None else round(f1, 6),
        "visible": len(events.visual_s),
        "audible": len(events.audio_s),
        "events": "known" if score.events_known else "seen",
        "notes": "; ".join(score.notes),
    }
    row |= {f"within_{t}ms": hits(events, t) for t in TOLERANCES_MS}
    row |= {name: getattr(measures, name) for name in ("width", "height", "sample_rate", "sha256")}
    return row | {name: round(getattr(measures, name), 5) for name in ("duration_s", "fps", "motion", "peak")}


def write(result: Evaluation, config: EvaluateConfig) -> None:
    from syncflow.eval.report import write_report

    write_whole(
        config.output / "metrics.json", json.dumps(result.as_json(), indent=1, ensure_ascii=False, allow_nan=False)
    )
    with replacing(config.output / "clips.csv") as part, part.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        for one in result.sets:
            if one.role != "baseline":
                table.writerows(clip_row(one, score) for score in one.scores)
    write_report(result, config)
