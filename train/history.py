"""`metrics.jsonl`: what was measured, one line per step, of the whole stage whatever interrupted it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from syncflow.files import write_whole


class History:
    """Appends to the file. Lines of steps that a resume takes again are cut off, and one torn by a kill."""

    def __init__(self, path: Path, step: int) -> None:
        """`step`: how many steps are done."""
        kept = [row for row in read_history(path) if row["step"] <= step]
        write_whole(path, "".join(json.dumps(row) + "\n" for row in kept))
        self.path = path
        self._file = path.open("a", encoding="utf-8")

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """A line of the finite values."""
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        self._file.write(json.dumps({"step": step, **finite}) + "\n")
        self._file.flush()

    def summary(self) -> dict[str, float]:
        """For `metrics.json`: mean loss of the stage's first and last tenth of steps, and the latest validation."""
        rows = read_history(self.path)
        losses = [row["loss"] for row in rows if "loss" in row]
        tenth = max(1, len(losses) // 10)
        if not losses:
            return {}
        latest = {name: value for row in rows for name, value in row.items() if name.startswith("val/")}
        return {
            "steps": max(row["step"] for row in rows),
            "loss_first": sum(losses[:tenth]) / tenth,
            "loss_last": sum(losses[-tenth:]) / tenth,
            **latest,
        }


def read_history(path: Path) -> list[dict[str, float]]:
    """Its whole lines; none where there is no file."""
    if not path.exists():
        return []
    data = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in data[: data.rfind("\n") + 1].splitlines()]
