"""How fast clips are judged: 1 against 2 processes, and AV-Align against the published script's approach.

    python benchmarks/evaluation.py [FOLDER] [--clips 12]

Without a folder, impacts are rendered. Prints a table; every figure is a median of repeats on this machine.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np

from syncflow.eval.av_align import audio_peaks, av_align, flow_curve, flow_peaks
from syncflow.eval.clips import ClipFile, find_clips
from syncflow.eval.distances import frechet_distance
from syncflow.eval.measure import measure_clip
from syncflow.eval.work import map_clips
from syncflow.media import ffmpeg_path

REPEATS = 3


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
    curve = [flow_curve(iter([frames[0], frames[1]]))[0]]
    curve += [flow_curve(iter([a, b]))[0] for a, b in pairwise(frames)]
    return av_align(heard, flow_peaks(curve, fps), fps) or 0.0


def ours(clip: ClipFile) -> float:
    from syncflow.eval.measure import read_published

    heard, seen, fps = read_published(clip)
    return av_align(heard, seen, fps) or 0.0


def timed(work: Callable[[], object]) -> float:
    runs = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        runs.append(time.perf_counter() - start)
    return statistics.median(runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--clips", type=int, default=12)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder
        if folder is None:
            from syncflow.impacts import render

            folder = Path(scratch)
            render(arguments.clips, folder, seed=0, size=(256, 256))
        clips = find_clips(folder).clips[: arguments.clips]
        published(clips[0]), ours(clips[0])  # librosa compiles on its first call
        slow = timed(lambda: [published(clip) for clip in clips])
        fast = timed(lambda: [ours(clip) for clip in clips])
        worst = max(abs(published(clip) - ours(clip)) for clip in clips)
        each = f"{slow / len(clips):.3f} s published approach, {fast / len(clips):.3f} s ours"
        print(f"AV-Align per clip, {len(clips)} clips: {each}")
        print(f"  {slow / fast:.2f} x; largest difference of a score {worst:.2g}")
        many = clips * max(1, 24 // len(clips))
        spans = {}
        for workers in (1, 2):
            start = time.perf_counter()
            map_clips(measure_clip, many, (), workers, f"{workers} processes")
            spans[workers] = time.perf_counter() - start
        one, two = spans[1], spans[2]
        print(f"all measures, {len(many)} clips: 1 process {one:.1f} s, 2 processes {two:.1f} s: {one / two:.2f} x")
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2000, 768)), rng.normal(size=(2000, 768))
    print(f"Fréchet distance, 2000 x 768: {timed(lambda: frechet_distance(a, b)):.2f} s")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GB", file=sys.stdout)


if __name__ == "__main__":
    main()
