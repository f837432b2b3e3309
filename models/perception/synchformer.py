"""By how much a sound is shifted against its picture, as Synchformer judges 4.8 s: classes from -2 to +2 s.

Letters: T frames, H height, W width, L samples, S segments.
Source: Iashin et al., "Synchformer: Efficient synchronization from sparse cues", 2024; its sound as in MMAudio's
benchmark (github.com/hkchengrex/av-benchmark).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from syncflow.models.perception.pictures import normalised
from syncflow.models.perception.sounds import power_spectrum
from syncflow.models.perception.synchformer_net import (
    CLASSES,
    MEL_BANDS,
    MEL_FRAMES,
    SEGMENT_FRAMES,
    SynchformerConfig,
    SynchformerNetwork,
)

FPS, SAMPLE_RATE = 25, 16000
STEP_S = 0.32
"""From one segment of 0.64 s to the next."""
OFFSETS_S = np.linspace(-2.0, 2.0, CLASSES)
"""The classes: by how much the sound is early."""
_STEP_FRAMES = SEGMENT_FRAMES // 2
_SEGMENT_SAMPLES, _STEP_SAMPLES = 10240, 5120
_MEL_MEAN, _MEL_STD = -4.2677393, 4.5689974


class Synchformer:
    """The network with the weights of the public file `synchformer_state_dict.pth`."""

    def __init__(self, path: Path, config: SynchformerConfig | None = None, device: str = "cpu") -> None:
        from transformers.audio_utils import mel_filter_bank

        self.config, self.device = config or SynchformerConfig(), device
        self.seconds = STEP_S * (self.config.segments + 1)
        with torch.device("meta"):
            self.network = SynchformerNetwork(self.config)
        self.network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True), assign=True)
        self.network.float().to(device).eval()
        bank = mel_filter_bank(513, MEL_BANDS, 0, SAMPLE_RATE / 2, SAMPLE_RATE, norm=None, mel_scale="htk")
        self.bank = torch.from_numpy(bank.T.astype(np.float32))  # (bands, frequencies)

    @torch.inference_mode()
    def logits(self, frames: np.ndarray, waveform: np.ndarray) -> np.ndarray:
        """(21,) of the first `seconds` of (T, H, W, 3) uint8 frames at 25 fps and (L,) samples at 16 kHz.

        Raises:
            ValueError: less than that is given; the number of segments is built into the network.
        """
        count = self.config.segments
        num_frames, num_samples = (count + 1) * _STEP_FRAMES, (count + 1) * _STEP_SAMPLES
        if len(frames) < num_frames or len(waveform) < num_samples:
            have = min(len(frames) / FPS, len(waveform) / SAMPLE_RATE)
            raise ValueError(f"is {have:.2f} s long; Synchformer needs {self.seconds:.2f} s")
        pictures = normalised(frames[:num_frames], self.config.side, (0.5,) * 3, (0.5,) * 3)  # (T, 3, H, W)
        segments = pictures.unfold(0, SEGMENT_FRAMES, _STEP_FRAMES).movedim(-1, 2)  # (S, 3, 16, H, W)
        sound = torch.from_numpy(np.asarray(waveform[:num_samples], np.float32))
        mel = self.mel(sound.unfold(0, _SEGMENT_SAMPLES, _STEP_SAMPLES))
        return self.network(segments[None].to(self.device), mel[None].to(self.device))[0].float().cpu().numpy()

    def mel(self, segments: Tensor) -> Tensor:
        """(S, 10240) samples -> (S, 128, 66) log mel, normalised; the last frame is filled with zeros."""
        power = power_spectrum(segments, fft=1024, hop=160, window=400)
        log_mel = torch.log(self.bank @ power + 1e-6)  # (S, bands, 65)
        padded = torch.nn.functional.pad(log_mel, (0, MEL_FRAMES - log_mel.shape[-1]))
        return (padded - _MEL_MEAN) / (2 * _MEL_STD)

    def offset(self, frames: np.ndarray, waveform: np.ndarray) -> tuple[float, float]:
        """By how many seconds the sound is late, and how sure that is, 0..1; arguments as of `logits`."""
        logits = self.logits(frames, waveform).astype(float)
        chances = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        likeliest = int(chances.argmax())
        return float(-OFFSETS_S[likeliest]) + 0.0, float(chances[likeliest])
