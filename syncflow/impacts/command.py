"""`syncflow impacts`: render clips whose event times are known exactly."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Annotated

import tyro

from syncflow.errors import UserError
from syncflow.impacts.render import Container, RenderConfig, render_folder

_HELP = """usage: syncflow impacts render N -o DIR [options]

Renders short clips in which visible things strike audible things at exactly known times: a ball on wood, a
hammer on metal, sticks on a drum, drops into water. Writes video files and DIR/manifest.jsonl with captions
and event times. `syncflow impacts render --help` lists the options."""


def main(argv: Sequence[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(_HELP)
        return 0
    if argv[0] != "render":
        raise UserError(f"no action {argv[0]!r}: `syncflow impacts render N -o DIR`")
    tyro.cli(_render, args=list(argv[1:]), prog="syncflow impacts render")
    return 0


def _render(
    n: tyro.conf.Positional[int],
    /,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    seed: int = 0,
    size: str = "64x64",
    fps: str = "16",
    duration: str = "2",
    sample_rate: int = 16000,
    container: Container = "mp4",
    processes: int = 0,
) -> None:
    """Render clips 0 ... N-1 of a seed. Clips that are already there are kept, so an interrupted run goes on.

    Args:
        n: How many clips.
        output: Folder for the clips and manifest.jsonl.
        seed: Which series of clips; clip 17 of seed 3 is the same clip everywhere.
        size: WIDTHxHEIGHT in pixels.
        fps: Frames per second, for example 16, 23.976 or 30000/1001.
        duration: Seconds per clip.
        sample_rate: Samples of sound per second.
        container: File type. mp4, mkv and ts hold H.264 + AAC, webm holds VP9 + Opus.
        processes: How many work at once; 0 for one per core.
    """
    from syncflow.config import validate

    values = {
        "seed": seed,
        "size": size,
        "fps": fps,
        "duration": duration,
        "sample_rate": sample_rate,
        "container": container,
    }
    config = validate(RenderConfig, values, "command line")
    manifest = render_folder(n, output, config, processes=processes or None, progress=True)
    seconds = n * Fraction(config.duration)
    print(f"{n} clips ({float(seconds):g} s) in {output}; captions and event times in {manifest}")
