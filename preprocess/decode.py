"""Decode: a clip's pictures and sound by timestamp, with what is missing or damaged judged."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock

from syncflow.media import MediaError, MediaInfo, decode_span, probe
from syncflow.preprocess.config import PreprocessConfig
from syncflow.preprocess.fetch import Fetcher
from syncflow.preprocess.work import Work

KEEP = 16  # probed sources


class Decode:
    name = "decode"
    batched = False

    def __init__(self, fetcher: Fetcher) -> None:
        self.fetcher = fetcher
        self._probed: OrderedDict[str, MediaInfo] = OrderedDict()
        self._lock = Lock()

    def setup(self, config: PreprocessConfig, device: str) -> None:
        self.config = config

    def __call__(self, works: Sequence[Work]) -> None:
        """
        Raises:
            MediaError: decode_errors, video_missing, audio_missing, and what `decode_span` raises.
        """
        for work in works:
            self._decode(work)

    def _decode(self, work: Work) -> None:
        config, bucket = self.config, work.bucket
        info = self._probe(work.plan.source.uri)
        clip = decode_span(
            info,
            work.plan.span,
            fps=config.rate,
            size=(bucket.width, bucket.height),
            sample_rate=config.sample_rate if bucket.sound else None,
            fit=config.fit,
            timeout_s=config.clip_timeout_s,
            threads=1 if not config.ray.gpus_per_worker else 0,
        )
        if clip.decode_errors:
            raise MediaError("decode_errors", info.path, f"{work.plan.span}: {clip.decode_errors[0]}")
        if clip.valid_frames < config.min_video * len(clip.frames):
            have = f"{clip.valid_frames} of {len(clip.frames)} frames"
            raise MediaError("video_missing", info.path, f"has {have} of {work.plan.span}")
        heard = clip.valid_samples[1] - clip.valid_samples[0]
        if heard < config.min_audio * len(clip.waveform):
            have = f"{heard} of {len(clip.waveform)} samples of sound"
            raise MediaError("audio_missing", info.path, f"has {have} of {work.plan.span}")
        work.clip = clip
        work.provenance["source_size"] = f"{info.width}x{info.height}"
        work.provenance["source_fps"] = str(info.rate or "variable")

    def _probe(self, uri: str) -> MediaInfo:
        with self._lock:  # one fetch for all threads that decode clips of one source
            path = self.fetcher.local(uri)
            if path not in self._probed:
                self._probed[path] = probe(path)
                while len(self._probed) > KEEP:
                    self._probed.popitem(last=False)
            return self._probed[path]
