"""Weights as their authors saved them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch


def read_published(path: Path) -> dict[str, Any]:
    """The dictionary in a file of torch.save; beside tensors only plain values and NumPy's numbers and arrays pass.

    Raises:
        pickle.UnpicklingError: it holds anything else.
    """
    scalar, array = (value.__reduce__()[0] for value in (np.float64(0), np.empty(0)))
    # training facts beside the parameters are NumPy's, pickled under the names of NumPy 1 or 2
    allowed: list[Any] = [
        *((scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
        *((array, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
        *(np.ndarray, np.dtype),
        *(type(np.dtype(name)) for name in ("float64", "float32", "int64", "int32", "bool")),
    ]
    with torch.serialization.safe_globals(allowed):
        return torch.load(path, map_location="cpu", weights_only=True)
