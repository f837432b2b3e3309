"""What an evaluation looks at, and how: one frozen object."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro
from pydantic import Field, field_validator

from syncflow.config import Config
from syncflow.eval.catalogue import DEFAULT, METRICS
from syncflow.tracker import TrackingConfig


class EvaluateConfig(Config):
    """Measure how well sound and picture belong together, and how good each is, in folders of videos.

    Writes metrics.json, clips.csv and report.html into the output folder. What was measured on a file is kept
    there by content, so a second run, or one that was interrupted, goes on from it.
    """

    generated: tuple[Path, ...]
    """Folders of videos, DIR or NAME=DIR, one per system, shown side by side. A manifest.jsonl or manifest.csv inside
    may give `uri, caption, events_s` (times of visible impacts in seconds)."""
    reference: Path | None = None
    """Folder of real videos: the ceiling, and the reference set of distances. Clips pair by file name."""
    captions: Path | None = None
    """CSV or JSONL with the columns uri and caption."""
    metrics: str = ",".join(DEFAULT)
    """Comma-separated names, or `all`: av_align, onset_offset, loudness, motion need no weights; of the others,
    `syncflow weights list` and docs/evaluation.md tell which network each reads."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("evaluation")
    """Folder to write."""
    workers: int = Field(default=0, ge=0)
    """Processes; 0 takes one per core. The numbers do not depend on it."""
    ray: str = ""
    """Do the work of big sets on a Ray cluster: auto, host:port, or local to start Ray here with --workers workers.
    Every node must see the folders and the weights under the same paths."""
    seed: int = 0
    """Of the bootstrap and of the shuffled baseline."""
    resamples: int = Field(default=1000, ge=0)
    """Bootstrap draws behind each interval."""
    shuffled: bool = True
    """Also judge every picture with the sound of another clip: what chance gives; and, where captions have several
    clips, with the sound of another clip of its caption: what sound made from the caption alone gives."""
    shown: int = Field(default=48, ge=0)
    """Clips with players in the report, first by name."""
    against: Path | None = None
    """metrics.json of an earlier evaluation to compare with; refused where protocols differ."""
    weights: Path | None = None
    """Folder of weights; else $SYNCFLOW_WEIGHTS, else the user's cache."""
    commercial_safe: bool = False
    """Use no network whose licence forbids commercial use."""
    tracking: TrackingConfig = TrackingConfig()
    """MLflow."""

    @field_validator("metrics")
    @classmethod
    def _known(cls, value: str) -> str:
        names = [name.strip() for name in value.split(",") if name.strip()]
        if names == ["all"]:
            names = list(METRICS)
        for name in names:
            if name not in METRICS:
                import difflib

                near = difflib.get_close_matches(name, METRICS, n=1, cutoff=0.4)
                raise ValueError(
                    f"no metric {name!r}" + (f"; did you mean {near[0]}?" if near else f"; known: {', '.join(METRICS)}")
                )
        if not names:
            raise ValueError(f"name at least one of {', '.join(METRICS)}")
        return ",".join(dict.fromkeys(names))

    @property
    def names(self) -> list[str]:
        return self.metrics.split(",")
