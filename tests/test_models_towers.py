"""The video tower against the public code's output; what reaches what in the dual transformer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from plain_stdit3 import plain_stdit3
from safetensors.torch import load_file, save_file
from tiny import TINY, random_model
from torch import Tensor

from syncflow.errors import UserError
from syncflow.models.config import AudioTowerConfig, ModelConfig, VideoTowerConfig
from syncflow.models.d_dit import DualDiT
from syncflow.models.positions import Rotary, rotate, seconds_rotation, spatial_positions
from syncflow.models.sizes import ADAPTORS, SIZES, model_config
from syncflow.models.video_tower import VideoTower


def inputs(batch: int = 2, *, size: tuple[int, int] = (64, 64), frames: int = 6, tokens: int = 5, seed: int = 0) -> Any:
    """Arguments of DualDiT for the tiny model."""
    g = torch.Generator().manual_seed(seed)
    time_v = torch.arange(frames)[:, None] / 8 + torch.tensor([0, 1 / 8])
    time_a = torch.arange(15)[:, None] / 20 + torch.tensor([0, 1 / 20])
    return {
        "video": torch.randn(batch, 4, frames, size[0] // 8, size[1] // 8, generator=g),
        "audio": torch.randn(batch, 8, 15, generator=g),
        "t": torch.rand(batch, generator=g),
        "text": torch.randn(batch, tokens, 384, generator=g),
        "text_mask": torch.ones(batch, tokens, dtype=torch.bool),
        "video_time_s": time_v.expand(batch, -1, -1),
        "audio_time_s": time_a.expand(batch, -1, -1),
        "fps": torch.full((batch,), 8.0),
        "size": torch.tensor([[float(s) for s in size]] * batch),
    }


@pytest.fixture(scope="module")
def model() -> DualDiT:
    return random_model()


# -- the golden file -----------------------------------------------------------------------------------------------


def golden(shared: Path) -> tuple[Path, dict[str, Any], dict[str, Tensor]]:
    folder = shared / "reference"
    return (
        folder / "stdit3_a_weights.safetensors",
        json.loads((folder / "stdit3_a.json").read_text()),
        load_file(folder / "stdit3_a_io.safetensors"),
    )


@pytest.mark.parametrize("sigma", [True, False])
def test_video_tower_equals_the_public_code(shared: Path, sigma: bool) -> None:
    weights, about, io = golden(shared)
    tower = VideoTower.from_open_sora(weights, about["config"], sigma=sigma)
    batch = len(io["x"])
    with torch.no_grad():
        out = tower(
            io["x"], io["timestep"], io["y"], mask=io["mask"], fps=torch.full((batch,), float(about["fps"])),
            height=torch.full((batch,), float(about["height"])), width=torch.full((batch,), float(about["width"])),
        )  # fmt: skip
    assert out.shape[1] == (8 if sigma else 4)
    assert (out - io["out"][:, : out.shape[1]]).abs().max() < 1e-5


def test_weights_load_from_the_hubs_layout(shared: Path, tmp_path: Path) -> None:
    weights, about, _ = golden(shared)
    runtime = {
        "return_dict": True,
        "id2label": {"0": "LABEL_0"},
        "model_type": "STDiT3",
        "enable_flash_attn": True,
        "class_dropout_prob": 0.1,
        "input_size": [None] * 3,
    }
    (tmp_path / "config.json").write_text(json.dumps({**about["config"], **runtime}))
    state = load_file(weights)
    names = sorted(state)
    shards = {"model-00001-of-00002.safetensors": names[:30], "model-00002-of-00002.safetensors": names[30:]}
    for file, part in shards.items():
        save_file({name: state[name] for name in part}, tmp_path / file)
    index = {name: file for file, part in shards.items() for name in part}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    sharded = VideoTower.from_open_sora(tmp_path)
    single = VideoTower.from_open_sora(weights, about["config"])
    assert all(torch.equal(a, b) for a, b in zip(sharded.parameters(), single.parameters(), strict=True))
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match="no such file"):
        VideoTower.from_open_sora(tmp_path)


def test_weights_of_another_configuration_are_refused(shared: Path, tmp_path: Path) -> None:
    weights, about, _ = golden(shared)
    with pytest.raises(UserError, match=r"spatial_blocks\.2.*is missing"):
        VideoTower.from_open_sora(weights, {**about["config"], "depth": 3})
    with pytest.raises(UserError, match="did you mean hidden_size"):
        VideoTower.from_open_sora(weights, {**about["config"], "hiden_size": 64})
    broken = tmp_path / "w.safetensors"
    shutil.copy(weights, broken)
    broken.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(UserError, match="cannot be read"):
        VideoTower.from_open_sora(broken, about["config"])


def test_other_exports_of_the_same_weights_load(shared: Path, tmp_path: Path) -> None:
    """Wrapped by a trainer, cast to half precision, without the constant frequencies, with less said in config.json."""
    weights, about, io = golden(shared)
    state = load_file(weights)
    state["rope.freqs"] = Rotary(16).freqs.clone()  # the golden file's are random, the public ones constant
    save_file(state, tmp_path / "constant.safetensors")
    single = VideoTower.from_open_sora(tmp_path / "constant.safetensors", about["config"])
    expected = call(single, io, about)
    (tmp_path / "constant.safetensors").unlink()
    short = {key: value for key, value in about["config"].items() if key not in ("qk_norm", "pred_sigma", "patch_size")}
    more = {"_class_name": "STDiT3", "torch_dtype": "float16", "patch_size": about["config"]["patch_size"]}
    (tmp_path / "config.json").write_text(json.dumps({"config": {**short, **more}}))
    extra = {"module.pos_embed.inv_freq": torch.ones(4)}
    save_file({f"module.{k}": v for k, v in state.items() if k != "rope.freqs"} | extra, tmp_path / "model.safetensors")
    wrapped = VideoTower.from_open_sora(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(wrapped.parameters(), single.parameters(), strict=True))
    torch.testing.assert_close(wrapped.rope.freqs, single.rope.freqs)
    for dtype in (torch.float16, torch.bfloat16):
        save_file({name: tensor.to(dtype) for name, tensor in state.items()}, tmp_path / "model.safetensors")
        half = VideoTower.from_open_sora(tmp_path)
        assert all(p.dtype == torch.float32 for p in half.parameters())
        torch.testing.assert_close(half.rope.freqs, single.rope.freqs)
        assert (call(half, io, about) - expected).norm() < 0.02 * expected.norm()


def call(tower: VideoTower, io: dict[str, Tensor], about: dict[str, Any]) -> Tensor:
    where = {name: torch.tensor([float(about[name])]) for name in ("fps", "height", "width")}
    with torch.no_grad():
        return tower(io["x"], io["timestep"], io["y"], mask=io["mask"], **where)


def test_pickled_weights_are_refused_politely(shared: Path, tmp_path: Path) -> None:
    about = golden(shared)[1]
    torch.save({}, tmp_path / "pytorch_model.bin")
    for path in (tmp_path, tmp_path / "pytorch_model.bin"):
        with pytest.raises(UserError, match=r"only \.safetensors are read"):
            VideoTower.from_open_sora(path, about["config"])
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(UserError, match="not an index"):
        VideoTower.from_open_sora(tmp_path, about["config"])


def test_a_ragged_mask_is_the_text_cut_short(shared: Path) -> None:
    """Each example alone, with its own tokens only, gives what the batch with its padding gave; one mask serves all."""
    weights, about, io = golden(shared)
    tower = VideoTower.from_open_sora(weights, about["config"])
    together = call(tower, io, about)
    for i, length in enumerate(io["mask"].sum(1).tolist()):
        one = {name: io[name][i : i + 1] for name in ("x", "timestep")}
        short = {**one, "y": io["y"][i : i + 1, :, :length], "mask": torch.ones(1, length)}
        torch.testing.assert_close(call(tower, short, about), together[i : i + 1], atol=1e-5, rtol=1e-4)
    same = {**io, "mask": io["mask"][:1]}
    torch.testing.assert_close(call(tower, same, about)[:1], together[:1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("other", "shape"),
    [
        ({}, (2, 5, 9, 7)),
        ({"depth": 1, "hidden_size": 72, "num_heads": 6, "qk_norm": False}, (1, 1, 4, 6)),
        ({"patch_size": [2, 1, 3], "in_channels": 3, "pred_sigma": False}, (2, 3, 5, 4)),
        ({"mlp_ratio": 2.5, "input_sq_size": 512, "caption_channels": 48, "model_max_length": 20}, (3, 2, 3, 10)),
    ],
)
def test_other_configurations_equal_the_plain_twin(other: dict[str, Any], shape: tuple[int, ...], shared: Path) -> None:
    """Odd and oblong sides, clean frames, captions with gaps and one without any token, other widths and patches."""
    config = {**golden(shared)[1]["config"], **other}
    tower = VideoTower(VideoTowerConfig(**config)).eval()
    g = torch.Generator().manual_seed(sum(shape))
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=g) * parameter[0].numel() ** -0.5)
    batch, frames, rows, cols = shape
    length = config["model_max_length"]
    x = torch.randn(batch, config["in_channels"], frames, rows, cols, generator=g)
    timestep, y = (
        1000 * torch.rand(batch, generator=g),
        torch.randn(batch, length, config["caption_channels"], generator=g),
    )
    mask = torch.rand(batch, length, generator=g) < 0.5
    mask[0] = False
    noisy = torch.rand(batch, -(-frames // config["patch_size"][0]), generator=g) < 0.5
    where = {"fps": 24.0, "height": 8.0 * rows, "width": 8.0 * cols + 4}
    with torch.no_grad():
        ours = tower(x, timestep, y, mask=mask, x_mask=noisy, **where)
        plain = plain_stdit3(tower.state_dict(), config, x, timestep, y, mask, noisy, **where)
    torch.testing.assert_close(ours, plain, atol=2e-5, rtol=1e-4)


# -- positions -----------------------------------------------------------------------------------------------------


def test_a_patch_has_the_same_position_at_twice_the_size() -> None:
    small = spatial_positions(4, 4, 16, torch.tensor([[64.0, 64.0]]), 64).view(4, 4, 16)
    large = spatial_positions(8, 8, 16, torch.tensor([[128.0, 128.0]]), 64).view(8, 8, 16)
    # Twice the pixels halve the step between patches, so every second patch lies where one of the small picture did.
    torch.testing.assert_close(large[::2, ::2], small)


def test_rotation_in_seconds_depends_on_differences_only() -> None:
    q, k = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)

    def score(a: float, b: float) -> Tensor:
        turn = [seconds_rotation(torch.tensor([[s]]), 8) for s in (a, b)]
        return (rotate(q, turn[0]) * rotate(k, turn[1])).sum()

    torch.testing.assert_close(score(0.3, 0.1), score(1.7, 1.5), atol=1e-4, rtol=1e-4)


def test_rotary_frequencies_stay_exact_in_bf16() -> None:
    exact = Rotary(16)
    torch.testing.assert_close(Rotary(16).bfloat16().freqs, exact.freqs)


# -- the dual transformer ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adaptor", ADAPTORS)
def test_information_flows_from_video_to_audio_and_not_back(adaptor: str) -> None:
    config = ModelConfig(video=TINY.video, adaptor=model_config("nano", adaptor).adaptor, audio=TINY.audio)
    model, x = random_model(config), inputs()
    out = model(**x)
    other = model(**{**x, "audio": torch.randn_like(x["audio"])})
    assert torch.equal(out.video, other.video)
    moved = model(**{**x, "video": x["video"] + 0.5})
    assert (moved.audio - out.audio).abs().max() > 1e-3
    alone = model(**{**x, "audio": None})
    assert alone.audio is None
    assert torch.equal(alone.video, out.video)


def test_gradients_reach_what_is_trained_and_nothing_else() -> None:
    model, x = random_model(), inputs()
    model(**x, train_video=False).audio.square().mean().backward()
    assert all(p.grad is None for p in model.video.parameters())
    for part in ("adaptors", "audio"):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parts()[part].parameters())
    model.zero_grad()
    out = model(**x, null_text=torch.tensor([True, False]))
    (out.video.square().mean() + out.audio.square().mean()).backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None}
    assert reached == {name for name, _ in model.named_parameters()}


def test_frozen_video_tower_keeps_no_activations() -> None:
    model, x = random_model(), inputs()

    def kept(train_video: bool) -> int:
        sizes: list[int] = []

        def pack(tensor: Tensor) -> Tensor:
            sizes.append(tensor.numel() * tensor.element_size())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(**x, train_video=train_video)
        return sum(sizes)

    assert kept(False) < 0.35 * kept(True)


def test_neighbours_and_padding_do_not_change_an_example(model: DualDiT) -> None:
    x = inputs(3)
    x["text_mask"][1, 3:] = False
    both = model(**x)
    alone = model(**{name: value[1:2] for name, value in x.items()})
    torch.testing.assert_close(both.video[1:2], alone.video, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(both.audio[1:2], alone.audio, atol=1e-5, rtol=1e-5)
    short = {name: value[1:2] for name, value in x.items()}
    short |= {"text": short["text"][:, :3], "text_mask": short["text_mask"][:, :3]}
    torch.testing.assert_close(model(**short).video, alone.video, atol=1e-5, rtol=1e-5)


def test_padded_frames_do_not_change_the_others(model: DualDiT) -> None:
    x = inputs(1)
    whole = model(**x)
    padded = {
        **x,
        "video": torch.cat([x["video"], 9 * torch.ones(1, 4, 2, 8, 8)], 2),
        "video_time_s": torch.cat([x["video_time_s"], torch.zeros(1, 2, 2)], 1),
        "video_mask": torch.arange(8)[None] < 6,
        "audio": torch.cat([x["audio"], 9 * torch.ones(1, 8, 4)], 2),
        "audio_time_s": torch.cat([x["audio_time_s"], torch.zeros(1, 4, 2)], 1),
        "audio_mask": torch.arange(19)[None] < 15,
    }
    out = model(**padded)
    torch.testing.assert_close(out.video[:, :, :6], whole.video, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out.audio[:, :, :15], whole.audio, atol=1e-5, rtol=1e-5)


def test_null_caption_replaces_the_text(model: DualDiT) -> None:
    x = inputs()
    null = torch.tensor([True, False])
    out = model(**x, null_text=null)
    other = model(**{**x, "text": torch.randn_like(x["text"])}, null_text=null)
    assert torch.equal(out.video[0], other.video[0])
    assert not torch.equal(out.video[1], other.video[1])


def test_an_example_without_text_is_finite(model: DualDiT) -> None:
    x = inputs()
    x["text_mask"][0] = False
    out = model(**x)
    assert torch.isfinite(out.video).all()
    assert torch.isfinite(out.audio).all()


def test_kept_text_and_shared_video_give_the_same(model: DualDiT) -> None:
    x = inputs(2)
    kept = {**x, "text": model.encode_text(x["text"], x["text_mask"], keep=True)}
    out, again = model(**x), model(**kept)
    torch.testing.assert_close(again.video, out.video, atol=1e-6, rtol=1e-5)
    three = torch.randn(6, 8, 15)
    shared = model(**{**x, "audio": three}).audio
    for k in range(3):
        one = model(**{**x, "audio": three[k::3]}).audio
        torch.testing.assert_close(shared[k::3], one, atol=1e-5, rtol=1e-5)


def test_seeing_once_is_the_same_as_seeing_at_that_time(model: DualDiT) -> None:
    x = inputs(1)
    about = {name: x[name] for name in ("text", "text_mask", "video_time_s", "fps", "size")}
    seen = model.see(x["video"], x["t"], **about)
    heard = model.hear(x["audio"], x["t"], seen, audio_time_s=x["audio_time_s"])
    torch.testing.assert_close(heard, model(**x).audio, atol=1e-6, rtol=1e-5)


def test_known_frames_are_modulated_as_clean(model: DualDiT) -> None:
    x = inputs(1)
    none = model(**x, known_frames=torch.zeros(1, 6, dtype=torch.bool))
    torch.testing.assert_close(none.video, model(**x).video, atol=1e-6, rtol=1e-5)
    some = model(**x, known_frames=torch.arange(6)[None] < 2)
    assert not torch.allclose(some.video, none.video)


@pytest.mark.parametrize("size", [(64, 64), (72, 56), (128, 96)])
def test_any_size_even_odd_latents(model: DualDiT, size: tuple[int, int]) -> None:
    x = inputs(1, size=size)
    out = model(**x)
    assert out.video.shape == x["video"].shape
    assert out.audio.shape == x["audio"].shape


def test_checkpointing_is_exact_and_bf16_is_near() -> None:
    model, x = random_model(), inputs()

    def run() -> tuple[Tensor, list[Tensor]]:
        model.zero_grad()
        out = model(**x)
        (out.video.square().mean() + out.audio.square().mean()).backward()
        return out.audio.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]

    plain, grads = run()
    model.checkpoint_activations()
    again, grads_again = run()
    torch.testing.assert_close(again, plain, atol=1e-6, rtol=1e-5)
    assert all(torch.allclose(a, b, atol=1e-5, rtol=1e-4) for a, b in zip(grads, grads_again, strict=True))
    half = model.bfloat16()(**x)
    assert (half.audio - plain).norm() / plain.norm() < 0.05


def test_meta_construction_then_init() -> None:
    with torch.device("meta"):
        model = DualDiT(SIZES["nano"])
        xl = DualDiT(SIZES["xl"])
    assert 1.0e9 < sum(p.numel() for p in xl.video.parameters()) < 1.25e9  # published as 1.1 B
    model.to_empty(device="cpu")
    model.init_weights()
    assert all(torch.isfinite(p).all() for p in model.parameters())
    torch.manual_seed(0)
    fresh = DualDiT(SIZES["nano"])
    assert torch.equal(model.video.rope.freqs, fresh.video.rope.freqs)
    out = model(**{**inputs(), "text": torch.randn(2, 5, 384)})
    assert out.video.abs().max() == 0  # output layers start at zero


def test_impossible_configurations_are_refused() -> None:
    with pytest.raises(ValueError, match="heads"):
        VideoTowerConfig(hidden_size=100, num_heads=16)
    with pytest.raises(ValueError, match="heads"):
        AudioTowerConfig(hidden_size=100, num_heads=3)
    with pytest.raises(UserError, match="did you mean nano"):
        model_config("nanoo")
