"""The command line: ``fastoptim info | bench | demo | diagnose | plot``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

# command -> (module with ``main(arguments) -> exit status``, what it does)
COMMANDS = {
    "info": ("environment", "backends, instruction set, threads, compiler, versions"),
    "bench": ("bench", "time this machine and write a report; `bench compare A.json B.json`"),
    "demo": ("demo", "a minute's walk through learning rates on real digits; `demo valley`"),
    "diagnose": ("training.command", "what the curve of a training log shows, and what to do: `diagnose run.jsonl`"),
    "plot": ("plots", "pictures of training logs: `plot run.jsonl`; several are compared"),
}


def _usage() -> str:
    lines = [f"  {name:8} {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(["usage: fastoptim COMMAND [options]", "", "commands:", *lines, "", "COMMAND --help tells more."])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is 0 if it worked, 2 if it could not be understood."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0 if arguments else 2
    command, *rest = arguments
    if command == "--version":
        from . import __version__

        print(__version__)
        return 0
    if command not in COMMANDS:
        print(f"fastoptim: no command {command!r}\n\n{_usage()}", file=sys.stderr)
        return 2
    try:
        return int(import_module(f".{COMMANDS[command][0]}", __package__).main(rest) or 0)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
