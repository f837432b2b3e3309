"""VGGish: 128 numbers for each 0.96 s of a sound, after the last rectifier, without PCA and quantisation.

Letters: B windows, L samples, T frames, M mel bands.
Source: Hershey et al., "CNN architectures for large-scale audio classification", 2017; the parameters of
github.com/harritaylor/torchvggish.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from syncflow.models.perception.sounds import resample

_WINDOW, _HOP, _FFT, _BANDS = 400, 160, 512, 64
_FRAMES = 96
"""Of one window of 0.96 s."""
WIDTHS = (64, 128, 256, 256, 512, 512, 4096)


class VggishNetwork(nn.Module):
    def __init__(self, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        a, b, c, d, e, f, hidden = widths
        layers: list[nn.Module] = []
        for of, to, halved in ((1, a, 1), (a, b, 1), (b, c, 0), (c, d, 1), (d, e, 0), (e, f, 1)):
            layers += [nn.Conv2d(of, to, 3, padding=1), nn.ReLU(), *([nn.MaxPool2d(2)] * halved)]
        self.features = nn.Sequential(*layers)
        places = (_FRAMES // 16) * (_BANDS // 16)
        dense = ((f * places, hidden), (hidden, hidden), (hidden, 128))
        self.embeddings = nn.Sequential(*(layer for of, to in dense for layer in (nn.Linear(of, to), nn.ReLU())))

    def forward(self, mel: Tensor) -> Tensor:
        """(B, 1, 96, 64) -> (B, 128)."""
        return self.embeddings(self.features(mel).permute(0, 2, 3, 1).flatten(1))


class Vggish:
    """The network with the weights of `vggish-10086976.pth`."""

    SAMPLE_RATE = 16000

    def __init__(self, path: Path, widths: Sequence[int] = WIDTHS, device: str = "cpu") -> None:
        from transformers.audio_utils import mel_filter_bank

        self.network, self.device = VggishNetwork(widths), device
        self.network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self.network.to(device).eval()
        bank = mel_filter_bank(
            _FFT // 2 + 1, _BANDS, 125, 7500, self.SAMPLE_RATE, mel_scale="kaldi", triangularize_in_mel_space=True
        )
        self.bank = torch.from_numpy(bank)  # (frequencies, M)

    def mel(self, waveform: Tensor) -> Tensor:
        """(L,) at 16 kHz -> (T, M) log magnitudes."""
        frames = waveform.double().unfold(0, _WINDOW, _HOP) * torch.hann_window(_WINDOW, dtype=torch.double)
        return torch.log(torch.fft.rfft(frames, _FFT).abs() @ self.bank + 0.01).float()

    @torch.inference_mode()
    def sound(self, waveform: np.ndarray, sample_rate: int) -> np.ndarray:
        """(L,) mono -> (windows, 128); an incomplete last window is left out.

        Raises:
            ValueError: less than one window, 0.975 s.
        """
        mel = self.mel(torch.from_numpy(resample(waveform, sample_rate, self.SAMPLE_RATE)))
        if len(mel) < _FRAMES:
            raise ValueError(f"has {len(waveform) / sample_rate:.2f} s of sound; VGGish needs 0.98 s")
        windows = mel.unfold(0, _FRAMES, _FRAMES).transpose(1, 2)[:, None]  # (B, 1, 96, 64)
        return self.network(windows.to(self.device)).cpu().numpy()
