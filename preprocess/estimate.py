"""`--dry-run`: what a job would come to, from a small sample that is really processed."""

from __future__ import annotations

import json
import random
import tempfile
from dataclasses import dataclass
from pathlib import Path

from syncflow.errors import UserError
from syncflow.preprocess.config import PreprocessConfig
from syncflow.preprocess.manifest import read_manifest, searched
from syncflow.preprocess.plan import Source
from syncflow.preprocess.run import preprocess
from syncflow.samples import open_dataset

SAMPLE = 12


@dataclass(frozen=True)
class Estimate:
    sources: int
    clips: float
    hours: float
    size_bytes: float
    worker_hours: float

    def text(self, price_per_hour: float | None) -> str:
        lines = [
            f"{self.sources} sources, of which {min(SAMPLE, self.sources)} were tried, would give about "
            f"{self.clips:.0f} clips, {self.hours:.2f} h, {self.size_bytes / 1e9:.3f} GB",
            f"about {self.worker_hours:.3f} hours of one worker like this machine's, without starting up",
        ]
        if price_per_hour is not None:
            lines.append(f"about {self.worker_hours * price_per_hour:.2f} at {price_per_hour:g} per worker and hour")
        return "\n".join(lines)


def estimate(config: PreprocessConfig) -> Estimate:
    """
    Raises:
        UserError: nothing to read, or nothing of the sample can be used.
    """
    sources = [item for item in read_manifest(config.input, searched(config)) if isinstance(item, Source)]
    if not sources:
        raise UserError(f"--input {config.input}: no row of it can be used")
    picked = random.Random(0).sample(sources, min(SAMPLE, len(sources)))
    with tempfile.TemporaryDirectory(prefix="syncflow-estimate-") as folder:
        manifest = Path(folder) / "sample.jsonl"
        manifest.write_text("\n".join(json.dumps(_row(source)) for source in picked))
        preprocess(config.model_copy(update={"max_failed": 1.0}), manifest, Path(folder) / "out", pool="inline")
        dataset = open_dataset(str(Path(folder) / "out"))
        size = sum(path.stat().st_size for path in (Path(folder) / "out").glob("*x*/*"))
        worked_s = sum(
            values[0] for shard in dataset.shards for name, values in shard.stats.items() if name.startswith("seconds.")
        )
    share = len(sources) / len(picked)
    card = dataset.card
    return Estimate(len(sources), card.kept * share, card.hours * share, size * share, worked_s * share / 3600)


def _row(source: Source) -> dict[str, object]:
    row = {name: value for name, value in vars(source).items() if value and name != "provenance"}
    return {name: str(value) if name in ("start_s", "end_s") else value for name, value in row.items()}
