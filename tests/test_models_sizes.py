"""The table of sizes against a counter."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from syncflow import cli
from syncflow.models.d_dit import DualDiT
from syncflow.models.flops import Lengths, forward_cost
from syncflow.models.sizes import ADAPTORS, SIZES, lengths_of, model_config


@pytest.mark.parametrize("adaptor", ADAPTORS)
@pytest.mark.parametrize("lengths", [Lengths(6, 8, 8, 20, 5), Lengths(3, 9, 12, 31, 7)])
def test_costs_are_what_a_counter_counts(adaptor: str, lengths: Lengths) -> None:
    config = model_config("nano", adaptor)
    model = DualDiT(config)
    counter = FlopCounterMode(display=False)
    # The counter knows matrix products, not the fused attention of CPUs.
    with counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(
            torch.randn(1, 4, lengths.frames, lengths.rows, lengths.cols),
            torch.randn(1, 8, lengths.audio_frames),
            torch.rand(1),
            text=torch.randn(1, lengths.text_tokens, 384),
            video_time_s=torch.rand(1, lengths.frames, 2),
            audio_time_s=torch.rand(1, lengths.audio_frames, 2),
            fps=torch.ones(1),
            size=torch.full((1, 2), 64.0),
        )
    cost = forward_cost(config, lengths)
    counted = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    assert cost.total == counted["Global"]
    adaptors = sum(count for name, count in counted.items() if name.count(".") == 2 and ".adaptors." in name)
    assert cost.adaptors == adaptors


def test_the_audio_tower_is_the_smaller_part_of_a_joint_step() -> None:
    for size in SIZES:
        cost = forward_cost(SIZES[size], lengths_of(size, 256, 256, Fraction(2), 40))
        assert cost.audio <= 0.35 * cost.total


def test_command_prints_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sizes"]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("nano", "base", "xl", "512x512", "figure", "aligned"))
    assert cli.main(["sizes", "--sizes", "nanno"]) == 2
