"""A stage from its declaration to its output: what it starts from, whether it is done, resuming, handing on."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from syncflow.config import save
from syncflow.errors import UserError
from syncflow.models.checkpoints import check_same, load_card, load_weights
from syncflow.models.d_dit import DualDiT
from syncflow.models.flops import forward_cost
from syncflow.process import git_commit
from syncflow.tracker import OpenTracker, Tracker
from syncflow.train import engine as engines
from syncflow.train.captions import Captions
from syncflow.train.checkpoint import Progress, Saver, find_latest
from syncflow.train.config import StageConfig
from syncflow.train.ema import Ema
from syncflow.train.engine import Engine, Ranks
from syncflow.train.estimate import clip_lengths, peak_flops, training_flops
from syncflow.train.history import History
from syncflow.train.launch import StopRequest, out_of_memory
from syncflow.train.loader import Source, open_source, training_batches
from syncflow.train.loop import Training, train
from syncflow.train.outputs import file_sha256, find_model, read_done, write_outputs
from syncflow.train.report import Report
from syncflow.train.watchdog import Watchdog


def is_done(config: StageConfig) -> bool:
    """
    Raises:
        UserError: it is done, but started from another model than it would now.
    """
    output = Path(config.output)
    done = read_done(output)
    if done is None or done.steps < config.steps:
        return False
    if config.init_from:
        parent = find_model(config.init_from)
        if file_sha256(parent / "model.safetensors") != done.parent_sha256:
            raise UserError(f"{output} was trained from another model than {parent} now is: remove it to train again")
    return True


def run_stage(config: StageConfig, ranks: Ranks, open_tracker: OpenTracker, stop: StopRequest) -> bool:
    """Train one stage, or go on with it; false if asked to stop before its end.

    Raises:
        UserError: the stage cannot start, or cannot go on (see `train`).
    """
    began = time.monotonic()
    output = Path(config.output)
    parent = find_model(config.init_from) if config.init_from else None
    source = open_stage_source(config)
    parent_sha256 = file_sha256(parent / "model.safetensors") if parent else ""
    identity = _identity(config, source, parent_sha256)
    # The first rank looks for all: each would read the whole of it, and a shared folder may not look the same to each.
    found = find_latest(output / "checkpoints") if ranks.first else (None, [])
    checkpoint, problems = engines.everyones(found, ranks)[0]
    if checkpoint and checkpoint.progress.identity != identity:
        raise UserError(
            f"{output} holds the checkpoints of another run ({_difference(checkpoint.progress.identity, identity)}): "
            "give another output, or remove it to train anew"
        )
    if ranks.first:
        output.mkdir(parents=True, exist_ok=True)
        save(config, output / "config.yaml")

    whole = not config.engine.zero_init or ranks.first
    start = initial_state(config, parent) if whole else {}
    shapes = {name: t.shape for name, t in start.items() if name.split(".", 1)[0] in config.trains}
    if checkpoint and whole:
        start |= checkpoint.weights({name: shape for name, shape in shapes.items() if _is_parameter(name)})
    with engines.building(config):
        model = DualDiT(config.model)
    engines.load_weights(model, start)
    del start
    engine = Engine(model, config, ranks)
    ema = Ema([piece.master for piece in engine.pieces], config.ema_decay)
    progress = Progress(identity=identity)
    if checkpoint:
        progress = checkpoint.progress
        checkpoint.restore(engine, ema, ranks)

    tracker: Tracker | None = None
    report = None
    if ranks.first:
        tracker = open_tracker(config.tracking, config.name, output)
        tracker.params(_flat(config.model_dump(mode="json")))
        tracker.tags(_tags(config, source, parent, parent_sha256))
        history = History(output / "metrics.jsonl", progress.step)
        report = Report(config, tracker, *_per_clip(config, source), peak_flops(ranks.world_size), history)
        for problem in problems:
            report.say(f"{problem}; it is passed over")
        report.say(_opening(config, ranks, progress, engine, source, time.monotonic() - began))
    watchdog = Watchdog(output / "watch", ranks, config.guard.stall_s)
    captions = _captions(config, source, ranks)
    batches = training_batches(config, source, ranks.rank, ranks.world_size, progress.step)
    run = Training(
        config=config,
        ranks=ranks,
        engine=engine,
        ema=ema,
        progress=progress,
        batches=([captions.embed(batch) for batch in step] for step in batches) if captions else batches,
        saver=Saver(output / "checkpoints", ranks, config.checkpoint.keep),
        report=report,
        validate=_validation(config, source, ranks, engine, ema, parent, report, watchdog, captions),
        stop=stop,
        watchdog=watchdog,
    )
    try:
        with run.watchdog:
            finished = train(run)
            if finished:
                _hand_on(run, source, parent, parent_sha256)
        if report and not finished:
            report.say(f"stopped at step {progress.step} of {config.steps}, saved; the same command goes on")
    except (MemoryError, RuntimeError) as error:
        if short := out_of_memory(error, f"in step {progress.step + 1} of {config.name}, {watchdog.doing}"):
            raise short from error
        raise
    finally:
        if tracker:
            tracker.close()
    return finished


def open_stage_source(config: StageConfig) -> Source:
    """The stage's data, in the terms of its parent where it has one."""
    if not config.init_from:
        return open_source(config)
    card = load_card(find_model(config.init_from))
    check_same(card.model, config.model, config.init_from)
    source = open_source(config, (card.video_stats, card.audio_stats))
    data = source.card
    for what, theirs, ours in (
        ("video autoencoder", card.video_autoencoder.sha256, data.video_autoencoder.sha256),
        ("audio autoencoder", card.audio_autoencoder.sha256, data.audio_autoencoder and data.audio_autoencoder.sha256),
    ):
        if theirs and ours and theirs != ours:
            raise UserError(
                f"{source.datasets[0].path} was encoded by another {what} than {config.init_from} was trained on "
                f"({ours[:12]} against {theirs[:12]}): preprocess with the model's own, or start from another model"
            )
    return source


def initial_state(config: StageConfig, parent: Path | None) -> dict[str, Tensor]:
    """What the stage starts from: its parent's weights, or fresh ones from the seed."""
    if parent:
        return {name: tensor.float() for name, tensor in load_weights(parent).items()}
    torch.manual_seed(config.seed)
    return {name: tensor.detach().clone() for name, tensor in DualDiT(config.model).state_dict().items()}


def _hand_on(run: Training, source: Source, parent: Path | None, parent_sha256: str) -> None:
    config = run.config
    values = run.ema.values if config.ema_decay else run.ema.masters
    trained = run.engine.gather(values)
    if run.ranks.first and run.report:
        # Frozen parts are handed on from the very tensors they came from: the engine's copies may be rounded.
        state = initial_state(config, parent) | trained
        write_outputs(Path(config.output), config, source, state, parent, parent_sha256, run.report.history.summary())
        run.report.tracker.artifact(Path(config.output) / "model" / "lineage.json")
        run.report.say(f"done: {Path(config.output) / 'model'}")
    engines.barrier()


def _validation(
    config: StageConfig,
    source: Source,
    ranks: Ranks,
    engine: Engine,
    ema: Ema,
    parent: Path | None,
    report: Report | None,
    watchdog: Watchdog,
    captions: Captions | None,
) -> Callable[[int], None]:
    if not config.validation.every:
        return lambda step: None
    from syncflow.train.validate import Validation

    def start() -> dict[str, Tensor]:
        return initial_state(config, parent)

    return Validation(config, source, ranks, engine, ema, start, report, watchdog.phase, captions)


def _captions(config: StageConfig, source: Source, ranks: Ranks) -> Captions | None:
    """The text encoder of this rank, where the data needs one."""
    if all(dataset.card.text_encoder for dataset in source.datasets):
        return None
    return Captions(config.data.text_encoder, config.data.max_tokens, ranks.device)


def _identity(config: StageConfig, source: Source, parent_sha256: str) -> str:
    """What may not change between a checkpoint and its resumption, as JSON."""
    return json.dumps(
        {
            "model": _digest(config.model.model_dump_json()),
            "trains": ",".join(sorted(config.trains)),
            "parent": parent_sha256[:16],
            "data": ",".join(f"{d.card.fingerprint}:{len(d)}" for d in source.datasets),
            "weights": ",".join(str(d.weight) for d in config.datasets),
            "held_out": config.data.held_out,
            "batch_size": config.batch_size,
            "seed": config.seed,
        }
    )


def _difference(theirs: str, ours: str) -> str:
    a, b = json.loads(theirs or "{}"), json.loads(ours)
    return "; ".join(f"{key}: {a.get(key)} there, {b[key]} here" for key in b if a.get(key) != b[key])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _per_clip(config: StageConfig, source: Source) -> tuple[int, float, float]:
    """Tokens, seconds of media and training FLOPs of the commonest clip."""
    lengths = clip_lengths(config, source)
    cost = forward_cost(config.model, lengths)
    bucket = max((b for d in source.datasets for b in d.card.buckets), key=lambda b: b.samples)
    seconds = float(bucket.num_frames / source.card.fps)
    return cost.video_tokens + lengths.audio_frames, seconds, training_flops(config, cost)


def _opening(
    config: StageConfig, ranks: Ranks, progress: Progress, engine: Engine, source: Source, seconds: float
) -> str:
    clips = sum(stream.samples for stream in source.streams)
    trained = sum(engines.numel(p) for p in engine.trained.values())
    return (
        f"{'resumes at step ' + str(progress.step) if progress.step else 'starts'}; trains {', '.join(config.trains)} "
        f"({trained / 1e6:.1f} M parameters) on {clips} clips ({len(source.held_out)} held out) "
        f"with {ranks.world_size} ranks, ZeRO-{config.engine.zero_stage} {config.engine.precision} "
        f"(ready after {seconds:.1f} s)"
    )


def _tags(config: StageConfig, source: Source, parent: Path | None, parent_sha256: str) -> dict[str, str]:
    datasets = {f"dataset.{i}": f"{d.path} {d.card.fingerprint}" for i, d in enumerate(source.datasets)}
    lineage = {"parent": str(parent or ""), "parent_sha256": parent_sha256, "git_commit": git_commit()}
    return {"stage": config.name, **lineage, **datasets}


def _flat(values: dict, prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _is_parameter(name: str) -> bool:
    return not name.endswith("rope.freqs")
