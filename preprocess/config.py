"""What `syncflow preprocess` can be told."""

from __future__ import annotations

import re
from fractions import Fraction
from functools import cached_property
from typing import Annotated, Literal, NamedTuple

from pydantic import BeforeValidator, Field, field_validator, model_validator

from syncflow.clock import parse_rate, ticks_in
from syncflow.config import Config
from syncflow.models.autoencoders import AutoencoderSpec
from syncflow.models.text import TextEncoderSpec
from syncflow.tracker import TrackingConfig


def _to_text(value: object) -> object:
    return str(value) if isinstance(value, int | float) else value


_SILENT = "-silent"

Rate = Annotated[str, BeforeValidator(_to_text)]


class BucketSize(NamedTuple):
    """Clips stored together: of one size and length, all with sound or all without."""

    width: int
    height: int
    num_frames: int
    sound: bool = True

    @property
    def name(self) -> str:
        return f"{self.width}x{self.height}x{self.num_frames}{'' if self.sound else _SILENT}"

    @classmethod
    def parse(cls, name: str) -> BucketSize:
        """Of its `name`."""
        size = name.removesuffix(_SILENT)
        width, height, num_frames = map(int, size.split("x"))
        return cls(width, height, num_frames, sound=size == name)


class SplitConfig(Config):
    """How sources are cut into clips."""

    shots: Literal["none", "scenedetect", "transnet"] = "none"
    """Cut at shot changes first: none, scenedetect (PySceneDetect, light) or transnet (TransNetV2, better)."""
    stride_s: float | None = Field(default=None, gt=0)
    """Seconds from one window's start to the next; the window's own length if not given."""
    max_clips: int | None = Field(default=None, gt=0)
    """At most so many clips of one source, the first ones."""


class ClipConfig(Config):
    """How well pictures match the caption, by CLIP: score clip_match, a cosine."""

    on: bool = False
    path: str = "clip-vit-b32"
    """A file of weights, or a name of `syncflow weights list`."""
    architecture: str = "ViT-B-32-quickgelu"
    """open_clip's name of the network."""
    frames: int = Field(default=8, gt=0)
    """Pictures looked at, evenly over the clip."""
    min_match: float | None = Field(default=None, ge=-1, le=1)


class AestheticConfig(Config):
    """How much people would like the pictures, about 1 to 10, by LAION's head on CLIP: score aesthetic."""

    on: bool = False
    path: str = "laion-aesthetic-l14"
    """The head: a file of weights, or a name of `syncflow weights list`."""
    clip_path: str = "clip-vit-l14"
    """The CLIP network that the head was trained on."""
    architecture: str = "ViT-L-14-quickgelu"
    """open_clip's name of that network."""
    frames: int = Field(default=4, gt=0)
    """Pictures looked at, evenly over the clip."""
    min_score: float | None = None


class ClapConfig(Config):
    """How well the sound matches the caption, by CLAP: score clap_match, a cosine."""

    on: bool = False
    path: str = "clap-htsat-unfused"
    """A folder of transformers' weights, a file of laion_clap's, or a name of `syncflow weights list`."""
    min_match: float | None = Field(default=None, ge=-1, le=1)


class SynchformerConfig(Config):
    """How far the sound lies behind the picture, by Synchformer: scores synchformer_offset_s and _confidence."""

    on: bool = False
    path: str = "synchformer-audioset"
    """A file of weights, or a name of `syncflow weights list`."""
    max_offset_s: float | None = Field(default=None, ge=0)
    """Largest offset, where it is measured with confidence."""
    believe_from: float = Field(default=0.5, ge=0, le=1)
    """Confidence from which a measured offset is believed."""


class FiltersConfig(Config):
    """What is measured of each clip and stored with it, and beyond which limits a clip is dropped (none by default)."""

    picture: bool = True
    """Measure black, frozen and motion."""
    max_black: float | None = Field(default=None, ge=0, le=1)
    """Share of black frames."""
    max_frozen: float | None = Field(default=None, ge=0, le=1)
    """Share of frames that repeat the one before."""
    min_motion: float | None = Field(default=None, ge=0)
    """Mean change of grey level (0-255) per second."""
    sound: bool = True
    """Measure loudness_lufs, silent and clipped."""
    min_loudness_lufs: float | None = None
    """Integrated loudness by EBU R128; -50 drops what is hardly audible."""
    max_silent: float | None = Field(default=None, ge=0, le=1)
    """Share of the sound below -60 dB of full scale."""
    max_clipped: float | None = Field(default=None, ge=0, le=1)
    """Share of samples at full scale."""
    sync: bool = True
    """Measure how far the sound lies behind the picture, and with what confidence."""
    max_offset_ms: float | None = Field(default=None, ge=0)
    """Largest offset of sound against picture, where it is measured with confidence."""
    max_drift_ms_per_s: float | None = Field(default=None, ge=0)
    """Largest drift of sound against picture, where it is measured with confidence."""
    believe_sync_from: float = Field(default=0.3, ge=0, le=1)
    """Confidence from which a measured offset or drift is believed."""
    min_sync_confidence: float | None = Field(default=None, ge=0, le=1)
    """Drop clips whose sound and picture do not show a common rhythm."""
    duplicates: bool = False
    """Drop clips that repeat an earlier one of the data set, also encoded anew, scaled or a little cropped. Costs one
    more decoding of every clip."""
    clip: ClipConfig = ClipConfig()
    aesthetic: AestheticConfig = AestheticConfig()
    clap: ClapConfig = ClapConfig()
    synchformer: SynchformerConfig = SynchformerConfig()


class PictureCaptionerConfig(Config):
    """Says what is seen: any image-text-to-text model of transformers."""

    on: bool = False
    path: str = "Qwen/Qwen2.5-VL-7B-Instruct"
    """A folder of weights, or a repository of the Hugging Face hub."""
    prompt: str = (
        "These are frames of one short video, in order. Describe in one or two sentences what is seen and what happens."
    )
    frames: int = Field(default=8, gt=0)
    """Pictures shown, evenly over the clip."""
    max_new_tokens: int = Field(default=96, gt=0)


class SoundCaptionerConfig(Config):
    """Says what is heard: any audio-text-to-text model of transformers (Qwen2-Audio, Audio Flamingo 3, ...)."""

    on: bool = False
    path: str = "Qwen/Qwen2-Audio-7B-Instruct"
    """A folder of weights, or a repository of the Hugging Face hub."""
    prompt: str = "Describe in one sentence what is heard."
    max_new_tokens: int = Field(default=64, gt=0)


class CaptionsConfig(Config):
    """Captions by models, for clips without one. A part that the manifest gives is kept."""

    video: PictureCaptionerConfig = PictureCaptionerConfig()
    audio: SoundCaptionerConfig = SoundCaptionerConfig()


class RayConfig(Config):
    """Where the work is done."""

    address: str = ""
    """Ray cluster to use, for example auto or 10.0.0.1:6379; empty starts Ray on this machine."""
    workers: int | None = Field(default=None, ge=0)
    """Worker processes; by default one per GPU or, without GPUs, per CPU core. 0: none, work in this process."""
    cpus_per_worker: float = Field(default=1, gt=0)
    """CPU cores that a worker takes; its networks use as many threads."""
    gpus_per_worker: float = Field(default=0, ge=0)
    """GPUs that a worker takes (0.5: two share one); 0 encodes on the CPU."""


Network = PictureCaptionerConfig | SoundCaptionerConfig | ClipConfig | AestheticConfig | ClapConfig | SynchformerConfig


class PreprocessConfig(Config):
    """Raw videos -> shards of latents, in sync to the millisecond, every dropped clip accounted for."""

    input: str = ""
    """Folder of videos, or manifest (.csv, .jsonl, .parquet) with `uri` and, as you have them, id, start_s, end_s,
    caption, video_caption, audio_caption, label, events_s. Local, s3://, https:// or any fsspec URL."""
    output: str = ""
    """Folder or URL the data set is written to. The same command again goes on where it stopped."""
    fps: Rate = "16"
    """Frames per second of every clip: 16, 23.976 or 30000/1001."""
    sample_rate: int = Field(default=16000, gt=0)
    """Hz; sound is mixed down to mono."""
    sound: Literal["required", "optional", "none"] = "required"
    """Clips without sound: `required` drops them; `optional` keeps them in buckets of their own, for the stage that
    trains video alone; `none` leaves sound out of every clip and needs no autoencoder of it."""
    buckets: tuple[str, ...] = ("64x64x32",)
    """Sizes that clips may have, WIDTHxHEIGHTxFRAMES. A source goes to the longest that fits into it, of those to
    the nearest aspect, of those to the largest that it need not be enlarged for. Those of one frame are for still
    images, and for nothing else."""
    fit: Literal["crop", "pad", "stretch"] = "crop"
    """How a picture of another aspect becomes its bucket's: crop the middle, pad with black, or stretch."""
    min_video: float = Field(default=0.9, ge=0, le=1)
    """Share of a clip's frames that its source must really have; clips below it are dropped."""
    min_audio: float = Field(default=0.5, ge=0, le=1)
    """Share of a clip's sound that its source must really have."""
    missing_caption: Literal["name", "require", "empty"] = "name"
    """A clip that neither the manifest nor a model captions: `name` takes its label, else the words of its file
    name; `require` drops it; `empty` keeps it without one."""
    captions: CaptionsConfig = CaptionsConfig()
    split: SplitConfig = SplitConfig()
    filters: FiltersConfig = FiltersConfig()
    video_autoencoder: AutoencoderSpec
    audio_autoencoder: AutoencoderSpec = AutoencoderSpec(kind="", path="")
    text_encoder: TextEncoderSpec = TextEncoderSpec()
    text: Literal["stored", "online"] = "stored"
    """Store text embeddings in the shards, or leave them to be made during training."""
    dtype: Literal["float16", "bfloat16"] = "float16"
    """Of stored latents and text."""
    shard_clips: int = Field(default=256, gt=0)
    """Clips of a shard."""
    batch: int = Field(default=8, gt=0)
    """Clips encoded together; halved when memory runs out."""
    decode_ahead: int = Field(default=0, ge=0)
    """Clips decoded while others are encoded: 0 where the CPU does both, a few for workers with a GPU."""
    clip_timeout_s: float = Field(default=300, gt=0)
    """A clip that takes longer is dropped as timed out."""
    max_failed: float = Field(default=0.8, gt=0, le=1)
    """Stop when, of the first 50 or more clips read, more than this share cannot be used."""
    dry_run: bool = False
    """Process a dozen sources into nothing and say what the whole job would come to."""
    price_per_hour: float | None = Field(default=None, ge=0)
    """Of one worker, for the dry run."""
    ray: RayConfig = RayConfig()
    tracking: TrackingConfig = TrackingConfig()

    @field_validator("fps")
    @classmethod
    def _rate(cls, value: str) -> str:
        return str(parse_rate(value))

    @field_validator("buckets")
    @classmethod
    def _buckets(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        if not values:
            raise ValueError("give at least one bucket, for example 64x64x32")
        for value in values:
            if not re.fullmatch(r"[1-9]\d*x[1-9]\d*x[1-9]\d*", value):
                raise ValueError(f"{value!r} is not WIDTHxHEIGHTxFRAMES, for example 256x256x32")
        if len(set(values)) < len(values):
            raise ValueError("a bucket is given twice")
        return values

    @model_validator(mode="after")
    def _together(self) -> PreprocessConfig:
        if self.ray.workers == 0 and self.ray.address:
            raise ValueError("ray.workers 0 works in this process: leave ray.address out, or give workers")
        if self.sound != "none" and not self.audio_autoencoder.kind:
            raise ValueError("audio_autoencoder is required, but where sound is none")
        if self.sound == "required" and (still := [b.name for b in self.bucket_sizes if b.num_frames == 1]):
            raise ValueError(f"buckets: {still[0]} is for still images, which have no sound: set sound to optional")
        return self

    @cached_property
    def rate(self) -> Fraction:
        return parse_rate(self.fps)

    @cached_property
    def bucket_sizes(self) -> tuple[BucketSize, ...]:
        """As given, whether with sound or without."""
        return tuple(map(BucketSize.parse, self.buckets))

    @cached_property
    def stored_buckets(self) -> tuple[BucketSize, ...]:
        """All that clips may be stored in."""
        sounding = [size for size in self.bucket_sizes if self.sound != "none" and size.num_frames > 1]
        silent = [size._replace(sound=False) for size in self.bucket_sizes if self.sound != "required"]
        return (*sounding, *silent)

    @property
    def takes_stills(self) -> bool:
        return any(size.num_frames == 1 for size in self.bucket_sizes)

    def num_samples(self, bucket: BucketSize) -> int:
        """Samples of sound of a clip in `bucket`."""
        return ticks_in(bucket.num_frames / self.rate, Fraction(self.sample_rate))

    def networks(self) -> dict[str, Network]:
        """Settings of every network that filters or captions, by dotted name."""
        captions, filters = self.captions, self.filters
        return {
            "captions.video": captions.video,
            "captions.audio": captions.audio,
            "filters.clip": filters.clip,
            "filters.aesthetic": filters.aesthetic,
            "filters.clap": filters.clap,
            "filters.synchformer": filters.synchformer,
        }

    def meaning(self) -> dict[str, object]:
        """The settings that decide what ends up in the data set, by dotted name; weights count by their hash."""
        values = self.model_dump(
            mode="json",
            exclude={
                "input", "output", "ray", "tracking", "batch", "decode_ahead", "clip_timeout_s", "max_failed",
                "dry_run", "price_per_hour",
                "video_autoencoder", "audio_autoencoder", "text_encoder",
            },
        )  # fmt: skip
        for name, network in self.networks().items():
            section, _, key = name.partition(".")
            kept = network.model_dump(mode="json", exclude={"path", "clip_path"}) if network.on else {"on": False}
            values[section] = {**values[section], key: kept}
        if self.text == "stored":
            values["text_encoder.max_tokens"] = self.text_encoder.max_tokens
        return _flat(values)


def _flat(values: dict[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat
