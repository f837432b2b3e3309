"""What preprocessing costs, as ratios within one run, so that the machine cancels out.

    python benchmarks/preprocess.py [--clips 40] [-o preprocess.json]

decode    decode + resize + resample against the ffmpeg command line with the same filters into null   (>= 0.8)
workers   two Ray workers against one, on CPU-bound work                                               (>= 1.7)
ray       Ray with one worker against the same stages in a plain loop, once both are warm              (<= 1.15)
memory    peak of one process that does everything, with 10 x the clips                                (<= 1.1)
shards    shard writing (pack, index, checksum, fsync, commit) against tarfile on the same bytes       (>= 0.7)
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path

os.environ.update(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0", OMP_NUM_THREADS="1")

import torch
from machine import gain_of_two, resident_bytes

from syncflow.clock import Span
from syncflow.impacts import render
from syncflow.media import decode_span, ffmpeg_path, probe
from syncflow.models.autoencoders import AutoencoderSpec
from syncflow.models.autoencoders.nano import new_nano_audio_autoencoder, new_nano_video_autoencoder
from syncflow.preprocess.config import PreprocessConfig, RayConfig
from syncflow.preprocess.job import Job
from syncflow.preprocess.pool import InlinePool, Pool, RayPool
from syncflow.preprocess.run import preprocess
from syncflow.preprocess.shards import ShardWriter
from syncflow.preprocess.store import LocalStore, open_store
from syncflow.samples import ClipRecord, StoredSample, pack

NEEDED = {"decode": 0.8, "workers": 1.7, "ray": 1.15, "memory": 1.1, "shards": 0.7}


def seconds(work: Callable[[], object], times: int = 3) -> float:
    """The shortest of a few runs."""
    best = float("inf")
    for _ in range(times):
        began = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - began)
    return best


def decode_ratio(clips: Path) -> float:
    """Against one ffmpeg per clip that does the same and throws it away."""
    sources = [probe(path) for path in sorted(clips.glob("*.mp4"))[:20]]
    span = Span(Fraction(0), Fraction(2))
    ffmpeg = [ffmpeg_path(), "-nostdin", "-v", "error", "-threads", "1"]
    outputs = ["-map", "0:v", "-vf", "fps=16,scale=64:64", "-t", "2", "-f", "rawvideo", "-pix_fmt", "rgb24", "-y"]
    sound = ["-map", "0:a", "-af", "aresample=16000:async=1:first_pts=0", "-ac", "1", "-t", "2", "-f", "f32le", "-y"]

    def ours() -> None:
        for info in sources:
            decode_span(info, span, fps=Fraction(16), size=(64, 64), sample_rate=16000, threads=1)

    def theirs() -> None:
        for info in sources:
            command = [*ffmpeg, "-i", info.path, *outputs, os.devnull, *sound, os.devnull]
            subprocess.run(command, check=True)

    return seconds(theirs) / seconds(ours)


def run_pool(pool: Pool, job: Job, config: PreprocessConfig) -> float:
    """Seconds of the two rounds of work, without the pool's start."""
    from syncflow.preprocess.run import _work

    encoders = pool.encoders()
    began = time.perf_counter()
    _work(job, config, pool, job.shard_fingerprint(encoders))
    return time.perf_counter() - began


def pool_seconds(config: PreprocessConfig, folder: Path, workers: int, times: int = 3) -> float:
    """Of a whole job, the shortest of a few, its workers warm: a first job on the same pool loads the networks."""
    config = config.model_copy(update={"ray": RayConfig(workers=workers), "output": str(folder / "a")})
    pool = InlinePool(config, config.output) if workers == 0 else RayPool(config, config.output)
    job = Job(open_store(config.output), config)
    found = []
    try:
        for _ in range(1 + times):
            for marker in (folder / "a").rglob("*.json"):
                if marker.name != "job.json":
                    marker.unlink()
            found.append(run_pool(pool, job, config))
    finally:
        job.close()
        pool.close()
    return min(found[1:])


def peak_mb(config: PreprocessConfig, clips: int, folder: Path) -> float:
    """Peak memory of a process that does a whole job alone, over a manifest that names each clip many times."""
    names = sorted(Path(config.input).glob("*.mp4"))
    manifest = folder / f"{clips}.jsonl"
    rows = [{"uri": str(names[k % len(names)]), "id": f"clip-{k}"} for k in range(clips)]
    manifest.write_text("\n".join(map(json.dumps, rows)))
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_peak_of_job, config, manifest, folder / f"memory-{clips}").result() / 1e6


def _peak_of_job(config: PreprocessConfig, manifest: Path, output: Path) -> int:
    preprocess(config, manifest, output, pool="inline")
    return resident_bytes("VmHWM")


def shard_ratio(folder: Path) -> float:
    """Samples of the size of 256x256 clips with T5 text; by turns, the best of each: disks have moods."""
    record = ClipRecord.model_validate(
        {
            "id": "x", "source": "x", "start_s": 0, "end_s": 2, "fps": 16, "width": 256, "height": 256,
            "num_frames": 32, "valid_frames": 32, "sample_rate": 16000, "num_samples": 32000,
            "valid_samples": (0, 32000), "caption": "x",
        }
    )  # fmt: skip
    latents = {"video_mean": (4, 9, 32, 32), "video_std": (4, 9, 32, 32), "audio_mean": (8, 80), "audio_std": (8, 80)}
    tensors = {name: torch.rand(shape).half() for name, shape in latents.items()}
    tensors["text"] = torch.rand(40, 4096).half()
    samples = [StoredSample(record.model_copy(update={"id": f"clip-{k}"}), tensors) for k in range(200)]
    store = LocalStore(folder / "ours")

    def ours() -> None:
        writer = ShardWriter(store, "b", "000000")
        for sample in samples:
            writer.add(sample)
        writer.commit("b/shard-000000.json", "f", [], {})

    def theirs() -> None:
        with (folder / "raw.tar").open("wb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                for sample in samples:
                    for extension, data in pack(sample).items():
                        info = tarfile.TarInfo(f"{sample.record.id}.{extension}")
                        info.size = len(data)
                        tar.addfile(info, BytesIO(data))
            os.fsync(file.fileno())

    found: dict[Callable[[], None], float] = {ours: float("inf"), theirs: float("inf")}
    for _ in range(7):
        for work in found:
            shutil.rmtree(folder / "ours" / "b", ignore_errors=True)
            (folder / "raw.tar").unlink(missing_ok=True)
            found[work] = min(found[work], seconds(work, times=1))
    return found[theirs] / found[ours]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=40)
    parser.add_argument("--only", nargs="*", choices=list(NEEDED), default=list(NEEDED))
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="syncflow-bench-"))
    found: dict[str, float] = {}
    try:
        render(options.clips, folder / "clips", seed=0)
        new_nano_video_autoencoder(0).save_pretrained(folder / "video")
        new_nano_audio_autoencoder(0).save_pretrained(folder / "audio")
        config = PreprocessConfig(
            input=str(folder / "clips"),
            video_autoencoder=AutoencoderSpec(kind="image", path=str(folder / "video")),
            audio_autoencoder=AutoencoderSpec(kind="oobleck", path=str(folder / "audio")),
            text="online",
            shard_clips=max(1, options.clips // 8),
        )
        if "decode" in options.only:
            found["decode"] = decode_ratio(folder / "clips")
        if "shards" in options.only:
            found["shards"] = shard_ratio(folder)
        if "memory" in options.only:
            few, many = (peak_mb(config, n * options.clips, folder) for n in (1, 10))
            found["memory"] = many / few
            print(f"memory   {few:.0f} MB with {options.clips} clips, {many:.0f} MB with {10 * options.clips}")
        if {"workers", "ray"} & set(options.only):
            alone = pool_seconds(config, folder / "alone", 0)
            one = pool_seconds(config, folder / "one", 1)
            two = pool_seconds(config, folder / "two", 2)
            found.update(workers=one / two, ray=one / alone)
            print(f"limit    {gain_of_two():6.2f}  two processes that share nothing against one, on this machine now")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for name, ratio in found.items():
        sign = "<=" if name in ("ray", "memory") else ">="
        good = ratio <= NEEDED[name] if sign == "<=" else ratio >= NEEDED[name]
        print(f"{name:8s} {ratio:6.2f}  wanted {sign} {NEEDED[name]}  {'holds' if good else 'falls short'}")
    if options.output:
        options.output.write_text(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
