"""Training small autoencoders: exact resume, determinism, the linear start, what it says about bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
import yaml
from safetensors.torch import save_file

from syncflow.cli import main
from syncflow.errors import UserError
from syncflow.models.autoencoders import AutoencoderSpec, load_audio_autoencoder, load_video_autoencoder
from syncflow.models.autoencoders.nano import new_nano_audio_autoencoder, new_nano_video_autoencoder
from syncflow.models.autoencoders.oobleck import fold, unfold
from syncflow.train import autoencoders
from syncflow.train.autoencoder_data import list_sources
from syncflow.train.autoencoder_losses import edge_loss, kl_to_standard_normal, onset_f1, psnr_db, stft_distance
from syncflow.train.autoencoder_perceptual import PerceptualConfig, load_perceptual
from syncflow.train.autoencoder_start import start_as_components, start_at_unit_scale

ROOT = Path(__file__).resolve().parent.parent
SMALL = {
    "job": "autoencoders",
    "clips": 4,
    "validation_clips": 1,
    "checkpoint_every": 2,
    "validate_every": 4,
    "video": {"steps": 4, "batch": 2},
    "audio": {"steps": 4, "batch": 1, "crop_s": 0.25},
}


class Notes:
    """A tracker that remembers, and that dies at a given report."""

    def __init__(self, dies_at: int = -1) -> None:
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.files: list[Path] = []
        self.dies_at = dies_at

    def __call__(self, config, run_name, spool_dir):
        return self

    def log(self, metrics, step):
        if len(self.logged) == self.dies_at:
            raise KeyboardInterrupt
        self.logged.append((step, dict(metrics)))

    def params(self, values): ...

    def tags(self, values): ...

    def artifact(self, path, folder=""):
        assert path.is_file()
        self.files.append(path)

    def close(self): ...


@pytest.fixture
def config(tmp_path) -> Path:
    path = tmp_path / "0_autoencoders.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    return path


def weights(output: Path) -> list[bytes]:
    return [(output / name / "diffusion_pytorch_model.safetensors").read_bytes() for name in ("video", "audio")]


def test_resume_is_exact_and_done_is_done(config, impacts_dir, tmp_path):
    """Interrupted in either half and started again, the files are those of an uninterrupted run."""
    argv = ["--input", str(impacts_dir)]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    notes = Notes()
    assert autoencoders.main(config, [*argv, "--output", str(whole)], notes) == 0
    for dies_at in (3, 2):
        with pytest.raises(KeyboardInterrupt):
            autoencoders.main(config, [*argv, "--output", str(parts)], Notes(dies_at))
    assert not (parts / "done.json").exists()
    assert autoencoders.main(config, [*argv, "--output", str(parts)], Notes()) == 0
    assert weights(whole) == weights(parts)

    report = json.loads((whole / "done.json").read_text())
    assert report == json.loads((parts / "done.json").read_text())
    assert any("video/psnr_db" in metrics for _, metrics in notes.logged)
    assert {file.suffix for file in notes.files} == {".png", ".wav"}

    spec = AutoencoderSpec(kind="image", path=str(whole / "video"), sha256=report["video"]["sha256"])
    assert load_video_autoencoder(spec).latent_shape(32, 64, 64) == (4, 32, 8, 8)
    audio = load_audio_autoencoder(AutoencoderSpec(kind="oobleck", path=str(whole / "audio")))
    assert audio.latent_shape(32000) == (8, 80)

    again = Notes()
    assert autoencoders.main(config, [*argv, "--output", str(whole)], again) == 0
    assert not again.logged
    with pytest.raises(UserError, match="another seed"):
        autoencoders.main(config, [*argv, "--output", str(whole), "--seed", "1"], Notes())


@pytest.mark.slow
def test_killed_and_started_again(config, impacts_dir, tmp_path):
    """SIGKILL right after the first checkpoint; the second start ends with an uninterrupted run's weights."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    def command(output: Path) -> list[str]:
        flags = ["--input", str(impacts_dir), "--output", str(output), "--tracking.no-enabled"]
        return [sys.executable, "-m", "syncflow", "train", str(config), *flags]

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command(whole), check=True, cwd=ROOT, env=environment, capture_output=True)
    process = subprocess.Popen(command(killed), cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    deadline_s = time.monotonic() + 240
    while not (killed / "checkpoints" / "video.safetensors").exists() and time.monotonic() < deadline_s:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    subprocess.run(command(killed), check=True, cwd=ROOT, env=environment, capture_output=True)
    assert weights(whole) == weights(killed)


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--input", "nowhere"], "nowhere"),
        (["--input", "EMPTY"], "no videos here"),
        (["--input", "BROKEN"], "none of 1 videos could be read"),
        (["--input", "EMPTY", "--width", "60"], "multiples of 8"),
    ],
)
def test_bad_input_is_one_line(config, tmp_path, flags, problem):
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "BROKEN").mkdir()
    (tmp_path / "BROKEN" / "a.mp4").write_bytes(b"not a video")
    flags = [str(tmp_path / flag) if flag.isupper() else flag for flag in flags]
    with pytest.raises(UserError, match=problem) as error:
        autoencoders.main(config, [*flags, "--output", str(tmp_path / "out")], Notes())
    assert "\n" not in str(error.value)


def test_unknown_field_is_named(config, tmp_path):
    config.write_text(yaml.safe_dump({**SMALL, "stepps": 3}))
    with pytest.raises(UserError, match="unknown field stepps"):
        autoencoders.main(config, ["--output", str(tmp_path)], Notes())


def test_manifests_name_files_beside_them(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"uri": "a.mp4", "caption": "x"}\n\n{"uri": "b/c.mp4"}\n')
    (tmp_path / "m.csv").write_text("file,label\na.mp4,dog\n")
    assert list_sources(str(tmp_path / "m.jsonl")) == [tmp_path / "a.mp4", tmp_path / "b/c.mp4"]
    assert list_sources(str(tmp_path / "m.csv")) == [tmp_path / "a.mp4"]
    (tmp_path / "m.jsonl").write_text("{not json\n")
    with pytest.raises(UserError, match="not a manifest"):
        list_sources(str(tmp_path / "m.jsonl"))


def test_the_start_is_the_best_linear_code():
    """Before any step the network reconstructs as principal components do, with latents of unit scale."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(6, 192, generator=generator) * torch.tensor([2.0, 1.5, 1.0, 0.7, 0.3, 0.1])[:, None] / 10
    codes = torch.randn(16 * 64, 6, generator=generator)
    folded = (codes @ basis + 0.2).view(16, 8, 8, 192).permute(0, 3, 1, 2)
    net = new_nano_video_autoencoder(0)
    start_as_components(net, folded)
    with torch.no_grad():
        latents = net.encode(folded).latent_dist.mean
        decoded = net.decode(latents).sample
    values = folded.permute(0, 2, 3, 1).reshape(-1, 192)
    centred = values - values.mean(0)
    left, sizes, right = torch.linalg.svd(centred, full_matrices=False)
    linear = left[:, :4] * sizes[:4] @ right[:4]
    best = (centred - linear).square().mean()
    assert (decoded - folded).square().mean() < 1.5 * best
    torch.testing.assert_close(latents.std(dim=(0, 2, 3)), torch.ones(4), atol=0.2, rtol=0)


def test_sound_starts_at_unit_scale():
    net = new_nano_audio_autoencoder(0)
    waves = fold(torch.randn(4, 8000) * 0.1, 20)
    start_at_unit_scale(net, waves)
    with torch.no_grad():
        posterior = net.encode(waves).latent_dist
    torch.testing.assert_close(posterior.mean.std(dim=(0, 2)), torch.ones(8), atol=1e-3, rtol=0)
    assert posterior.std.mean() < 0.2


def test_folded_samples_are_successive():
    wave = torch.arange(12.0)[None]
    folded = fold(wave, 3)
    assert folded[0, :, 1].tolist() == [3, 4, 5]
    assert torch.equal(unfold(folded), wave)


def test_what_starts_where_it_should_counts():
    rate = 16000
    silence = np.zeros((1, 2 * rate), np.float32)
    clicks = silence.copy()
    clicks[0, [6000, 20000]] = 0.5
    once = silence.copy()
    once[0, 6000] = 0.5
    late = np.roll(clicks, 3200, axis=1)  # 200 ms
    assert onset_f1(clicks, clicks, rate) == 1
    assert onset_f1(clicks, once, rate) == pytest.approx(2 / 3)
    assert onset_f1(clicks, late, rate) == 0
    assert onset_f1(clicks, silence, rate) == 0


@pytest.mark.slow
def test_minutes_of_training_make_impacts_audible(tmp_path: Path):
    assert main(["impacts", "render", "40", "-o", str(tmp_path / "videos"), "--seed", "1"]) == 0
    flags = ["--input", str(tmp_path / "videos"), "--output", str(tmp_path / "out"), "--video.steps", "1"]
    assert main(["train", "configs/nano/0_autoencoders.yaml", *flags]) == 0
    metrics = json.loads((tmp_path / "out" / "done.json").read_text())["audio"]["metrics"]
    assert metrics["onset_f1"] > 0.7  # 0.89 to 0.94 where it was measured; a hum has 0


def test_losses_know_their_zeros():
    frames, waves = torch.rand(2, 3, 16, 16), torch.randn(2, 4096)
    assert edge_loss(frames, frames) == 0
    assert edge_loss(frames + 0.3, frames) < 1e-6  # brightness is not an edge
    assert stft_distance(waves, waves) == 0
    assert stft_distance(-waves, waves) < 1e-6  # polarity is not heard
    assert stft_distance(waves * 0.5, waves) > 0.5
    assert kl_to_standard_normal(torch.zeros(3), torch.ones(3)) == 0
    torch.testing.assert_close(kl_to_standard_normal(torch.ones(1), torch.ones(1)), torch.tensor(0.5))
    torch.testing.assert_close(psnr_db(torch.full((1,), 0.2), torch.zeros(1)), torch.tensor(20.0))


@pytest.fixture(scope="module")
def vgg16_folder(tmp_path_factory):
    """VGG16 with random weights, saved as the hub's repository is: with a classifier that nobody needs."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vgg16")
    state = {f"features.{name}": value for name, value in torchvision.models.vgg16().features.state_dict().items()}
    save_file({**state, "head.fc.weight": torch.zeros(2, 3)}, folder / "model.safetensors")
    return folder


def test_perceptual_distance_is_a_distance_of_pictures(vgg16_folder):
    distance, identity = load_perceptual(PerceptualConfig(path=str(vgg16_folder)))
    g = torch.Generator().manual_seed(0)
    picture = torch.nn.functional.interpolate(torch.rand(2, 3, 8, 8, generator=g), size=48, mode="bilinear") * 2 - 1
    noise = 0.3 * torch.randn(picture.shape, generator=g)
    assert distance(picture, picture) == 0
    amounts = [distance(picture + share * noise, picture).item() for share in (0.1, 0.3, 1.0)]
    assert 0 < amounts[0] < amounts[1] < amounts[2] < 10  # at most 2 for each of five layers
    torch.testing.assert_close(distance(picture + noise, picture), distance(picture, picture + noise))

    decoded = (picture + noise).requires_grad_()
    target = picture.clone().requires_grad_()
    distance(decoded, target).backward()
    slope = decoded.grad
    assert slope is not None
    assert slope.norm() > 0
    assert target.grad is None
    assert all(parameter.grad is None for parameter in distance.parameters())
    moved = decoded.detach() - 1e-2 * slope / slope.norm()
    assert distance(moved, picture) < distance(decoded, picture)

    again, _ = load_perceptual(PerceptualConfig(path=str(vgg16_folder), sha256=identity.sha256))
    assert again(picture + noise, picture) == distance(picture + noise, picture)


def test_perceptual_weights_that_are_others_are_refused(vgg16_folder, tmp_path):
    with pytest.raises(UserError, match=r"video\.perceptual\.path.*is wanted"):
        load_perceptual(PerceptualConfig(path=str(vgg16_folder), sha256="0" * 64))
    with pytest.raises(UserError, match=r"video\.perceptual\.path: no folder"):
        load_perceptual(PerceptualConfig(path=str(tmp_path / "none")))
    save_file({"features.0.weight": torch.zeros(8, 3, 3, 3)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="does not hold VGG16"):
        load_perceptual(PerceptualConfig(path=str(tmp_path)))


def test_training_with_a_perceptual_network(vgg16_folder, config, impacts_dir, tmp_path, capsys):
    """Its distance is a term of the loss and a figure of the validation; without it a line says what stands in."""
    argv = ["--input", str(impacts_dir), "--audio.steps", "1", "--video.steps", "2"]
    for flags, said in (([], "edges stand in"), (["--video.perceptual.path", str(vgg16_folder)], "judged by VGG16")):
        notes, output = Notes(), tmp_path / said.split()[0]
        autoencoders.main(config, [*argv, *flags, "--output", str(output)], notes)
        assert said in capsys.readouterr().err
        first = next(values for _, values in notes.logged)
        metrics = json.loads((output / "done.json").read_text())["video"]["metrics"]
        assert ("video/perceptual" in first) == bool(flags) == ("perceptual_distance" in metrics)
        if flags:
            assert first["video/perceptual"] > 0
