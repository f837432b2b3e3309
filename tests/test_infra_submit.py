"""Submission: what each scheduler is handed, and that it runs."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from syncflow.errors import UserError
from syncflow.infra.submit import SubmitConfig, check, kubernetes_manifest, main, slurm_script

HOSTILE = ["train", "configs/a b.yaml", "--name", "$(touch pwned); `x` 'y'"]


def test_local_runs_the_command_and_returns_its_code(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--", "doctor", "generate"]) == 0
    assert "generate" in capfd.readouterr().out
    assert main(["--", "doctor", "cooking"]) == 2


def test_the_slurm_script_is_shell_and_quotes_what_it_is_given(tmp_path: Path) -> None:
    script = slurm_script(SubmitConfig(cluster="slurm", nodes=3, gpus=8, partition="gpu"), HOSTILE)
    for wanted in ("--nodes=3", "--gres=gpu:8", "--partition=gpu", "--nproc_per_node=8", "--nnodes=3"):
        assert wanted in script
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in {
        "scontrol": '#!/bin/sh\ncase "$2" in hostnames) echo n1;; node) echo "  NodeAddr=10.0.0.7 X=n1";; esac\n',
        "srun": '#!/bin/sh\nfor word in "$@"; do printf "%s\\n" "$word"; done\n',
    }.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    done = subprocess.run(
        ["bash"],
        input=script.replace("export PATH=", f"export PATH={tools}:"),
        text=True,
        capture_output=True,
        cwd=tmp_path,
        env={"SLURM_JOB_NODELIST": "n[1-2]", "PATH": "/usr/bin:/bin"},
        check=True,
    )
    words = done.stdout.splitlines()
    assert "--rdzv_endpoint=10.0.0.7:29500" in words
    assert words[-4:] == HOSTILE
    assert not (tmp_path / "pwned").exists()


def test_the_kubernetes_manifest_has_one_pod_per_node_that_find_each_other() -> None:
    service, job = kubernetes_manifest(SubmitConfig(cluster="kubernetes", nodes=2, gpus=4, name="joint"), HOSTILE)
    pod = job["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == 2
    assert "--rdzv_endpoint=joint-0.joint:29500" in container["command"]
    assert pod["subdomain"] == service["metadata"]["name"] == "joint"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "4"
    assert container["command"][-4:] == HOSTILE
    assert yaml.safe_load(yaml.safe_dump(job)) == job


@pytest.mark.parametrize(
    ("flags", "command", "says"),
    [
        ({}, [], "nothing to submit"),
        ({}, ["trian"], "no command 'trian'"),
        ({"name": "Bad Name"}, ["train"], "lower-case"),
        ({"nodes": 2}, ["preprocess"], "Ray cluster"),
        ({"nodes": 0}, ["train"], "at least 1"),
    ],
)
def test_what_cannot_run_is_refused_before_it_is_queued(flags: dict[str, int], command: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        check(SubmitConfig(**flags), command)  # type: ignore[arg-type]


def test_no_cluster_is_one_line() -> None:
    with pytest.raises(UserError, match="no Ray cluster answers"):
        main(["--cluster", "ray", "--address", "http://127.0.0.1:9", "--", "doctor"])
