"""Say what is seen or heard: models of transformers that read pictures or sound and write text. B clips, T frames.

What a model says does not change from run to run (no sampling). In half precision it may change with the clips that
share its batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from syncflow.errors import UserError
from syncflow.models.perception.sounds import resample
from syncflow.models.resolve import quiet_loading
from syncflow.samples import first_line


class _Writer:
    """A model that continues a conversation, and its processor."""

    def __init__(self, folder: Path, kind: str, prompt: str, max_new_tokens: int, device: str, field: str) -> None:
        import transformers

        dtype = torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32
        try:
            with quiet_loading():
                self.processor: Any = transformers.AutoProcessor.from_pretrained(folder, local_files_only=True)
                self.network: Any = getattr(transformers, kind).from_pretrained(
                    folder, local_files_only=True, dtype=dtype
                )
        except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
            raise UserError(f"{field}.path: {folder} cannot be read by {kind}: {first_line(error)}") from error
        self.network.to(device).eval().requires_grad_(False)
        self.prompt, self.max_new_tokens = prompt, max_new_tokens
        # every prompt ends where its answer begins
        self.processor.tokenizer.padding_side = "left"
        if self.processor.tokenizer.pad_token is None:
            self.processor.tokenizer.pad_token = self.processor.tokenizer.eos_token

    @torch.inference_mode()
    def answers(self, shown: Sequence[list[dict[str, Any]]], **options: Any) -> list[str]:
        """One text per clip, for the parts of a message that show it."""
        prompt = {"type": "text", "text": self.prompt}
        inputs = self.processor.apply_chat_template(
            [[{"role": "user", "content": [*parts, prompt]}] for parts in shown],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            padding=True,
            **options,
        ).to(self.network.device, self.network.dtype)
        tokens = self.network.generate(
            **inputs,
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            num_beams=1,
            # what a checkpoint would sample with, which greedy decoding does not use
            temperature=None,
            top_p=None,
            top_k=None,
            pad_token_id=self.processor.tokenizer.pad_token_id,
        )  # (B, prompt + answer)
        said = self.processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return [" ".join(text.split()) for text in said]


class PictureCaptioner:
    """Any image-text-to-text model of transformers whose processor has a chat template."""

    KIND = "AutoModelForImageTextToText"

    def __init__(
        self, folder: Path, prompt: str, max_new_tokens: int = 96, device: str = "cpu", field: str = "captions.video"
    ) -> None:
        self.writer = _Writer(folder, self.KIND, prompt, max_new_tokens, device, field)

    def __call__(self, clips: Sequence[np.ndarray]) -> list[str]:
        """What is seen in each of B clips of (T, H, W, 3) uint8 frames."""
        from PIL import Image

        shown = [[{"type": "image", "image": Image.fromarray(frame)} for frame in frames] for frames in clips]
        return self.writer.answers(shown)


class SoundCaptioner:
    """Any audio-text-to-text model that transformers' AutoModelForSeq2SeqLM loads, for example Qwen2-Audio."""

    KIND = "AutoModelForSeq2SeqLM"

    def __init__(
        self, folder: Path, prompt: str, max_new_tokens: int = 64, device: str = "cpu", field: str = "captions.audio"
    ) -> None:
        self.writer = _Writer(folder, self.KIND, prompt, max_new_tokens, device, field)
        self.sample_rate: int = self.writer.processor.feature_extractor.sampling_rate

    def __call__(self, sounds: Sequence[np.ndarray], sample_rate: int) -> list[str]:
        """What is heard in each of B sounds, (L,) mono at `sample_rate`."""
        shown = [
            [{"type": "audio", "audio": resample(sound, sample_rate, self.sample_rate).astype(np.float32)}]
            for sound in sounds
        ]
        return self.writer.answers(shown, sampling_rate=self.sample_rate)
