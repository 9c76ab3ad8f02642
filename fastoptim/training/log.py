"""Writes and continues training logs."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from time import monotonic
from typing import IO, Any

from .. import __version__
from ..checkpoint.files import naming
from ..optimizers.groups import momentum_of
from .history import History, saved_count
from .loop import Loop, named_arrays
from .rates import Rates
from .validation import Validation

CSV_HEADER = "step,epoch,loss,lr,grad_norm,applied,validation_loss"
_FLUSH = 1.0  # seconds after which lines are written to the file
_TAIL = 1 << 20  # bytes at the end of a log within which its last two lines stand


def path_of(name: str, value: Any) -> str:
    """The absolute path that an argument holds, wherever the program goes; TypeError that names the argument."""
    try:
        return os.path.abspath(os.fsdecode(value))
    except TypeError as error:
        raise TypeError(f"{name} must be a path, got {value!r}") from error


class Log:
    """Write a line about every step and validation; part of `Loop`.

    What is past a checkpoint is cut off when training resumes from it. The file is opened for the first line, so that
    a run that is refused leaves the log that is there.
    """

    def __init__(self, path: str, rates: Rates, validation: Validation | None, writes: bool):
        self.path, self._rates, self._writes = _checked_path(path, writes), rates, writes
        self._validation = validation
        if writes:
            _try_to_open(self.path)
        self._csv = _is_csv(self.path)
        self._file: IO[bytes] | None = None
        self._flushed = -math.inf
        self._offset: int | None = None  # where a resumed run goes on
        self._plain: tuple[int, str] | None = None  # where the last line begins, and that line without validation
        self._cuts = False  # whether what is behind the checkpoint's place is to go, even if no line follows

    def begin(self, loop: Loop) -> None:
        if self._offset is None:
            return
        if self._writes and _is_empty(self.path):
            loop.warn(f"{self.path} is missing or empty, so it cannot be continued; it begins anew")
            self._offset = self._plain = None
        self._cuts = self._writes and self._offset is not None and loop.reason is None

    def __call__(self, loop: Loop) -> None:
        if not self._writes:
            return
        if self._file is None:
            self._open(loop)
        additional = self._validation is not None and self._validation.additional
        self._plain = (self._tell(), self._lines(loop, None)[0]) if additional else None
        self._write(*self._lines(loop, loop.metrics))

    def end(self, loop: Loop) -> None:
        if self._cuts and self._file is None and loop.reason is not None:  # no step was taken: the loss is not finite
            self._open(loop)
        if self._file is not None:
            if not os.path.exists(self.path):
                loop.warn(f"{self.path} was removed or renamed while it was written: what it held is not there")
            with naming(self.path):
                self._file.close()

    def _open(self, loop: Loop) -> None:
        self._file = open(self.path, "wb" if self._offset is None else "r+b")  # noqa: SIM115 (`end` closes it)
        if self._offset is None:
            self._write(CSV_HEADER if self._csv else json.dumps(_described(loop, self._rates.text())))
            return
        offset, *line = self._plain or (self._offset,)  # a validation at an end that was none is taken back
        self._file.truncate(offset)
        self._file.seek(offset)
        self._write(*line)

    def _lines(self, loop: Loop, metrics: Mapping[str, float] | None) -> list[str]:
        step, epoch, info = loop.steps - 1, loop.epoch - loop.epoch_ended, loop.info
        if self._csv:
            cells = (step, epoch, loop.loss, loop.lr, info.grad_norm, info.applied, metrics and metrics["loss"])
            return [",".join("" if cell is None else str(cell) for cell in cells)]
        line = {"kind": "step", "step": step, "epoch": epoch, "loss": _json(loop.loss), "lr": float(loop.lr)}
        if info.grad_norm is not None:
            line["grad_norm"] = _json(info.grad_norm)
        lines = [json.dumps(line | {"applied": info.applied})]
        if metrics is not None:
            values = {name: _json(value) for name, value in metrics.items()}
            lines.append(json.dumps({"kind": "validation", "step": step} | values))
        return lines

    def _write(self, *lines: str) -> None:
        file, now = self._file, monotonic()
        assert file is not None
        try:
            for line in lines:
                file.write(f"{line}\n".encode())
            if now - self._flushed > _FLUSH:  # so that the file can be read while training goes on
                file.flush()
                self._flushed = now
        except OSError as error:
            self._file = None
            with contextlib.suppress(OSError):  # it would try again to write the rest
                file.close()
            with naming(self.path):
                raise error

    def _tell(self) -> int:
        assert self._file is not None
        return self._file.tell()

    def state_dict(self) -> dict[str, Any]:
        """Put everything on the disk; the size of the file, and what to go on from if this was no end."""
        if self._file is None:
            return {"size": self._offset, "plain": self._plain}
        with naming(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())
        return {"size": self._tell(), "plain": self._plain}

    def check(self, state: Mapping[str, Any] | None, history: History) -> str | None:
        """Why the log cannot be continued where a checkpoint with this state was taken."""
        if not self._writes or _is_empty(self.path):
            return None
        plain = None if state is None else state["plain"]
        sizes = [_size(state)]
        if plain is not None:  # a run that went on may have taken the last validation back
            if (begins := saved_count(plain[0])) > (sizes[0] or 0):
                return "the last line of its log would begin behind its end"
            sizes.append(begins + len(f"{plain[1]}\n".encode()))
        problems = [_problem(self.path, size, len(history) - 1, float(history.loss[-1])) for size in sizes]
        return None if None in problems else problems[0]

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        plain = None if state is None else state["plain"]
        self._plain = None if plain is None else (saved_count(plain[0]), str(plain[1]))
        self._offset = _size(state)


def _size(state: Mapping[str, Any] | None) -> int | None:
    return None if state is None or state["size"] is None else saved_count(state["size"])


def _described(loop: Loop, rates: str) -> dict[str, Any]:
    return {
        "kind": "run",
        "version": 1,
        "fastoptim": __version__,
        "optimizer": type(loop.optimizer).__name__,
        "lr": rates,
        "momentum": momentum_of(loop.optimizer.param_groups[0]),
        "parameters": sum(math.prod(p.shape) for _, p in named_arrays(loop.params)),
        "examples": loop.batches.examples,
        "batch_size": loop.batches.batch_size,
        "accumulate": loop.accumulate,
    }


def _checked_path(path: str, writes: bool) -> str:
    """The log's path; ValueError or FileNotFoundError if who writes cannot open a log there."""
    if not path.lower().endswith((".jsonl", ".csv")):
        raise ValueError(f"log must end in .jsonl or .csv, got {path!r}")
    if writes and (os.path.isdir(path) or Path(path).is_fifo()):  # a pipe would be waited for
        raise ValueError(f"log must be a file, {path!r} is a folder or a pipe")
    folder = os.path.dirname(os.path.abspath(path))
    if writes and not os.path.isdir(folder):
        raise FileNotFoundError(errno.ENOENT, "the folder for the log is missing", folder)
    return path


def _try_to_open(path: str) -> None:
    """OSError if the file cannot be written to; it stays as it is."""
    made = not os.path.exists(path)
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o666))
    if made:
        os.unlink(os.path.realpath(path))


def _is_csv(path: str) -> bool:
    return path.lower().endswith(".csv")


def _is_empty(path: str) -> bool:
    return not os.path.exists(path) or os.path.getsize(path) == 0


def _problem(path: str, offset: int | None, step: int, loss: float) -> str | None:
    """Why a log cannot be continued at `offset`: it must have a line that ends there, and this last step before it."""
    if offset is None:
        return f"the checkpoint was written without a log, and {path} is there: move it away, or log to another file"
    tail = b""
    if offset <= os.path.getsize(path):  # no file has as many bytes as a checkpoint may say
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
