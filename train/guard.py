"""Steps that go wrong: NaN and spikes are skipped and counted; too many in a row end the job."""

from __future__ import annotations

import math
import statistics

from syncflow.errors import UserError
from syncflow.train.checkpoint import Progress
from syncflow.train.config import GuardConfig
from syncflow.train.report import Totals

_HISTORY, _ENOUGH = 64, 16


def is_bad(totals: Totals, progress: Progress, config: GuardConfig) -> str:
    """Why this step must not be applied; empty where it is fine. The same on every rank: it sees sums only."""
    if not all(math.isfinite(loss) for loss in totals.loss.values()):
        return "the loss is not finite"
    if not math.isfinite(totals.norm):
        return "the gradient is not finite"
    if len(progress.norms) >= _ENOUGH:
        usual = statistics.median(progress.norms)
        if totals.norm > config.spike * usual:
            return f"the gradient norm {totals.norm:.3g} is {totals.norm / usual:.0f} times the usual"
    return ""


def count(progress: Progress, totals: Totals, bad: str) -> None:
    if bad:
        progress.skipped += 1
        progress.skipped_in_row += 1
    else:
        progress.skipped_in_row = 0
        progress.norms = [*progress.norms, totals.norm][-_HISTORY:]


def check(progress: Progress, bad: str, ids: list[str], config: GuardConfig) -> None:
    """
    Raises:
        UserError: too many steps were skipped in a row; names the clips of the last one.
    """
    if progress.skipped_in_row >= config.max_skipped:
        raise UserError(
            f"{progress.skipped_in_row} steps in a row were skipped up to step {progress.step}: {bad}; "
            f"clips of the last batch: {', '.join(sorted(ids))}. Look at them, or lower optimizer.lr; "
            "the last checkpoint is kept"
        )
