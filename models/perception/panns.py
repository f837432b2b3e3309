"""PANNs' Cnn14 at 16 kHz: what a sound is (527 AudioSet classes) and a 2048-d embedding of it.

Letters: B batch, L samples, T frames, M mel bands.
Source: Kong et al., "PANNs: Large-scale pretrained audio neural networks for audio pattern recognition", 2020.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from syncflow.models.perception.published import read_published
from syncflow.models.perception.sounds import resample

_FFT, _HOP, _BANDS, _CLASSES = 512, 160, 64, 527
WIDTHS = (64, 128, 256, 512, 1024, 2048)


class ConvBlock(nn.Module):
    def __init__(self, of: int, to: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(of, to, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(to, to, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(to), nn.BatchNorm2d(to)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x))))))


class Cnn14Network(nn.Module):
    """Six blocks under the public names, halved in time and frequency between them; torchlibrosa's spectrogram."""

    def __init__(self, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        from torchlibrosa.stft import LogmelFilterBank, Spectrogram

        self.spectrogram_extractor = Spectrogram(_FFT, _HOP, _FFT)
        self.logmel_extractor = LogmelFilterBank(Cnn14.SAMPLE_RATE, _FFT, _BANDS, 50, 8000, top_db=None)
        self.bn0 = nn.BatchNorm2d(_BANDS)
        self.depth = len(widths)
        for k, (of, to) in enumerate(zip((1, *widths), widths, strict=False), 1):
            self.add_module(f"conv_block{k}", ConvBlock(of, to))
        self.fc1, self.fc_audioset = nn.Linear(widths[-1], widths[-1]), nn.Linear(widths[-1], _CLASSES)

    def forward(self, waveform: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L) at 16 kHz -> embedding (B, 2048), logits (B, 527)."""
        mel = self.logmel_extractor(self.spectrogram_extractor(waveform))  # (B, 1, T, M), dB
        x = self.bn0(mel.transpose(1, 3)).transpose(1, 3)
        for k in range(1, self.depth + 1):
            x = self.get_submodule(f"conv_block{k}")(x)
            x = functional.avg_pool2d(x, 2) if k < self.depth else x
        x = x.mean(dim=3)
        embedding = functional.relu(self.fc1(x.amax(dim=2) + x.mean(dim=2)))
        return embedding, self.fc_audioset(embedding)


class Cnn14:
    """The network with the weights of `Cnn14_16k_mAP=0.438.pth`."""

    SAMPLE_RATE = 16000

    def __init__(self, path: Path, widths: Sequence[int] = WIDTHS, device: str = "cpu") -> None:
        self.network, self.device = Cnn14Network(widths), device
        self.network.load_state_dict(read_published(path)["model"])
        self.network.to(device).eval()

    @torch.inference_mode()
    def sound(self, waveform: np.ndarray, sample_rate: int) -> tuple[np.ndarray, np.ndarray]:
        """(L,) mono of at least 0.32 s -> embedding (2048,), logits (527,)."""
        heard = torch.from_numpy(resample(waveform, sample_rate, self.SAMPLE_RATE).astype(np.float32))
        embedding, logits = self.network(heard[None].to(self.device))
        return embedding[0].cpu().numpy(), logits[0].cpu().numpy()
