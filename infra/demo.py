"""`syncflow demo`: the whole path on one machine, each step the real command, one report at the end.

The demo holds no pipeline of its own: it launches the commands that a user would type and remembers which
are done, so a second run, or a run after a kill, goes on where the last one stopped.
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

import syncflow
from syncflow.config import Config, load, save
from syncflow.errors import UserError
from syncflow.files import write_whole
from syncflow.process import die_with_parent

CONFIGS = Path(syncflow.__file__).parent / "configs" / "nano"


class DemoConfig(Config):
    """Everything on a laptop, small: videos -> autoencoders -> shards -> three training stages -> clips -> report.

    Without --videos it renders its own clips, whose event times are known exactly. The network, the autoencoders and
    every part are the real ones, trained for minutes: the path is what it shows, not the quality.
    """

    videos: Path | None = None
    """A folder of videos, or a manifest (CSV, JSONL, Parquet), to use instead of rendered clips."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("demo")
    """Where everything goes."""
    clips: int = 96
    """How many clips to render."""
    video_autoencoder_steps: int = 60
    """Training steps of the autoencoder of pictures."""
    audio_autoencoder_steps: int = 400
    """Training steps of the autoencoder of sound, which are smaller ones."""
    steps: int = 30
    """Training steps of each of the three stages."""
    ranks: int = 2
    """Training processes."""
    generate: int = 4
    """Clips to generate from text; half as many silent videos get their sound."""
    sampling_steps: int = 20
    """Steps of the sampler."""
    seed: int = 0
    """Seed of the rendered clips and of what is generated."""


@dataclass(frozen=True)
class Step:
    """One command of the demo; `made` is what exists once it is done."""

    name: str
    what: str
    argv: tuple[str, ...]
    made: Path
    prepare: Callable[[DemoConfig, Path], None] | None = None


def main(argv: list[str]) -> int:
    config = load(DemoConfig, None, argv, prog="syncflow demo")
    if config.videos is not None:
        _check_videos(config.videos)
    out = config.output.resolve()
    out.mkdir(parents=True, exist_ok=True)
    with _only_demo_in(out):
        _same_demo(config, out)
        began = time.monotonic()
        took: dict[str, float] = {}
        plan = steps(config, out)
        for number, step in enumerate(plan, 1):
            took[step.name] = _run(step, f"[{number}/{len(plan)}]", config, out)
        from syncflow.infra.demo_report import write_report

        page = write_report(config, out)
    print(_summary(out, page, took, time.monotonic() - began))
    return 0


def steps(config: DemoConfig, out: Path) -> list[Step]:
    """The commands of the demo, in order."""
    videos = config.videos.resolve() if config.videos else out / "videos"
    track = ("--tracking.uri", f"sqlite:///{out / 'mlflow.db'}")
    codecs, dataset, train, clips = out / "autoencoders", out / "dataset", out / "train", out / "generated"
    checkpoint = ("--checkpoint", str(train / "3_joint" / "model"))
    sampler = ("--steps", str(config.sampling_steps), "--seed", str(config.seed))
    # Rendered clips are judged themselves too, by their known event times; a user's videos may be hours long.
    reference = str(out / "reference")
    judged: tuple[str, ...] = ("--generated", str(clips), reference, "--reference", str(videos))
    if config.videos is not None:
        judged = ("--generated", str(clips), "--reference", reference)
    plan: list[Step] = []
    if config.videos is None:
        render = ("impacts", "render", str(config.clips), "-o", str(videos), "--seed", str(config.seed))
        plan.append(Step("videos", "render clips whose event times are known", render, videos / "manifest.jsonl"))
    plan += [
        Step(
            "autoencoders",
            "train a small video and a small audio autoencoder",
            ("train", str(CONFIGS / "0_autoencoders.yaml"), "--input", str(videos), "--output", str(codecs))
            + ("--video.steps", str(config.video_autoencoder_steps))
            + ("--audio.steps", str(config.audio_autoencoder_steps), *track),
            codecs / "done.json",
        ),
        Step(
            "dataset",
            "videos -> shards of latents, on Ray",
            ("preprocess", str(CONFIGS / "preprocess.yaml"), "--input", str(videos), "--output", str(dataset))
            + ("--video_autoencoder.path", str(codecs / "video"))
            + ("--audio_autoencoder.path", str(codecs / "audio"), *track),
            dataset / "dataset.json",
        ),
        Step(
            "train",
            "three stages on DeepSpeed ZeRO-3: video, audio, joint",
            ("train", str(CONFIGS), "--output", str(train), "--data.path", str(dataset))
            + ("--ranks", str(config.ranks), "--steps", str(config.steps), *track),
            train / "3_joint" / "done.json",
        ),
        Step(
            "reference",
            "shards back to video and sound: what the model was shown",
            ("inspect", str(dataset), "--decode", str(2 * config.generate), "-o", reference),
            out / "reference" / "manifest.jsonl",
        ),
        Step(
            "clips",
            "text -> video with sound, silent video -> sound",
            ("generate", "--prompts", str(out / "prompts.jsonl"), "-o", str(clips), *checkpoint, *sampler),
            clips / "manifest.jsonl",
            prepare=write_prompts,
        ),
        Step(
            "size",
            "the same model at a size it was not trained at",
            ("generate", "--prompts", str(out / "size.txt"), "--size", "96x64", "-o", str(clips))
            + (*checkpoint, *sampler),
            clips / "manifest.jsonl",
        ),
        Step(
            "evaluation",
            "measure what was generated beside what it learned from",
            ("evaluate", *judged, "--metrics", "av_align,onset_offset", "-o", str(out / "evaluation"), *track),
            out / "evaluation" / "report.html",
        ),
    ]
    return plan


def write_prompts(config: DemoConfig, out: Path) -> None:
    """Captions of the data set as prompts, and silent copies of some of its clips to give their sound back."""
    from syncflow.clock import Span
    from syncflow.media import decode_span, probe, write_mp4

    rows = [json.loads(line) for line in (out / "reference" / "manifest.jsonl").read_text().splitlines()]
    captions = list(dict.fromkeys(row["caption"] for row in rows))[: config.generate]
    prompts: list[dict[str, object]] = [{"prompt": caption} for caption in captions]
    (out / "silent").mkdir(exist_ok=True)
    for row in rows[: max(1, config.generate // 2)]:
        info = probe(out / "reference" / row["uri"])
        assert info.rate is not None  # write_mp4 made it
        clip = decode_span(info, Span(Fraction(0), info.duration_s), fps=info.rate, size=None, sample_rate=None)
        silent = out / "silent" / Path(row["uri"]).name
        write_mp4(silent, clip.frames, info.rate, None, None)
        known = {"events_s": row["events_s"]} if "events_s" in row else {}
        prompts.append({"prompt": row["caption"], "video": str(silent), **known})
    (out / "prompts.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    (out / "size.txt").write_text(captions[0].replace("\n", " ") + "\n")


def _run(step: Step, place: str, config: DemoConfig, out: Path) -> float:
    """Run a step unless it is done; the seconds it took, 0 where it was done already."""
    marker = out / "steps" / f"{step.name}.json"
    if marker.exists() and step.made.exists():
        print(f"{place} {step.name}: done already", flush=True)
        return 0.0
    print(f"{place} {step.name}: {step.what}\n      $ syncflow {shlex.join(step.argv)}", flush=True)
    if step.prepare:
        step.prepare(config, out)
    began = time.monotonic()
    code = _launch([sys.executable, "-m", "syncflow", *step.argv], out / "logs" / f"{step.name}.log")
    seconds = time.monotonic() - began
    if code != 0:
        raise UserError(
            f"step {step.name!r} stopped with exit code {code}: its last words are above, "
            f"all of them in {out / 'logs' / f'{step.name}.log'}; run the demo again to go on from here"
        )
    marker.parent.mkdir(exist_ok=True)
    write_whole(marker, json.dumps({"argv": step.argv, "seconds": round(seconds, 1)}))
    print(f"{place} {step.name}: {seconds:.0f} s", flush=True)
    return seconds


def _launch(command: list[str], log: Path) -> int:
    """Run `command`; what it prints goes to the terminal and to `log`. It dies with this process."""
    log.parent.mkdir(exist_ok=True)
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with log.open("ab") as file:
        child = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            preexec_fn=partial(die_with_parent, os.getpid()),
        )
        assert child.stdout is not None
        try:
            while chunk := child.stdout.read1(8192):  # type: ignore[attr-defined]
                file.write(chunk)
                file.flush()
                sys.stdout.buffer.write(chunk)
                sys.stdout.flush()
            return child.wait()
        except BaseException:
            child.terminate()
            child.wait()
            raise


def _check_videos(videos: Path) -> None:
    if not videos.exists():
        raise UserError(f"--videos {videos}: no such file or folder")
    if videos.is_dir() and not any(path.is_file() for path in videos.rglob("*")):
        raise UserError(f"--videos {videos}: the folder is empty; put videos with sound in it, or leave --videos out")


@contextmanager
def _only_demo_in(out: Path) -> Iterator[None]:
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another demo is running in {out}; wait for it, or give another folder with -o") from None
        yield


def _same_demo(config: DemoConfig, out: Path) -> None:
    """Refuse to mix two demos in one folder, naming the difference."""
    path = out / "demo.yaml"
    wanted = config.model_dump(mode="json")
    if path.exists():
        known = load(DemoConfig, path).model_dump(mode="json")
        for field in wanted:
            if field != "output" and known[field] != wanted[field]:
                raise UserError(
                    f"{out} holds a demo with --{field.replace('_', '-')} {known[field]}, not {wanted[field]}: "
                    "give another folder with -o, or delete this one"
                )
    save(config, path)


def _summary(out: Path, page: Path, took: dict[str, float], seconds: float) -> str:
    card = json.loads((out / "dataset" / "dataset.json").read_text())
    dropped = ", ".join(f"{count} {reason}" for reason, count in sorted(card["rejected"].items())) or "none"
    clips = len((out / "generated" / "manifest.jsonl").read_text().splitlines())
    rows = [
        ("data set", f"{card['kept']} clips of {card['read']} kept; dropped: {dropped}", out / "dataset"),
        ("model", "video tower, adaptors, audio tower", out / "train" / "3_joint" / "model"),
        ("generated", f"{clips} clips", out / "generated"),
        ("measured", "sync of each clip", out / "evaluation" / "report.html"),
        ("report", "everything on one page: open it in a browser", page),
    ]
    lines = [f"  {name:<10} {what:<60} {path}" for name, what, path in rows]
    steps_run = sum(1 for value in took.values() if value)
    return (
        f"\ndone in {seconds:.0f} s ({steps_run} steps run, {len(took) - steps_run} done before)\n\n"
        + "\n".join(lines)
        + f"\n\n  curves: mlflow ui --backend-store-uri sqlite:///{out / 'mlflow.db'}"
    )
