"""Networks that turn a clip into features: one class each, `features(clip) -> {name: array}`.

Frames are taken evenly over the clip, scaled and centre-cropped by ffmpeg (bicubic). Letters: T frames, L samples.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch

from syncflow.clock import Span
from syncflow.eval.across import clip_iqa, javis_windows
from syncflow.eval.clips import ClipFile
from syncflow.media import MediaError, decode_span, probe
from syncflow.models.perception import (
    aesthetic,
    clap,
    efficientat,
    imagebind,
    panns,
    passt,
    synchformer,
    vggish,
    videomae2,
)
from syncflow.models.perception.checkpoints import WeightsUnavailable, locate
from syncflow.models.perception.clip import Clip
from syncflow.models.perception.pictures import IMAGENET_MEAN, IMAGENET_STD, normalised

Features = dict[str, np.ndarray]


class Extractor(Protocol):
    """Made from a path of weights; one per backbone."""

    def features(self, clip: ClipFile) -> Features: ...


def device() -> str:
    """A GPU where this process may use one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


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
        self.network = efficientat.load_tagger(path)

    def features(self, clip: ClipFile) -> Features:
        rate = efficientat.SAMPLE_RATE
        embedding, probabilities = efficientat.tag(self.network, sound(clip, rate), rate)
        return {"embedding": embedding, "probabilities": probabilities}


class Cnn14:
    """PANNs: `embedding` (2048,), `probabilities` (527,), the softmax of the logits."""

    def __init__(self, path: Path) -> None:
        self.network: panns.Cnn14 | passt.Passt = panns.Cnn14(path, device=device())

    def features(self, clip: ClipFile) -> Features:
        rate = self.network.SAMPLE_RATE
        embedding, logits = (x.astype(float) for x in self.network.sound(sound(clip, rate), rate))
        chances = np.exp(logits - logits.max())
        return {"embedding": embedding, "probabilities": chances / chances.sum()}


class Passt(Cnn14):
    """PaSST: `embedding` (768,), `probabilities` (527,), the softmax of the logits."""

    def __init__(self, path: Path) -> None:
        self.network = passt.Passt(path, device=device())


class Vggish:
    """VGGish: `windows` (windows, 128)."""

    def __init__(self, path: Path) -> None:
        self.network = vggish.Vggish(path, device=device())

    def features(self, clip: ClipFile) -> Features:
        rate = self.network.SAMPLE_RATE
        try:
            return {"windows": self.network.sound(sound(clip, rate), rate).astype(float)}
        except ValueError as error:
            raise MediaError("too_short", clip.path, str(error)) from error


class OpenClip:
    """CLIP of pictures and of the caption: `frames` (8, D), `text` (D,) where there is a caption; `quality` (8,)."""

    def __init__(self, path: Path, architecture: str = "ViT-B-32-quickgelu") -> None:
        self.network = Clip(path, architecture, device())
        self.prompts = self.network.texts(["Good photo.", "Bad photo."]).astype(float)

    def features(self, clip: ClipFile) -> Features:
        frames = self.network.frames(even_frames(clip, 8, self.network.side)).astype(float)
        return {"frames": frames, "quality": clip_iqa(frames, self.prompts)} | _text(self.network, clip)


class Aesthetic:
    """LAION's head on CLIP ViT-L/14, whose weights lie in the same folder: `scores` (8,)."""

    def __init__(self, path: Path, architecture: str = "ViT-L-14-quickgelu") -> None:
        self.network = Clip(locate("clip-vit-l14", path.parent).path, architecture, device())
        self.head = aesthetic.Aesthetic(path)

    def features(self, clip: ClipFile) -> Features:
        frames = self.network.frames(even_frames(clip, 8, self.network.side))
        return {"scores": np.asarray(self.head(frames), float)}


class TransformersClap:
    """CLAP by transformers: `audio` (D,), `text` (D,) where there is a caption."""

    def __init__(self, path: Path) -> None:
        self.network = clap.TransformersClap(path, device())

    def features(self, clip: ClipFile) -> Features:
        rate = self.network.sample_rate
        return {"audio": self.network.sound(sound(clip, rate), rate).astype(float)} | _text(self.network, clip)


class LaionClap:
    """CLAP by laion_clap: `audio` (512,), `text` (512,) where there is a caption."""

    def __init__(self, path: Path) -> None:
        self.network = clap.LaionClap(path, device=device())

    def features(self, clip: ClipFile) -> Features:
        rate = self.network.SAMPLE_RATE
        return {"audio": self.network.sound(sound(clip, rate), rate).astype(float)} | _text(self.network, clip)


class ImageBind:
    """ImageBind: `video`, `audio` (D,) of the clip, `text` (D,) where there is a caption; for the scores of frames
    `frames` (T, D) at `fps` and `windows` (windows, D), the sound of each of JavisScore's windows.
    """

    def __init__(self, path: Path) -> None:
        self.network = imagebind.ImageBind(path, device=device())

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

        self.network = cast(Any, VideoMAEModel.from_pretrained(path))
        self.network.to(device()).eval()

    @torch.inference_mode()
    def features(self, clip: ClipFile) -> Features:
        config = self.network.config
        side = config.image_size
        frames = normalised(even_frames(clip, config.num_frames, side), side, IMAGENET_MEAN, IMAGENET_STD)
        hidden = self.network(pixel_values=frames[None].to(device())).last_hidden_state  # (1, tokens, D)
        return {"embedding": hidden.mean(dim=1)[0].double().cpu().numpy()}


class VideoMaeV2:
    """VideoMAE-v2 by transformers: `embedding` (1408,), the normed mean of the last hidden states."""

    def __init__(self, path: Path) -> None:
        self.network = videomae2.VideoMae2(path, device=device())

    def features(self, clip: ClipFile) -> Features:
        frames = even_frames(clip, self.network.frames, self.network.side)
        return {"embedding": self.network.video(frames).astype(float)}


class I3d:
    """StyleGAN-V's TorchScript I3D: `embedding` (400,), features before the softmax."""

    def __init__(self, path: Path) -> None:
        try:
            self.network = torch.jit.load(str(path), map_location=device()).eval()
        except RuntimeError as error:
            raise WeightsUnavailable(f"{path} is not TorchScript, as the file of StyleGAN-V is") from error

    @torch.inference_mode()
    def features(self, clip: ClipFile) -> Features:
        frames = native_frames(clip, 224)
        if len(frames) < 10:
            raise MediaError("too_short", clip.path, f"has {len(frames)} frames; I3D needs 10")
        video = torch.from_numpy(frames.copy()).to(device()).permute(3, 0, 1, 2)[None].float()  # (1, 3, T, 224, 224)
        found = self.network(video, rescale=True, resize=True, return_features=True)[0]
        return {"embedding": found.double().cpu().numpy()}


class Synchformer:
    """Synchformer: `logits` (2, 21) for the first and the last 4.8 s, the latter on the grid of its segments."""

    def __init__(self, path: Path) -> None:
        self.network = synchformer.Synchformer(path, device=device())

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
