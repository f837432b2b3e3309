"""EfficientAT's mn04: what a sound is (527 AudioSet classes) and a 384-d embedding of it.

Letters: B batch, L samples, M mel bands, T frames.
Source: Schmid et al., "Efficient large-scale audio tagging via transformer-to-CNN knowledge distillation", 2023.
"""

from __future__ import annotations

from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.mobilenetv3 import InvertedResidual, MobileNetV3, _mobilenet_v3_conf
from torchvision.ops import SqueezeExcitation

from syncflow.models.perception.sounds import resample

SAMPLE_RATE = 32000
CLASSES = 527
_WIDTH = 0.4
_BANDS, _FFT, _HOP, _WINDOW, _TOP_HZ = 128, 1024, 320, 800, 15000.0


class SigmoidSqueeze(SqueezeExcitation):
    """Squeeze-excitation gated by a sigmoid, averaged as EfficientAT does."""

    def __init__(self, channels: int, squeezed: int, **_: object) -> None:
        super().__init__(channels, squeezed, scale_activation=nn.Sigmoid)


def build_tagger() -> MobileNetV3:
    """The network without weights: MobileNetV3-large at width 0.4 with one input channel."""
    blocks, last = _mobilenet_v3_conf("mobilenet_v3_large", width_mult=_WIDTH)
    network = MobileNetV3(
        blocks,
        last,
        num_classes=CLASSES,
        block=partial(InvertedResidual, se_layer=SigmoidSqueeze),
        norm_layer=partial(nn.BatchNorm2d, eps=0.001, momentum=0.01),
    )
    first = network.features[0][0]
    network.features[0][0] = nn.Conv2d(1, first.out_channels, 3, stride=2, padding=1, bias=False)
    return network.eval()


def load_tagger(path: Path) -> MobileNetV3:
    """The network with EfficientAT's published weights."""
    weights = torch.load(path, map_location="cpu", weights_only=True)
    renamed: dict[str, Tensor] = {}
    for name, value in weights.items():
        name = name.replace("conc_se_layers.0.", "")
        name = name.replace("classifier.2.", "classifier.0.").replace("classifier.5.", "classifier.3.")
        if ".fc" in name and value.ndim == 2:
            value = value[..., None, None]
        renamed[name] = value
    network = build_tagger()
    network.load_state_dict(renamed)
    return network


def log_mel(waveform: Tensor) -> Tensor:
    """(B, L) at 32 kHz -> (B, 1, M, T) log mel bands, normalised as in training."""
    emphasised = waveform[:, 1:] - 0.97 * waveform[:, :-1]  # (B, L-1)
    window = torch.hann_window(_WINDOW, periodic=False)
    spectrum = torch.stft(
        emphasised, _FFT, _HOP, win_length=_WINDOW, window=window, center=True, pad_mode="reflect", return_complex=True
    )
    power = spectrum.real**2 + spectrum.imag**2  # (B, F, T)
    mel = kaldi_mel_bank() @ power  # (B, M, T)
    return (((mel + 1e-5).log() + 4.5) / 5)[:, None]


@lru_cache(maxsize=1)
def kaldi_mel_bank() -> Tensor:
    """(M, F): triangles evenly spaced in mel `1127 ln(1 + f/700)`, from 0 to 15 kHz; the Nyquist bin is zero."""

    def mel(hz: float | np.ndarray) -> np.ndarray:
        return 1127.0 * np.log(1.0 + np.asarray(hz) / 700.0)

    edges = np.linspace(mel(0.0), mel(_TOP_HZ), _BANDS + 2)
    bins = mel(SAMPLE_RATE / _FFT * np.arange(_FFT // 2))[None]  # (1, F-1)
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    triangles = np.maximum(0, np.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)))
    return torch.from_numpy(np.pad(triangles, ((0, 0), (0, 1))).astype(np.float32))


@torch.inference_mode()
def tag(network: MobileNetV3, waveform: np.ndarray, sample_rate: int) -> tuple[np.ndarray, np.ndarray]:
    """Embedding (384,) and class probabilities (527,) of a (L,) mono waveform; short ones are padded to 1 s."""
    sound = resample(waveform, sample_rate, SAMPLE_RATE)
    sound = np.pad(sound, (0, max(0, SAMPLE_RATE - len(sound))))
    features = network.features(log_mel(torch.from_numpy(sound.astype(np.float32))[None]))  # (1, 384, m, t)
    embedding = network.avgpool(features).flatten(1)  # (1, 384)
    logits = network.classifier(embedding)
    return embedding[0].double().numpy(), torch.sigmoid(logits)[0].double().numpy()
