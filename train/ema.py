"""The average of the weights over training, kept where the weights are: on each rank's fp32 pieces."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Ema:
    """ema ← ema + (1 - d)·(weights - ema) after each update, d = min(decay, (1 + n) / (10 + n)) at the n-th.

    The warm-up lets a short stage hand on something other than its start. No communication: a piece's average is
    the average's piece.
    """

    def __init__(self, masters: Sequence[Tensor], decay: float) -> None:
        self.masters = list(masters)
        self.decay = decay
        self.values = [master.clone() for master in masters]
        self.updates = 0

    def update(self) -> None:
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.values, self.masters, 1 - decay)
        self.updates += 1
