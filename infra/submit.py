"""`syncflow submit`: the same command on one machine, a Slurm, Ray or Kubernetes cluster.

syncflow submit --cluster slurm --nodes 4 --gpus 8 -- train configs/xl/3_joint.yaml
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import yaml

from syncflow.cli import COMMANDS
from syncflow.config import Config, load, read_yaml
from syncflow.errors import UserError

MEND, LOST, STALLED, PREEMPTED = 2, 3, 4, 75  # exit codes of `syncflow train`
RESTARTS = 5  # of a job that lost a rank or stalled


class SubmitConfig(Config):
    """Run a syncflow command on a cluster; the command follows `--`, as it would be typed here."""

    cluster: Literal["local", "slurm", "ray", "kubernetes"] = "local"
    """Where: this machine, or the scheduler to hand the job to."""
    nodes: int = 1
    """Machines (train only; preprocess asks the Ray cluster for its workers)."""
    gpus: int = 0
    """GPUs on each machine, and ranks of a training; 0: no GPUs, and the ranks that the configuration names."""
    cpus: int = 8
    """CPU cores on each machine."""
    memory_gb: int = 32
    """Memory of each machine, in GB."""
    time: str = "24:00:00"
    """Slurm: time limit, as sbatch takes it."""
    partition: str = ""
    """Slurm: partition."""
    name: str = "syncflow"
    """Name of the job: lower-case letters, digits and dashes. On Ray a name can be submitted once."""
    address: str = "http://127.0.0.1:8265"
    """Ray: address of the cluster's dashboard, which takes jobs."""
    image: str = "syncflow:latest"
    """Kubernetes: container image that has syncflow installed."""
    namespace: str = "default"
    """Kubernetes: namespace."""
    dry_run: bool = False
    """Print what would be submitted, and submit nothing."""


def main(argv: list[str]) -> int:
    flags, command = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    config = load(SubmitConfig, None, flags, prog="syncflow submit")
    check(config, command)
    return {"local": _local, "slurm": _slurm, "ray": _ray, "kubernetes": _kubernetes}[config.cluster](config, command)


def check(config: SubmitConfig, command: list[str]) -> None:
    """Refuse what cannot run before a scheduler queues it.

    Raises:
        UserError: no command, an unknown one, or a shape of job that does not fit it.
    """
    if not command:
        raise UserError("nothing to submit: put the command after --, as in `syncflow submit -- train configs/nano`")
    if command[0] not in COMMANDS:
        raise UserError(f"no command {command[0]!r} to submit; known: {', '.join(COMMANDS)}")
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,40}[a-z0-9])?", config.name):
        raise UserError(f"--name {config.name!r}: use lower-case letters, digits and dashes, 42 at most")
    if min(config.nodes, config.cpus, config.memory_gb) < 1 or config.gpus < 0:
        raise UserError("--nodes, --cpus and --memory-gb must be at least 1, --gpus at least 0")
    if config.nodes > 1 and command[0] != "train":
        raise UserError(
            f"--nodes {config.nodes}: only train runs on several machines of its own; "
            "preprocess uses the workers of a Ray cluster: submit it with --cluster ray"
        )
    if config.nodes > 1 and _in_one_process(command):
        raise UserError(f"--nodes {config.nodes}: autoencoders are trained in one process; leave --nodes out")
    if config.nodes > 1 and config.cluster == "ray":
        raise UserError(f"--nodes {config.nodes}: a Ray job is one machine's; submit to slurm or kubernetes")


def machine_command(config: SubmitConfig, command: list[str], rendezvous: str) -> list[str]:
    """What each machine runs: the command itself, which starts its own ranks and finds the other machines."""
    flags: list[str] = []
    if command[0] == "train" and not _in_one_process(command):
        flags = ["--nodes", str(config.nodes)]
        if config.gpus:
            flags += ["--ranks", str(config.gpus)]
        if config.nodes > 1:
            flags += ["--rendezvous", rendezvous]
    return ["python", "-m", "syncflow", *command, *flags]


def _in_one_process(command: list[str]) -> bool:
    """Whether it trains autoencoders, which takes no ranks."""
    path = Path(command[1]) if len(command) > 1 else Path()
    return path.is_file() and read_yaml(path).get("job") == "autoencoders"


def _local(config: SubmitConfig, command: list[str]) -> int:
    if config.nodes > 1:
        raise UserError("--cluster local has one machine; leave --nodes out, or name another cluster")
    line = [sys.executable, *machine_command(config, command, "localhost")[1:]]
    if config.dry_run:
        print(shlex.join(line))
        return 0
    return subprocess.run(line).returncode


def slurm_script(config: SubmitConfig, command: list[str]) -> str:
    """The batch script: the command once per node, meeting at the first node of the allocation.

    A job that was preempted (it has saved) is queued again, as Slurm does itself when a node fails; one that lost a
    rank or stalled too, but only so often.
    """
    resources = [
        f"--job-name={config.name}",
        f"--nodes={config.nodes}",
        "--ntasks-per-node=1",
        f"--cpus-per-task={config.cpus}",
        f"--mem={config.memory_gb}G",
        f"--time={config.time}",
        "--requeue",
        "--open-mode=append",
        "--signal=TERM@120",
        f"--output={config.name}-%j.log",
    ]
    if config.gpus:
        resources.append(f"--gres=gpu:{config.gpus}")
    if config.partition:
        resources.append(f"--partition={config.partition}")
    header = "\n".join(f"#SBATCH {resource}" for resource in resources)
    path = shlex.quote(str(Path(sys.executable).parent))
    threads = max(1, config.cpus // max(1, config.gpus))
    # $meet is the one word the shell must fill in; everything else is quoted.
    line = shlex.join(machine_command(config, command, "HEAD_NODE")).replace("HEAD_NODE", '"$meet"')
    return (
        f"#!/bin/bash\n{header}\n\nset -uo pipefail\n"
        f"export PATH={path}:$PATH OMP_NUM_THREADS={threads}\n"
        'head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)\n'
        'head=$(scontrol show node "$head" | sed -n "s/.*NodeAddr=\\([^ ]*\\).*/\\1/p" | head -n 1)\n'
        # Jobs that share a machine must not meet each other.
        "meet=$head:$((20000 + SLURM_JOB_ID % 12000))\n"
        # Not --kill-on-bad-exit: when one machine ends, the others are still saving, and say why they end.
        f"srun --cpus-per-task={config.cpus} --kill-on-bad-exit=0 --wait=300 {line}\n"
        "code=$?\n"
        f"case $code in\n"
        f"  {PREEMPTED}) again=yes ;;\n"
        f"  {LOST}|{STALLED}) [ ${{SLURM_RESTART_COUNT:-0}} -lt {RESTARTS} ] && again=yes ;;\n"
        "esac\n"
        'if [ -n "${again:-}" ]; then\n'
        '  echo "syncflow submit: exit code $code, queued again; it goes on from its last checkpoint" >&2\n'
        '  scontrol requeue "$SLURM_JOB_ID"\n'
        "fi\n"
        "exit $code\n"
    )


def _slurm(config: SubmitConfig, command: list[str]) -> int:
    script = slurm_script(config, command)
    if config.dry_run:
        print(script, end="")
        return 0
    _need("sbatch", "submit from a Slurm login node, or use --dry-run to print the script")
    return _feed(["sbatch"], script)


def _ray(config: SubmitConfig, command: list[str]) -> int:
    entrypoint = shlex.join(machine_command(config, command, "localhost"))
    if config.dry_run:
        print(entrypoint)
        return 0
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from ray.job_submission import JobSubmissionClient

    try:
        client = JobSubmissionClient(config.address)
    except (ConnectionError, RuntimeError) as error:
        raise UserError(f"no Ray cluster answers at --address {config.address} ({error})") from error
    try:
        submitted = client.submit_job(entrypoint=entrypoint, submission_id=config.name)
    except RuntimeError as error:
        if "already exists" in str(error):
            raise UserError(f"the cluster has a job named {config.name!r} already; give another --name") from error
        raise UserError(f"the cluster at {config.address} refused the job: {str(error).splitlines()[0]}") from error
    print(f"submitted {submitted} to {config.address}\nfollow it: ray job logs --follow {submitted}")
    return 0


def kubernetes_manifest(config: SubmitConfig, command: list[str]) -> list[dict[str, Any]]:
    """An indexed Job, one pod per node, and the headless Service that gives pod 0 the name the others look for.

    Pods that were preempted (they have saved) or whose node went away are made again without being counted; what only
    a person can mend ends the job at once; anything else is tried again, but only so often.
    """
    limits: dict[str, str] = {"cpu": str(config.cpus), "memory": f"{config.memory_gb}Gi"}
    if config.gpus:
        limits["nvidia.com/gpu"] = str(config.gpus)
    labels = {"app.kubernetes.io/name": "syncflow", "syncflow/job": config.name}
    container = {
        "name": "syncflow",
        "image": config.image,
        "command": machine_command(config, command, f"{config.name}-0.{config.name}:29500"),
        "resources": {"limits": limits},
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
    }
    pod = {
        "subdomain": config.name,
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 120,
        "containers": [container],
        "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory"}}],
    }

    def about() -> dict[str, Any]:
        return {"name": config.name, "namespace": config.namespace, "labels": dict(labels)}

    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": about(),
        "spec": {"clusterIP": "None", "selector": {"syncflow/job": config.name}, "publishNotReadyAddresses": True},
    }
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": about(),
        "spec": {
            "completionMode": "Indexed",
            "completions": config.nodes,
            "parallelism": config.nodes,
            "backoffLimit": RESTARTS * config.nodes,
            "podFailurePolicy": {
                "rules": [
                    {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [MEND]}},
                    {"action": "Ignore", "onExitCodes": {"operator": "In", "values": [PREEMPTED]}},
                    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                ]
            },
            "template": {"metadata": {"labels": dict(labels)}, "spec": pod},
        },
    }
    return [service, job]


def _kubernetes(config: SubmitConfig, command: list[str]) -> int:
    text = yaml.safe_dump_all(kubernetes_manifest(config, command), sort_keys=False)
    if config.dry_run:
        print(text, end="")
        return 0
    _need("kubectl", "install it, or use --dry-run to print the manifest")
    return _feed(["kubectl", "apply", "-f", "-"], text)


def _need(program: str, mend: str) -> None:
    if shutil.which(program) is None:
        raise UserError(f"{program} is not on this machine: {mend}")


def _feed(command: list[str], text: str) -> int:
    return subprocess.run(command, input=text, text=True).returncode
