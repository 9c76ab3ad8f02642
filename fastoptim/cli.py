"""The command line: ``fastoptim info | bench | demo | diagnose | plot``."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from . import __version__
from .common.text import reason
from .environment import problems

# command -> (module with ``main(arguments) -> exit status``, what it does)
COMMANDS = {
    "info": ("environment", "backends, instruction set, threads, compiler, versions"),
    "bench": ("bench", "time this machine and write a report; `bench compare A.json B.json`"),
    "demo": ("demo", "a minute's walk through learning rates on real digits; `demo valley`"),
    "diagnose": ("training.diagnose_cli", "what the curve of a log shows, and what to do: `diagnose run.jsonl`"),
    "plot": ("plots", "pictures of training logs: `plot run.jsonl`; several are compared"),
}
STEPPING = ("bench", "demo")  # these make steps: with invalid settings they are not even begun
FAILED, INTERRUPTED, PIPE_CLOSED = 2, 130, 141


def _usage() -> str:
    lines = [f"  {name:8} {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: fastoptim COMMAND [options]",
            "",
            "commands:",
            *lines,
            "",
            "`fastoptim help COMMAND` shows its options.",
        ]
    )


def _dispatch(arguments: list[str]) -> int:
    """Run one command."""
    if not arguments:
        print(_usage(), file=sys.stderr)
        return FAILED
    command, *rest = arguments
    if command in ("help", "-h", "--help"):
        if not rest:
            print(_usage())
            return 0
        command, rest = rest[0], ["--help"]
    if command in ("-V", "--version"):
        print(__version__)
        return 0
    if command not in COMMANDS:
        print(f"fastoptim: no command {command!r}\n\n{_usage()}", file=sys.stderr)
        return FAILED
    if command in STEPPING and "compare" not in rest[:1] and not {"-h", "--help"} & set(rest):
        for problem in problems():
            raise ValueError(problem)
    return int(import_module(f".{COMMANDS[command][0]}", __package__).main(rest) or 0)


def _guarded(arguments: list[str]) -> int:
    """Run one command; whatever it raises becomes an exit status and a line on standard error."""
    try:
        return _dispatch(arguments)
    except SystemExit as stop:  # argparse
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or 0
        print(stop.code, file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        return PIPE_CLOSED
    except (ImportError, RuntimeError, OSError, ValueError) as error:
        print(f"fastoptim {arguments[0]}: {reason(error)}", file=sys.stderr)
        return FAILED


def _flush(status: int) -> int:
    """Write out standard output; if that fails, discard the rest, which Python would try to write again at exit."""
    if sys.stdout is None:
        return status
    try:
        sys.stdout.flush()
    except OSError as error:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return PIPE_CLOSED
        print(f"fastoptim: standard output: {reason(error)}", file=sys.stderr)
        return FAILED
    return status


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, by default that of this process, and return its exit status.

    That is 0 if it worked, 2 if it could not be done (standard error says why, in one line), 130 after Ctrl-C, 141 if
    nobody reads standard output any more.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    return _flush(_guarded(list(sys.argv[1:] if arguments is None else arguments)))
