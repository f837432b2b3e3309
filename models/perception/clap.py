"""CLAP, sounds and texts in one space, by either package. L samples, N texts, D dimensions.

Both see the first 10 s of a sound; what is shorter is repeated to that length.
Source: Wu et al., "Large-scale contrastive language-audio pretraining", 2023.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from syncflow.models.perception.published import read_published
from syncflow.models.perception.sounds import resample


class TransformersClap:
    """transformers' ClapModel, from a folder of a Hugging Face repository."""

    def __init__(self, path: Path, device: str = "cpu") -> None:
        from transformers import AutoProcessor, ClapModel

        self.network = cast(Any, ClapModel.from_pretrained(path))
        self.network.to(device).eval()
        self.processor = AutoProcessor.from_pretrained(path)
        self.sample_rate: int = self.processor.feature_extractor.sampling_rate
        self.device = device

    @torch.inference_mode()
    def sound(self, waveform: np.ndarray, sample_rate: int) -> np.ndarray:
        """(L,) mono -> (D,) float32."""
        extractor = self.processor.feature_extractor
        # left to itself the extractor cuts longer sounds at random
        start = resample(waveform, sample_rate, self.sample_rate)[: extractor.nb_max_samples]
        inputs = extractor(start, sampling_rate=self.sample_rate, return_tensors="pt").to(self.device)
        return _tensor(self.network.get_audio_features(**inputs))[0].float().cpu().numpy()

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """(N, D) float32."""
        tokens = self.processor.tokenizer(list(texts), return_tensors="pt", padding=True, truncation=True)
        return _tensor(self.network.get_text_features(**tokens.to(self.device))).float().cpu().numpy()


def _tensor(output: Any) -> Tensor:
    """transformers 5 wraps pooled features in an output object; 4 returned the tensor."""
    return output if isinstance(output, Tensor) else output.pooler_output


class LaionClap:
    """laion_clap's CLAP_Module, from one of its published files.

    The package reads the tokenizers of roberta-base, bert-base-uncased and facebook/bart-base and the model of
    roberta-base from the Hugging Face cache when it is made; `syncflow weights pull laion-clap-630k` puts them there.
    """

    SAMPLE_RATE = 48000

    def __init__(self, path: Path, architecture: str = "HTSAT-tiny", device: str = "cpu") -> None:
        with _blank_arguments():
            import laion_clap

            self.module = laion_clap.CLAP_Module(enable_fusion=False, amodel=architecture, device=device)
        self.module.model.load_state_dict(_published_state(path))
        self.module.eval()

    @torch.inference_mode()
    def sound(self, waveform: np.ndarray, sample_rate: int) -> np.ndarray:
        """(L,) mono -> (D,) float32; quantised to 16 bit, as the package does."""
        # the package cuts longer sounds at random
        start = resample(waveform, sample_rate, self.SAMPLE_RATE)[: 10 * self.SAMPLE_RATE]
        return np.asarray(self.module.get_audio_embedding_from_data(start[None].astype(np.float32))[0])

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """(N, D) float32."""
        # the package cannot embed one text alone
        return np.asarray(self.module.get_text_embedding([*texts, ""])[:-1])


def _published_state(path: Path) -> dict[str, Tensor]:
    """Parameters of a file as laion_clap publishes them: under `state_dict`, from a data-parallel model."""
    found = read_published(path)
    state = {name.removeprefix("module."): value for name, value in found.get("state_dict", found).items()}
    state.pop("text_branch.embeddings.position_ids", None)  # transformers keeps it no longer
    return state


@contextlib.contextmanager
def _blank_arguments() -> Iterator[None]:
    """laion_clap parses sys.argv when it is imported."""
    kept, sys.argv = sys.argv, sys.argv[:1]
    try:
        yield
    finally:
        sys.argv = kept
