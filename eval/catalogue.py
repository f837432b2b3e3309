"""Every metric by name: what it needs and which network it reads. Light: nothing heavy is imported here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FeatureMetric:
    """A metric of network features."""

    about: str
    backbone: str
    extractor: str
    """Class in `syncflow.eval.extract`."""
    kind: str
    """How features become a number, see `syncflow.eval.feature_scores.KINDS`."""
    key: str
    """Which feature."""
    unit: str = ""
    better: str = "lower"


MEASURED = {
    "av_align": "onsets against peaks of optical flow, as published (IoU)",
    "onset_offset": "signed offset in ms, events within 40/80/160 ms, precision, recall, F1",
    "loudness": "integrated loudness (LUFS, BS.1770-4)",
    "motion": "mean change of grey level from frame to frame",
}


def _tagged(name: str, backbone: str, extractor: str) -> dict[str, FeatureMetric]:
    """The three metrics of a network that tags sounds."""
    return {
        f"fd_{name}": FeatureMetric("Fréchet distance of sound", backbone, extractor, "frechet", "embedding"),
        f"kl_{name}": FeatureMetric(
            "KL of sound classes to the reference of the same name", backbone, extractor, "kl", "probabilities", "nats"
        ),
        f"is_{name}": FeatureMetric(
            "inception score of sound classes", backbone, extractor, "inception", "probabilities", "", "higher"
        ),
    }


_IMAGEBIND = ("imagebind-huge", "ImageBind")
FEATURES = {
    "fad_efficientat": FeatureMetric("Fréchet distance of sound", "efficientat-mn04", "Tagger", "frechet", "embedding"),
    "kl_efficientat": FeatureMetric(
        "KL of sound classes to the reference of the same name",
        "efficientat-mn04",
        "Tagger",
        "kl",
        "probabilities",
        "nats",
    ),
    "is_efficientat": FeatureMetric(
        "inception score of sound classes", "efficientat-mn04", "Tagger", "inception", "probabilities", "", "higher"
    ),
    "fad_clap": FeatureMetric(
        "Fréchet distance of sound", "clap-htsat-unfused", "TransformersClap", "frechet", "audio"
    ),
    "clap_score": FeatureMetric(
        "caption against sound", "clap-htsat-unfused", "TransformersClap", "text", "audio", "cosine", "higher"
    ),
    "clap_score_laion": FeatureMetric(
        "caption against sound", "laion-clap-630k", "LaionClap", "text", "audio", "cosine", "higher"
    ),
    "clip_score": FeatureMetric(
        "caption against frames", "clip-vit-b32", "OpenClip", "text", "frames", "cosine", "higher"
    ),
    "clip_iqa": FeatureMetric(
        'CLIP-IQA of frames, "Good photo." against "Bad photo."',
        "clip-vit-b32",
        "OpenClip",
        "mean",
        "quality",
        "probability",
        "higher",
    ),
    "aesthetic": FeatureMetric(
        "LAION's aesthetic score of frames", "laion-aesthetic-l14", "Aesthetic", "mean", "scores", "of 10", "higher"
    ),
    **_tagged("passt", "passt-s", "Passt"),
    **_tagged("panns", "panns-cnn14-16k", "Cnn14"),
    "fad_vggish": FeatureMetric("Fréchet distance of sound", "vggish", "Vggish", "frechet", "windows"),
    "fvd_i3d": FeatureMetric("Fréchet distance of pictures", "i3d-k400", "I3d", "frechet", "embedding"),
    "kvd_i3d": FeatureMetric("kernel distance of pictures", "i3d-k400", "I3d", "kernel", "embedding"),
    "fvd_videomae": FeatureMetric(
        "Fréchet distance of pictures", "videomae-base-k400", "VideoMae", "frechet", "embedding"
    ),
    "kvd_videomae": FeatureMetric(
        "kernel distance of pictures", "videomae-base-k400", "VideoMae", "kernel", "embedding"
    ),
    "fvd_videomae2": FeatureMetric(
        "Fréchet distance of pictures, motion more than content",
        "videomae2-giant-ssv2",
        "VideoMaeV2",
        "frechet",
        "embedding",
    ),
    "kvd_videomae2": FeatureMetric(
        "kernel distance of pictures, motion more than content",
        "videomae2-giant-ssv2",
        "VideoMaeV2",
        "kernel",
        "embedding",
    ),
    "desync": FeatureMetric("Synchformer's |offset|", "synchformer-audioset", "Synchformer", "desync", "logits", "s"),
    "imagebind_av": FeatureMetric("sound against pictures", *_IMAGEBIND, "pair", "video audio", "cosine", "higher"),
    "imagebind_tv": FeatureMetric("caption against pictures", *_IMAGEBIND, "pair", "text video", "cosine", "higher"),
    "imagebind_ta": FeatureMetric("caption against sound", *_IMAGEBIND, "pair", "text audio", "cosine", "higher"),
    "avh_score": FeatureMetric("frames against sound", *_IMAGEBIND, "avh", "frames", "cosine", "higher"),
    "javis_score": FeatureMetric(
        "worst frames of windows against their sound", *_IMAGEBIND, "javis", "frames", "cosine", "higher"
    ),
}
METRICS = MEASURED | {name: f"{m.about} ({m.backbone})" for name, m in FEATURES.items()}
DEFAULT = ("av_align", "onset_offset", "loudness", "motion")
