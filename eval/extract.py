"""Networks that turn a clip into features: one class each, `features(clip) -> {name: array}`.

Frames are taken evenly over the clip, scaled and centre-cropped by ffmpeg (bicubic). Letters: T frames, L samples.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from syncflow.clock import Span
from syncflow.eval.across import javis_windows
from syncflow.eval.clips import ClipFile
from syncflow.media import MediaError, decode_span, probe
from syncflow.models.perception import clap, imagebind, synchformer
from syncflow.models.perception.checkpoints import WeightsUnavailable
from syncflow.models.perception.clip import Clip
from syncflow.models.perception.pictures import IMAGENET_MEAN, IMAGENET_STD, normalised

Features = dict[str, np.ndarray]


class Extractor(Protocol):
    """Made from a path of weights; one per backbone."""

    def features(self, clip: ClipFile) -> Features: ...


def even_frames(clip: ClipFile, count: int, side: int) -> np.ndarray:
    """(count, side, side, 3) uint8 frames evenly over the clip."""
    info = probe(clip.path)
    span = Span(Fraction(0), info.duration_s)
    return decode_span(info, span, fps=count / info.duration_s, size=(side, side), sample_rate=None).frames[:count]


def native_frames(clip: ClipFile, side: int) -> np.ndarray:
    """(T, side, side, 3) uint8: every frame of the clip."""
    info = probe(clip.path)
    span = Span(Fraction(0), info.duration_s)
    decoded = decode_span(info, span, fps=info.rate or Fraction(25), size=(side, side), sample_rate=None)
    return decoded.frames[: decoded.valid_frames]


def shown_frames(clip: ClipFile, side: int) -> tuple[np.ndarray, float]:
    """(T, H, W, 3) uint8, every frame of the clip with the shorter side scaled to `side`, and frames per second."""
    info = probe(clip.path)
    scale = side / min(info.width, info.height)
    size = (max(side, int(info.width * scale)), max(side, int(info.height * scale)))
    fps = info.rate or Fraction(25)
    whole = Span(Fraction(0), info.duration_s)
    decoded = decode_span(info, whole, fps=fps, size=size, sample_rate=None, fit="stretch")
    return decoded.frames[: decoded.valid_frames], float(fps)


def sound(clip: ClipFile, sample_rate: int) -> np.ndarray:
    """(L,) mono at `sample_rate`, as long as the picture."""
    info = probe(clip.path)
    if info.audio is None:
        raise MediaError("no_audio", clip.path, "has no sound")
    span = Span(Fraction(0), info.duration_s)
    # a handful of tiny pictures: the decoder reads both streams by one clock
    return decode_span(info, span, fps=4 / info.duration_s, size=(16, 16), sample_rate=sample_rate).waveform


class Tagger:
    """EfficientAT mn04: `embedding` (384,), `probabilities` (527,)."""

    def __init__(self, path: Path) -> None:
        from syncflow.eval.tagger import load_tagger

        self.network = load_tagger(path)

    def features(self, clip: ClipFile) -> Features:
        from syncflow.eval.tagger import SAMPLE_RATE, tag

        embedding, probabilities = tag(self.network, sound(clip, SAMPLE_RATE), SAMPLE_RATE)
        return {"embedding": embedding, "probabilities": probabilities}


class OpenClip:
    """CLIP of pictures and of the caption: `frames` (8, D), `text` (D,) where there is a caption."""

    def __init__(self, path: Path, architecture: str = "ViT-B-32-quickgelu", frames: int = 8) -> None:
        self.network, self.frames = Clip(path, architecture), frames

    def features(self, clip: ClipFile) -> Features:
        found = {"frames": self.network.frames(even_frames(clip, self.frames, self.network.side)).astype(float)}
        return found | _text(self.network, clip)


class TransformersClap:
    """CLAP by transformers: `audio` (D,), `text` (D,) where there is a caption."""

    def __init__(self, path: Path) -> None:
        self.network = clap.TransformersClap(path)

    def features(self, clip: ClipFile) -> Features:
        rate = self.network.sample_rate
        return {"audio": self.network.sound(sound(clip, rate), rate).astype(float)} | _text(self.network, clip)


class LaionClap:
    """CLAP by laion_clap: `audio` (512,), `text` (512,) where there is a caption."""

    def __init__(self, path: Path) -> None:
        self.network = clap.LaionClap(path)

    def features(self, clip: ClipFile) -> Features:
        rate = self.network.SAMPLE_RATE
        return {"audio": self.network.sound(sound(clip, rate), rate).astype(float)} | _text(self.network, clip)


class ImageBind:
    """ImageBind: `video`, `audio` (D,) of the clip, `text` (D,) where there is a caption; for the scores of frames
    `frames` (T, D) at `fps` and `windows` (windows, D), the sound of each of JavisScore's windows.
    """

    def __init__(self, path: Path) -> None:
        self.network = imagebind.ImageBind(path)

    def features(self, clip: ClipFile) -> Features:
        frames, fps = shown_frames(clip, self.network.config.side)
        rate = self.network.SAMPLE_RATE
        heard = sound(clip, rate)
        windows = [heard[int(a * rate) : int(b * rate)] for a, b in javis_windows(len(frames) / fps)]
        return {
            "video": self.network.video(frames, fps).astype(float),
            "audio": self.network.sound(heard, rate).astype(float),
            "frames": self.network.pictures(frames).astype(float),
            "fps": np.array(fps),
            "windows": np.stack([self.network.sound(window, rate) for window in windows]).astype(float),
        } | _text(self.network, clip)


def _text(network: Clip | clap.TransformersClap | clap.LaionClap | imagebind.ImageBind, clip: ClipFile) -> Features:
    return {"text": network.texts([clip.caption])[0].astype(float)} if clip.caption else {}


class VideoMae:
    """VideoMAE by transformers: `embedding` (D,), the mean of the last hidden states."""

    def __init__(self, path: Path) -> None:
        from transformers import VideoMAEModel

        self.network = VideoMAEModel.from_pretrained(path).eval()

    @torch.inference_mode()
    def features(self, clip: ClipFile) -> Features:
        config = self.network.config
        side = config.image_size
        frames = normalised(even_frames(clip, config.num_frames, side), side, IMAGENET_MEAN, IMAGENET_STD)
        hidden = self.network(pixel_values=frames[None]).last_hidden_state  # (1, tokens, D)
        return {"embedding": hidden.mean(dim=1)[0].double().numpy()}


class I3d:
    """StyleGAN-V's TorchScript I3D: `embedding` (400,), features before the softmax."""

    def __init__(self, path: Path) -> None:
        self.network = load_script(path)

    @torch.inference_mode()
    def features(self, clip: ClipFile) -> Features:
        frames = native_frames(clip, 224)
        if len(frames) < 10:
            raise MediaError("too_short", clip.path, f"has {len(frames)} frames; I3D needs 10")
        video = torch.from_numpy(frames.copy()).permute(3, 0, 1, 2)[None].float()  # (1, 3, T, 224, 224)
        return {"embedding": self.network(video, rescale=True, resize=True, return_features=True)[0].double().numpy()}


class ScriptAudio:
    """A sound network exported as TorchScript, `(1, L) waveform -> (1, D)`: `embedding` (D,)."""

    def __init__(self, path: Path, sample_rate: int) -> None:
        self.network, self.sample_rate = load_script(path), sample_rate

    @torch.inference_mode()
    def features(self, clip: ClipFile) -> Features:
        waveform = torch.from_numpy(sound(clip, self.sample_rate).copy())[None]
        return {"embedding": self.network(waveform)[0].double().numpy()}


class Synchformer:
    """Synchformer: `logits` (2, 21) for the first and the last 4.8 s, the latter on the grid of its segments."""

    def __init__(self, path: Path) -> None:
        self.network = synchformer.Synchformer(path)

    def features(self, clip: ClipFile) -> Features:
        info = probe(clip.path)
        length, step = (Fraction(s).limit_denominator(100) for s in (self.network.seconds, synchformer.STEP_S))
        if info.audio is None:
            raise MediaError("no_audio", clip.path, "has no sound")
        if info.duration_s < length:
            seconds = f"is {float(info.duration_s):.2f} s long; Synchformer needs {float(length):.2f} s"
            raise MediaError("too_short", clip.path, seconds)
        last = (info.duration_s - length) // step * step
        rows = []
        for start in (Fraction(0), last):
            part = decode_span(
                info,
                Span(start, start + length),
                fps=Fraction(synchformer.FPS),
                size=(self.network.config.side,) * 2,
                sample_rate=synchformer.SAMPLE_RATE,
            )
            rows.append(self.network.logits(part.frames, part.waveform).astype(float))
        return {"logits": np.stack(rows)}


def load_script(path: Path) -> Any:
    """A TorchScript file.

    Raises:
        WeightsUnavailable: it is weights alone, which need their authors' code.
    """
    try:
        return torch.jit.load(str(path), map_location="cpu").eval()
    except RuntimeError as error:
        raise WeightsUnavailable(
            f"{path} is not TorchScript: export the network with torch.jit in its authors' environment and put it there"
        ) from error
