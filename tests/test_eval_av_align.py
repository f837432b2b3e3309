"""AV-Align against the published code's reading, written out plainly, and its published numbers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from syncflow.eval.av_align import audio_peaks, av_align, flow_curve, flow_peaks, matches, onset_frames
from syncflow.eval.clips import ClipFile
from syncflow.eval.measure import measure_clip
from syncflow.eval.scores import score_clip
from syncflow.media import ffmpeg_path

LIBROSA = """
import json, sys
import librosa, numpy as np
for path in sys.argv[1:]:
    strength = np.load(path) if path.endswith(".npy") else librosa.onset.onset_strength(y=librosa.load(path)[0])
    print(json.dumps(librosa.onset.onset_detect(onset_envelope=strength).tolist()))
"""


def librosa_onsets(paths: list[Path], tmp_path: Path) -> list[list[int]]:
    """Frames that librosa itself picks in wav files or stored onset strengths, at its default rate and hop.

    In a process with a cache of its own: see `onset_frames` for what two processes do to a cache they share.
    """
    done = subprocess.run(
        [sys.executable, "-c", LIBROSA, *map(str, paths)],
        env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "numba")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def plain_score(path: Path, onsets: list[int]) -> float:
    """The slow twin: OpenCV's reader, every pair of frames converted anew."""
    import cv2
    import librosa

    reader = cv2.VideoCapture(str(path))
    fps, frames = reader.get(cv2.CAP_PROP_FPS), []
    while True:
        good, frame = reader.read()
        if not good:
            break
        frames.append(frame)
    heard = librosa.frames_to_time(onsets)
    flows = []
    for before, after in zip([frames[0], *frames[:-1]], [frames[1], *frames[1:]], strict=True):
        one, two = (cv2.cvtColor(f, cv2.COLOR_BGR2GRAY) for f in (before, after))
        flow = cv2.calcOpticalFlowFarneback(one, two, None, 0.5, 3, 15, 3, 5, 1.2, 0)  # type: ignore[call-overload]
        flows.append(cv2.mean(cv2.magnitude(flow[..., 0], flow[..., 1]))[0])
    seen = [k / fps for k in range(1, len(flows) - 1) if flows[k - 1] < flows[k] > flows[k + 1] and flows[k] >= 0.1]
    free = list(seen)
    met = 0
    for time in heard:
        for peak in free:
            if peak - 1 / fps < time < peak + 1 / fps:
                free.remove(peak)
                met += 1
                break
    return met / (len(heard) + len(seen) - met)


def test_scores_equal_the_plain_reading_clip_by_clip(shared: Path, tmp_path: Path) -> None:
    demo = shared / "data" / "syncflow_demo"
    paths = [*sorted((demo / "vggsound").glob("*.mp4"))[:3], *sorted((demo / "zs_v2a").glob("*.mp4"))[:3]]
    # the last two are tagged BT.709, which OpenCV's reader does not look at
    names = ("marimba.mp4", "anvil_hammer.mp4", "airplane_taxi.mp4", "rip_newspaper.mp4")
    paths += [shared / "data" / "develop" / name for name in names]
    wavs = [tmp_path / f"{k}.wav" for k in range(len(paths))]
    for path, wav in zip(paths, wavs, strict=True):
        subprocess.run([ffmpeg_path(), "-y", "-v", "error", "-i", str(path), str(wav)], check=True)
    for path, onsets in zip(paths, librosa_onsets(wavs, tmp_path), strict=True):
        clip = ClipFile(path.stem, path)
        assert score_clip(clip, measure_clip(clip)).av_align == pytest.approx(plain_score(path, onsets), abs=1e-9)


def test_onsets_are_the_frames_librosa_picks(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    strengths = []
    for k in range(60):
        frames = int(random.integers(1, 900))
        kinds = (random.random(frames), random.standard_normal(frames) ** 4, np.round(random.random(frames) * 4))
        strengths.append((*kinds, np.full(frames, 0.3))[k % 4].astype(np.float32))
    paths = [tmp_path / f"{k}.npy" for k in range(len(strengths))]
    for strength, path in zip(strengths, paths, strict=True):
        np.save(path, strength)
    expected = librosa_onsets(paths, tmp_path)
    assert sum(map(len, expected)) > 1000
    assert [onset_frames(strength) for strength in strengths] == expected


@pytest.mark.slow
@pytest.mark.parametrize(("name", "published"), [("vggsound", 0.354), ("greatesthit", 0.154), ("zs_v2a", 0.399)])
def test_published_numbers_of_the_released_samples(shared: Path, name: str, published: float) -> None:
    paths = sorted((shared / "data" / "syncflow_demo" / name).glob("*.mp4"))
    scores = [score_clip(clip, measure_clip(clip)).av_align for clip in (ClipFile(p.stem, p) for p in paths)]
    assert np.mean([s for s in scores if s is not None]) == pytest.approx(published, abs=0.001)


def test_a_video_peak_is_matched_once() -> None:
    assert matches([0.50, 0.52], [0.51], fps=10) == [(0, 0)]
    assert av_align([0.50, 0.52], [0.51], fps=10) == pytest.approx(1 / 2)
    assert av_align([0.1], [0.9], fps=10) == 0
    assert av_align([], [0.9], fps=10) == 0
    assert av_align([], [], fps=10) is None


def test_small_maxima_of_flow_are_no_peaks() -> None:
    assert flow_peaks([0, 0.05, 0, 0.2, 0.2, 0, 0.3, 0], fps=2) == [3.0]


def test_flow_of_a_shifted_texture_is_its_shift() -> None:
    rng = np.random.default_rng(0)
    texture = np.kron(rng.integers(0, 255, (20, 24)), np.ones((6, 6))).astype(np.uint8)
    frames = [np.repeat(np.roll(texture, 2 * k, axis=1)[..., None], 3, axis=2) for k in range(3)]
    curve = flow_curve(iter(frames))
    assert len(curve) == 3
    assert curve[0] == curve[1]
    assert curve[2] == pytest.approx(2, abs=0.5)


def test_silence_has_no_onset() -> None:
    assert audio_peaks(np.zeros(22050), 22050) == []
    assert audio_peaks(np.zeros(0), 48000) == []


def test_flow_is_the_same_in_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last bit: OpenCV's root of the same numbers depends on where in memory threads happen to put them."""
    import cv2

    texture = np.random.default_rng(0).integers(0, 255, (120, 130, 1), dtype=np.uint8)
    frames = [np.repeat(np.roll(texture, k, axis=1), 3, axis=2) for k in range(8)]
    first = flow_curve(iter(frames))
    assert flow_curve(frames, 3) == first
    assert flow_curve(frames[:1], 2) == []
    magnitude, places = cv2.magnitude, set[tuple[bool, int]]()

    def watched(x: np.ndarray, y: np.ndarray, *into: np.ndarray) -> np.ndarray:
        places.update((bool(part.flags.c_contiguous), part.ctypes.data % 64) for part in (x, y))
        return magnitude(x, y, *into)

    monkeypatch.setattr(cv2, "magnitude", watched)
    assert flow_curve(frames, 1) == flow_curve(frames, 3) == first
    assert places == {(True, 0)}
