"""What a job may say about itself while it runs; `infra/tracking.py` sends it to MLflow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, ConfigDict


class TrackingConfig(BaseModel):
    """Where a job reports its metrics."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    enabled: bool = True
    """Report at all."""
    uri: str = "sqlite:///runs/mlflow.db"
    """MLflow tracking URI: sqlite:///path, or http://host:port of a server."""
    experiment: str = "syncflow"
    """MLflow experiment."""


class Tracker(Protocol):
    """A run that metrics are reported to. No call blocks on a server or raises because one is away."""

    def log(self, metrics: Mapping[str, float], step: int) -> None: ...

    def params(self, values: Mapping[str, object]) -> None: ...

    def tags(self, values: Mapping[str, str]) -> None: ...

    def artifact(self, path: Path, folder: str = "") -> None:
        """Keep a copy of the file with the run. The file must stay where it is until `close`."""

    def close(self) -> None: ...


class OpenTracker(Protocol):
    """How a job gets its tracker: `open_tracker(config, run_name, spool_dir)`.

    `spool_dir` is the job's own output folder. A run begun there is continued; a metric already reported at a
    step is not reported twice, so a resumed job may log the steps since its checkpoint again.
    """

    def __call__(self, config: TrackingConfig, run_name: str, spool_dir: Path) -> Tracker: ...
