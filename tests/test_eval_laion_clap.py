"""laion_clap's own class, random, saved as its authors publish it and read back."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.slow


def write_repositories(home: Path) -> None:
    """Small stand-ins for the three repositories that the package reads when it is imported and made."""
    from transformers import RobertaConfig, RobertaModel

    letters = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *map(chr, range(33, 127)), "Ġ"]
    for name in ("roberta-base", "facebook/bart-base"):
        folder = home / name
        folder.mkdir(parents=True)
        (folder / "vocab.json").write_text(json.dumps({token: k for k, token in enumerate(letters)}))
        (folder / "merges.txt").write_text("#version: 0.2\n")
    (home / "bert-base-uncased").mkdir()
    (home / "bert-base-uncased" / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]))
    config = RobertaConfig(vocab_size=len(letters), num_hidden_layers=1, intermediate_size=8, pad_token_id=1)
    RobertaModel(config).save_pretrained(home / "roberta-base")


def as_numpy_1(path: Path) -> None:
    """Rename NumPy's module in the pickle of a torch.save file, as files of NumPy 1 have it."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data.replace(b"numpy._core.", b"numpy.core.") if name.endswith("data.pkl") else data)


def test_a_published_file_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from syncflow.models.perception import clap

    write_repositories(tmp_path)
    monkeypatch.chdir(tmp_path)  # a folder of a repository's name stands for it
    monkeypatch.setattr("sys.argv", ["pytest", "--unknown-to-laion-clap"])
    with clap._blank_arguments():
        import laion_clap

        torch.manual_seed(0)
        module = laion_clap.CLAP_Module(enable_fusion=False, amodel="HTSAT-tiny", device="cpu").eval()
    state = {f"module.{name}": value for name, value in module.model.state_dict().items()}
    state["module.text_branch.embeddings.position_ids"] = torch.arange(514)[None]
    torch.save({"epoch": 3, "best": np.float64(0.5), "state_dict": state}, tmp_path / "630k-audioset-best.pt")
    as_numpy_1(tmp_path / "630k-audioset-best.pt")

    loaded = clap.LaionClap(tmp_path / "630k-audioset-best.pt")
    sound = np.random.default_rng(0).normal(0, 0.1, 12 * 48000).astype(np.float32)
    heard = loaded.sound(sound, 48000)
    assert heard.shape == (512,)
    np.testing.assert_array_equal(heard, loaded.sound(sound[: 10 * 48000], 48000))  # the first 10 s, not a random cut
    np.testing.assert_allclose(heard, module.get_audio_embedding_from_data(sound[None, : 10 * 48000])[0], atol=1e-5)
    texts = ["a dog barks", "rain"]
    np.testing.assert_allclose(loaded.texts(texts), module.get_text_embedding(texts), atol=1e-5)
    np.testing.assert_allclose(loaded.texts(texts[:1])[0], loaded.texts(texts)[0], atol=1e-5)
