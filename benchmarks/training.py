"""What training costs beside the arithmetic: ratios measured in one run, so that a busy machine hurts both sides.

    python benchmarks/training.py [--steps 20] [--clips 512] [-o results.json] [--only loader,step,checkpoint]

- loader: clips/s of our loader against raw pread + decode of the same clips, and against WebDataset one by one;
- step: a nano step of each stage split into data, forward, backward, optimizer (with its communication); the share of
  waiting for data with one worker; what stage 2 costs beside stage 3 at equal batch;
- checkpoint: how long a save blocks the step, beside how long it takes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import torch
from train_data import write_dataset

from syncflow.samples import open_dataset, unpack
from syncflow.train import engine as engines
from syncflow.train.checkpoint import Progress, Saver
from syncflow.train.config import StageConfig, load_stage
from syncflow.train.ema import Ema
from syncflow.train.loader import MicroBatches, training_batches
from syncflow.train.reading import ShardReader
from syncflow.train.stages import open_stage_source

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--clips", type=int, default=512)
    parser.add_argument("--only", default="loader,step,checkpoint")
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        dataset = write_dataset(Path(folder) / "set", clips=args.clips, per_shard=64, frames=32)
        if "loader" in args.only:
            results["loader"] = loader(dataset)
        if "step" in args.only or "checkpoint" in args.only:
            ranks = engines.start_ranks(_stage("1_video", dataset))
            if "step" in args.only:
                results["step"] = steps(dataset, ranks, args.steps)
            if "checkpoint" in args.only:
                results["checkpoint"] = checkpoint(dataset, ranks, Path(folder) / "checkpoints")
    print(json.dumps(results, indent=2))
    if args.output:
        args.output.write_text(json.dumps(results, indent=2))


def _stage(name: str, dataset: Path, *flags: str) -> StageConfig:
    flags = ("--data.path", str(dataset), "--init-from", "", "--ranks", "1", "--micro-batch", "4", *flags)
    return load_stage(ROOT / "configs" / "nano" / f"{name}.yaml", [*flags, "--batch-size", "4"])


def loader(dataset: Path) -> dict[str, float]:
    """Clips/s, all in this process; the best of three rounds each, taken in turns."""
    config = _stage("1_video", dataset, "--data.workers", "0")
    source = open_stage_source(config)
    batches = MicroBatches(config, source, 0, 1)
    reader = ShardReader(source.datasets[0])
    shards = source.datasets[0].shards
    clips = len(open_dataset(str(dataset)))
    picks = [pick for step in range(clips // 4) for pick in batches.order.at(step)]

    def raw() -> int:
        """pread + decode of the very clips that the loader's batches are made of, in the same order."""
        for pick in picks:
            shard = shards[pick.shard]
            sample = shard.samples[pick.place]
            handle = reader._open(source.datasets[0].tar_path(shard))
            unpack({ext: os.pread(handle, m.size, m.offset) for ext, m in sample.members.items()})
        return len(picks)

    def read() -> int:
        """Our reader: the same with checksums."""
        for pick in picks:
            reader.read(shards[pick.shard], pick.place)
        return len(picks)

    def ours() -> int:
        """Whole batches: read, checked, drawn, normalised, padded, with t and noise."""
        for k in range(clips // 4):
            batches[k]
        return clips // 4 * 4

    def webdataset() -> int:
        """WebDataset's own loader, one by one, in one worker process as it is used in training."""
        import webdataset as wds

        tars = sorted(str(p) for p in dataset.rglob("*.tar"))
        data = wds.WebDataset(tars, shardshuffle=False, nodesplitter=None).map(_decode)
        return sum(1 for _ in torch.utils.data.DataLoader(data, batch_size=None, num_workers=1))

    def ours_one_worker() -> int:
        short = config.model_copy(
            update={"steps": clips // 4, "data": config.data.model_copy(update={"workers": 1, "prefetch": 8})}
        )
        return sum(len(step[0].batch.ids) for step in training_batches(short, source, 0, 1, 0))

    rates = _in_turns([raw, read, ours, webdataset, ours_one_worker])
    return {
        **{f"{name}_clips_per_s": rate for name, rate in rates.items()},
        "reader_of_raw": rates["read"] / rates["raw"],
        "whole_batches_of_raw": rates["ours"] / rates["raw"],
        "one_worker_of_webdataset": rates["ours_one_worker"] / rates["webdataset"],
    }


def _decode(members: dict) -> object:
    return unpack({"json": members["json"], "safetensors": members["safetensors"]})


def _in_turns(works: list[Callable[[], int]], rounds: int = 3) -> dict[str, float]:
    best = {work.__name__: 0.0 for work in works}
    for _ in range(rounds):
        for work in works:
            started = time.perf_counter()
            n = work()
            best[work.__name__] = max(best[work.__name__], n / (time.perf_counter() - started))
    return best


def steps(dataset: Path, ranks: engines.Ranks, n: int) -> dict[str, object]:
    """Median seconds of each part of a step per stage; stages take turns so that other load hits all alike."""
    from syncflow.models.d_dit import DualDiT

    made, split = {}, {}
    for name in ("1_video", "2_audio", "3_joint"):
        config = _stage(name, dataset, "--data.workers", "1")
        source = open_stage_source(config)
        engine = engines.Engine(DualDiT(config.model), config, ranks)
        made[name] = (engine, training_batches(config, source, 0, 1, 0))
        split[name] = []
    for _ in range(n):
        for name, (engine, batches) in made.items():
            at = [time.perf_counter()]
            [example] = next(batches)
            at.append(time.perf_counter())
            loss, _, _ = engine.engine(example.to(ranks.device))
            at.append(time.perf_counter())
            engine.engine.backward(loss)
            at.append(time.perf_counter())
            engine.gradient_squares()
            engine.update(1e-4, skip=False)
            at.append(time.perf_counter())
            split[name].append([b - a for a, b in itertools.pairwise(at)])
    medians = {}
    for name, rows in split.items():
        parts = torch.tensor(rows[2:]).median(0).values.tolist()
        medians[name] = dict(zip(("data", "forward", "backward", "optimizer"), parts, strict=True))
        medians[name]["step"] = sum(parts)
    return {
        **medians,
        "data_wait_share": medians["3_joint"]["data"] / medians["3_joint"]["step"],
        "stage_2_of_stage_3": medians["2_audio"]["step"] / medians["3_joint"]["step"],
    }


def checkpoint(dataset: Path, ranks: engines.Ranks, folder: Path) -> dict[str, float]:
    """A save of the whole nano model: what the step waits for, and what the save takes in all."""
    from syncflow.models.d_dit import DualDiT

    config = _stage("3_joint", dataset)
    engine = engines.Engine(DualDiT(config.model), config, ranks)
    ema = Ema([piece.master for piece in engine.pieces], 0.99)
    saver = Saver(folder, ranks, keep=2)
    blocked, total = [], []
    for step in range(1, 8):
        started = time.perf_counter()
        saver.save(engine, ema, Progress(step=step))
        blocked.append(time.perf_counter() - started)
        saver.wait()
        total.append(time.perf_counter() - started)
    middle = len(total) // 2
    return {
        "blocked_s": sorted(blocked)[middle],
        "save_s": sorted(total)[middle],
        "blocked_of_save": sorted(blocked)[middle] / sorted(total)[middle],
    }


if __name__ == "__main__":
    main()
