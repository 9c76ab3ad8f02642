"""Writes and continues training logs."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
from collections.abc import Callable
from typing import Any

_TAIL = 1 << 20  # bytes at the end of a log within which its last two lines stand


class _Log:
    """Lines about steps and validations; what is past a checkpoint is cut off when training resumes from it."""

    def __init__(
        self, path: str, offset: int | None, describe: Callable[[], dict[str, Any]], warn: Callable[[str], None]
    ):
        self._csv = _is_csv(path)
        if offset is not None and _is_empty(path):
            warn(f"{path} is missing or empty, so it cannot be continued; it begins anew")
            offset = None
        self._file = open(path, "wb" if offset is None else "r+b")  # noqa: SIM115 (__exit__ closes it)
        if offset is None:
            first = "step,epoch,loss,lr,grad_norm,applied,validation_loss" if self._csv else json.dumps(describe())
            self._write(first)
        else:
            self._file.truncate(offset)
            self._file.seek(offset)

    def __enter__(self) -> _Log:
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.close()

    def step(self, loop: Any, epoch: int) -> None:
        step, norm, metrics = loop.steps - 1, loop.info.grad_norm, loop.metrics
        if self._csv:
            cells = (step, epoch, loop.loss, loop.lr, norm, loop.info.applied, metrics and metrics["loss"])
            self._write(",".join("" if cell is None else str(cell) for cell in cells))
            return
        line = {"kind": "step", "step": step, "epoch": epoch, "loss": _json(loop.loss), "lr": float(loop.lr)}
        if norm is not None:
            line["grad_norm"] = _json(norm)
        self._write(json.dumps(line | {"applied": loop.info.applied}))
        if metrics is not None:
            values = {name: _json(value) for name, value in metrics.items()}
            self._write(json.dumps({"kind": "validation", "step": step} | values))

    def _write(self, line: str) -> None:
        self._file.write(line.encode() + b"\n")

    def sync(self) -> int:
        """Put everything on the disk; returns the size."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()


def _log_path(log: Any, writes: bool) -> str:
    """The log's path; ValueError or FileNotFoundError if who writes cannot open a log there."""
    path = os.fspath(log)
    if os.path.splitext(path)[1].lower() not in (".jsonl", ".csv"):
        raise ValueError(f"log must end in .jsonl or .csv, got {path!r}")
    if writes and os.path.isdir(path):
        raise ValueError(f"log must be a file, {path!r} is a folder")
    folder = os.path.dirname(os.path.abspath(path))
    if writes and not os.path.isdir(folder):
        raise FileNotFoundError(errno.ENOENT, "the folder for the log is missing", folder)
    return path


def _is_csv(path: str) -> bool:
    return os.path.splitext(path)[1].lower() == ".csv"


def _is_empty(path: str) -> bool:
    return not os.path.exists(path) or os.path.getsize(path) == 0


def _log_problem(path: str, offset: int | None, step: int, loss: float) -> str | None:
    """Why a log cannot be continued at `offset`: it must have a line that ends there, and this last step before it."""
    if offset is None:
        return f"the checkpoint was written without a log, and {path} is there: move it away, or log to another file"
    with open(path, "rb") as file:
        file.seek(max(0, offset - _TAIL))
        tail = file.read(min(offset, _TAIL))
    last: Any = None
    with contextlib.suppress(ValueError, LookupError, TypeError):
        if len(tail) == min(offset, _TAIL) and tail.endswith(b"\n"):
            lines = tail.splitlines()
            if _is_csv(path):
                cells = lines[-1].split(b",")
                last = int(cells[0]), float(cells[2])
            else:  # a validation may be behind the step
                row = json.loads(lines[-1] if b'"kind": "step"' in lines[-1] else lines[-2])
                last = row["step"], math.nan if row["loss"] is None else row["loss"]
                loss = loss if math.isfinite(loss) else math.nan
    if repr(last) == repr((step, loss)):
        return None
    return f"{path} is not the log of that run, or was cut since: move it away, or log to another file"


def _json(value: float) -> float | None:
    """JSON has no NaN and no infinity; null stands for them."""
    return value if math.isfinite(value) else None
