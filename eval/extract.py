"""Networks that turn a clip into features: one class each, `features(clip) -> {name: array}`.

Frames are taken evenly over the clip, scaled and centre-cropped by ffmpeg (bicubic). Letters: T frames, L samples.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from syncflow.clock import Span
from syncflow.eval.backbones import NotComputed
from syncflow.eval.clips import ClipFile
from syncflow.media import MediaError, decode_span, probe

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


def sound(clip: ClipFile, sample_rate: int) -> np.ndarray:
    """(L,) mono at `sample_rate`, as long as the picture."""
    info = probe(clip.path)
    if info.audio is None:
        raise MediaError("no_audio", clip.path, "has no sound")
    span = Span(Fraction(0), info.duration_s)
    # a handful of tiny pictures: the decoder reads both streams by one clock
    return decode_span(info, span, fps=4 / info.duration_s, size=(16, 16), sample_rate=sample_rate).waveform


def normalised(frames: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(T, H, W, 3) uint8 -> (T, 3, H, W) float32."""
    scaled = torch.from_numpy(frames.copy()).permute(0, 3, 1, 2).float() / 255
    return (scaled - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


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
        import open_clip

        self.network, _, _ = open_clip.create_model_and_transforms(architecture, pretrained=str(path))
        self.network.eval()
        self.tokenize = open_clip.get_tokenizer(architecture)
        self.side = self.network.visual.image_size
        self.side = self.side[0] if isinstance(self.side, tuple) else self.side
        self.frames = frames

    @torch.inference_mode()
    def features(self, clip: ClipFile) -> Features:
        pictures = normalised(even_frames(clip, self.frames, self.side), CLIP_MEAN, CLIP_STD)
        found = {"frames": self.network.encode_image(pictures).double().numpy()}
        if clip.caption:
            found["text"] = self.network.encode_text(self.tokenize([clip.caption]))[0].double().numpy()
        return found


class TransformersClap:
    """CLAP by transformers: `audio` (D,), `text` (D,) where there is a caption."""

    def __init__(self, path: Path) -> None:
        from transformers import AutoProcessor, ClapModel

        self.network = ClapModel.from_pretrained(path).eval()
        self.processor = AutoProcessor.from_pretrained(path)
        self.rate = self.processor.feature_extractor.sampling_rate

    @torch.inference_mode()
    def features(self, clip: ClipFile) -> Features:
        extractor = self.processor.feature_extractor
        # the first 10 s: left to itself the extractor cuts longer sounds at random
        waveform = sound(clip, self.rate)[: extractor.nb_max_samples]
        inputs = extractor(waveform, sampling_rate=self.rate, return_tensors="pt")
        audio = _tensor(self.network.get_audio_features(**inputs))
        found = {"audio": audio[0].double().numpy()}
        if clip.caption:
            tokens = self.processor.tokenizer([clip.caption], return_tensors="pt", truncation=True)
            found["text"] = _tensor(self.network.get_text_features(**tokens))[0].double().numpy()
        return found


def _tensor(output: Any) -> Tensor:
    """transformers 5 wraps pooled features in an output object; 4 returned the tensor."""
    return output if isinstance(output, Tensor) else output.pooler_output


class LaionClap:
    """CLAP by laion_clap: `audio` (512,), `text` (512,) where there is a caption."""

    def __init__(self, path: Path) -> None:
        with _blank_arguments():
            import laion_clap

            self.module = laion_clap.CLAP_Module(enable_fusion=False, amodel="HTSAT-tiny", device="cpu")
            self.module.load_ckpt(str(path), verbose=False)

    @torch.inference_mode()
    def features(self, clip: ClipFile) -> Features:
        waveform = sound(clip, 48000)
        quantised = (np.clip(waveform, -1, 1) * 32767).astype(np.int16).astype(np.float32) / 32767
        found = {
            "audio": np.asarray(self.module.get_audio_embedding_from_data(quantised[None], use_tensor=False)[0], float)
        }
        if clip.caption:
            # the package cannot embed one text alone
            found["text"] = np.asarray(self.module.get_text_embedding([clip.caption, ""])[0], float)
        return found


@contextlib.contextmanager
def _blank_arguments() -> Iterator[None]:
    """laion_clap parses sys.argv when it is imported."""
    kept, sys.argv = sys.argv, sys.argv[:1]
    try:
        yield
    finally:
        sys.argv = kept


class VideoMae:
    """VideoMAE by transformers: `embedding` (D,), the mean of the last hidden states."""

    def __init__(self, path: Path) -> None:
        from transformers import VideoMAEModel

        self.network = VideoMAEModel.from_pretrained(path).eval()

    @torch.inference_mode()
    def features(self, clip: ClipFile) -> Features:
        config = self.network.config
        frames = normalised(even_frames(clip, config.num_frames, config.image_size), IMAGENET_MEAN, IMAGENET_STD)
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


class ScriptSync:
    """Synchformer exported as TorchScript, `((1, T, 3, 224, 224) at 25 fps, (1, L) at 16 kHz) -> (1, 21)`.

    Gives `logits` (2, 21) for the first and the last 4.8 s; shorter clips give the same row twice.
    """

    SECONDS, FPS, RATE = Fraction(48, 10), Fraction(25), 16000

    def __init__(self, path: Path) -> None:
        self.network = load_script(path)

    @torch.inference_mode()
    def features(self, clip: ClipFile) -> Features:
        info = probe(clip.path)
        if info.audio is None:
            raise MediaError("no_audio", clip.path, "has no sound")
        length = min(self.SECONDS, info.duration_s)
        rows = []
        for start in (Fraction(0), info.duration_s - length):
            part = decode_span(info, Span(start, start + length), fps=self.FPS, size=(224, 224), sample_rate=self.RATE)
            frames = normalised(part.frames, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
            rows.append(self.network(frames[None], torch.from_numpy(part.waveform)[None])[0].double().numpy())
        return {"logits": np.stack(rows)}


def load_script(path: Path) -> Any:
    """A TorchScript file.

    Raises:
        NotComputed: it is weights alone, which need their authors' code.
    """
    try:
        return torch.jit.load(str(path), map_location="cpu").eval()
    except RuntimeError as error:
        raise NotComputed(
            f"{path} is not TorchScript: export the network with torch.jit in its authors' environment and put it there"
        ) from error
