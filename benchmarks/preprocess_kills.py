"""Kill preprocessing at random moments and see that nothing is lost, doubled or torn.

    python benchmarks/preprocess_kills.py --trials 24 --clips 16 -o kills.json     (or in parts: --first 6 --trials 6)

Each trial starts a job on a Ray cluster of a head and two nodes, and sends SIGKILL to its driver (up to three times,
started again each time), to one or two of its workers, to one of the nodes, or to driver and worker, at moments drawn
from the length of an undisturbed run. Then the job is run to its end and its data set compared with the undisturbed
one: the same ids, each once, every checksum right, no tar without a marker, the same rejects, kept + rejected = read.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.update(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0")

from syncflow.impacts import render
from syncflow.models.autoencoders import AutoencoderSpec
from syncflow.models.autoencoders.nano import (
    NanoAudioConfig,
    NanoVideoConfig,
    new_nano_audio_autoencoder,
    new_nano_video_autoencoder,
)
from syncflow.preprocess.config import PreprocessConfig, RayConfig
from syncflow.preprocess.run import preprocess
from syncflow.preprocess.work import Work
from syncflow.preprocess.worker import Worker
from syncflow.samples import open_dataset

INLINE = "inline"
KINDS = ("driver", "worker", "node", "driver and worker")


class Slow:
    """Makes a clip last long enough to be hit."""

    name = "slow"
    batched = False

    def setup(self, config: PreprocessConfig, device: str) -> None:
        return

    def __call__(self, works: Sequence[Work]) -> None:
        time.sleep(0.25)


class SlowWorker(Worker):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.store.write(f"pids/{os.getpid()}", b"")
        self.stages = [Slow(), *self.stages]


def make_input(folder: Path, clips: int) -> PreprocessConfig:
    render(clips, folder / "clips", seed=0)
    (folder / "clips" / "broken.mp4").write_bytes(b"no video")
    (folder / "clips" / "empty.mp4").touch()
    new_nano_video_autoencoder(0, NanoVideoConfig(block_out_channels=(8, 8, 8, 8))).save_pretrained(folder / "video")
    new_nano_audio_autoencoder(0, NanoAudioConfig(decoder_channels=4)).save_pretrained(folder / "audio")
    return PreprocessConfig(
        input=str(folder / "clips"),
        video_autoencoder=AutoencoderSpec(kind="image", path=str(folder / "video")),
        audio_autoencoder=AutoencoderSpec(kind="oobleck", path=str(folder / "audio")),
        text="online",
        shard_clips=4,
        batch=2,
        ray=RayConfig(workers=2),
    )


def job(config: PreprocessConfig, out: Path, address: str) -> None:
    """The driver: one run of the job, in a process of its own that can be killed."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[SlowWorker.__module__])
    log = os.open(out.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    ray_config = RayConfig(workers=0) if address == INLINE else config.ray.model_copy(update={"address": address})
    preprocess(config.model_copy(update={"ray": ray_config}), output=out, worker=SlowWorker)


# A server with everything imported but no Ray in it forks the drivers: each starts at once.
PROCESSES = multiprocessing.get_context("forkserver")


def start(config: PreprocessConfig, out: Path, address: str) -> Any:
    process = PROCESSES.Process(target=job, args=(config, out, address))
    process.start()
    return process


def wait(process: Any, seconds: float = 600) -> int | None:
    """Its exit code; None if it still runs after so many seconds."""
    process.join(seconds)
    return process.exitcode


def kill_worker(out: Path, rng: random.Random) -> bool:
    pids = [int(path.name) for path in (out / "pids").glob("*")]
    alive = [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    if alive:
        os.kill(rng.choice(alive), signal.SIGKILL)
    return bool(alive)


def contents(out: Path) -> dict[str, Any]:
    dataset = open_dataset(str(out))
    markers = list(out.glob("64x64x32/shard-*.json"))
    named = {shard.tar for shard in dataset.shards}
    rejects = [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]
    return {
        "ids": sorted(sample.record.id for sample in dataset),
        "damaged": [clip for clip, problem in dataset.verify() if problem],
        "unnamed_tars": sorted(p.name for p in out.glob("64x64x32/*.tar") if p.name not in named),
        "markers": len(markers),
        "rejects": sorted((r["id"], r["reason"]) for r in rejects),
        "balance": dataset.card.read - dataset.card.kept - sum(dataset.card.rejected.values()),
    }


def trial(number: int, config: PreprocessConfig, folder: Path, cluster: Any, length_s: float) -> dict[str, Any]:
    rng = random.Random(number)
    address = INLINE if cluster is None else cluster.address
    kind = "driver" if cluster is None else KINDS[number % len(KINDS)]
    out = folder / f"trial-{number}"
    kills: list[str] = []
    process = start(config, out, address)
    code: int | None = None
    for _ in range(rng.randint(1, 3) if kind == "driver" else rng.randint(1, 2) if kind == "worker" else 1):
        delay_s = rng.uniform(0.1, 0.9) * length_s
        code = wait(process, delay_s)
        if code is not None:
            break
        if "worker" in kind:
            while code is None and not kill_worker(out, rng):  # as soon as there is one
                code = wait(process, 0.1)
            if code is not None:
                break
            kills.append(f"worker at {delay_s:.1f} s or later")
        if kind == "node":
            node = rng.choice(sorted(cluster.worker_nodes, key=lambda n: n.unique_id))
            cluster.remove_node(node, allow_graceful=False)
            add_node(cluster)
            kills.append(f"node at {delay_s:.1f} s")
        if "driver" in kind:
            process.kill()
            process.join()
            kills.append(f"driver at {delay_s:.1f} s")
            process = start(config, out, address)
    if code is None:
        code = wait(process)
    if code is None:  # it hangs, which is a failure like any other
        process.kill()
    return {"trial": number, "kind": kind, "kills": kills, "code": code, **(contents(out) if code == 0 else {})}


def two_nodes() -> Any:
    """A head without room for workers, and two nodes with room for one each."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        add_node(cluster)
    return cluster


def add_node(cluster: Any, tries: int = 5) -> None:
    """Ray gives a node 30 s to come up, which a busy machine may not have."""
    for left in reversed(range(tries)):
        try:
            cluster.add_node(wait=False, num_cpus=1, object_store_memory=80 << 20)
            return
        except Exception as error:
            if not left:
                raise
            print(f"a node did not come up ({error}); once more", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument(
        "--first", type=int, default=0, help="number of the first trial, the seed of what happens in it"
    )
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--inline", action="store_true", help="no Ray: the process that does all the work is killed")
    parser.add_argument("-o", "--output", type=Path, default=Path("kills.json"))
    options = parser.parse_args()
    PROCESSES.set_forkserver_preload(["__main__", "diffusers.models.autoencoders", "transformers"])
    folder = Path(tempfile.mkdtemp(prefix="syncflow-kills-"))
    config = make_input(folder, options.clips)
    cluster = None if options.inline else two_nodes()
    address = INLINE if cluster is None else cluster.address
    results: list[dict[str, Any]] = []
    try:
        wait(start(config, folder / "warm", address))  # the first one also waits for everything to be imported
        began = time.monotonic()
        assert wait(start(config, folder / "reference", address)) == 0, (folder / "reference.log").read_text()
        length_s = time.monotonic() - began
        reference = contents(folder / "reference")
        print(f"undisturbed: {length_s:.1f} s, {len(reference['ids'])} clips", flush=True)
        for number in range(options.first, options.first + options.trials):
            found = trial(number, config, folder, cluster, length_s)
            same = all(found.get(name) == value for name, value in reference.items())
            results.append({**{k: found[k] for k in ("trial", "kind", "kills", "code")}, "same": same})
            print(json.dumps(results[-1]), flush=True)
            if not same:
                print(json.dumps({k: v for k, v in found.items() if v != reference.get(k)}), flush=True)
                shutil.copytree(folder / f"trial-{number}", options.output.with_suffix(f".trial-{number}"))
    finally:
        if cluster is not None:
            cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
    good = sum(result["same"] for result in results)
    hits = sum(len(result["kills"]) for result in results)
    options.output.write_text(json.dumps({"same": good, "trials": len(results), "kills": hits, "results": results}))
    print(f"{good} of {len(results)} trials gave the undisturbed data set; {hits} SIGKILLs")
    return 0 if good == len(results) else 1


if __name__ == "__main__":
    sys.exit(main())
