"""The pool of Ray actors: lost workers, lost nodes, clips that crash or hang. One cluster for the whole file."""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny import smallest_autoencoders

from syncflow.preprocess.config import PreprocessConfig, RayConfig
from syncflow.preprocess.run import preprocess
from syncflow.preprocess.work import Work
from syncflow.preprocess.worker import Worker
from syncflow.samples import open_dataset


class Traps:
    """A stage that does to its worker what a broken clip may do."""

    name = "traps"
    batched = False

    def setup(self, config: PreprocessConfig, device: str) -> None:
        return

    def __call__(self, works: Sequence[Work]) -> None:
        for work in works:
            if "crash" in work.plan.id:
                faulthandler._sigsegv()  # type: ignore[attr-defined]
            if "exit" in work.plan.id:
                os._exit(1)
            if "hang" in work.plan.id:
                time.sleep(1000)
            time.sleep(0.05)


class TrappedWorker(Worker):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.store.write(f"pids/{os.getpid()}", b"")
        self.stages = [Traps(), *self.stages]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> PreprocessConfig:
    return PreprocessConfig(
        **smallest_autoencoders(tmp_path_factory.mktemp("weights")),
        text="online",
        shard_clips=4,
        batch=2,
        ray=RayConfig(workers=2),
    )


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without room for workers, and two nodes with room for two each."""
    os.environ.update(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0")
    import ray
    from ray import cloudpickle
    from ray.cluster_utils import Cluster

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        found.add_node(num_cpus=2, object_store_memory=80 << 20)
    ray.init(address=found.address, logging_level=logging.ERROR, log_to_driver=False)
    yield found
    ray.shutdown()
    found.shutdown()


@pytest.fixture
def clips(impacts_dir: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "clips"
    folder.mkdir()
    for path in sorted(impacts_dir.glob("*.mp4")):
        shutil.copy(path, folder / path.name)
    return folder


def ids(out: Path) -> list[str]:
    return sorted(sample.record.id for sample in open_dataset(str(out)))


def when(condition: Callable[[], bool], act: Callable[[], None]) -> threading.Thread:
    """Do something as soon as something else is so."""

    def wait() -> None:
        while not condition():
            time.sleep(0.02)
        act()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


@pytest.mark.slow
def test_clips_that_crash_or_hang_are_quarantined_and_the_rest_is_kept(
    cluster: Any, config: PreprocessConfig, clips: Path, tmp_path: Path
) -> None:
    names = sorted(clips.glob("*.mp4"))
    for path, trap in zip(names, ("crash", "exit", "hang"), strict=False):
        path.rename(clips / f"{path.stem}-{trap}.mp4")
    impatient = config.model_copy(update={"clip_timeout_s": 6.0})
    summary = preprocess(impatient, clips, tmp_path / "out", worker=TrappedWorker)
    assert summary.card.kept == len(names) - 3 == len(ids(tmp_path / "out"))
    rejects = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    found = {trap: reject["reason"] for reject in rejects for trap in ("crash", "exit", "hang") if trap in reject["id"]}
    assert found == {"crash": "crashed_worker", "exit": "crashed_worker", "hang": "timeout"}


def test_a_lost_worker_and_a_lost_node_cost_nothing(
    cluster: Any, config: PreprocessConfig, clips: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shards = out / "64x64x32"
    four = config.model_copy(update={"ray": RayConfig(workers=4), "shard_clips": 2})

    def kill_a_worker() -> None:
        os.kill(min(int(path.name) for path in (out / "pids").iterdir()), signal.SIGKILL)

    def lose_a_node() -> None:
        cluster.remove_node(cluster.worker_nodes.copy().pop(), allow_graceful=False)

    first = when(lambda: shards.is_dir(), kill_a_worker)
    second = when(lambda: len(list(shards.glob("*.json"))) >= 2, lose_a_node)
    preprocess(four, clips, out, worker=TrappedWorker)
    for thread in (first, second):
        thread.join(timeout=10)
        assert not thread.is_alive(), "it came to the kill"
    assert ids(out) == sorted(f"{path.stem}-0000000" for path in clips.glob("*.mp4"))
    assert len(list(shards.glob("*.tar"))) == len(list(shards.glob("*.json")))
