"""Checkpoints: every rank writes its pieces, the first rank commits; written while training goes on.

    checkpoints/step-00000100/rank-00000.safetensors   kind/name -> this rank's elements of it
    checkpoints/step-00000100/rank-00000.json          where they belong, size and checksum of the file
    checkpoints/step-00000100/checkpoint.json          written by the first rank when every rank's file is whole
    checkpoints/latest.json                            the pointer, replaced by rename after that

A piece is (parameter, start, elements), so a checkpoint of W ranks can be read by any other number. The folder must
be one that all ranks see.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from isal import isal_zlib
from safetensors import safe_open
from torch import Tensor

from syncflow.errors import UserError
from syncflow.files import write_whole
from syncflow.train.ema import Ema
from syncflow.train.engine import MOMENTS, Engine, Ranks

KINDS = ("master", *MOMENTS, "ema")
_COMMIT_S = 1800.0  # the first rank waits this long for the others' files


@dataclass
class Progress:
    """Where training stands, beside the tensors."""

    step: int = 0
    """Steps done, which is the next step's number."""
    ema_updates: int = 0
    adam_step: int = 0
    norms: list[float] = field(default_factory=list)
    """Gradient norms of the latest steps, to tell a spike by."""
    skipped: int = 0
    """Steps skipped so far."""
    skipped_in_row: int = 0
    identity: str = ""
    """Of what must not change on a resume: data, batch size, model and seed."""


class Saver:
    """Saves in the background, one at a time: what is saved must not change before `wait_copied` returns."""

    def __init__(self, folder: Path, ranks: Ranks, keep: int) -> None:
        self.folder, self.ranks, self.keep = folder, ranks, keep
        self.problem = ""
        """Why the latest save failed on this rank, until taken by `take_problem`."""
        self._copies: dict[str, Tensor] = {}
        self._thread: threading.Thread | None = None
        self._copied = threading.Event()
        folder.mkdir(parents=True, exist_ok=True)
        if ranks.first:
            for stale in folder.glob("*.wip"):
                shutil.rmtree(stale, ignore_errors=True)

    def save(self, engine: Engine, ema: Ema, progress: Progress) -> None:
        """Begin to save; the pieces are copied while the next forward and backward pass only read them."""
        self.wait()
        values = {
            f"{kind}/{piece.name}": value.detach()
            for piece, average in zip(engine.pieces, ema.values, strict=True)
            if piece.owner and piece.master.numel()
            for kind, value in zip(KINDS, (piece.master, *piece.moments, average), strict=True)
        }
        starts = {piece.name: piece.start for piece in engine.pieces if piece.owner}
        rng = base64.b64encode(torch.get_rng_state().numpy().tobytes()).decode()
        self._copied.clear()
        arguments = (values, starts, rng, asdict(progress))
        self._thread = threading.Thread(target=self._write, args=arguments, name="checkpoint", daemon=True)
        self._thread.start()

    def wait_copied(self) -> None:
        """Until weights, moments and average may change again."""
        if self._thread is not None:
            self._copied.wait()

    def _copy(self, values: dict[str, Tensor]) -> None:
        """The copies' memory is kept: to get it anew takes longer than to copy."""
        if not self._copies:
            self._copies = {
                name: torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
                for name, value in values.items()
            }
        torch._foreach_copy_([self._copies[name] for name in values], list(values.values()))

    def wait(self) -> None:
        """Until the save under way is committed (or has failed)."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def take_problem(self) -> str:
        problem, self.problem = self.problem, ""
        return problem

    def _write(self, values: dict[str, Tensor], starts: dict[str, int], rng: str, progress: dict[str, Any]) -> None:
        name = f"step-{progress['step']:08d}"
        work, final = self.folder / f"{name}.wip", self.folder / name
        try:
            try:
                self._copy(values)
            finally:
                self._copied.set()
            if final.exists():
                return  # saved before a restart took the same step again
            work.mkdir(exist_ok=True)
            stem = work / f"rank-{self.ranks.rank:05d}"
            path = stem.with_suffix(".safetensors")
            size, checksum = _write_tensors(path, self._copies)
            pieces = {key: [starts[key.split("/", 1)[1]], tensor.numel()] for key, tensor in self._copies.items()}
            write_whole(
                stem.with_suffix(".json"),
                json.dumps({"size": size, "crc32": checksum, "pieces": pieces, "rng": rng}),
                durable=True,
            )
            if self.ranks.first:
                self._commit(work, final, progress)
        except Exception as error:
            # Training goes on: the checkpoint before this one is whole, and the next save tries again.
            self.problem = f"checkpoint {final} could not be saved: {error}"
            shutil.rmtree(work, ignore_errors=True)

    def _commit(self, work: Path, final: Path, progress: dict[str, Any]) -> None:
        deadline = time.monotonic() + _COMMIT_S
        while len(list(work.glob("rank-*.json"))) < self.ranks.world_size:
            if not work.exists():
                raise OSError("another rank could not write its part")
            if time.monotonic() > deadline:
                raise OSError(f"not every rank had written its part after {_COMMIT_S:.0f} s")
            time.sleep(0.02)
        write_whole(
            work / "checkpoint.json", json.dumps({"world_size": self.ranks.world_size, **progress}), durable=True
        )
        os.rename(work, final)
        write_whole(
            self.folder / "latest.json", json.dumps({"checkpoint": final.name, "step": progress["step"]}), durable=True
        )
        for old in sorted(self.folder.glob("step-????????"))[: -self.keep]:
            shutil.rmtree(old, ignore_errors=True)


@dataclass
class Checkpoint:
    """A checkpoint that was found whole."""

    folder: Path
    progress: Progress
    world_size: int

    def tensors(self, kind: str, pieces: list[tuple[str, int, int]]) -> list[Tensor]:
        """Elements [start, start + n) of each parameter's `kind`, whoever wrote them."""
        values = [torch.zeros(n) for _, _, n in pieces]
        filled = [0] * len(pieces)
        for index_path in sorted(self.folder.glob("rank-*.json")):
            stored = json.loads(index_path.read_text())["pieces"]
            wanted = [(i, *piece) for i, piece in enumerate(pieces) if f"{kind}/{piece[0]}" in stored]
            with safe_open(index_path.with_suffix(".safetensors"), framework="pt") as file:
                for i, name, start, n in wanted:
                    first, length = stored[f"{kind}/{name}"]
                    low, high = max(start, first), min(start + n, first + length)
                    if low < high:
                        part = file.get_slice(f"{kind}/{name}")[low - first : high - first]
                        values[i][low - start : high - start] = part
                        filled[i] += high - low
        short = [name for (name, _, n), have in zip(pieces, filled, strict=True) if have < n]
        if short:
            raise UserError(f"{self.folder} lacks {short[0]} (and {len(short) - 1} more): it is of another model")
        return values

    def weights(self, shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
        """Whole trained parameters."""
        flat = self.tensors("master", [(name, 0, shape.numel()) for name, shape in shapes.items()])
        return {name: tensor.view(shapes[name]) for name, tensor in zip(shapes, flat, strict=True)}

    def restore(self, engine: Engine, ema: Ema, ranks: Ranks) -> None:
        """Masters, moments, EMA and random state into an engine whose model was built from `weights`."""
        wanted = [(piece.name, piece.start, piece.master.numel()) for piece in engine.pieces]
        for kind, targets in (
            ("master", [piece.master for piece in engine.pieces]),
            *((moment, [piece.moments[i] for piece in engine.pieces]) for i, moment in enumerate(MOMENTS)),
            ("ema", ema.values),
        ):
            for target, value in zip(targets, self.tensors(kind, wanted), strict=True):
                target.copy_(value)
        engine.adam_step = self.progress.adam_step
        ema.updates = self.progress.ema_updates
        index = self.folder / f"rank-{ranks.rank % self.world_size:05d}.json"
        rng = base64.b64decode(json.loads(index.read_text())["rng"])
        torch.set_rng_state(torch.frombuffer(bytearray(rng), dtype=torch.uint8))


def find_latest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint, and what is wrong with newer ones."""
    problems: list[str] = []
    for candidate in sorted(folder.glob("step-????????"), reverse=True):
        problem = _problem(candidate)
        if not problem:
            values = json.loads((candidate / "checkpoint.json").read_text())
            world_size = values.pop("world_size")
            return Checkpoint(candidate, Progress(**values), world_size), problems
        problems.append(f"{candidate}: {problem}")
    return None, problems


def _problem(folder: Path) -> str:
    try:
        world_size = json.loads((folder / "checkpoint.json").read_text())["world_size"]
        for rank in range(world_size):
            path = folder / f"rank-{rank:05d}.safetensors"
            index = json.loads(path.with_suffix(".json").read_text())
            if path.stat().st_size != index["size"] or _checksum(path) != index["crc32"]:
                return f"{path.name} is damaged"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (ValueError, KeyError):
        return "its index cannot be read"
    return ""


def _checksum(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            value = isal_zlib.crc32(block, value)
    return value


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> tuple[int, int]:
    """A safetensors file of float32 tensors on the CPU, on the disk when this returns: its size and checksum.

    The library's writer copies every tensor first, and keeps Python to itself meanwhile: training would wait for it.
    """
    header, end = {}, 0
    for name, tensor in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [end, end + tensor.nbytes]}
        end += tensor.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    parts: list[Any] = [len(text).to_bytes(8, "little"), text, *(tensor.numpy() for tensor in tensors.values())]
    checksum = 0
    with path.open("wb") as file:
        for data in parts:
            file.write(data)
            checksum = isal_zlib.crc32(data, checksum)
        file.flush()
        os.fsync(file.fileno())
    return 8 + len(text) + end, checksum
