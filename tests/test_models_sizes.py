"""The table of sizes against a counter."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from syncflow import cli
from syncflow.models.config import ModelConfig
from syncflow.models.d_dit import DualDiT
from syncflow.models.flops import Lengths, forward_cost
from syncflow.models.sizes import ADAPTORS, SIZES, lengths_of, model_config


def counted(config: ModelConfig, lengths: Lengths, device: str) -> dict[str, int]:
    """FLOPs of one forward pass by module, as torch counts them; on meta nothing is computed."""
    with torch.device(device):
        model = DualDiT(config)
        v, a = config.video, config.audio
        # The counter knows matrix products, not the fused attention of CPUs.
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            model(
                torch.randn(1, v.in_channels, lengths.frames, lengths.rows, lengths.cols),
                torch.randn(1, a.in_channels, lengths.audio_frames),
                torch.rand(1),
                text=torch.randn(1, lengths.text_tokens, v.caption_channels),
                video_time_s=torch.rand(1, lengths.frames, 2),
                audio_time_s=torch.rand(1, lengths.audio_frames, 2),
                fps=torch.ones(1),
                size=torch.full((1, 2), 64.0),
            )
    return {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}


def check(config: ModelConfig, lengths: Lengths, device: str) -> None:
    cost, found = forward_cost(config, lengths), counted(config, lengths, device)
    assert cost.total == found["Global"]
    adaptors = sum(count for name, count in found.items() if name.count(".") == 2 and ".adaptors." in name)
    assert cost.adaptors == adaptors


@pytest.mark.parametrize("adaptor", ADAPTORS)
@pytest.mark.parametrize("lengths", [Lengths(6, 8, 8, 20, 5), Lengths(3, 9, 12, 31, 7)])
def test_costs_are_what_a_counter_counts(adaptor: str, lengths: Lengths) -> None:
    check(model_config("nano", adaptor), lengths, "cpu")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("adaptor", ["figure", "aligned"])
def test_costs_of_every_row_of_the_table(size: str, adaptor: str) -> None:
    for resolution in ((256, 256), (320, 184)):
        check(model_config(size, adaptor), lengths_of(size, *resolution, Fraction(2), 40), "meta")


def test_the_audio_tower_is_the_smaller_part_of_a_joint_step() -> None:
    for size in SIZES:
        cost = forward_cost(SIZES[size], lengths_of(size, 256, 256, Fraction(2), 40))
        assert cost.audio <= 0.35 * cost.total


def test_command_prints_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sizes"]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("nano", "base", "xl", "512x512", "figure", "aligned"))
    assert cli.main(["sizes", "--sizes", "nanno"]) == 2


def test_every_field_of_the_table_is_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["sizes", "--sizes", "nano", "--adaptors", "aligned", "--resolutions", "64x64"]
    assert cli.main(argv) == 0
    two = capsys.readouterr().out.splitlines()[1].split()
    assert cli.main([*argv, "--duration", "4", "--text-tokens", "20"]) == 0
    four = capsys.readouterr().out.splitlines()[1].split()
    assert (two[6], two[7], four[6], four[7]) == ("512", "32", "1,024", "64")
    for flags, message in (
        (["--duration", "0"], "greater than 0"),
        (["--resolutions", "65x64"], "multiples of 8"),
        (["--sizes", "huge"], "no size"),
    ):
        assert cli.main([*argv, *flags]) == 2
        error = capsys.readouterr().err.strip()
        assert message in error
        assert "\n" not in error
