"""Two real ranks under torchrun, every parameter partitioned: equal to one plain process, and to itself when killed."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor
from train_data import read_losses, train, write_dataset, write_stages

pytestmark = pytest.mark.timeout(2400)

STEPS = {"1_video": 20, "2_audio": 8, "3_joint": 8}


class Runs:
    """Runs of the three tiny stages on two ranks, in folders of one place."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.dataset = write_dataset(root / "set")
        self.configs = write_stages(root / "configs", ranks=2, micro_batch=2)
        for name, steps in STEPS.items():
            path = self.configs / f"{name}.yaml"
            path.write_text(path.read_text().replace("steps: 12", f"steps: {steps}"))

    def start(self, name: str, *flags: str, config: str = "") -> subprocess.Popen[str]:
        output = self.root / name
        output.mkdir(exist_ok=True)
        log = (output / "log.txt").open("a")
        command = [sys.executable, "-m", "syncflow", "train", str(self.configs / config), "--output", str(output)]
        tracking = ["--tracking.enabled", "--tracking.uri", f"sqlite:///{self.root}/mlflow.db"]
        command += ["--data.path", str(self.dataset), *tracking, *flags]
        return subprocess.Popen(command, stdout=log, stderr=log, text=True, env=_environment())

    def run(self, name: str, *flags: str, config: str = "") -> int:
        return self.start(name, *flags, config=config).wait(1200)

    def said(self, name: str) -> str:
        return (self.root / name / "log.txt").read_text()


def _environment() -> dict[str, str]:
    ours = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "SYNCFLOW_ALONE"}
    return {**{k: v for k, v in os.environ.items() if k not in ours}, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module")
def whole(runs: Runs) -> Path:
    """Never interrupted; keeps a checkpoint of every step."""
    assert runs.run("whole", "--checkpoint.every", "1", "--checkpoint.keep", "100") == 0, runs.said("whole")
    return runs.root / "whole"


def weights(output: Path) -> dict[str, Tensor]:
    return safetensors.torch.load_file(output / "model" / "model.safetensors")


@pytest.mark.parametrize("stage", ["1_video", "2_audio", "3_joint"])
def test_two_ranks_equal_one_plain_process(runs: Runs, whole: Path, stage: str) -> None:
    """No engine, no ZeRO: AdamW from torch on the same batches, from the weights the stage before handed on."""
    from syncflow.models.d_dit import DualDiT
    from syncflow.train.config import load_stage
    from syncflow.train.loader import MicroBatches
    from syncflow.train.objective import Objective
    from syncflow.train.stages import initial_state, open_stage_source

    before = {"2_audio": "1_video", "3_joint": "2_audio"}.get(stage)
    flags = ["--data.path", str(runs.dataset), "--init-from", str(whole / before) if before else ""]
    config = load_stage(runs.configs / f"{stage}.yaml", [*flags, "--ranks", "1", "--micro-batch", "4"])
    model = DualDiT(config.model)
    model.load_state_dict(initial_state(config, whole / before / "model" if before else None))
    for name, part in model.parts().items():
        part.requires_grad_(name in config.trains)
    trained = [p for p in model.parameters() if p.requires_grad]
    decayed, others = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]
    settings = config.optimizer
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=settings.lr,
        betas=settings.betas,
        eps=settings.eps,
    )
    objective = Objective(model, config)
    batches = MicroBatches(config, open_stage_source(config), rank=0, world_size=1)
    losses = read_losses(whole / stage, "loss")
    for step in range(config.steps):
        example = batches[step]
        assert not isinstance(example, Exception)
        loss, _, _ = objective(example.draw())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, settings.clip)
        optimizer.step()
        assert loss.item() == pytest.approx(losses[step + 1], abs=1e-6)
    from syncflow.train.checkpoint import find_latest

    checkpoint, _ = find_latest(whole / stage / "checkpoints")
    assert checkpoint is not None
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    stored = checkpoint.weights({name: p.shape for name, p in named.items()})
    # Adam turns the rounding of a gradient near zero into a step of up to the learning rate: few may, most must not.
    off = torch.cat([(p - stored[name]).abs().flatten() for name, p in named.items()])
    assert off.mean() < 1e-6
    assert off.max() < config.optimizer.lr


def test_the_average_is_that_of_an_unsharded_model_bit_for_bit(runs: Runs, whole: Path) -> None:
    from syncflow.train.checkpoint import Checkpoint, Progress
    from syncflow.train.config import load_stage
    from syncflow.train.stages import initial_state

    stage = whole / "1_video"
    config = load_stage(runs.configs / "1_video.yaml", ["--data.path", str(runs.dataset)])
    start = {n: t for n, t in initial_state(config, None).items() if n.startswith("video.") and "rope" not in n}
    shapes = {name: tensor.shape for name, tensor in start.items()}
    average = dict(start)
    for n, folder in enumerate(sorted((stage / "checkpoints").glob("step-*"))):
        checkpoint = Checkpoint(folder, Progress(), 2)
        masters = checkpoint.weights(shapes)
        decay = min(config.ema_decay, (1 + n) / (10 + n))
        average = {name: torch.lerp(value, masters[name], 1 - decay) for name, value in average.items()}
        stored = checkpoint.tensors("ema", [(name, 0, shape.numel()) for name, shape in shapes.items()])
        assert all(torch.equal(average[name].flatten(), value) for name, value in zip(shapes, stored, strict=True))
    assert n == STEPS["1_video"] - 1
    handed_on = weights(stage)
    assert all(torch.equal(value, handed_on[name]) for name, value in average.items())


def test_stage_2_leaves_the_video_tower_bit_for_bit(whole: Path) -> None:
    before, after = weights(whole / "1_video"), weights(whole / "2_audio")
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"adaptors", "audio"}


@pytest.mark.slow
def test_killed_in_every_stage_it_ends_the_same(runs: Runs, whole: Path) -> None:
    """SIGTERM and SIGKILL in stage 1, SIGKILL of the launcher in stage 2, of a rank in stage 3, at random steps."""
    dice = random.Random(7)
    flags = ["--checkpoint.every", "3"]
    out = runs.root / "killed"

    job = runs.start("killed", *flags)
    _wait_for_step(job, out / "1_video", dice.randint(2, 8))
    job.send_signal(signal.SIGTERM)
    assert job.wait(300) == 75, runs.said("killed")
    assert "saved; the same command goes on" in runs.said("killed")

    for stage, first, last in (("1_video", 10, 18), ("2_audio", 2, 6)):
        job = runs.start("killed", *flags)
        _wait_for_step(job, out / stage, dice.randint(first, last))
        children = _children(job.pid)
        assert len(children) >= 2
        job.kill()
        job.wait()
        _wait_until_gone(children)

    job = runs.start("killed", *flags)
    _wait_for_step(job, out / "3_joint", dice.randint(2, 6))
    os.kill(_rank_pid(out / "3_joint", 1), signal.SIGKILL)
    assert job.wait(300) == 3, runs.said("killed")
    assert "was killed by SIGKILL" in runs.said("killed")

    assert runs.run("killed", *flags) == 0, runs.said("killed")
    for stage in STEPS:
        assert read_losses(out / stage, "loss") == read_losses(whole / stage, "loss")
        ours, theirs = weights(out / stage), weights(whole / stage)
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items()), stage


@pytest.mark.slow
def test_two_ranks_then_one_then_two(runs: Runs, whole: Path) -> None:
    out = runs.root / "changing"
    out.mkdir()
    shutil.copytree(whole / "3_joint" / "checkpoints", out / "checkpoints")
    for late in sorted((out / "checkpoints").glob("step-*"))[3:]:
        shutil.rmtree(late)
    config, parent = "3_joint.yaml", ["--init-from", str(whole / "2_audio")]
    alone = [str(runs.configs / config), "--data.path", str(runs.dataset), "--output", str(out), *parent]
    assert train([*alone, "--ranks", "1", "--steps", "5"]) == 0
    assert runs.run("changing", *parent, config=config) == 0, runs.said("changing")
    ours, theirs = read_losses(out, "loss"), read_losses(whole / "3_joint", "loss")
    assert sorted(ours) == [4, 5, 6, 7, 8]
    assert all(ours[step] == pytest.approx(theirs[step], abs=1e-5) for step in ours)


@pytest.mark.slow
def test_a_broken_shard_ends_two_ranks_with_one_line(runs: Runs, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "set", seed=3)
    for tar in (data / "b0").glob("*1.tar"):
        tar.unlink()
    code = runs.run("broken", "--data.path", str(data), config="1_video.yaml")
    lines = [line for line in runs.said("broken").splitlines() if "error" in line]
    assert code == 2, runs.said("broken")
    assert len(lines) == 1
    assert "tar is missing: restore it" in lines[0]
    assert "Traceback" not in runs.said("broken")


@pytest.mark.slow
def test_a_stalled_rank_is_named(runs: Runs) -> None:
    job = runs.start("stalled", "--guard.stall-s", "8", "--steps", "2000", config="1_video.yaml")
    out = runs.root / "stalled"
    _wait_for_step(job, out, 2)
    stopped = _rank_pid(out, 1)
    os.kill(stopped, signal.SIGSTOP)
    try:
        assert job.wait(300) == 4, runs.said("stalled")
    finally:
        _kill_if_there(stopped)
    assert "rank 1" in runs.said("stalled").splitlines()[-1]
    assert "stalled while" in runs.said("stalled").splitlines()[-1]


def _wait_for_step(job: subprocess.Popen[str], output: Path, step: int) -> None:
    deadline = time.monotonic() + 900
    while time.monotonic() < deadline:
        if (output / "spool.jsonl").exists() and max(read_losses(output, "loss"), default=0) >= step:
            return
        assert job.poll() is None, f"ended with {job.returncode} before step {step} of {output.name}"
        time.sleep(0.05)
    raise TimeoutError(f"{output} never came to step {step}")


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _rank_pid(output: Path, rank: int) -> int:
    return json.loads((output / "watch" / f"rank-{rank:05d}.json").read_text())["pid"]


def _kill_if_there(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 60
    while any(_alive(pid) for pid in pids):
        assert time.monotonic() < deadline, "ranks outlived their launcher"
        time.sleep(0.1)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
