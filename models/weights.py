"""Tensors in .safetensors files, and whether they fit a module. Nothing here unpickles."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from syncflow.errors import UserError

_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_REFUSED = "only .safetensors are read, for a pickle can run code; convert it, or take a repository that has them"


def read_weights(path: Path) -> dict[str, Tensor]:
    """Every tensor of a .safetensors file, or of those in a folder (sharded ones by their index)."""
    if path.is_dir():
        index = next(iter(sorted(path.glob("*.safetensors.index.json"))), None)
        if index is not None:
            files = _shards(index)
        else:
            files = sorted(path.glob("*.safetensors"))
        if not files:
            pickles = sorted(file.name for ending in _PICKLES for file in path.glob(f"*{ending}"))
            if pickles:
                raise UserError(f"{path} holds {pickles[0]}: {_REFUSED}")
            raise UserError(f"{path}: no .safetensors file here; download the weights' repository into this folder")
    else:
        files = [path]
    state: dict[str, Tensor] = {}
    for file in files:
        if not file.is_file():
            raise UserError(f"{file}: no such file; the download is not complete")
        if file.suffix != ".safetensors":
            raise UserError(f"{file}: {_REFUSED}")
        try:
            state.update(safetensors.torch.load_file(file))
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} cannot be read ({error}); download it again") from error
    return state


def _shards(index: Path) -> list[Path]:
    try:
        return [index.parent / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} is not an index of weights ({type(error).__name__}); download it again") from error


def mismatches(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """What keeps `state` from being loaded where `expected` is wanted, one line each."""
    found = [f"{name} is missing" for name in expected if name not in state]
    found += [f"{name} is unknown" for name in state if name not in expected]
    return found + [
        f"{name} has shape {tuple(state[name].shape)}, {tuple(tensor.shape)} is wanted"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
