"""`syncflow evaluate`: measure folders of videos with sound; write metrics.json, clips.csv and report.html."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from syncflow.config import flag_value, load, save
from syncflow.errors import UserError
from syncflow.eval.config import EvaluateConfig
from syncflow.tracker import OpenTracker


def main(argv: Sequence[str], open_tracker: OpenTracker) -> int:
    argv = list(argv)
    path = flag_value(argv, "--config")
    if path is not None:
        at = next(i for i, word in enumerate(argv) if word.split("=")[0] == "--config")
        del argv[at : at + (1 if "=" in argv[at] else 2)]
    elif argv and argv[0].endswith((".yaml", ".yml")):
        path = argv.pop(0)
    config = load(EvaluateConfig, path, argv, "syncflow evaluate")
    from syncflow.eval.run import evaluate

    if config.output.exists() and not config.output.is_dir():
        raise UserError(f"{config.output} is a file; give -o a folder")
    config.output.mkdir(parents=True, exist_ok=True)
    save(config, config.output / "config.yaml")
    tracker = open_tracker(config.tracking, config.output.resolve().name, config.output)
    try:
        result = evaluate(config)
        tracker.params({"metrics": config.metrics, "seed": config.seed, "resamples": config.resamples})
        tracker.log(result.flat(), step=0)
        for name in ("metrics.json", "clips.csv", "report.html"):
            tracker.artifact(config.output / name)
    finally:
        tracker.close()
    print(result.summary(config.output), file=sys.stdout)
    return 0
