"""Model directories, the pipeline and `syncflow generate`, on a model with random weights."""

from __future__ import annotations

import json
import shutil
import wave
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import TINY, random_model
from torch import Tensor

from syncflow import cli
from syncflow.errors import UserError
from syncflow.media import probe, write_wav
from syncflow.models.checkpoints import CARD, WEIGHTS, load_card, load_model, save_model
from syncflow.models.generation import Known, generate_joint, generate_sound, make_setting
from syncflow.models.guidance import Guidance
from syncflow.models.outputs import slug
from syncflow.models.pipeline import SyncFlowPipeline
from syncflow.models.prompts import parse_size
from syncflow.models.sampler import time_grid

# -- model directories ---------------------------------------------------------------------------------------------


def test_saved_model_is_loaded_as_it_was(tiny_model_dir: Path, tmp_path: Path) -> None:
    model, card = load_model(tiny_model_dir)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "lineage.json").write_text("{}")
    save_model(tmp_path / "model", model.state_dict(), card)
    again, card_again = load_model(tmp_path / "model", expected=card.model)
    assert card_again == card
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert torch.equal(model.video.rope.freqs, again.video.rope.freqs)
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == ["lineage.json", WEIGHTS, CARD]
    assert [p.name for p in tmp_path.iterdir()] == ["model"]  # nothing is left of the writing
    (tmp_path / "other").touch()
    assert (tmp_path / "model" / WEIGHTS).stat().st_mode == (tmp_path / "other").stat().st_mode


def test_another_configuration_is_refused_with_the_difference(tiny_model_dir: Path) -> None:
    wanted = TINY.model_copy(update={"video": TINY.video.model_copy(update={"depth": 3})})
    with pytest.raises(UserError, match=r"video\.depth is 2 there, 3 here"):
        load_model(tiny_model_dir, expected=wanted)


def test_damaged_model_directories_are_refused_in_one_line(tiny_model_dir: Path, tmp_path: Path) -> None:
    def broken(name: str) -> Path:
        return Path(shutil.copytree(tiny_model_dir, tmp_path / name))

    nan = broken("nan")
    state = load_file(nan / WEIGHTS)
    state["audio.output.weight"][0, 0] = float("nan")
    save_file(state, nan / WEIGHTS)
    short = broken("short")
    (short / WEIGHTS).write_bytes((short / WEIGHTS).read_bytes()[:1000])
    less = broken("less")
    del state["audio.output.weight"]
    save_file(state, less / WEIGHTS)
    card = broken("card")
    (card / CARD).write_text('{"model": {}, "colour": 3}')
    for folder, message in (
        (nan, "audio.output.weight holds NaN"),
        (short, "cannot be read"),
        (less, "audio.output.weight is missing"),
        (card, "unknown field colour"),
        (tmp_path / "none", "no such model directory"),
        (tmp_path, "is not a model directory"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            load_model(folder)
        assert "\n" not in str(caught.value)


# -- latents -------------------------------------------------------------------------------------------------------


def setting(model: object, batch: int = 1) -> object:
    time_v = (torch.arange(6)[:, None] / 8 + torch.tensor([0, 1 / 8])).expand(batch, -1, -1)
    time_a = (torch.arange(15)[:, None] / 20 + torch.tensor([0, 1 / 20])).expand(batch, -1, -1)
    g = torch.Generator().manual_seed(5)
    texts = [torch.randn(4 + i, 384, generator=g) for i in range(batch)]
    sizes = torch.full((batch, 2), 64.0)
    return make_setting(model, texts, time_v, time_a, torch.full((batch,), 8.0), sizes)  # type: ignore[arg-type]


def noise(batch: int = 1, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 4, 6, 8, 8, generator=g), torch.randn(batch, 8, 15, generator=g)


def test_guidance_in_one_batch_equals_two_calls_by_hand() -> None:
    model, where, z0 = random_model(), setting(random_model()), noise()
    guidance = Guidance(video=3.0, audio=2.0)
    video, audio = generate_joint(model, where, z0, [0.0, 1.0], guidance=guidance)  # type: ignore[arg-type]
    out = {}
    g = torch.Generator().manual_seed(5)
    text = torch.randn(1, 4, 384, generator=g)
    for null in (False, True):
        with torch.no_grad():
            out[null] = model(
                *z0, torch.zeros(1), text=text, null_text=torch.tensor([null]), video_time_s=where.video_time_s,  # type: ignore[attr-defined]
                audio_time_s=where.audio_time_s, fps=where.fps, size=where.size,  # type: ignore[attr-defined]
            )  # fmt: skip
    for found, start, scale, name in ((video, z0[0], 3.0, "video"), (audio, z0[1], 2.0, "audio")):
        conditional, unconditional = getattr(out[False], name), getattr(out[True], name)
        by_hand = start + unconditional + scale * (conditional - unconditional)
        torch.testing.assert_close(found, by_hand, atol=1e-4, rtol=1e-4)


def test_text_is_projected_once_and_guidance_is_one_batch() -> None:
    """In 4 steps: one call of every text projection altogether, one of the model per step with both captions."""
    model, calls, batches = random_model(), 0, []

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    for block in [*model.video.spatial_blocks, *model.video.temporal_blocks]:
        block.cross_attn.kv_linear.register_forward_hook(count)
    model.register_forward_pre_hook(lambda _, args: batches.append(len(args[0])))
    where = setting(model)
    generate_joint(model, where, noise(), time_grid(4), guidance=Guidance())  # type: ignore[arg-type]
    assert calls == 2 * TINY.video.depth
    assert batches == [2] * 4


def test_known_latents_come_out_as_they_are() -> None:
    model = random_model()
    where, z0 = setting(model), noise()
    video, audio = torch.randn_like(z0[0]), torch.randn_like(z0[1])
    first, beginning = torch.arange(6)[None] < 2, torch.arange(15)[None] < 5
    made = generate_joint(
        model, where, z0, time_grid(3), guidance=Guidance(), solver="heun",  # type: ignore[arg-type]
        known_video=Known(video, first), known_audio=Known(audio, beginning),
    )  # fmt: skip
    torch.testing.assert_close(made[0][:, :, :2], video[:, :, :2], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(made[1][:, :, :5], audio[:, :, :5], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(made[0][:, :, 2:], video[:, :, 2:], atol=0.1)


def test_noised_video_is_the_joint_flow_with_all_frames_known() -> None:
    model = random_model()
    where, z0 = setting(model), noise()
    video = torch.randn_like(z0[0])
    everything = Known(video, torch.ones(1, 6, dtype=torch.bool))
    _, joint = generate_joint(model, where, z0, time_grid(4), guidance=Guidance(), known_video=everything)  # type: ignore[arg-type]
    alone = generate_sound(model, where, video, z0, time_grid(4), guidance=Guidance(), shown="noised")  # type: ignore[arg-type]
    torch.testing.assert_close(alone, joint, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shown", ["clean", "noised", "once"])
def test_several_sounds_of_a_video_are_those_made_one_by_one(shown: str) -> None:
    model = random_model()
    where, video = setting(model), torch.randn(1, 4, 6, 8, 8)
    z0, sounds = noise()[0], torch.randn(3, 8, 15)
    together = generate_sound(model, where, video, (z0, sounds), time_grid(3), guidance=Guidance(), shown=shown)  # type: ignore[arg-type]
    for k in range(3):
        one = generate_sound(
            model, where, video, (z0, sounds[k : k + 1]), time_grid(3), guidance=Guidance(), shown=shown,  # type: ignore[arg-type]
        )  # fmt: skip
        torch.testing.assert_close(together[k : k + 1], one, atol=1e-4, rtol=1e-4)


# -- the pipeline --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipeline(tiny_model_dir: Path) -> SyncFlowPipeline:
    return SyncFlowPipeline.from_pretrained(tiny_model_dir)


def test_seed_decides_the_clip_whatever_is_beside_it(pipeline: SyncFlowPipeline) -> None:
    some = pipeline(["a drum", "rain"], seed=4, num_videos=2, steps=2)
    assert [(clip.prompt, clip.seed) for clip in some] == [("a drum", 4), ("a drum", 5), ("rain", 4), ("rain", 5)]
    (one,) = pipeline("rain", seed=5, steps=2)
    assert np.array_equal(one.frames, some[3].frames)
    assert np.array_equal(one.waveform, some[3].waveform)
    assert not np.array_equal(some[2].waveform, one.waveform)
    assert one.frames.shape == (32, 64, 64, 3)
    assert one.waveform.shape == (32000,)


def test_other_sizes_lengths_and_rates(pipeline: SyncFlowPipeline) -> None:
    (clip,) = pipeline("rain", size=(96, 72), duration_s=0.75, fps=Fraction(30000, 1001), steps=1, solver="rk4")
    assert clip.frames.shape == (23, 72, 96, 3)
    assert abs(len(clip.waveform) / 16000 - 23 * 1001 / 30000) < 1e-4


def test_video_gets_its_sound_and_keeps_its_frames(pipeline: SyncFlowPipeline) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (16, 64, 64, 3), dtype=np.uint8)
    first, second = pipeline("a drum", video=frames, num_videos=2, steps=2)
    assert np.array_equal(first.frames, frames)
    assert first.waveform.shape == (16000,)
    assert not np.array_equal(first.waveform, second.waveform)
    with pytest.raises(UserError, match="at least one frame"):
        pipeline("a drum", video=frames[:0])


def test_clips_are_saved_by_the_ending_of_a_name(pipeline: SyncFlowPipeline, tmp_path: Path) -> None:
    (clip,) = pipeline("rain", steps=1, duration_s=0.5)
    for name in ("a.mp4", "b.wav", "c.GIF"):
        clip.save(tmp_path / name)
    info = probe(tmp_path / "a.mp4")
    assert (info.width, info.height, info.duration_s, info.rate) == (64, 64, Fraction(1, 2), 16)
    with wave.open(str(tmp_path / "b.wav")) as sound:
        heard = np.frombuffer(sound.readframes(sound.getnframes()), dtype="<i2") / 32767
    assert np.abs(heard - clip.waveform).max() < 1e-4
    with Image.open(tmp_path / "c.gif") as gif:
        assert (gif.size, gif.n_frames) == ((64, 64), 8)  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"\.mp4, \.wav or \.gif"):
        clip.save(tmp_path / "d.avi")


def test_moved_to_bf16_it_is_what_loads_in_bf16(tiny_model_dir: Path) -> None:
    loaded = SyncFlowPipeline.from_pretrained(tiny_model_dir, dtype=torch.bfloat16)
    moved = SyncFlowPipeline.from_pretrained(tiny_model_dir).to("cpu", torch.bfloat16)
    assert {p.dtype for p in moved.model.parameters()} == {torch.bfloat16}
    (ours,), (theirs,) = moved("rain", steps=1, duration_s=0.5), loaded("rain", steps=1, duration_s=0.5)
    assert np.array_equal(ours.frames, theirs.frames)
    assert moved.to() is moved


def test_progress_is_told_and_batches_keep_the_order(pipeline: SyncFlowPipeline) -> None:
    told: list[tuple[int, int]] = []
    clips = pipeline(
        ["a", "b"],
        num_videos=2,
        batch_size=3,
        steps=2,
        duration_s=0.25,
        seed=5,
        on_step=lambda *done: told.append(done),
    )
    assert [(clip.prompt, clip.seed) for clip in clips] == [("a", 5), ("a", 6), ("b", 5), ("b", 6)]
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_calls_that_cannot_be_meant_are_refused(pipeline: SyncFlowPipeline) -> None:
    frames = np.zeros((8, 64, 64, 3), dtype=np.uint8)
    for message, arguments in (
        ("shown: 'dim' is not known", {"shown": "dim"}),
        ("not a rate", {"fps": "abc"}),
        ("uint8", {"video": frames / 255}),
        ("leave size out", {"video": frames, "size": (72, 72)}),
        ("seeds must lie", {"seed": -1}),
        ("between 0 and 100", {"guidance": float("nan")}),
        ("at least one prompt", {"num_videos": 0}),
    ):
        with pytest.raises(UserError, match=message):
            pipeline("rain", steps=1, **arguments)
    assert pipeline.check(fps=23.976).fps == Fraction(24000, 1001)


def test_pipeline_can_be_moved(pipeline: SyncFlowPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "a")
    shutil.move(tmp_path / "a", tmp_path / "b")
    moved = SyncFlowPipeline.from_pretrained(tmp_path / "b")
    assert load_card(tmp_path / "b").video_autoencoder.path == "video_autoencoder"
    assert np.array_equal(moved("rain", steps=1)[0].frames, pipeline("rain", steps=1)[0].frames)


def test_long_prompt_is_cut_with_a_note(pipeline: SyncFlowPipeline, caplog: pytest.LogCaptureFixture) -> None:
    pipeline("rain on a tin roof " * 100, steps=1, duration_s=0.25)
    assert "is cut at 128 tokens" in caplog.text


def test_weights_that_overflow_are_named(tiny_model_dir: Path) -> None:
    pipeline = SyncFlowPipeline.from_pretrained(tiny_model_dir)
    with torch.no_grad():
        pipeline.model.audio.output.weight.fill_(float("inf"))
    with pytest.raises(UserError, match="NaN or infinite"):
        pipeline("rain", steps=1)


# -- the command ---------------------------------------------------------------------------------------------------


def generate(*argv: object) -> int:
    return cli.main(["generate", *map(str, argv)])


def test_command_writes_clips_and_merges_the_manifest(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    common = ["--checkpoint", tiny_model_dir, "-o", out, "--steps", "1"]
    assert generate("a drum", "🥁", *common, "-n", "2") == 0
    rows = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert [(row["caption"], row["seed"], row["task"]) for row in rows] == [
        ("a drum", 0, "text_to_av"), ("a drum", 1, "text_to_av"), ("🥁", 0, "text_to_av"), ("🥁", 1, "text_to_av"),
    ]  # fmt: skip
    info = probe(out / rows[0]["uri"])
    assert (info.width, info.height, info.duration_s) == (64, 64, 2)
    assert info.audio is not None
    before = (out / rows[0]["uri"]).read_bytes()

    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": "a drum", "video": f"out/{rows[0]['uri']}", "events_s": [0.5]}) + "\n")
    assert generate("--prompts", prompts, *common) == 0
    assert generate("a drum", *common, "--size", "72x64", "--duration", "0.5", "--formats", "mp4", "wav", "gif") == 0
    rows = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert [row["task"] for row in rows[4:]] == ["video_to_audio", "text_to_av"]
    assert rows[4]["events_s"] == [0.5]
    assert {path.suffix for path in out.glob("*72x64*")} == {".mp4", ".wav", ".gif"}

    capsys.readouterr()
    assert generate("a drum", *common, "-n", "2") == 0
    assert "0 clips written" in capsys.readouterr().out
    (out / rows[0]["uri"]).unlink()
    assert generate("a drum", *common, "-n", "2") == 0
    assert "1 clips written" in capsys.readouterr().out
    assert (out / rows[0]["uri"]).read_bytes() == before


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([""], "prompt is empty"),
        ([], "give a prompt"),
        (["word " * 10_000], "10,000 words"),
        (["x", "--size", "65x64"], "multiples of 8"),
        (["x", "--size", "big"], "WIDTHxHEIGHT"),
        (["x", "--size", "90000x90000"], "smaller or shorter"),
        (["x", "--duration", "0"], "duration must be more than 0"),
        (["x", "--duration", "nan"], "duration must be a number"),
        (["x", "--duration", "1e7"], "at most 40 s"),
        (["x", "--fps", "0"], "rate must be positive"),
        (["x", "--steps", "0"], "steps"),
        (["x", "--guidance", "-1"], "between 0 and 100"),
        (["x", "--guidance", "nan"], "between 0 and 100"),
        (["x", "--audio-guidance", "1e9"], "between 0 and 100"),
        (["x", "--guidance-interval", "0.9", "0.1"], "start <= end"),
        (["x", "--guidance-rescale", "3"], "between 0 and 1"),
        (["x", "--seed", "-1"], "seed: input should be greater"),
        (["x", "-n", "0"], "num: input should be greater"),
        (["x", "--formats"], "formats"),
        (["x", "--duration", "0.001"], "shorter than one frame"),
        (["x", "--device", "meta"], "--device meta"),
        (["a\udcffb"], "not text in UTF-8"),
        (["x", "--video", "nothing.mp4"], "no such file"),
        (["x", "--begin-with", "nothing.png"], "no such file"),
        (["x", "--duration", "-1"], "duration must be more than 0"),
        (["x", "--size", "0x64"], "multiples of 8"),
        (["x", "--fps", "1000"], "at most 240"),
        (["x", "--prompts", "nothing.txt"], "cannot be read"),
        (["x", "--guidence", "2"], "did you mean --guidance"),
        (["x", "--checkpoint", "nowhere"], "no such model directory"),
    ],
)
def test_bad_input_is_one_clear_line(
    argv: list[str], message: str, tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = [] if "--checkpoint" in argv else ["--checkpoint", tiny_model_dir]
    assert generate(*argv, *checkpoint, "-o", tmp_path / "out") == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error


def test_videos_without_pictures_are_refused(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_wav(tmp_path / "sound.wav", np.zeros(16000, dtype=np.float32), 16000)
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("this is no video")
    for name, message in (("sound.wav", "no video stream"), ("empty.mp4", "empty"), ("text.mp4", "not a readable")):
        # A clip may begin with sound alone; a video whose sound is wanted must be one.
        for flag in ("--video",) if name == "sound.wav" else ("--video", "--begin-with"):
            argv = ["x", flag, tmp_path / name, "--checkpoint", tiny_model_dir, "-o", tmp_path / "out"]
            assert generate(*argv) == 2
            error = capsys.readouterr().err.strip()
            assert message in error
            assert "\n" not in error


def test_a_bad_row_of_many_is_named_before_anything_is_made(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = [json.dumps({"prompt": f"dog {i}"}) for i in range(1000)]
    for bad, message in (
        ('{"prompt": 5}', "want a row"),
        ('{"prompt": "x", "video": 3}', "want a row"),
        ('{"prompt": "x", "video": "none.mp4"}', "none.mp4: no such file"),
        ("nonsense", "want a row"),
        (json.dumps({"prompt": "word " * 6000}), "6,000 words"),
    ):
        (tmp_path / "prompts.jsonl").write_text("\n".join([*good[:700], bad, *good[700:]]))
        argv = ["--prompts", tmp_path / "prompts.jsonl", "--checkpoint", tiny_model_dir, "-o", tmp_path / "out"]
        assert generate(*argv) == 2
        error = capsys.readouterr().err.strip()
        assert f"prompts.jsonl:701: {message}" in error.replace("a prompt has ", "").replace(
            "want a row such", "want a row"
        )
        assert "\n" not in error
        assert not (tmp_path / "out").exists()


def test_folders_that_cannot_be_written_are_said_before_the_model_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "inside"):
        assert generate("x", "--checkpoint", tmp_path / "none", "-o", folder) == 2
        assert "is a file; give a folder" in capsys.readouterr().err

    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    assert generate("x", "--checkpoint", tmp_path / "none", "-o", tmp_path / "out") == 2
    error = capsys.readouterr().err.strip()
    assert "nothing can be written" in error
    assert "Permission denied" in error
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_no_half_written_file(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: object, __: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    for kind in ("wav", "gif"):
        argv = ["x", "--checkpoint", tiny_model_dir, "-o", tmp_path, "--steps", "1", "--duration", "0.25"]
        assert generate(*argv, "--formats", kind) == 2
        assert "No space left on device" in capsys.readouterr().err.splitlines()[-1]
        assert not list(tmp_path.iterdir())


def test_guidance_flags_hold_without_a_scale(tiny_model_dir: Path, tmp_path: Path) -> None:
    """--guidance-interval alone changes when the checkpoint's own guidance is at work."""
    made = []
    for flags in ([], ["--guidance-interval", "0", "0"]):
        argv = ["x", "--checkpoint", tiny_model_dir, "--steps", "1", "--duration", "0.25", "--formats", "wav"]
        assert generate(*argv, *flags, "-o", tmp_path / str(len(flags))) == 0
        made.append(next((tmp_path / str(len(flags))).glob("*.wav")).read_bytes())
    assert made[0] != made[1]


def test_prompts_with_any_line_break_keep_the_manifest_readable(tiny_model_dir: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        argv = [
            "a\u2028b\x85c\nd",
            "--checkpoint",
            tiny_model_dir,
            "-o",
            tmp_path,
            "--steps",
            "1",
            "--duration",
            "0.25",
        ]
        assert generate(*argv, "--seed", seed) == 0
    rows = (tmp_path / "manifest.jsonl").read_text().split("\n")
    assert [json.loads(row)["caption"] for row in rows if row] == ["a\u2028b\x85c\nd"] * 2


def test_damaged_weights_are_one_line_of_the_command(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))
    state = load_file(folder / WEIGHTS)
    state["video.t_block.1.weight"][3, 3] = float("nan")
    save_file(state, folder / WEIGHTS)
    assert generate("x", "--checkpoint", folder, "-o", tmp_path / "out") == 2
    error = capsys.readouterr().err.strip()
    assert "video.t_block.1.weight holds NaN" in error
    assert "\n" not in error


def test_no_checkpoint_says_how_to_get_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SYNCFLOW_CHECKPOINT", raising=False)
    assert generate("x", "-o", tmp_path) == 2
    assert "syncflow demo" in capsys.readouterr().err


def test_file_names_are_plain_and_distinct() -> None:
    assert slug("A dog barks.") == "a-dog-barks"
    names = {slug(p) for p in ("日本", "日", "🥁 drum", "drum", "é drum", "x" * 80, "x" * 81, "../../etc", "/")}
    assert len(names) == 9
    assert all(name.strip("-") and "/" not in name and "." not in name and len(name) < 70 for name in names)
    assert parse_size(" 64X32 ") == (64, 32)
