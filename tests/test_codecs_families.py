"""Autoencoders of every family, as small random networks of the public classes: shapes, grids, scales, causality."""

from __future__ import annotations

import itertools
import json
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import diffusers
import pytest
import torch
import transformers

from syncflow.errors import UserError
from syncflow.models.autoencoders import AUDIO, VIDEO, AutoencoderSpec, load_audio_autoencoder, load_video_autoencoder
from syncflow.models.autoencoders.nano import new_nano_audio_autoencoder, new_nano_video_autoencoder
from syncflow.models.autoencoders.oobleck import fold

FPS = Fraction(16)


def small_video_net(kind: str) -> Any:
    torch.manual_seed(0)
    if kind == "image":
        return new_nano_video_autoencoder(0)
    if kind == "wan":
        return diffusers.AutoencoderKLWan(
            base_dim=4,
            z_dim=4,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            latents_mean=[0.5, 0.0, -0.5, 1.0],
            latents_std=[2.0, 1.0, 0.5, 4.0],
        )
    if kind == "cogvideox":
        return diffusers.AutoencoderKLCogVideoX(
            block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2
        )
    if kind == "ltx":
        return diffusers.AutoencoderKLLTXVideo(
            latent_channels=8,
            block_out_channels=(8, 8, 8, 8),
            decoder_block_out_channels=(8, 8, 8, 8),
            layers_per_block=(1, 1, 1, 1, 1),
            decoder_layers_per_block=(1, 1, 1, 1, 1),
            timestep_conditioning=True,
            patch_size=1,
        )
    return diffusers.AutoencoderKLHunyuanVideo(
        block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=4
    )


def small_audio_net(kind: str) -> Any:
    torch.manual_seed(0)
    if kind == "oobleck":
        return new_nano_audio_autoencoder(0)
    if kind == "encodec":
        return transformers.EncodecModel(
            transformers.EncodecConfig(num_filters=4, hidden_size=16, num_lstm_layers=1, codebook_size=16)
        )
    return transformers.DacModel(
        transformers.DacConfig(encoder_hidden_size=4, decoder_hidden_size=64, codebook_size=16, sampling_rate=16000)
    )


@pytest.fixture(scope="module", params=[kind for kind in VIDEO if kind != "opensora"])
def video(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    small_video_net(request.param).save_pretrained(folder)
    return load_video_autoencoder(AutoencoderSpec(kind=request.param, path=str(folder)))


@pytest.fixture(scope="module", params=list(AUDIO))
def audio(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    small_audio_net(request.param).save_pretrained(folder)
    return load_audio_autoencoder(AutoencoderSpec(kind=request.param, path=str(folder)))


@pytest.mark.parametrize("num_frames", [1, 5, 8, 9])
def test_video_shapes_and_grid(video, num_frames):
    side = video.spatial_multiple * 2
    frames = torch.rand(2, 3, num_frames, side, side) * 2 - 1
    posterior = video.encode(frames)
    assert posterior.mean.shape == posterior.std.shape == (2, *video.latent_shape(num_frames, side, side))
    assert (posterior.std >= 0).all()
    assert posterior.mean.shape[1] == video.identity.channels
    assert video.decode(posterior.mean, num_frames).shape == frames.shape
    spans = video.grid(num_frames, FPS).spans
    assert len(spans) == posterior.mean.shape[2]
    assert spans[0].start_s == 0
    assert spans[-1].end_s == num_frames / FPS
    assert all(a.end_s == b.start_s for a, b in itertools.pairwise(spans))


def test_video_latents_know_little_of_later_frames(video):
    """What changes in the last frames changes the last latents, and those before it hardly or not at all.

    CogVideoX and Hunyuan normalise over all frames of a clip, so that their convolutions are causal and their latents
    are so but for that: with the normalisation's statistics given, nothing early changes.
    """
    side = video.spatial_multiple * 2
    frames = torch.rand(1, 3, 9, side, side) * 2 - 1
    other = frames.clone()
    other[:, :, 8:] = -other[:, :, 8:]
    change = (video.encode(frames).mean - video.encode(other).mean).abs().amax((0, 1, 3, 4))  # (T_v,)
    assert change[-1] > 1e-3
    if video.identity.kind in ("image", "wan", "ltx"):
        assert change[:-1].max() <= 1e-5 if len(change) > 2 else change[0] <= 1e-5
    with frame_wise_norms(video.net):
        change = (video.encode(frames).mean - video.encode(other).mean).abs().amax((0, 1, 3, 4))
    assert change[-1] > 1e-3
    assert change[0] <= 1e-5


@contextmanager
def frame_wise_norms(net):
    """Group norms of each frame (in attention: of each token) instead of over all frames: what is left of the future
    is the convolutions' and attention's own."""

    def apart(x, groups, weight=None, bias=None, eps=1e-5):
        if x.dim() == 4:  # a batch of pictures
            return plain(x, groups, weight, bias, eps)
        frames = x.transpose(1, 2).flatten(0, 1)
        return plain(frames, groups, weight, bias, eps).unflatten(0, (len(x), -1)).transpose(1, 2)

    plain = torch.nn.functional.group_norm
    torch.nn.functional.group_norm = apart
    try:
        yield
    finally:
        torch.nn.functional.group_norm = plain


def test_normalisation_is_undone(video):
    """Decoding what was encoded equals the bare network's own round trip."""
    side = video.spatial_multiple * 2
    frames = torch.rand(1, 3, 9, side, side) * 2 - 1
    decoded = video.decode(video.encode(frames).mean, 9)
    if video.identity.kind == "image":
        from torch.nn.functional import pixel_shuffle, pixel_unshuffle

        images = pixel_unshuffle(frames[0].transpose(0, 1), video.fold)
        bare = pixel_shuffle(video.net.decode(video.net.encode(images).latent_dist.mean).sample, video.fold)
        bare = bare.transpose(0, 1)[None]
    else:
        temb = {"temb": torch.zeros(1)} if video.layout.timestep else {}
        bare = video.net.decode(video.net.encode(frames).latent_dist.mean, **temb).sample
    torch.testing.assert_close(decoded, bare, atol=1e-4, rtol=1e-3)


def test_wan_latents_are_normalised(tmp_path):
    net = small_video_net("wan")
    net.save_pretrained(tmp_path)
    frames = torch.rand(1, 3, 5, 16, 16)
    with torch.no_grad():
        raw = net.eval().encode(frames).latent_dist
    ours = load_video_autoencoder(AutoencoderSpec(kind="wan", path=str(tmp_path))).encode(frames)
    mean, std = (torch.tensor(v).view(1, 4, 1, 1, 1) for v in ([0.5, 0.0, -0.5, 1.0], [2.0, 1.0, 0.5, 4.0]))
    torch.testing.assert_close(ours.mean, (raw.mean - mean) / std)
    torch.testing.assert_close(ours.std, raw.std / std)


def test_video_sizes_are_refused_with_one_that_fits(video):
    side = video.spatial_multiple
    with pytest.raises(UserError, match=f"multiples of {side}"):
        video.latent_shape(4, side + 1, side)
    with pytest.raises(UserError, match="at least one frame"):
        video.latent_shape(0, side, side)


@pytest.mark.parametrize("num_samples", [1, 4000, 4001, 8000])
def test_audio_shapes_and_grid(audio, num_samples):
    waveform = torch.randn(2, num_samples) * 0.1
    posterior = audio.encode(waveform)
    assert posterior.mean.shape == posterior.std.shape == (2, *audio.latent_shape(num_samples))
    assert audio.decode(posterior.mean, num_samples).shape == waveform.shape
    grid = audio.grid(num_samples)
    assert len(grid) == posterior.mean.shape[2]
    assert grid.spans[-1].end_s == Fraction(num_samples, audio.sample_rate)
    with pytest.raises(UserError, match="at least one sample"):
        audio.latent_shape(0)


def test_audio_latents_lie_where_the_grid_says(audio):
    """An impulse in latent frame 20 moves the latents there, and none that lie well before it."""
    hop = round(audio.grid(16000).spans[0].duration_s * audio.sample_rate)
    silence = torch.zeros(1, 40 * hop)
    click = silence.clone()
    click[0, 20 * hop + hop // 2] = 1.0
    change = (audio.encode(click).mean - audio.encode(silence).mean).abs().sum(1)[0]  # (T_a,)
    assert change[19:22].max() > 0.05 * change.max()  # an LSTM (EnCodec's) may ring for longer
    assert change[:8].max() < 1e-3 * change.max()


def test_oobleck_std_is_a_standard_deviation(tmp_path):
    """The network's second half is a softplus argument, not a logarithm: std = softplus(s) + 1e-4."""
    net = new_nano_audio_autoencoder(0)
    net.save_pretrained(tmp_path)
    waveform = torch.randn(1, 4000) * 0.1
    with torch.no_grad():
        mean, s = net.eval().encoder(fold(waveform, net.config.audio_channels)).chunk(2, dim=1)
    posterior = load_audio_autoencoder(AutoencoderSpec(kind="oobleck", path=str(tmp_path))).encode(waveform)
    torch.testing.assert_close(posterior.mean, mean)
    torch.testing.assert_close(posterior.std, torch.log1p(s.exp()) + 1e-4)


def test_posterior_samples_are_reproducible_and_spread(video):
    side = video.spatial_multiple
    posterior = video.encode(torch.rand(1, 3, 1, side, side))
    draw = [posterior.sample(torch.Generator().manual_seed(1)) for _ in range(2)]
    assert torch.equal(*draw)
    assert not torch.equal(draw[0], posterior.mean)


def test_frames_at_once_only_saves_memory(tmp_path):
    new_nano_video_autoencoder(0).save_pretrained(tmp_path)
    frames = torch.rand(2, 3, 7, 32, 32)
    whole, parts = (
        load_video_autoencoder(AutoencoderSpec(kind="image", path=str(tmp_path), frames_at_once=n)) for n in (64, 3)
    )
    z = whole.encode(frames).mean
    torch.testing.assert_close(parts.encode(frames).mean, z, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(parts.decode(z, 7), whole.decode(z, 7), atol=1e-5, rtol=1e-5)


def test_wrong_files_are_named_in_one_line(tmp_path):
    net = new_nano_video_autoencoder(0)
    net.save_pretrained(tmp_path / "video")
    for kind, problem in (("wan", "kind wan"), ("cogvideox", "holds AutoencoderKL|holds a"), ("vqgan", "choose from")):
        with pytest.raises(UserError, match=problem) as error:
            load_video_autoencoder(AutoencoderSpec(kind=kind, path=str(tmp_path / "video")))
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"no config\.json"):
        load_video_autoencoder(AutoencoderSpec(kind="image", path=str(tmp_path)))
    with torch.no_grad():
        net.decoder.conv_in.weight[0] = torch.nan
    net.save_pretrained(tmp_path / "nan")
    with pytest.raises(UserError, match="not finite"):
        load_video_autoencoder(AutoencoderSpec(kind="image", path=str(tmp_path / "nan")))
    config = json.loads((tmp_path / "video" / "config.json").read_text())
    config["block_out_channels"] = [32, 32, 32]
    (tmp_path / "video" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError) as error:
        load_video_autoencoder(AutoencoderSpec(kind="image", path=str(tmp_path / "video")))
    assert "\n" not in str(error.value)


def test_tiling_agrees_in_the_middle(tmp_path):
    """Sound in overlapping tiles equals sound coded whole."""
    new_nano_audio_autoencoder(0).save_pretrained(tmp_path)
    whole, tiled = (
        load_audio_autoencoder(AutoencoderSpec(kind="oobleck", path=str(tmp_path), tiling=on)) for on in (False, True)
    )
    tiled.net.tile_sample_min_length, tiled.net.tile_sample_overlap = 16000, 6000
    tiled.net.tile_latent_min_length, tiled.net.tile_latent_overlap = 40, 16
    waveform = torch.randn(1, 32000) * 0.1
    z = whole.encode(waveform).mean
    torch.testing.assert_close(tiled.encode(waveform).mean, z, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(tiled.decode(z, 32000), whole.decode(z, 32000), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["image", "wan", "cogvideox", "ltx", "hunyuan"])
def test_pictures_in_tiles_agree_with_whole_ones(kind, tmp_path):
    """Inside of a tile nothing changes but the norms; at the seams it stays alike."""
    small_video_net(kind).save_pretrained(tmp_path)
    whole, tiled = (
        load_video_autoencoder(AutoencoderSpec(kind=kind, path=str(tmp_path), tiling=on)) for on in (False, True)
    )
    multiple = whole.spatial_multiple
    tile, stride = 16 * multiple, 12 * multiple
    set_tiles(kind, cast(Any, tiled).net, tile, stride, multiple)
    # Norms over a tile see what those over the picture see only where a picture is alike everywhere, as noise is.
    frames = torch.rand(1, 3, 5, 28 * multiple, 28 * multiple, generator=torch.Generator().manual_seed(0)) * 2 - 1
    z = whole.encode(frames).mean
    for ours, theirs, unit in (
        (tiled.encode(frames).mean, z, 1),
        (tiled.decode(z, 5), whole.decode(z, 5), multiple),
    ):
        assert ours.shape == theirs.shape
        inside = (..., slice(2 * unit, 8 * unit), slice(2 * unit, 8 * unit))  # of the first tile, away from its seams
        assert correlation(ours[inside], theirs[inside]) > 0.95
        assert 0.8 < correlation(ours, theirs) < 1 - 1e-6  # it was coded in tiles


def set_tiles(kind, net, tile, stride, multiple):
    if kind == "image":
        net.tile_sample_min_size, net.tile_latent_min_size = tile // 8, tile // multiple
    elif kind == "cogvideox":
        net.enable_tiling(tile, tile, 0.25, 0.25)
    else:
        net.enable_tiling(
            tile_sample_min_height=tile, tile_sample_min_width=tile,
            tile_sample_stride_height=stride, tile_sample_stride_width=stride,
        )  # fmt: skip


def correlation(a, b):
    return torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]


def test_a_tiny_autoencoder_codes_frame_by_frame(tmp_path):
    """diffusers' AutoencoderTiny has no posterior: its latents are the mean, its std is 0."""
    torch.manual_seed(0)
    net: Any = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8), latent_channels=4
    )
    net.save_pretrained(tmp_path)
    tiny = load_video_autoencoder(AutoencoderSpec(kind="image", path=str(tmp_path)))
    frames = torch.rand(2, 3, 3, 32, 48) * 2 - 1
    posterior = tiny.encode(frames)
    assert posterior.mean.shape == (2, *tiny.latent_shape(3, 32, 48)) == (2, 4, 3, 4, 6)
    assert not posterior.std.any()
    with torch.no_grad():
        first = net.eval().encode(frames[:, :, 0]).latents
    torch.testing.assert_close(posterior.mean[:, :, 0], first)
    assert tiny.decode(posterior.mean, 3).shape == frames.shape


def test_relative_paths_are_found_in_the_model_directory(tmp_path: Path):
    (tmp_path / "video").mkdir()
    spec = AutoencoderSpec(kind="image", path="video")
    assert spec.located(tmp_path).path == str((tmp_path / "video").resolve())
    assert spec.located(tmp_path / "elsewhere").path == "video"
