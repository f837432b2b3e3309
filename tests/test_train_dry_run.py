"""`--dry-run`: what a stage would cost, against what it does cost where that can be counted; and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
from train_data import ListTracker, train, write_dataset, write_stages

from syncflow.errors import UserError
from syncflow.models.flops import forward_cost
from syncflow.train.config import StageConfig, load_stage
from syncflow.train.estimate import check_fits, clip_lengths, count_parameters, memory, training_flops
from syncflow.train.loader import open_source

XL = Path(__file__).parent.parent / "configs" / "xl"


def stage(path: Path, *flags: str) -> StageConfig:
    return load_stage(path, list(flags))


def test_it_counts_what_a_real_run_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parameters as in the model handed on; masters, moments and average as in the checkpoint; tokens and FLOPs as
    in the run's own report."""
    monkeypatch.setattr("syncflow.train.stages.peak_flops", lambda ranks: 1e12)
    data = write_dataset(tmp_path / "set")
    path = write_stages(tmp_path / "configs") / "1_video.yaml"
    flags = ["--data.path", str(data), "--output", str(tmp_path / "out"), "--steps", "4"]
    tracker = ListTracker()
    assert train([str(path), *flags], tracker) == 0

    config = stage(path, *flags)
    lengths = clip_lengths(config, open_source(config))
    cost, parameters = forward_cost(config.model, lengths), count_parameters(config)
    held = safetensors.torch.load_file(tmp_path / "out" / "model" / "model.safetensors")
    for part, count in parameters.items():
        found = sum(t.numel() for name, t in held.items() if name.startswith(f"{part}.") and "rope.freqs" not in name)
        assert found == count, part
    need = memory(config, parameters, cost, lengths)
    saved = next((tmp_path / "out" / "checkpoints").glob("step-*/rank-00000.safetensors")).stat().st_size
    assert need.optimizer + need.average == pytest.approx(saved, rel=0.1)  # the rest is the file's table of contents
    assert need.optimizer + need.average <= saved

    last = {name: value for _, name, value in tracker.metrics}
    assert last["tokens_per_s"] / last["clips_per_s"] == pytest.approx(cost.video_tokens)
    assert last["media_s_per_s"] / last["clips_per_s"] == pytest.approx(8 / 16)
    assert last["mfu"] == pytest.approx(last["clips_per_s"] * training_flops(config, cost) / 1e12)


def test_the_table_says_it_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert train([str(XL), "--dry-run", "--steps", "1000"]) == 0
    said = capsys.readouterr().out
    for stage_name, trained in (("1_video", "video"), ("2_audio", "adaptors"), ("2_audio", "audio")):
        block = said[said.index(f"{stage_name}:") :]
        assert re.search(rf"  {trained} +[\d,.]+ M parameters, trained", block)
    assert "M parameters, frozen" in said
    for row in (
        "memory per rank",
        "weights",
        "gradients",
        "optimizer",
        "activations",
        "validation",
        "steps",
        "tokens",
        "FLOPs",
    ):
        assert said.count(f"  {row} ") >= 3, row
    hours = [float(x.replace(",", "")) for x in re.findall(r"device-hours +([\d,.]+) at 35%", said)]
    assert train([str(XL), "--dry-run", "--steps", "1000", "--mfu", "0.7"]) == 0
    fast = [float(x.replace(",", "")) for x in re.findall(r"device-hours +([\d,.]+) at 70%", capsys.readouterr().out)]
    assert fast == pytest.approx([h / 2 for h in hours], rel=0.01)


@pytest.mark.parametrize(
    ("flags", "advice"),
    [
        ("--ranks 1 --nodes 1 --batch-size 4 --memory-gib 24", "set engine.offload_optimizer: true"),
        ("--engine.zero-stage 1 --engine.no-zero-init --memory-gib 8", "raise engine.zero_stage from 1 to 3"),
        ("--engine.no-activation-checkpointing --memory-gib 20", "set engine.activation_checkpointing: true"),
        ("--micro-batch 8 --memory-gib 6 --validation.every 0", "lower micro_batch from 8"),
        ("--memory-gib 8", "set validation.every: 0"),
    ],
)
def test_what_will_not_fit_is_refused_with_what_to_change(flags: str, advice: str) -> None:
    config = stage(XL / "3_joint.yaml", *flags.split())
    with pytest.raises(
        UserError, match=r"3_joint needs [\d,.]+ GiB per rank, h100 has about [\d,.]+ to use: "
    ) as error:
        check_fits(config, None)
    assert str(error.value).endswith(advice)


def test_a_cpu_rank_has_its_share_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    nano = stage(XL.parent / "nano" / "3_joint.yaml")
    check_fits(nano, None)
    monkeypatch.setattr("os.sysconf", lambda name: 2**20 if name == "SC_PAGE_SIZE" else 128)  # 128 MiB for two ranks
    with pytest.raises(UserError, match=r"cpu has about 0\.1 to use"):
        check_fits(nano, None)
