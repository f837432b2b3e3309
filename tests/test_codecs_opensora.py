"""Open-Sora's VAE 1.2 against the public code's output."""

from __future__ import annotations

import json
from fractions import Fraction

import pytest
import torch
from safetensors.torch import load_file

from syncflow.errors import UserError
from syncflow.models.autoencoders import AutoencoderSpec, load_video_autoencoder
from syncflow.models.autoencoders.opensora import SHIFT, OpenSoraAutoencoder, OpenSoraNet
from syncflow.models.autoencoders.opensora_temporal import CausalConv3d


@pytest.fixture(scope="module")
def golden(shared, tmp_path_factory):
    """The golden weights in the hub's layout, loaded by the hub's file names, and the golden tensors."""
    folder = tmp_path_factory.mktemp("OpenSora-VAE-v1.2")
    reference = shared / "reference" / "opensora_vae_a"
    (folder / "config.json").write_text(reference.with_suffix(".json").read_text())
    (folder / "model.safetensors").symlink_to(f"{reference}_weights.safetensors")
    autoencoder = load_video_autoencoder(AutoencoderSpec(kind="opensora", path=str(folder)))
    return autoencoder, load_file(f"{reference}_io.safetensors"), folder


def test_golden_posterior_and_frames(golden):
    autoencoder, io, _ = golden
    posterior = autoencoder.encode(io["frames"])
    assert (posterior.mean - io["mean"]).abs().max() <= 1e-4
    assert (posterior.std - io["std"]).abs().max() <= 1e-4
    decoded = autoencoder.decode(io["mean"], io["frames"].shape[2])
    assert (decoded - io["decoded"]).abs().max() <= 1e-3


@pytest.mark.parametrize(("num_frames", "latents"), [(1, 1), (16, 4), (17, 5), (18, 6), (32, 9), (35, 11)])
def test_chunks_of_seventeen(golden, num_frames, latents):
    autoencoder = golden[0]
    frames = torch.rand(1, 3, num_frames, 16, 24) * 2 - 1
    mean = autoencoder.encode(frames).mean
    assert mean.shape == (1, *autoencoder.latent_shape(num_frames, 16, 24)) == (1, 4, latents, 2, 3)
    assert autoencoder.decode(mean, num_frames).shape == frames.shape
    assert len(autoencoder.grid(num_frames, Fraction(24))) == latents


def test_the_grid_is_uneven_and_true(golden):
    """Latent frames move only with frames of their own chunk, and the first of a chunk holds one frame."""
    autoencoder = golden[0]
    spans = autoencoder.grid(32, Fraction(16)).spans
    assert [span.duration_s * 16 for span in spans] == [1, 4, 4, 4, 4, 3, 4, 4, 4]
    frames = torch.rand(1, 3, 32, 16, 16)
    other = frames.clone()
    other[:, :, 17:] = 0
    ours, theirs = autoencoder.encode(frames).mean, autoencoder.encode(other).mean
    torch.testing.assert_close(ours[:, :, :5], theirs[:, :, :5])
    assert (ours[:, :, 5:] - theirs[:, :, 5:]).abs().amax(dim=(0, 1, 3, 4)).min() > 1e-4


def test_convolutions_do_not_see_the_future():
    conv = CausalConv3d(2, 2, 3)
    x = torch.rand(1, 2, 6, 4, 4)
    y = x.clone()
    y[:, :, 4:] = 0
    torch.testing.assert_close(conv(x)[:, :, :4], conv(y)[:, :, :4])


def test_batches_and_micro_batches_agree(golden):
    autoencoder = golden[0]
    frames = torch.rand(3, 3, 6, 16, 16)
    together = autoencoder.encode(frames).mean
    alone = torch.cat([autoencoder.encode(clip[None]).mean for clip in frames])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_the_public_configuration_is_the_default():
    with torch.device("meta"):
        net = OpenSoraNet({"micro_frame_size": 17, "vae_2d": {"type": "VideoAutoencoderKL"}})
    weights = sum(p.numel() for p in net.parameters())
    assert 390e6 < weights < 400e6  # 83.7 M spatial, 309 M temporal
    assert net.shift.shape == (1, len(SHIFT), 1, 1, 1)


def test_a_file_and_a_folder_are_the_same_autoencoder(golden, shared):
    autoencoder, io, _ = golden
    reference = shared / "reference" / "opensora_vae_a"
    by_file = OpenSoraAutoencoder.from_open_sora(f"{reference}_weights.safetensors", reference.with_suffix(".json"))
    assert by_file.identity.sha256 == autoencoder.identity.sha256
    assert torch.equal(by_file.encode(io["frames"]).mean, autoencoder.encode(io["frames"]).mean)
    config = json.loads(reference.with_suffix(".json").read_text())
    whole = OpenSoraAutoencoder.from_open_sora(f"{reference}_weights.safetensors", {**config, "micro_frame_size": None})
    assert whole.latent_shape(33, 16, 16)[1] == 9  # one chunk, however long
    first = whole.encode(io["frames"][:, :, :17]).mean
    torch.testing.assert_close(first, io["mean"][:, :, :5], atol=1e-4, rtol=1e-4)


def test_other_widths_are_named_as_in_the_public_code(golden):
    """The two halves may speak of other numbers of channels; what the temporal half does not have is refused."""
    config = json.loads((golden[2] / "config.json").read_text())
    temporal = {**config["temporal"], "latent_embed_dim": 6, "embed_dim": 5, "type": "VAE_Temporal_SD"}
    other = {**config, "spatial": {**config["spatial"], "latent_channels": 8}, "temporal": temporal, "scale": 2.0}
    net = OpenSoraNet({**other, "shift": [0.0] * 5})
    assert net.temporal_vae.encoder.conv_in.conv.in_channels == 8
    assert net.scale.shape == (1, 5, 1, 1, 1)
    mean, std = net.temporal_vae.encode(torch.randn(1, 8, 6, 2, 3))
    assert mean.shape == std.shape == (1, 5, 2, 2, 3)
    assert net.temporal_vae.decode(mean, 6).shape == (1, 8, 6, 2, 3)
    with pytest.raises(UserError, match=r"temporal\.filter .*known: filters"):
        OpenSoraNet({**config, "temporal": {"filter": 16}})


def test_missing_weights_are_named(golden, tmp_path):
    _, _, folder = golden
    (tmp_path / "config.json").write_text(json.dumps({"spatial": {}, "temporal": {}}))
    (tmp_path / "model.safetensors").symlink_to((folder / "model.safetensors").resolve())
    with pytest.raises(UserError, match="not the weights of an Open-Sora VAE") as error:
        load_video_autoencoder(AutoencoderSpec(kind="opensora", path=str(tmp_path)))
    assert "\n" not in str(error.value)
