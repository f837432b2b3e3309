"""How much people would like a picture, about 1 to 10: LAION's heads on CLIP features. T frames, D dimensions.

Source: C. Schuhmann, "improved-aesthetic-predictor" (linear layers without anything between them, trained on SAC,
Logos and AVA ratings), and LAION's "aesthetic-predictor" (one linear layer).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from syncflow.errors import UserError


class Aesthetic:
    """The head at `path`: any chain of linear layers that ends in one number."""

    def __init__(self, path: Path, field: str = "filters.aesthetic") -> None:
        try:
            state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
            weights = [value.float() for value in state.values() if value.dim() == 2]
            biases = [value.float() for value in state.values() if value.dim() == 1]
            total, offset = weights[0], biases[0]
            # layers with nothing between them are one layer: W2 (W1 x + b1) + b2
            for weight, bias in zip(weights[1:], biases[1:], strict=True):
                total, offset = weight @ total, weight @ offset + bias
            self.weight, self.bias = total[0].numpy(), float(offset.item())  # (D,)
        except (OSError, RuntimeError, ValueError, AttributeError, IndexError, EOFError) as error:
            raise UserError(f"{field}.path: {path} is not a chain of linear layers that ends in one number") from error

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """(T, D) CLIP features -> (T,).

        Raises:
            ValueError: features of another CLIP network than the head was trained on.
        """
        if features.shape[1] != len(self.weight):
            raise ValueError(f"the head takes {len(self.weight)} numbers, this CLIP network gives {features.shape[1]}")
        unit = features / np.linalg.norm(features, axis=1, keepdims=True)
        return unit @ self.weight + self.bias
