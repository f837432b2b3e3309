"""CLIP of any open_clip architecture: frames and texts in one space. T frames, N texts, D dimensions.

Source: Radford et al., "Learning transferable visual models from natural language supervision", 2021.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from syncflow.models.perception.pictures import normalised

_OPENAI_EXTRAS = ("input_resolution", "context_length", "vocab_size")


class Clip:
    """An open_clip network with the weights at `path`, on `device`."""

    def __init__(self, path: Path, architecture: str = "ViT-B-32-quickgelu", device: str = "cpu") -> None:
        import open_clip

        self.network = open_clip.create_model(architecture, load_weights=False)
        _load(self.network, path)
        self.network.to(device).eval()
        self.tokenize = open_clip.get_tokenizer(architecture)
        self.device = device
        preprocessing = open_clip.get_model_preprocess_cfg(self.network)
        size, self.mean, self.std = (preprocessing[name] for name in ("size", "mean", "std"))
        self.side: int = min(size) if isinstance(size, tuple | list) else size

    @torch.inference_mode()
    def frames(self, frames: np.ndarray) -> np.ndarray:
        """(T, H, W, 3) uint8 -> (T, D) float32; scaled and centre-cropped to the network's size."""
        pictures = normalised(frames, self.side, self.mean, self.std).to(self.device)
        return self.network.encode_image(pictures).float().cpu().numpy()

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """(N, D) float32; each text is cut at the network's context length."""
        return self.network.encode_text(self.tokenize(list(texts)).to(self.device)).float().cpu().numpy()


def _load(network: torch.nn.Module, path: Path) -> None:
    import open_clip

    try:
        # OpenAI publishes TorchScript archives, which torch.load refuses; their parameters have open_clip's names
        archive = torch.jit.load(str(path), map_location="cpu")
    except RuntimeError:
        open_clip.load_checkpoint(network, str(path), weights_only=True)
    else:
        network.load_state_dict({k: v for k, v in archive.state_dict().items() if k not in _OPENAI_EXTRAS})
