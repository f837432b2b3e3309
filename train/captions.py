"""Captions embedded while training, for data sets that store no text (`text: online`).

Shapes: B clips, L tokens, D width.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace

import torch
from torch import Tensor

from syncflow.models.text import TextEncoderSpec, load_text_encoder
from syncflow.train.collate import MicroBatch, pad_text

_KEPT_BYTES = 2**30


class Captions:
    """A frozen text encoder on each rank, outside of what ZeRO partitions; states are kept up to a GiB."""

    def __init__(self, spec: TextEncoderSpec, max_tokens: int, device: torch.device) -> None:
        # As preprocessing does: full-precision weights.
        self.encoder = load_text_encoder(spec, device, torch.float32)
        self.max_tokens = max_tokens
        self._kept: OrderedDict[str, Tensor] = OrderedDict()
        self._kept_bytes = 0

    def embed(self, batch: MicroBatch) -> MicroBatch:
        """The micro-batch with its captions' states as text."""
        text, mask = pad_text([self._states(caption) for caption in batch.captions], self.max_tokens)
        return replace(batch, tensors={**batch.tensors, "text": text, "text_mask": mask})

    def _states(self, caption: str) -> Tensor:
        """(L, D) on the CPU. Captions are encoded one by one: beside others their last bits would be different ones,
        and a resumed training would no longer be the same."""
        if caption in self._kept:
            self._kept.move_to_end(caption)
            return self._kept[caption]
        states = self._kept[caption] = self.encoder.encode([caption])[0].float().cpu()
        self._kept_bytes += states.nbytes
        while self._kept_bytes > _KEPT_BYTES:
            self._kept_bytes -= self._kept.popitem(last=False)[1].nbytes
        return states
