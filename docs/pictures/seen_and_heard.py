"""Clips on one picture: frames of each over its sound, with the times at which something is seen to hit and heard.

python docs/pictures/seen_and_heard.py FOLDER NAME… -o seen_and_heard.png
"""

from __future__ import annotations

import argparse
from fractions import Fraction
from pathlib import Path

import matplotlib
import numpy as np

from syncflow.clock import Span
from syncflow.eval.clips import ClipFile, find_clips
from syncflow.media import decode_span, probe
from syncflow.sync import audio_onsets, motion_peaks

matplotlib.use("Agg")
from matplotlib import pyplot as plt

FRAMES = 12
INK, SEEN, HEARD = "#33415c", "#2a9d5c", "#d1495b"


def draw(clips: list[ClipFile], output: Path) -> None:
    figure, axes = plt.subplots(2 * len(clips), 1, figsize=(10, 2.1 * len(clips)), height_ratios=[1, 0.8] * len(clips))
    for clip, film, sound in zip(clips, axes[::2], axes[1::2], strict=True):
        info = probe(clip.path)
        assert info.rate is not None
        assert info.audio is not None
        decoded = decode_span(
            info,
            Span(Fraction(0), info.duration_s),
            fps=info.rate,
            size=None,
            sample_rate=info.audio.sample_rate,
        )
        rate = decoded.sample_rate
        shown = decoded.frames[np.linspace(0, len(decoded.frames) - 1, FRAMES).round().astype(int)]
        film.imshow(np.concatenate(list(shown), axis=1), aspect="auto")
        film.set_title(clip.caption, fontsize=9, loc="left", color=INK)
        film.axis("off")
        times_s = np.arange(len(decoded.waveform)) / rate
        sound.plot(times_s, decoded.waveform, color=INK, linewidth=0.5)
        seen_s = clip.events_s if clip.events_s is not None else motion_peaks(decoded.frames, info.rate)
        top = float(np.abs(decoded.waveform).max()) or 1.0
        sound.vlines(seen_s, -1.2 * top, 1.3 * top, color=SEEN, linestyle="--", linewidth=1.2, label="seen")
        heard_s = audio_onsets(decoded.waveform, rate)
        sound.plot(heard_s, np.full(len(heard_s), 1.1 * top), "v", color=HEARD, markersize=6, label="heard")
        sound.set_xlim(0, len(decoded.frames) / float(info.rate))
        sound.set_ylim(-1.2 * top, 1.3 * top)
        sound.set_yticks([])
        sound.tick_params(labelsize=7)
        for side in ("top", "right", "left"):
            sound.spines[side].set_visible(False)
    handles, labels = axes[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper right", fontsize=8, frameon=False, ncols=2)
    axes[-1].set_xlabel("seconds", fontsize=8)
    figure.tight_layout(h_pad=0.2)
    figure.savefig(output, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="+")
    parser.add_argument("-o", "--output", type=Path, default=Path("seen_and_heard.png"))
    options = parser.parse_args()
    clips = {clip.name: clip for clip in find_clips(options.folder).clips}
    draw([clips[name] for name in options.names], options.output)


if __name__ == "__main__":
    main()
