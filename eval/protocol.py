"""The protocol of a number: all that must agree before two of them may be compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from syncflow import __version__
from syncflow.errors import UserError
from syncflow.eval.measure import REVISION, ClipMeasures


class Protocol(BaseModel):
    """How one number was made. `comparable` fields must agree between two numbers; the rest is told."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: str
    backbone: str = ""
    """Name and SHA-256 of the network that made the features; empty where there is none."""
    duration_s: tuple[float, float]
    """Shortest and longest clip, to a tenth of a second."""
    fps: tuple[float, ...]
    """Every frame rate among the clips."""
    sample_rate: tuple[int, ...]
    reference: str = ""
    """Hash of the reference set, for metrics that need one."""
    events: str = ""
    """Where visible events come from: known, or seen."""
    clips: int
    seed: int
    code: str

    def differences(self, other: Protocol) -> list[str]:
        """Why the two numbers may not be compared; empty where they may."""
        fields = ["metric", "backbone", "duration_s", "fps", "sample_rate", "reference", "events", "code"]
        return [
            f"{name.replace('_', ' ')} {_text(getattr(self, name))} against {_text(getattr(other, name))}"
            for name in fields
            if getattr(self, name) != getattr(other, name)
        ]

    @property
    def id(self) -> str:
        """12 hex digits of all that must agree."""
        fields = self.model_dump(mode="json", exclude={"clips", "seed"})
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:12]


def _text(value: object) -> str:
    return "/".join(map(str, value)) if isinstance(value, tuple) else str(value) or "none"


def describe(metric: str, measures: Sequence[ClipMeasures], seed: int, **facts: str) -> Protocol:
    """The protocol of `metric` over these clips."""
    durations = [round(m.duration_s, 1) for m in measures]
    return Protocol(
        metric=metric,
        duration_s=(min(durations), max(durations)) if durations else (0.0, 0.0),
        fps=tuple(sorted({round(m.fps, 3) for m in measures})),
        sample_rate=tuple(sorted({m.sample_rate for m in measures})),
        clips=len(measures),
        seed=seed,
        code=f"{__version__}-{REVISION}",
        **facts,
    )


def refuse_unlike(where: str, mine: Protocol, theirs: Protocol) -> None:
    """
    Raises:
        UserError: the two numbers were not made the same way.
    """
    unlike = mine.differences(theirs)
    if unlike:
        raise UserError(
            f"{where}: {mine.metric} cannot be compared, its protocol differs ({'; '.join(unlike)}); "
            "evaluate both sets in one command"
        )
