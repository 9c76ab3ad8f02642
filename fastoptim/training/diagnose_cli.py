"""``fastoptim diagnose LOG``: what the curve of a log shows, and what to do."""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..common.text import printable, reason
from ..common.validation import real
from .diagnosis import diagnose
from .log_formats import Curve
from .log_reading import curve_of_text, read_curve

STANDARD_INPUT = "-"
_MORE_IS_BETTER = re.compile(r"acc(?![a-z])|accuracy|reward|return|score|f1|auc|bleu|iou|recall", re.I)
_LATE = 0.05  # share of all steps that are missing at the beginning of a log that begins late


def add_reading_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where the loss stands in a log."""
    parser.add_argument(
        "--column", help="name of the losses in a table, in JSON or in text (default: the training loss)"
    )
    parser.add_argument("--pattern", help="regular expression for lines of text; its first group is the loss")


def read(name: str, column: str | None, pattern: str | None) -> Curve:
    """Read the curve of a log, or of standard input for "-"; OSError or ValueError if there is none."""
    if name == STANDARD_INPUT and sys.stdin is None:
        raise OSError("standard input is closed")
    if name == STANDARD_INPUT:
        return curve_of_text("standard input", sys.stdin.buffer.read(), column=column, pattern=pattern)
    return read_curve(name, column=column, pattern=pattern)


def failed(command: str, error: Exception) -> int:
    """Report an error in one line without what could command a terminal; returns the exit status, 2."""
    print(f"fastoptim {command}: {reason(error)}", file=sys.stderr)
    return 2


def report(name: str, curve: Curve, **options: Any) -> str:
    """Say in some lines what was read and what it shows; options are those of `diagnose`, None: as the log says."""
    told: dict[str, Any] = dict(curve.told)
    if curve.rates is not None and len(curve.rates) and np.all((curve.rates >= 0.0) & (curve.rates < math.inf)):
        told["lr"] = curve.rates
    found = diagnose(curve.losses, **told | {name: x for name, x in options.items() if x is not None})
    count = len(curve.losses)
    lines = [f"{name}: {count} loss{'es' if count != 1 else ''} of {curve.column!r}"]
    if curve.others:
        lines.append(f"  others in it (--column): {', '.join(curve.others[:12])}")
    if curve.left_out:
        lines.append(f"  {curve.left_out} losses of other runs in it are left out: the last run is read")
    late = options.get("start") is None and begins_late(curve)
    if late:
        lines.append(
            f"  it begins at step {curve.steps[0]:g}: what was gained before is not known; "
            "tell the loss at the beginning by --start"
        )
    figures = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in found.evidence.items())
    said = f"{found.verdict}. {found.remedy}"
    if late and found.lr_factor > 1.0:
        said = "unclear. It falls slowly, as a good run does later on: nothing tells that the rate is too small."
    times = _times_each(curve.steps)
    if found.reason == "alternating" and times > 1:
        said = f"unclear. It alternates, but has {times} losses for every step, which may be of different data or runs."
    if _MORE_IS_BETTER.search(curve.column):
        said = "unclear. Of this, more seems to be better; only losses can be judged."
    lines += [f"  {said}", f"  ({figures})"]
    return printable("\n".join(lines), keep="\n")


def _times_each(steps: np.ndarray) -> int:
    """How often most steps come in succession."""
    starts = np.flatnonzero(np.diff(steps, prepend=math.nan))
    return int(np.median(np.diff(starts, append=len(steps)))) if len(steps) else 0


def begins_late(curve: Curve) -> bool:
    """Whether the steps of a log begin so late that much of the run is missing."""
    steps = curve.steps
    if len(steps) < 2 or not np.isfinite(steps).all() or np.any(np.diff(steps) < 0):
        return False
    first, last, between = float(steps[0]), float(steps[-1]), float(np.median(np.diff(steps)))
    return first > _LATE * last and first > 5.0 * max(between, 1.0)


def main(arguments: Sequence[str]) -> int:
    """``fastoptim diagnose LOG [LOG ...]``; the exit status is 0 if all could be read, 2 otherwise."""
    parser = argparse.ArgumentParser(
        prog="fastoptim diagnose", description="Say what the training curve in a log shows, and what to do."
    )
    parser.add_argument("logs", nargs="+", metavar="LOG", help="a table, JSON, numbers or text; - is standard input")
    add_reading_options(parser)
    parser.add_argument("--fixed-batch", action="store_true", default=None, help="every loss is that of the same data")
    parser.add_argument("--momentum", type=float, help="the optimizer's: the larger, the later judgement begins")
    parser.add_argument("--lr", type=float, help="the learning rate, for advice in numbers (default: the log's)")
    parser.add_argument("--start", type=float, help="the loss before training, if the log begins late")
    options = parser.parse_args(list(arguments))
    status = 0
    try:
        real("momentum", options.momentum or 0.0, 0.0, 1.0)
        for name, value in (("lr", options.lr), ("start", options.start)):
            real(name, 0.0 if value is None else value, 0.0 if name == "lr" else -math.inf)
    except ValueError as error:
        return failed("diagnose", error)
    for name in options.logs:
        try:
            curve = read(name, options.column, options.pattern)
        except (OSError, ValueError) as error:
            status = failed("diagnose", error)
            continue
        known = {key: getattr(options, key) for key in ("fixed_batch", "momentum", "lr", "start")}
        print(report(name, curve, **known))
    return status
