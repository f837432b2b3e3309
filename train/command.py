"""`syncflow train`: a stage, or a folder of stages in order."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from syncflow.config import flag_value, read_yaml
from syncflow.errors import UserError
from syncflow.tracker import OpenTracker

HELP = """usage: syncflow train CONFIG.yaml|FOLDER [--field value ...]

Train a stage that a YAML file declares (what it trains, what it freezes, what it starts from, its data, losses and
schedule), or a folder of stages: its [1-9]*_*.yaml in order, finished ones skipped, unfinished ones resumed.

  syncflow train configs/nano --data.path DATASET --output runs/nano
  syncflow train configs/nano/3_joint.yaml --init-from runs/nano/2_audio --data.path DATASET --output runs/joint
  syncflow train configs/nano --data.path DATASET --output runs/nano --steps 100 --ranks 2
  syncflow train configs/nano/0_autoencoders.yaml --input CLIPS --output runs/nano/autoencoders

Any field is a flag; flags given with a folder hold for every stage, --output DIR becomes DIR/STAGE. The command
starts its own ranks (`--ranks`); under torchrun it is a rank. SIGTERM saves and exits with 75; the same command
goes on where it stopped, on any number of ranks.

`syncflow train CONFIG.yaml --help` lists every field with its documentation.
Writes OUTPUT/model (what `syncflow generate --checkpoint` takes), checkpoints/, config.yaml, done.json.
Exit codes: 0 done, 2 mend something, 3 a rank was lost, 4 a rank stalled, 75 preempted.
"""


def main(argv: list[str], open_tracker: OpenTracker) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0
    path = Path(argv[0])
    if path.is_file() and read_yaml(path).get("job") == "autoencoders":
        from syncflow.train import autoencoders

        return autoencoders.main(path, argv[1:], open_tracker)

    from syncflow.train import launch, stages

    configs = load_stages(path, argv[1:])
    if launch.is_rank():
        return launch.run_rank(lambda: _train(configs, open_tracker))
    if configs[0].dry_run:
        return _dry_run(configs)
    todo = [config for config in configs if not _done(config)]
    if not todo:
        for config in configs:
            print(f"{config.name}: already done, {config.output}/model", file=sys.stderr)
        return 0
    if not _unmade_parent(todo[0], configs):
        stages.open_stage_source(todo[0])  # what is wrong with the data is said before ranks are started
    if configs[0].world_size == 1:
        return _train(configs, open_tracker)
    return launch.launch(configs[0], [str(path.resolve()), *argv[1:]])


def load_stages(path: Path, argv: list[str]) -> list:
    """The stages at a path with flags on top; folders and `previous` filled in.

    Raises:
        UserError: no such file or folder, or a configuration that does not hold.
    """
    from syncflow.train.config import load_stage

    output = flag_value(argv, "--output")
    if not path.is_dir():
        config = load_stage(path, argv)
        if not config.output and not config.dry_run:
            raise UserError(f"{path}: output is not given: add --output DIR")
        if config.init_from == "previous":
            raise UserError(f"{path}: init_from: previous works in a folder of stages; alone, give --init-from OUTPUT")
        return [config]
    files = sorted(p for p in path.glob("*.yaml") if re.match(r"[1-9]\d*_", p.name))
    if not files:
        raise UserError(f"{path}: no stages here (files named 1_NAME.yaml, 2_NAME.yaml, …)")
    if not output and not {"-h", "--help", "--dry-run"} & set(argv):
        raise UserError(f"{path}: output is not given: add --output DIR")
    configs: list = []
    for file in files:
        config = load_stage(file, argv)
        changes = {"output": str(Path(output or "") / config.name)}
        if config.init_from == "previous":
            if not configs:
                raise UserError(f"{file}: init_from: previous, but no stage comes before it")
            changes["init_from"] = configs[-1].output
        configs.append(config.model_copy(update=changes))
    if len({(c.ranks, c.nodes) for c in configs}) > 1:
        raise UserError(f"{path}: stages differ in ranks or nodes: give --ranks, or run them one by one")
    return configs


def _dry_run(configs: list) -> int:
    from syncflow.train.estimate import check_fits, dry_run
    from syncflow.train.loader import open_source

    for config in configs:
        source = open_source(config) if config.datasets else None
        print(dry_run(config, source), flush=True)
        check_fits(config, source)
    return 0


def _unmade_parent(config, configs: list) -> bool:
    return (
        any(config.init_from == other.output for other in configs) and not (Path(config.init_from) / "model").is_dir()
    )


def _done(config) -> bool:
    from syncflow.train import stages

    return (Path(config.output) / "done.json").exists() and stages.is_done(config)


def _train(configs: list, open_tracker: OpenTracker) -> int:
    """As a rank (or alone): every unfinished stage in order, in one set of processes."""
    from syncflow.train import engine, launch, stages
    from syncflow.train.claim import claim

    ranks = engine.start_ranks(configs[0])
    with launch.StopRequest().listening() as stop:
        try:
            for config in configs:
                if _done(config):
                    if ranks.first:
                        print(f"{config.name}: already done", file=sys.stderr, flush=True)
                    continue
                with claim(Path(config.output), ranks):
                    if not stages.run_stage(config, ranks, open_tracker, stop):
                        return launch.PREEMPTED
        finally:
            engine.stop_ranks()
    return 0
