"""Public checkpoints: exactly which one, its licence, and how the network's input is prepared.

A SHA-256 is stated only where its publisher states it or the file was at hand; elsewhere it is recorded on the
first pull and checked from then on. Weights lie in one folder, by file name, and may be put there by hand.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from syncflow.errors import UserError
from syncflow.files import write_whole

HOME_VARIABLE = "SYNCFLOW_WEIGHTS"


@dataclass(frozen=True)
class Backbone:
    """One public checkpoint."""

    name: str
    gives: str
    """What its features are used for."""
    url: str
    """A file, or hf:OWNER/NAME for a Hugging Face repository."""
    file: str
    """Name under the weights folder: a file, or a folder for Hugging Face repositories."""
    revision: str
    """Release or commit; "main" is not pinned by its publisher's name."""
    sha256: str
    """"" where it is not known."""
    licence: str
    commercial: bool
    """Whether the licence of the weights allows commercial use, as far as it says."""
    megabytes: int
    architecture: str
    """Which library's class holds it."""
    preprocessing: str
    sample_rate: int = 0
    """Of sound in Hz; 0 for pictures."""
    beside: tuple[tuple[str, str], ...] = ()
    """Hugging Face repositories that its package reads from that cache, each with the patterns of the files needed."""

    @property
    def pinned(self) -> str:
        """What its publisher fixed it by, "" where nothing is fixed."""
        if self.sha256:
            return f"sha256 {self.sha256[:12]}…"
        return f"commit {self.revision[:12]}…" if re.fullmatch("[0-9a-f]{40}", self.revision) else ""


BACKBONES = {
    b.name: b
    for b in (
        Backbone(
            "efficientat-mn04",
            "FAD, KL, IS of sound (384-d; 527 AudioSet classes)",
            "https://github.com/fschmid56/EfficientAT/releases/download/v0.0.1/mn04_as_mAP_432.pt",
            "mn04_as_mAP_432.pt",
            "v0.0.1",
            "899a8c6217063f6941793102a2780b3dd788ab11fce468d9cf5f0577c453321c",
            "MIT",
            True,
            4,
            "torchvision MobileNetV3",
            "pre-emphasis 0.97; STFT 1024/320, Hann 800; 128 Kaldi mel bands to 15 kHz; (ln(mel + 1e-5) + 4.5) / 5",
            32000,
        ),
        Backbone(
            "clap-htsat-unfused",
            "CLAP score and FAD (512-d)",
            "hf:laion/clap-htsat-unfused",
            "clap-htsat-unfused",
            "8fa0f1c6d0433df6e97c127f64b2a1d6c0dcda8a",
            "",
            "Apache-2.0",
            True,
            615,
            "transformers ClapModel",
            "the checkpoint's own feature extractor: 48 kHz, the first 10 s, repeated to length",
            48000,
        ),
        Backbone(
            "laion-clap-630k",
            "CLAP score (512-d), the checkpoint most papers use",
            "https://huggingface.co/lukewys/laion_clap/resolve/main/630k-audioset-best.pt",
            "630k-audioset-best.pt",
            "main",
            "",
            "CC0-1.0",
            True,
            1863,
            "laion_clap CLAP_Module (HTSAT-tiny, no fusion)",
            "48 kHz mono, the first 10 s, repeated to length, quantised to 16 bit as the package does",
            48000,
            (
                ("roberta-base", "*.json *.txt model.safetensors"),
                ("bert-base-uncased", "*.json *.txt"),
                ("facebook/bart-base", "*.json *.txt"),
            ),
        ),
        Backbone(
            "passt-s",
            "FD, KL, IS of sound (768-d; 527 classes)",
            "https://github.com/kkoutini/PaSST/releases/download/v0.0.1-audioset/passt-s-f128-p16-s10-ap.476-swa.pt",
            "passt-s-f128-p16-s10-ap.476-swa.pt",
            "v0.0.1-audioset",
            "",
            "Apache-2.0",
            True,
            329,
            "syncflow.models.perception.passt",
            "first 10 s, silence after; spectrogram of efficientat-mn04",
            32000,
        ),
        Backbone(
            "panns-cnn14-16k",
            "FD, KL, IS of sound (2048-d; 527 classes)",
            "https://zenodo.org/record/3987831/files/Cnn14_16k_mAP%3D0.438.pth",
            "Cnn14_16k_mAP=0.438.pth",
            "zenodo 3987831",
            "",
            "CC-BY-4.0",
            True,
            327,
            "syncflow.models.perception.panns",
            "STFT 512/160, 64 Slaney mel bands 50-8000 Hz, dB",
            16000,
        ),
        Backbone(
            "vggish",
            "FAD of sound (128-d per 0.96 s)",
            "https://github.com/harritaylor/torchvggish/releases/download/v0.1/vggish-10086976.pth",
            "vggish-10086976.pth",
            "v0.1",
            "",
            "Apache-2.0",
            True,
            288,
            "syncflow.models.perception.vggish",
            "windows of 0.96 s, 64 HTK mel bands 125-7500 Hz, ln(magnitude + 0.01); no PCA",
            16000,
        ),
        Backbone(
            "clip-vit-b32",
            "CLIP text-video score, CLIP-IQA of frames (512-d)",
            "https://openaipublic.azureedge.net/clip/models/"
            "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af/ViT-B-32.pt",
            "ViT-B-32.pt",
            "OpenAI, 2021",
            "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
            "MIT",
            True,
            338,
            "open_clip ViT-B-32-quickgelu",
            "224x224 bicubic, centre crop, CLIP mean and standard deviation",
        ),
        Backbone(
            "clip-vit-l14",
            "features that laion-aesthetic-l14 reads (768-d)",
            "https://openaipublic.azureedge.net/clip/models/"
            "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836/ViT-L-14.pt",
            "ViT-L-14.pt",
            "OpenAI, 2022",
            "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
            "MIT",
            True,
            890,
            "open_clip ViT-L-14-quickgelu",
            "224x224 bicubic, centre crop, CLIP mean and standard deviation",
        ),
        Backbone(
            "laion-aesthetic-l14",
            "aesthetic score of frames",
            "https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/"
            "main/sac+logos+ava1-l14-linearMSE.pth",
            "sac+logos+ava1-l14-linearMSE.pth",
            "main",
            "",
            "Apache-2.0",
            True,
            4,
            "syncflow.models.perception.aesthetic",
            "unit CLIP ViT-L/14 features of a frame",
        ),
        Backbone(
            "videomae-base-k400",
            "FVD, KVD of pictures (768-d)",
            "hf:MCG-NJU/videomae-base-finetuned-kinetics",
            "videomae-base-finetuned-kinetics",
            "main",
            "",
            "CC-BY-NC-4.0",
            False,
            346,
            "transformers VideoMAEForVideoClassification",
            "16 frames evenly over the clip, 224x224, ImageNet mean and standard deviation",
        ),
        Backbone(
            "videomae2-giant-ssv2",
            "FVD, KVD of pictures (1408-d), the content-debiased FVD",
            "https://pjlab-gvm-data.oss-cn-shanghai.aliyuncs.com/internvideo/videomaev2/"
            "vit_g_hybrid_pt_1200e_ssv2_ft.pth",
            "vit_g_hybrid_pt_1200e_ssv2_ft.pth",
            "VideoMAE V2, 2023",
            "",
            "MIT (code); weights fine-tuned on Something-Something v2, for research",
            False,
            4050,
            "transformers VideoMAEModel, by syncflow.models.perception.videomae2",
            "16 frames evenly over the clip, 224x224, levels 0..1",
        ),
        Backbone(
            "i3d-k400",
            "FVD, KVD of pictures (400-d), as StyleGAN-V computes it",
            "https://www.dropbox.com/s/ge9e5ujwgetktms/i3d_torchscript.pt?dl=1",
            "i3d_torchscript.pt",
            "StyleGAN-V, 2021",
            "",
            "Apache-2.0",
            True,
            51,
            "TorchScript",
            "at least 10 frames, uint8 range, resized and rescaled to 224x224 inside the script",
        ),
        Backbone(
            "imagebind-huge",
            "ImageBind AV / TV / TA, AVHScore, JavisScore (1024-d)",
            "https://dl.fbaipublicfiles.com/imagebind/imagebind_huge.pth",
            "imagebind_huge.pth",
            "Meta, 2023",
            "",
            "CC-BY-NC-SA-4.0",
            False,
            4800,
            "syncflow.models.perception.imagebind",
            "pictures 224x224, CLIP mean and deviation; sound in windows of 2 s, 128 Kaldi mel bands; as published",
            16000,
        ),
        Backbone(
            "synchformer-audioset",
            "DeSync (21 classes of offset, -2 … +2 s)",
            "https://github.com/hkchengrex/MMAudio/releases/download/v0.1/synchformer_state_dict.pth",
            "synchformer_state_dict.pth",
            "24-01-04T16-39-21, MMAudio v0.1",
            "",
            "MIT (code); weights trained on AudioSet",
            True,
            907,
            "syncflow.models.perception.synchformer",
            "25 fps, 224x224, mean and deviation 0.5; 16 kHz, 128 HTK mel bands; the first and the last 4.8 s",
            16000,
        ),
    )
}


def weights_home(given: Path | None = None) -> Path:
    """The folder of weights: as given, else $SYNCFLOW_WEIGHTS, else the user's cache."""
    if given is not None:
        return given
    if os.environ.get(HOME_VARIABLE):
        return Path(os.environ[HOME_VARIABLE])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "syncflow" / "weights"


class WeightsUnavailable(UserError):
    """Weights that are absent, refused for their licence, or not what they should be."""


def get_backbone(name: str) -> Backbone:
    if name not in BACKBONES:
        import difflib

        near = difflib.get_close_matches(name, BACKBONES, n=1, cutoff=0.3)
        raise UserError(
            f"no backbone {name!r}" + (f"; did you mean {near[0]}?" if near else f"; known: {', '.join(BACKBONES)}")
        )
    return BACKBONES[name]


@dataclass(frozen=True)
class Located:
    """Weights at hand, and which bytes they are."""

    backbone: Backbone
    path: Path
    sha256: str

    @property
    def identity(self) -> str:
        """For protocols: name and the first 12 digits of the hash."""
        return f"{self.backbone.name}:{self.sha256[:12]}"


def locate(name: str, home: Path, commercial_safe: bool = False) -> Located:
    """The weights of a backbone, checked.

    Raises:
        WeightsUnavailable: they are not there, their licence was refused, or they are not the bytes they should be.
    """
    backbone = get_backbone(name)
    if commercial_safe and not backbone.commercial:
        raise WeightsUnavailable(f"the licence of {name} ({backbone.licence}) forbids commercial use")
    path = home / backbone.file
    if not path.exists():
        raise WeightsUnavailable(
            f"the weights of {name} are not at {path}; `syncflow weights pull {name}` fetches them"
        )
    digest = tree_hash(path)
    expected = backbone.sha256 or recorded_hash(home, name)
    if expected and digest != expected:
        raise WeightsUnavailable(
            f"{path} is not the published {name}: SHA-256 {digest[:12]}… instead of {expected[:12]}…"
        )
    return Located(backbone, path, digest)


def tree_hash(path: Path) -> str:
    """SHA-256 of a file; of a folder, that over the names and hashes of its weight and configuration files."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    parts = sorted(
        p for p in path.rglob("*") if p.is_file() and not any(q.startswith(".") for q in p.relative_to(path).parts)
    )
    return hashlib.sha256("".join(f"{p.relative_to(path)}:{tree_hash(p)}\n" for p in parts).encode()).hexdigest()


def recorded_hash(home: Path, name: str) -> str:
    """The hash that a first pull found, where the publisher states none."""
    try:
        return str(json.loads((home / "pulled.json").read_text()).get(name, ""))
    except (OSError, ValueError):
        return ""


def record_hash(home: Path, name: str, digest: str) -> None:
    path = home / "pulled.json"
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        known = {}
    write_whole(path, json.dumps(known | {name: digest}, indent=1))
