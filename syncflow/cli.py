"""The `syncflow` command: each subcommand is a thin door to a room, imported only when it is opened."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence

from syncflow import __version__
from syncflow.errors import UserError

# command: (module whose main(argv) or main(argv, open_tracker) runs it, what it does)
COMMANDS = {
    "demo": ("syncflow.infra.demo", "everything below on a laptop, small, in minutes"),
    "doctor": ("syncflow.infra.doctor", "what this machine has, and what is missing for which job"),
    "impacts": ("syncflow.impacts.command", "render clips whose event times are known exactly"),
    "preprocess": ("syncflow.preprocess.command", "raw videos -> shards of latents, on Ray"),
    "inspect": ("syncflow.preprocess.inspect", "look at a data set: card, checksums, samples back to mp4"),
    "train": ("syncflow.train.command", "train a stage, or a folder of stages in order, on DeepSpeed"),
    "generate": ("syncflow.models.command", "text -> video with sound; silent video -> sound"),
    "evaluate": ("syncflow.eval.command", "measure a folder of videos with sound; write a report"),
    "calibrate": ("syncflow.eval.calibrate", "how every metric responds to known damage"),
    "weights": ("syncflow.eval.weights", "list or pull the public weights that metrics use"),
    "sizes": ("syncflow.models.sizes", "parameters and FLOPs of each model size and resolution"),
    "import": ("syncflow.models.import_weights", "public Open-Sora weights -> a checkpoint to start from"),
    "submit": ("syncflow.infra.submit", "run a command on a Slurm, Ray or Kubernetes cluster"),
}
TRACKED = {"preprocess", "train", "evaluate"}


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if argv[0] in ("-V", "--version"):
        print(f"syncflow {__version__}")
        return 0
    name, rest = argv[0], argv[1:]
    if name not in COMMANDS:
        import difflib

        near = difflib.get_close_matches(name, COMMANDS, n=1)
        print(
            f"syncflow: error: no command {name!r}"
            + (f"; did you mean `syncflow {near[0]}`?" if near else "; `syncflow --help` lists them"),
            file=sys.stderr,
        )
        return 2
    try:
        return _run(name, rest)
    except UserError as error:
        print(f"syncflow {name}: error: {error}", file=sys.stderr)
        return error.exit_code
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("syncflow"):
            raise
        print(
            f"syncflow {name}: error: the Python package {error.name!r} is not installed; "
            "`syncflow doctor` says which extra brings it, for example pip install 'syncflow[all]'",
            file=sys.stderr,
        )
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print(f"\nsyncflow {name}: interrupted; the same command again goes on where it stopped", file=sys.stderr)
        return 130


def _run(name: str, argv: list[str]) -> int:
    command: Callable[..., int] = importlib.import_module(COMMANDS[name][0]).main
    if name not in TRACKED:
        return command(argv)
    from syncflow.infra.tracking import open_tracker

    return command(argv, open_tracker)


def _help() -> str:
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {what}" for name, (_, what) in COMMANDS.items())
    return (
        f"syncflow {__version__}: text -> video and sound that belong together in time\n\n"
        f"usage: syncflow COMMAND [options]\n\n{rows}\n\n"
        "`syncflow COMMAND --help` documents each command. Start with `syncflow demo`."
    )
