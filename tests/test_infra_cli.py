"""The command's door: fast help, one clear line for every mistake, configuration with a nearest name."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import pytest
import tyro
from pydantic import Field, model_validator

from syncflow.cli import COMMANDS, main
from syncflow.config import Config, load, save
from syncflow.errors import UserError


class Optimizer(Config):
    """How weights move."""

    lr: float = Field(default=1e-3, gt=0)
    """Learning rate."""
    warmup: int = 10
    """Steps of linear warm-up."""


class Job(Config):
    """A job."""

    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("out")
    """Where it goes."""
    steps: int = 100
    """Steps."""
    optimizer: Optimizer = Optimizer()
    """The optimizer."""

    @model_validator(mode="after")
    def _warmup_fits(self) -> Job:
        if self.optimizer.warmup > self.steps:
            raise ValueError(f"optimizer.warmup {self.optimizer.warmup} is longer than steps {self.steps}")
        return self


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_yaml_then_flags_then_saved_and_read_again(tmp_path: Path) -> None:
    path = write(tmp_path / "job.yaml", "steps: 50\noptimizer:\n  lr: 0.5\n")
    job = load(Job, path, ["--optimizer.warmup", "20", "-o", "there"])
    assert job == Job(steps=50, optimizer=Optimizer(lr=0.5, warmup=20), output=Path("there"))
    save(job, tmp_path / "resolved.yaml")
    assert load(Job, tmp_path / "resolved.yaml") == job


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("stepz: 5", "unknown field stepz; did you mean steps"),
        ("optimizer:\n  learning: 5", "unknown field optimizer.learning; known: lr, warmup"),
        ("optimizer:\n  wramup: 5", "did you mean warmup"),
        ("steps: many", "steps: .*integer.*'many'"),
        ("steps: 5", "optimizer.warmup 10 is longer than steps 5"),
        ("- steps", "must hold `field: value` lines, found list"),
        ("steps: [", "not valid YAML"),
        ("", "found NoneType"),
    ],
)
def test_a_bad_configuration_is_one_line_that_names_the_field(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        load(Job, write(tmp_path / "job.yaml", text))
    assert "\n" not in str(caught.value)
    assert "job.yaml" in str(caught.value)


def test_a_missing_configuration_names_the_nearest(tmp_path: Path) -> None:
    write(tmp_path / "1_video.yaml", "steps: 5")
    with pytest.raises(UserError, match=r"did you mean .*1_video\.yaml"):
        load(Job, tmp_path / "1_vide.yaml")


def test_flags_are_checked_like_the_file() -> None:
    with pytest.raises(UserError, match=r"^command line: optimizer\.warmup 10 is longer than steps 5 \("):
        load(Job, None, ["--steps", "5"])
    with pytest.raises(UserError, match=r"^command line: optimizer\.lr: .*greater than 0, got -1\.0 \("):
        load(Job, None, ["--optimizer.lr", "-1"])
    for flags, says in (
        (["--stepz", "5"], "Unrecognized options: --stepz, 5; did you mean --steps INT?"),
        (["--steps", "many"], "Error parsing --steps.*'many'"),
        (["--steps"], "Missing value"),
    ):
        with pytest.raises(UserError, match=says) as caught:
            load(Job, None, flags)
        assert "\n" not in str(caught.value)


def test_help_answers_in_under_a_second_without_heavy_imports() -> None:
    code = (
        "import sys; from syncflow.cli import main; main(['--help']); "
        "heavy = {'torch', 'ray', 'deepspeed', 'mlflow', 'transformers', 'numpy', 'tyro'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    seconds = []
    for _ in range(3):  # the best of three: the machine may be busy with other tests
        began = time.monotonic()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        seconds.append(time.monotonic() - began)
    assert min(seconds) < 1.0
    for name in COMMANDS:
        assert name in done.stdout


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_documents_itself(name: str) -> None:
    done = subprocess.run([sys.executable, "-m", "syncflow", name, "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage: syncflow" in done.stdout


def test_mistakes_at_the_door(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evalute"]) == 2
    assert "did you mean `syncflow evaluate`?" in capsys.readouterr().err
    assert main(["doctor", "cooking"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_doctor_knows_what_is_installed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from syncflow.infra import doctor

    assert main(["doctor", "demo"]) == 0
    monkeypatch.setattr(doctor, "_installed", lambda package: package != "ray")
    assert main(["doctor", "preprocess"]) == 1
    assert "missing ray  ->  pip install 'syncflow[preprocess]'" in capsys.readouterr().out
