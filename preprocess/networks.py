"""Networks that filter or caption: where their weights are, and which, known before any work starts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from syncflow.errors import UserError
from syncflow.models.perception.checkpoints import BACKBONES, locate, tree_hash, weights_home
from syncflow.models.resolve import identity_hash, resolve
from syncflow.preprocess.config import AestheticConfig, PreprocessConfig
from syncflow.samples import EncoderIdentity

HUB_FILES = ("*.json", "*.jinja", "*.txt", "*.model")


def weights_file(path: str, field: str) -> Path:
    """A file (or folder) of weights, by path or by its name in `syncflow weights list`.

    Raises:
        UserError: there is none.
    """
    if path in BACKBONES:
        return locate(path, weights_home()).path
    found = Path(path).expanduser()
    if not found.exists():
        raise UserError(f"no weights at {path!r}; give a file as --{field}, or a name of `syncflow weights list`")
    return found


def captioner_folder(path: str, field: str) -> Path:
    return resolve(path, field=field, patterns=HUB_FILES)


def check_networks(config: PreprocessConfig) -> None:
    """
    Raises:
        UserError: weights of networks that are on are not there; all are named in one line.
    """
    problems = []
    for field, path in _wanted(config):
        try:
            _find(field, path)
        except UserError as error:
            problems.append(str(error) if str(error).startswith(field) else f"{field}: {error}")
    if problems:
        raise UserError("; ".join(problems) + "; or turn this off")


def network_identities(config: PreprocessConfig) -> dict[str, EncoderIdentity]:
    """Which networks are on, by the hash of their weights; nothing is loaded.

    Raises:
        UserError: weights that cannot be found or read.
    """
    found = {}
    for field, path in _wanted(config):
        where = _find(field, path)
        name = field.removesuffix("_path").removesuffix(".path")
        kind = name.rsplit(".", 1)[-1]
        if field.startswith("captions."):
            kind = _model_type(where, field)
            names = ("config.json", "preprocessor_config.json", "processor_config.json", "tokenizer.json")
            digest = identity_hash(where, [name for name in names if (where / name).is_file()])
        else:
            digest = tree_hash(where)
        found[name] = EncoderIdentity(kind=kind, path=path, sha256=digest, channels=0)
    return found


def _model_type(folder: Path, field: str) -> str:
    try:
        return str(json.loads((folder / "config.json").read_text())["model_type"])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{field}: {folder} has no config.json that names its model_type") from error


def _find(field: str, path: str) -> Path:
    return captioner_folder(path, field) if field.startswith("captions.") else weights_file(path, field)


def _wanted(config: PreprocessConfig) -> Iterator[tuple[str, str]]:
    """(field, path) of everything that is on."""
    for name, network in config.networks().items():
        if network.on:
            yield f"{name}.path", network.path
            if isinstance(network, AestheticConfig):
                yield f"{name}.clip_path", network.clip_path
