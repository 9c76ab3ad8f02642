"""Read the curve of a training log: `fastoptim.fit`'s own exactly, anybody else's as well as it can be made out."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .diagnosis import numbers
from .live_diagnosis import sees_all
from .log import CSV_HEADER
from .log_formats import Curve, make_out

_LARGEST = 1 << 30  # bytes of a log


def of_losses(losses: Any) -> Curve:
    """Make a curve of mere losses; TypeError or ValueError if they are no sequence of numbers."""
    values = numbers(losses)
    return Curve(np.arange(len(values)), values, None, np.array([]), np.array([]))


def read_log(path: str | os.PathLike[str]) -> Curve:
    """Read the log that `fastoptim.fit` wrote, ``.jsonl`` or ``.csv``.

    Raises
    ------
    ValueError
        It is not such a log; the message says in which line. A last line that was cut off is left out; in ``.csv`` that
        is every last line without a line end, as it may end within a number.
    """
    path = Path(path)
    return _own(path.name, decoded(path.read_bytes(), path.name), path.suffix.lower() == ".csv")


def read_curve(path: str | os.PathLike[str], *, column: str | None = None, pattern: str | None = None) -> Curve:
    """Read anybody's training log.

    Understood are `fit`'s own logs; tables with a header, separated by commas, semicolons, tabs or blanks, those that
    TensorBoard and MLflow export among them; JSON lines; a JSON file with ``log_history``, with a list of records, or
    with a list of numbers for every name; bare numbers, one a line or all in one; steps, words and numbers, like ``250
    train 6.02``; text in which losses are written like ``loss: 0.25``, ``Loss | 0.25``, ``loss=tensor(0.25)`` or ``Cost
    after iteration 10: 0.25``; and what the cells of a Jupyter notebook have printed.

    Parameters
    ----------
    path : path
        The log.
    column : str, optional
        The name of the losses in it, also in text (``G_GAN`` of ``G_GAN: 0.7``). Default: the one that looks most like
        the training loss.
    pattern : str, optional
        A regular expression whose first group is the loss, for lines of text.

    Raises
    ------
    OSError, ValueError
        It cannot be read, or no loss is found in it; the message says what was found instead.
    """
    path = Path(path)
    if path.stat().st_size > _LARGEST:
        raise ValueError(f"{path.name} has more than {_LARGEST >> 30} GiB: is it a log?")
    return curve_of_text(path.name, path.read_bytes(), column=column, pattern=pattern)


def curve_of_text(name: str, data: bytes, *, column: str | None = None, pattern: str | None = None) -> Curve:
    """Make out the curve in the text of a log; see `read_curve`."""
    text = decoded(data, name)
    if column is None and pattern is None:
        first = text.partition("\n")[0].strip()
        if first.startswith('{"kind": "run"'):
            return _own(name, text, False)
        if first == CSV_HEADER:
            return _own(name, text, True)
    try:
        return make_out(text, column, pattern)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def decoded(data: bytes, name: str) -> str:
    """The text of a file in UTF-8, or in UTF-16 with a mark, as PowerShell writes it; ValueError if it is no text."""
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    text = data.lstrip(b"\0").decode(encoding, errors="replace")  # a log that was emptied while open begins with NULs
    if "\0" in text[:4096]:
        raise ValueError(f"{name} is not a text file")
    return text


# --- The logs of `fit` ----------------------------------------------------------------------------------------------


def _own(name: str, text: str, table: bool) -> Curve:
    rows = list(_csv_rows(name, text) if table else _json_rows(name, text))
    taken = [row for row in rows if row["kind"] == "step"]
    if not taken:
        raise ValueError(f"{name} holds no steps of a training run")
    checks = [row for row in rows if row["kind"] == "validation"]
    return Curve(
        np.array([row["step"] for row in taken]),
        _floats(row["loss"] for row in taken),
        _floats(row["lr"] for row in taken),
        np.array([row["step"] for row in checks]),
        _floats(row["loss"] for row in checks),
        told={} if table else _told(rows[0]),
    )


def _told(head: dict[str, Any]) -> dict[str, Any]:
    """What the first line of a log says to `diagnose`, as `fit` does itself."""
    size, momentum = head.get("batch_size"), head.get("momentum")
    told: dict[str, Any] = {"scheduled": "(" in str(head.get("lr"))}
    if type(size) is int:
        told["fixed_batch"] = sees_all(size, head.get("examples", 0))
    if type(momentum) is float and 0.0 <= momentum < 1.0:
        told["momentum"] = momentum
    return told


def _floats(values: Iterable[Any]) -> np.ndarray:
    return np.array([math.nan if value is None else float(value) for value in values])


def _json_rows(name: str, text: str) -> Iterator[dict[str, Any]]:
    lines = text.splitlines()
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            kind = row["kind"]
            if number == 1 and (kind != "run" or row["version"] != 1):
                raise ValueError(f"kind {kind!r}, version {row.get('version')!r}")
            if kind in ("step", "validation"):
                _ = int(row["step"]), _floats([row["loss"], row["lr"] if kind == "step" else None])
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
            if number == len(lines) > 1:
                return
            raise ValueError(f"{name}, line {number}: not a line of a training log ({error})") from error
        yield row


def _csv_rows(name: str, text: str) -> Iterator[dict[str, Any]]:
    file = io.StringIO(text[: text.rfind("\n") + 1])
    number = 1
    try:
        for number, row in enumerate(csv.DictReader(file), 2):  # noqa: B007
            step = int(row["step"])
            yield {"kind": "step", "step": step, "loss": float(row["loss"]), "lr": float(row["lr"])}
            if row["validation_loss"]:
                yield {"kind": "validation", "step": step, "loss": float(row["validation_loss"])}
    except (ValueError, TypeError, KeyError, csv.Error) as error:
        raise ValueError(f"{name}, line {number}: not a line of a training log ({error})") from error
