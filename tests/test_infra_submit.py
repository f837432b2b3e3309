"""Submission: what each scheduler is handed, and that it runs."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from syncflow.errors import UserError
from syncflow.infra.submit import SubmitConfig, check, kubernetes_manifest, machine_command, main, slurm_script

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
HOSTILE = ["train", "configs/a b.yaml", "--name", "$(touch pwned); `x` 'y'"]


def test_local_runs_the_command_and_returns_its_code(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--", "doctor", "generate"]) == 0
    assert "generate" in capfd.readouterr().out
    assert main(["--", "doctor", "cooking"]) == 2


def test_the_slurm_script_is_shell_and_quotes_what_it_is_given(tmp_path: Path) -> None:
    script = slurm_script(SubmitConfig(cluster="slurm", nodes=3, gpus=8, partition="gpu"), HOSTILE)
    for wanted in ("--nodes=3", "--gres=gpu:8", "--partition=gpu", "--ranks 8", "--nodes 3"):
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
        env={"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_ID": "7", "PATH": "/usr/bin:/bin"},
        check=True,
    )
    words = done.stdout.splitlines()
    assert words[-6:] == ["--nodes", "3", "--ranks", "8", "--rendezvous", "10.0.0.7:20007"]
    assert words[-10:-6] == HOSTILE
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("code", "restarts", "again"),
    [
        (0, 0, False),
        (2, 0, False),
        (1, 0, False),
        (75, 0, True),
        (75, 40, True),
        (3, 0, True),
        (4, 4, True),
        (3, 5, False),
    ],
)
def test_slurm_queues_again_what_another_start_may_mend(tmp_path: Path, code: int, restarts: int, again: bool) -> None:
    script = slurm_script(SubmitConfig(cluster="slurm", nodes=2), HOSTILE)
    tools = tmp_path / "bin"
    tools.mkdir()
    asked = tmp_path / "asked"
    for name, text in {"scontrol": f'#!/bin/sh\necho "$@" >> {asked}\n', "srun": f"#!/bin/sh\nexit {code}\n"}.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    done = subprocess.run(
        ["bash"],
        input=script.replace("export PATH=", f"export PATH={tools}:"),
        text=True,
        cwd=tmp_path,
        env={
            "SLURM_JOB_NODELIST": "n1",
            "SLURM_JOB_ID": "7",
            "SLURM_RESTART_COUNT": str(restarts),
            "PATH": "/usr/bin:/bin",
        },
    )
    assert done.returncode == code
    assert ("requeue 7" in asked.read_text().splitlines()) == again


def test_autoencoders_take_no_ranks() -> None:
    command = ["train", str(CONFIGS / "nano" / "0_autoencoders.yaml"), "--input", "clips"]
    assert machine_command(SubmitConfig(gpus=1), command, "")[3:] == command
    assert machine_command(SubmitConfig(gpus=2), ["train", "configs/nano"], "")[-4:] == ["--nodes", "1", "--ranks", "2"]


def test_exit_codes_are_those_of_training() -> None:
    from syncflow.infra import submit
    from syncflow.train import launch

    ours = (submit.MEND, submit.LOST, submit.STALLED, submit.PREEMPTED)
    assert ours == (UserError.exit_code, launch.LOST, launch.STALLED, launch.PREEMPTED)


def test_the_kubernetes_manifest_has_one_pod_per_node_that_find_each_other() -> None:
    service, job = kubernetes_manifest(SubmitConfig(cluster="kubernetes", nodes=2, gpus=4, name="joint"), HOSTILE)
    pod = job["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == 2
    assert container["command"][-6:] == ["--nodes", "2", "--ranks", "4", "--rendezvous", "joint-0.joint:29500"]
    assert pod["subdomain"] == service["metadata"]["name"] == "joint"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "4"
    assert container["command"][-10:-6] == HOSTILE
    rules = {rule["onExitCodes"]["values"][0]: rule["action"] for rule in job["spec"]["podFailurePolicy"]["rules"][:2]}
    assert rules == {2: "FailJob", 75: "Ignore"}
    assert pod["restartPolicy"] == "Never"  # which a failure policy needs
    assert yaml.safe_load(yaml.safe_dump(job)) == job


@pytest.mark.parametrize(
    ("flags", "command", "says"),
    [
        ({}, [], "nothing to submit"),
        ({}, ["trian"], "no command 'trian'"),
        ({"name": "Bad Name"}, ["train"], "lower-case"),
        ({"nodes": 2}, ["preprocess"], "Ray cluster"),
        ({"nodes": 0}, ["train"], "at least 1"),
        ({"nodes": 2, "cluster": "ray"}, ["train", "configs/xl"], "one machine"),
        ({"nodes": 2}, ["train", str(CONFIGS / "nano" / "0_autoencoders.yaml")], "in one process"),
    ],
)
def test_what_cannot_run_is_refused_before_it_is_queued(flags: dict[str, int], command: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        check(SubmitConfig(**flags), command)  # type: ignore[arg-type]


def test_no_cluster_is_one_line() -> None:
    with pytest.raises(UserError, match="no Ray cluster answers"):
        main(["--cluster", "ray", "--address", "http://127.0.0.1:9", "--", "doctor"])
