"""How fast clips are judged: AV-Align against the published script's approach, 1 against 2 processes, and the
features of 2,000 clips.

    python benchmarks/evaluation.py [FOLDER] [--clips 12] [--weights FOLDER] [--only align workers features]

Without a folder, impacts are rendered at 256x256. Features are EfficientAT's, where --weights holds them.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
from machine import gain_of_two

from syncflow.eval.av_align import audio_peaks, av_align, flow_peaks
from syncflow.eval.clips import ClipFile, find_clips
from syncflow.eval.distances import frechet_distance
from syncflow.eval.feature_scores import keep_features
from syncflow.eval.measure import measure_clip
from syncflow.eval.work import default_workers, map_clips
from syncflow.media import ffmpeg_path
from syncflow.models.perception.checkpoints import locate

REPEATS = 2


def published(clip: ClipFile) -> float:
    """AV-Align as the published script goes about it: a wav file, all frames kept, each converted twice."""
    import cv2
    import librosa

    reader = cv2.VideoCapture(str(clip.path))
    fps, frames = reader.get(cv2.CAP_PROP_FPS), []
    while True:
        good, frame = reader.read()
        if not good:
            break
        frames.append(frame)
    with tempfile.NamedTemporaryFile(suffix=".wav") as wav:
        subprocess.run([ffmpeg_path(), "-y", "-v", "error", "-i", str(clip.path), wav.name], check=True)
        sound, rate = librosa.load(wav.name)
    heard = audio_peaks(sound, int(rate))
    curve = []
    for pair in [(frames[0], frames[1]), *pairwise(frames)]:
        before, after = (cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY) for frame in pair)
        flow = cv2.calcOpticalFlowFarneback(before, after, None, 0.5, 3, 15, 3, 5, 1.2, 0)  # type: ignore[call-overload]
        curve.append(float(cv2.mean(cv2.magnitude(flow[..., 0], flow[..., 1]))[0]))
    return av_align(heard, flow_peaks(curve, fps), fps) or 0.0


def ours(clip: ClipFile, threads: int = 1) -> float:
    from syncflow.eval.measure import read_published

    heard, seen, fps = read_published(clip, threads)
    return av_align(heard, seen, fps) or 0.0


def timed(work: Callable[[], object]) -> float:
    runs = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        runs.append(time.perf_counter() - start)
    return statistics.median(runs)


def align(clips: list[ClipFile]) -> None:
    published(clips[0]), ours(clips[0])  # librosa compiles on its first call
    slow = timed(lambda: [published(clip) for clip in clips])
    fast = timed(lambda: [ours(clip, default_workers()) for clip in clips])
    many = clips * 4
    start = time.perf_counter()
    map_clips(ours, many, (), 2, "AV-Align, 2 processes")
    spread = (time.perf_counter() - start) / len(many)
    worst = max(abs(published(clip) - ours(clip)) for clip in clips[:4])
    each = [slow / len(clips), fast / len(clips), spread]
    print(f"AV-Align, s per clip: {each[0]:.3f} published approach,")
    print(f"  {each[1]:.3f} ours in one process ({each[0] / each[1]:.2f} x faster),")
    print(f"  {each[2]:.3f} ours in 2 processes with their start ({each[0] / each[2]:.2f} x faster)")
    print(f"  largest difference of a score {worst:.2g}")


def workers(clips: list[ClipFile], total: int = 300) -> None:
    """All measures without weights, the start of the processes included."""
    many = (clips * (total // len(clips) + 1))[:total]
    map_clips(measure_clip, clips[:1], (), 1, "warm up")
    spans = []
    for count in (1, 2):
        start = time.perf_counter()
        map_clips(measure_clip, many, (), count, f"{count} processes")
        spans.append(time.perf_counter() - start)
    one, two = spans
    print(f"all measures, {total} clips: 1 process {one:.1f} s, 2 processes {two:.1f} s: {one / two:.2f} x")
    print(f"  two processes that share nothing on this machine now: {gain_of_two():.2f} x")


def features(clips: list[ClipFile], weights: Path, scratch: Path, total: int = 2000) -> None:
    """Of copies that differ in their last bytes, so that none is found in the cache."""
    located = locate("efficientat-mn04", weights)
    copies = []
    for k in range(total):
        path = scratch / f"{k}.mp4"
        # an empty box at the end, which players skip
        path.write_bytes(clips[k % len(clips)].path.read_bytes() + (16).to_bytes(4) + b"free" + k.to_bytes(8))
        copies.append(ClipFile(str(k), path))
    cache = scratch / "cache"
    cache.mkdir()
    for count in (total // 10, total):
        start = time.perf_counter()
        _, failures = map_clips(keep_features, copies[:count], (cache, "Tagger", located), 2, "features")
        span = time.perf_counter() - start
        peaks = [resource.getrusage(who).ru_maxrss / 2**20 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        done = f"features of {count} clips, 2 processes: {span:.1f} s, {len(failures)} failures"
        print(f"{done}; peak memory {peaks[0]:.2f} GB here, {peaks[1]:.2f} GB in a worker")
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2000, 768)), rng.normal(size=(2000, 768))
    print(f"Fréchet distance, 2000 x 768: {timed(lambda: frechet_distance(a, b)):.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--clips", type=int, default=12)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--only", nargs="+", default=("align", "workers", "features"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder
        if folder is None:
            from syncflow.impacts import render

            folder = Path(scratch) / "impacts"
            render(arguments.clips, folder, seed=0, size=(256, 256))
        clips = find_clips(folder).clips[: arguments.clips]
        if "align" in arguments.only:
            align(clips)
        if "workers" in arguments.only:
            workers(clips)
        if "features" in arguments.only and arguments.weights:
            many = Path(scratch) / "many"
            many.mkdir()
            features(clips, arguments.weights, many)


if __name__ == "__main__":
    main()
