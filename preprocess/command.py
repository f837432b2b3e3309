"""`syncflow preprocess CONFIG.yaml --input DIR|MANIFEST --output DATASET`"""

from __future__ import annotations

import sys
from pathlib import Path

from syncflow import config as configs
from syncflow.config import Config
from syncflow.preprocess.config import PreprocessConfig
from syncflow.preprocess.estimate import estimate
from syncflow.preprocess.run import Summary, preprocess
from syncflow.tracker import OpenTracker

PROG = "syncflow preprocess CONFIG.yaml"


def main(argv: list[str], open_tracker: OpenTracker) -> int:
    path, flags = (argv[0], argv[1:]) if argv and not argv[0].startswith("-") else (None, argv)
    config = configs.load(PreprocessConfig, path, flags, PROG)
    config = absolute(config)
    if config.dry_run:
        print(estimate(config).text(config.price_per_hour))
        return 0
    summary = preprocess(config)
    report(summary, config, open_tracker)
    return 0


def absolute(config: PreprocessConfig) -> PreprocessConfig:
    """With local paths made absolute: workers have folders of their own."""
    here = Path.cwd()
    encoders = ("video_autoencoder", "audio_autoencoder", "text_encoder")
    changes: dict[str, object] = {name: getattr(config, name).located(here) for name in encoders}
    changes["captions"] = _located(config.captions, here)
    changes["filters"] = _located(config.filters, here)
    for name in ("input", "output"):
        value = getattr(config, name)
        if value and "://" not in value:
            changes[name] = str(here / value)
    return config.model_copy(update=changes)


def _located(section: Config, here: Path) -> Config:
    """A section whose networks' paths are absolute where they name something on this machine."""
    changes: dict[str, object] = {}
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, Config):
            changes[name] = _located(value, here)
        elif name in ("path", "clip_path") and (here / value).exists():
            changes[name] = str(here / value)
    return section.model_copy(update=changes)


def report(summary: Summary, config: PreprocessConfig, open_tracker: OpenTracker) -> None:
    card = summary.card
    local = "://" not in config.output
    if local and not summary.already_done:
        configs.save(config, Path(config.output) / "config.yaml")
        tracker = open_tracker(config.tracking, f"preprocess {Path(config.output).name}", Path(config.output))
        tracker.params(config.meaning())
        tracker.tags({"job": "preprocess", "fingerprint": card.fingerprint})
        counts = {f"rejected/{stage}.{reason}": n for (stage, reason), n in summary.rejected.items()}
        seconds = {"seconds": summary.seconds, "clips_per_s": card.read / summary.seconds}
        work = {name: values for name, values in summary.totals.sums.items() if name.startswith("seconds.")}
        tracker.log({"read": card.read, "kept": card.kept, "hours": card.hours, **seconds, **counts}, step=0)
        tracker.log({name.replace("seconds.", "worker_seconds/"): values[0] for name, values in work.items()}, step=0)
        tracker.artifact(Path(config.output) / "report.html")
        tracker.artifact(Path(config.output) / "rejects.jsonl")
        tracker.close()
    print(closing(summary, config.output), file=sys.stderr)


def closing(summary: Summary, output: str) -> str:
    """What was made, what was dropped and why, and where to look."""
    card = summary.card
    sizes = ", ".join(f"{bucket.samples} of {bucket.name}" for bucket in card.buckets)
    lines = [
        f"{output}: {'was finished before; ' if summary.already_done else ''}kept {card.kept} of {card.read} clips "
        f"({card.hours * 3600:.0f} s: {sizes})"
    ]
    if summary.rejected:
        lines.append(f"dropped {card.read - card.kept}, listed in {output}/rejects.jsonl:")
        lines += [f"  {count:5d}  {reason} ({stage})" for (stage, reason), count in summary.rejected.most_common()]
    lines.append(f"look at it: {output}/report.html, or syncflow inspect {output} --verify --decode 4 -o some/folder")
    return "\n".join(lines)
