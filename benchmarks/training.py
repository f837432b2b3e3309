"""What training costs beside the arithmetic: ratios measured in one run, so that a busy machine hurts both sides.

    python benchmarks/training.py [--steps 20] [--clips 512] [-o results.json] [--only loader,step,ranks,checkpoint]

- loader: clips/s of our loader against raw pread + decode of the same clips, and against WebDataset one by one; of
  small clips in nano's micro-batches, and of larger ones in base's;
- step: a nano step of each stage split into data, forward, backward and optimizer; the share of waiting for data with
  one worker; what stage 2 costs beside stage 3 at equal batch;
- ranks: the same of stage 3 on two ranks, with their collectives as a part of their own;
- checkpoint: how long a save blocks the step, beside how long it takes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import safetensors.torch
import torch
from train_data import write_dataset

from syncflow.process import keep_freed_memory
from syncflow.samples import open_dataset
from syncflow.train import engine as engines
from syncflow.train.checkpoint import Progress, Saver
from syncflow.train.collate import MicroBatch
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
    parser.add_argument("--only", default="loader,step,ranks,checkpoint")
    parser.add_argument("--rank-on", type=Path, help=argparse.SUPPRESS)  # one of the ranks of `ranks`
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as a training on CPUs does, and every loader process
    if args.rank_on:
        rank(args.rank_on, args.steps)
        return
    results: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        dataset = write_dataset(Path(folder) / "set", clips=args.clips, per_shard=64, frames=32)
        if "loader" in args.only:
            results["loader"] = loader(dataset, micro_batch=4)
            large = write_dataset(Path(folder) / "large", clips=args.clips, per_shard=64, frames=9, side=32)
            results["loader_large"] = loader(large, micro_batch=16)
        if "ranks" in args.only:
            results["ranks"] = two_ranks(dataset, args.steps)
        if "step" in args.only or "checkpoint" in args.only:
            ranks = engines.start_ranks(_stage("1_video", dataset))
            if "step" in args.only:
                results["step"] = steps(dataset, ranks, args.steps)
            if "checkpoint" in args.only:
                results["checkpoint"] = checkpoint(dataset, ranks, Path(folder) / "checkpoints")
    print(json.dumps(results, indent=2))
    if args.output:
        args.output.write_text(json.dumps(results, indent=2))


def _stage(name: str, dataset: Path, *flags: str, batch_size: int = 4, micro_batch: int = 4) -> StageConfig:
    given = ["--data.path", str(dataset), "--init-from", "", "--batch-size", str(batch_size)]
    given += ["--micro-batch", str(micro_batch)]
    return load_stage(ROOT / "configs" / "nano" / f"{name}.yaml", [*given, "--ranks", "1", *flags])


def loader(dataset: Path, micro_batch: int) -> dict[str, float]:
    """Clips/s, all in this process; the best of three rounds each, taken in turns."""
    config = _stage("1_video", dataset, "--data.workers", "0", batch_size=micro_batch, micro_batch=micro_batch)
    source = open_stage_source(config)
    batches = MicroBatches(config, source, 0, 1)
    reader = ShardReader(source.datasets[0])
    shards = source.datasets[0].shards
    clips = len(open_dataset(str(dataset)))
    files = {shard.tar: os.open(source.datasets[0].tar_path(shard), os.O_RDONLY) for shard in shards}
    picks = [pick for step in range(clips // micro_batch) for pick in batches.order.at(step)]

    def raw() -> int:
        """pread + decode, by the libraries, of the very clips that the loader's batches are made of, in their order."""
        for pick in picks:
            shard = shards[pick.shard]
            handle = files[shard.tar]
            members = shard.samples[pick.place].members
            data = {ext: os.pread(handle, m.size, m.offset) for ext, m in members.items()}
            json.loads(data["json"])
            safetensors.torch.load(data["safetensors"])
        return len(picks)

    def read() -> int:
        """Our reader: the same with checksums."""
        for pick in picks:
            reader.read_raw(shards[pick.shard], pick.place)
        return len(picks)

    def ours() -> int:
        """Whole batches: read, checked, stacked, padded, with masks, t and seeds."""
        for k in range(clips // micro_batch):
            batches[k]
        return clips // micro_batch * micro_batch

    def webdataset() -> int:
        """WebDataset's own loader, one by one, in one worker process as it is used in training."""
        import webdataset as wds

        tars = sorted(str(p) for p in dataset.rglob("*.tar"))
        data = wds.WebDataset(tars, shardshuffle=False, nodesplitter=None).map(_decode)
        return sum(1 for _ in torch.utils.data.DataLoader(data, batch_size=None, num_workers=1))

    def ours_one_worker() -> int:
        short = config.model_copy(
            update={"steps": clips // micro_batch, "data": config.data.model_copy(update={"workers": 1, "prefetch": 8})}
        )
        return sum(len(step[0].ids) for step in training_batches(short, source, 0, 1, 0))

    for k in range(clips // micro_batch):
        batches.order.at(k)  # shuffles are made once per window of an epoch
    rates = _in_turns([raw, read, ours, webdataset, ours_one_worker])
    return {
        **{f"{name}_clips_per_s": rate for name, rate in rates.items()},
        "reader_of_raw": rates["read"] / rates["raw"],
        "whole_batches_of_raw": rates["ours"] / rates["raw"],
        "one_worker_of_webdataset": rates["ours_one_worker"] / rates["webdataset"],
    }


def _decode(members: dict) -> object:
    return json.loads(members["json"]), safetensors.torch.load(members["safetensors"])


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
            split[name].append(_one_step(engine, batches))
    medians = {name: _medians(rows) for name, rows in split.items()}
    return {
        **medians,
        "data_wait_share": medians["3_joint"]["data"] / medians["3_joint"]["step"],
        "stage_2_of_stage_3": medians["2_audio"]["step"] / medians["3_joint"]["step"],
    }


PARTS = ("data", "forward", "backward", "optimizer")


def _one_step(engine: engines.Engine, batches: Iterator[list[MicroBatch]]) -> list[float]:
    """Seconds of each of `PARTS`; in a profile they are regions of that name."""
    at = [time.perf_counter()]
    with torch.profiler.record_function("data"):
        [batch] = next(batches)
    at.append(time.perf_counter())
    with torch.profiler.record_function("forward"):
        loss, _, _ = engine.engine(batch.to(engine.ranks.device).draw())
    at.append(time.perf_counter())
    with torch.profiler.record_function("backward"):
        engine.engine.backward(loss)
    at.append(time.perf_counter())
    with torch.profiler.record_function("optimizer"):
        engine.gradient_squares()
        engine.update(1e-4, skip=False)
    at.append(time.perf_counter())
    return [b - a for a, b in itertools.pairwise(at)]


def _medians(rows: list[list[float]]) -> dict[str, float]:
    parts = torch.tensor(rows[2:]).median(0).values.tolist()
    return {**dict(zip(PARTS, parts, strict=True)), "step": sum(parts)}


def two_ranks(dataset: Path, n: int) -> dict[str, float]:
    """Stage 3 on two ranks of one core each, 4 clips each."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__]
    done = subprocess.run(
        [*torchrun, "--rank-on", str(dataset), "--steps", str(n)], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.strip().splitlines()[-1])


def rank(dataset: Path, n: int) -> None:
    from syncflow.models.d_dit import DualDiT

    config = _stage("3_joint", dataset, "--data.workers", "1", "--ranks", "2", batch_size=8)
    ranks = engines.start_ranks(config)
    engine = engines.Engine(DualDiT(config.model), config, ranks)
    batches = training_batches(config, open_stage_source(config), ranks.rank, 2, 0)
    for _ in range(2):
        _one_step(engine, batches)
    profiled = min(n, 5)  # a step is a hundred thousand events
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(profiled):
            _one_step(engine, batches)
    if ranks.first:
        print(json.dumps(_with_communication(profile.events(), profiled)))
    engines.stop_ranks()


def _with_communication(events: Iterable[Any], n: int) -> dict[str, float]:
    """Mean seconds of a step: each part without its collectives, and these on their own.

    A collective is gloo's own region, from when the rank asks for it until the data of all ranks are there: waiting for
    a slower rank is in it. Where the rank computes meanwhile, that time counts as communication.
    """
    spans = {name: [(e.time_range.start, e.time_range.end) for e in events if e.name == name] for name in PARTS}
    gloo = _union([(e.time_range.start, e.time_range.end) for e in events if e.name.startswith("gloo:")])
    split, communication = {}, 0.0
    for name, parts in spans.items():
        inside = sum(max(0, min(end, b) - max(start, a)) for start, end in parts for a, b in gloo)
        split[name] = (sum(end - start for start, end in parts) - inside) / n / 1e6
        communication += inside / n / 1e6
    return {**split, "communication": communication, "step": sum(split.values()) + communication}


def _union(spans: list[tuple[float, float]]) -> list[tuple[float, float]]:
    merged: list[tuple[float, float]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def checkpoint(dataset: Path, ranks: engines.Ranks, folder: Path) -> dict[str, float]:
    """A save of the whole nano model: what the step waits for, and what the save takes in all."""
    from syncflow.models.d_dit import DualDiT

    config = _stage("3_joint", dataset, "--data.workers", "1")
    engine = engines.Engine(DualDiT(config.model), config, ranks)
    ema = Ema([piece.master for piece in engine.pieces], 0.99)
    saver = Saver(folder, ranks, keep=2)
    batches = training_batches(config, open_stage_source(config), 0, 1, 0)
    blocked, total = [], []
    for step in range(1, 8):
        started = time.perf_counter()
        saver.save(engine, ema, Progress(step=step))
        saver.wait()
        total.append(time.perf_counter() - started)
    for step in range(8, 15):  # as in training: saved after a step, copied while the next one is computed
        started = time.perf_counter()
        saver.save(engine, ema, Progress(step=step))
        waited = time.perf_counter() - started
        [batch] = next(batches)
        engine.backward(batch)
        started = time.perf_counter()
        saver.wait_copied()
        blocked.append(waited + time.perf_counter() - started)
        engine.update(1e-4, skip=False)
        ema.update()
    middle = len(total) // 2
    return {
        "blocked_s": sorted(blocked)[middle],
        "save_s": sorted(total)[middle],
        "blocked_of_save": sorted(blocked)[middle] / sorted(total)[middle],
    }


if __name__ == "__main__":
    main()
