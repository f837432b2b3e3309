"""`syncflow weights`: list the public checkpoints that metrics use, or pull some of them."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from syncflow.config import is_terminal
from syncflow.errors import UserError
from syncflow.models.perception.checkpoints import (
    BACKBONES,
    HOME_VARIABLE,
    Backbone,
    get_backbone,
    record_hash,
    recorded_hash,
    tree_hash,
    weights_home,
)

_CHUNK = 1 << 20
_TIMEOUT_S = 30
_FILES = "*.json *.txt *.model *.safetensors pytorch_model.bin"
"""What is taken of a Hugging Face repository."""


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="syncflow weights", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    for name, text in (("list", "what there is: use, size, licence, whether it is here"), ("pull", "fetch by name")):
        action = actions.add_parser(name, help=text, description=text)
        if name == "pull":
            action.add_argument("names", nargs="+", metavar="NAME", help="as `syncflow weights list` names them")
        action.add_argument(
            "--home", type=Path, help=f"folder of weights (else ${HOME_VARIABLE}, else the user's cache)"
        )
        action.add_argument("--commercial-safe", action="store_true", help="refuse non-commercial licences")
    arguments = parser.parse_args(list(argv))
    home = weights_home(arguments.home)
    if arguments.action == "list":
        print(listing(home, arguments.commercial_safe))
        return 0
    chosen = [get_backbone(name) for name in arguments.names]
    refused = [b for b in chosen if arguments.commercial_safe and not b.commercial]
    if refused:
        raise UserError(
            f"{refused[0].name} is {refused[0].licence}: not for commercial use; leave out --commercial-safe to pull it"
        )
    for backbone in chosen:
        pull(backbone, home)
    return 0


def listing(home: Path, commercial_safe: bool) -> str:
    rows = [("name", "MB", "licence", "commercial", "here", "pinned", "for")]
    for backbone in BACKBONES.values():
        if commercial_safe and not backbone.commercial:
            continue
        recorded = recorded_hash(home, backbone.name)
        rows.append(
            (
                backbone.name,
                str(backbone.megabytes),
                backbone.licence,
                "yes" if backbone.commercial else "no",
                "yes" if (home / backbone.file).exists() else "no",
                backbone.pinned or (f"first pull {recorded[:12]}…" if recorded else "no"),
                backbone.gives,
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, f"folder: {home}"])


def pull(backbone: Backbone, home: Path) -> None:
    """Fetch one checkpoint, whole or not at all, and check or record its hash.

    Raises:
        UserError: it cannot be reached, or is not what it should be.
    """
    target = home / backbone.file
    home.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        part = home / f".{backbone.file}.{os.getpid()}"
        try:
            if backbone.url.startswith("hf:"):
                repository = backbone.url.removeprefix("hf:")
                hint = f"put its files into {target}"
                _pull_repository(repository, _FILES, hint, revision=backbone.revision, local_dir=part)
                shutil.rmtree(part / ".cache", ignore_errors=True)
            else:
                _pull_file(backbone, part)
            os.replace(part, target)
        finally:
            shutil.rmtree(part, ignore_errors=True) if part.is_dir() else part.unlink(missing_ok=True)
    for repository, patterns in backbone.beside:
        _pull_repository(repository, patterns, "copy its Hugging Face cache here")
    digest = tree_hash(target)
    expected = backbone.sha256 or recorded_hash(home, backbone.name)
    if expected and digest != expected:
        raise UserError(f"{target}: SHA-256 {digest} instead of {expected}; delete it and pull again")
    if not expected:
        record_hash(home, backbone.name, digest)
    print(
        f"{backbone.name}: {target}, SHA-256 {digest}" + ("" if expected else " (recorded; its publisher states none)")
    )


def _pull_file(backbone: Backbone, part: Path) -> None:
    try:
        with urllib.request.urlopen(backbone.url, timeout=_TIMEOUT_S) as answer, part.open("wb") as file:
            total = int(answer.headers.get("Content-Length") or 0)
            done, said = 0, time.monotonic()
            while chunk := answer.read(_CHUNK):
                file.write(chunk)
                done += len(chunk)
                if time.monotonic() - said > (0.2 if is_terminal() else 5):
                    said = time.monotonic()
                    share = f" ({100 * done // total} %)" if total else ""
                    line = f"{backbone.name}: {done / 1e6:.0f} MB{share}"
                    print(f"\r{line}" if is_terminal() else line, end="" if is_terminal() else "\n", file=sys.stderr)
        if total and done != total:
            raise UserError(f"{backbone.url} ended after {done} of {total} bytes; pull again")
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise UserError(
            f"{backbone.url} cannot be reached ({getattr(error, 'reason', error)}); "
            f"fetch it where there is a network and put it at {part.parent / backbone.file}"
        ) from error


def _pull_repository(repository: str, patterns: str, hint: str, **where: Any) -> None:
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(repository, allow_patterns=patterns.split(), **where)
    except Exception as error:  # the hub raises a dozen kinds, from three packages
        first = " ".join(str(error).split())[:160]
        raise UserError(
            f"{repository} cannot be fetched from Hugging Face ({type(error).__name__}: {first}); "
            f"fetch it where there is a network and {hint}"
        ) from error
