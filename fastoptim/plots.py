"""Pictures of training runs, by matplotlib: ``fastoptim plot run.jsonl``.

Every function returns a ``matplotlib.figure.Figure`` that belongs to no window and no global state: show it in a
notebook, or ``figure.savefig("picture.png")``.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .common.trees import Structure
from .common.validation import count, real
from .optimizers.adam import Adam, AdamW
from .optimizers.base import Optimizer
from .optimizers.sgd import SGD
from .tuning.probe import ProbeResult
from .tuning.range_test import RangeTest

__all__ = [
    "UpdateRatios",
    "loss",
    "probe",
    "range_test",
    "read_log",
    "smooth",
    "update_ratios",
    "valley",
    "valley_paths",
]

# Blue, orange and so on in shades that differ for the colour-blind too (Okabe and Ito).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
VERDICT_COLOURS = {
    "healthy": COLOURS[2],
    "plateau": COLOURS[5],
    "too slow": COLOURS[0],
    "oscillating": COLOURS[4],
    "diverged": COLOURS[1],
}


def _figure(width: float, height: float, *grid: int, **options: Any) -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('pictures need matplotlib: pip install "fastoptim[train]"') from error
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    return figure, figure.subplots(*grid, **options)


def smooth(losses: Sequence[float] | np.ndarray, smoothing: float = 0.95) -> np.ndarray:
    """Running mean ``s <- smoothing * s + (1 - smoothing) * loss`` without its bias towards zero; NaN is passed over.

    Examples
    --------
    >>> import fastoptim as fo
    >>> fo.plots.smooth([2.0, 2.0, 2.0])
    array([2., 2., 2.])
    """
    beta = real("smoothing", smoothing, 0.0, 1.0)
    mean, weight, out = 0.0, 0.0, []
    for loss in np.asarray(losses, np.float64):
        if math.isfinite(loss):
            mean = beta * mean + (1.0 - beta) * loss
            weight = beta * weight + (1.0 - beta)
        out.append(mean / weight if weight else math.nan)
    return np.array(out)


@dataclass(frozen=True)
class Curve:
    """What `loss` draws, as arrays of one entry per step; validation has its own steps."""

    steps: np.ndarray
    losses: np.ndarray
    rates: np.ndarray | None
    validation_steps: np.ndarray
    validation_losses: np.ndarray


def read_log(path: str | os.PathLike[str]) -> Curve:
    """The log that `fastoptim.fit` wrote, ``.jsonl`` or ``.csv``.

    Raises
    ------
    ValueError
        It is not such a log; the message says in which line. A last line that was cut off is left out; in ``.csv`` that
        is every last line without a line end, as it may end within a number.
    """
    path = Path(path)
    rows = list(_csv_rows(path) if path.suffix.lower() == ".csv" else _json_rows(path))
    taken = [row for row in rows if row["kind"] == "step"]
    if not taken:
        raise ValueError(f"{path.name} holds no steps of a training run")
    checks = [row for row in rows if row["kind"] == "validation"]
    return Curve(
        np.array([row["step"] for row in taken]),
        _floats(row["loss"] for row in taken),
        _floats(row["lr"] for row in taken),
        np.array([row["step"] for row in checks]),
        _floats(row["loss"] for row in checks),
    )


def _floats(values: Any) -> np.ndarray:
    return np.array([math.nan if value is None else float(value) for value in values])


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            kind = row["kind"]
            if number == 1 and (kind != "run" or row["version"] != 1):
                raise ValueError(f"kind {kind!r}, version {row.get('version')!r}")
            if kind in ("step", "validation"):
                _ = row["step"], row["loss"], row["lr"] if kind == "step" else None
        except (ValueError, TypeError, KeyError) as error:
            if number == len(lines) > 1:
                return
            raise ValueError(f"{path.name}, line {number}: not a line of a training log ({error})") from error
        yield row


def _csv_rows(path: Path) -> Iterator[dict[str, Any]]:
    text = path.read_text(encoding="utf-8")
    file = io.StringIO(text[: text.rfind("\n") + 1])
    for number, row in enumerate(csv.DictReader(file), 2):
        try:
            step = int(row["step"])
            yield {"kind": "step", "step": step, "loss": float(row["loss"]), "lr": float(row["lr"])}
            if row["validation_loss"]:
                yield {"kind": "validation", "step": step, "loss": float(row["validation_loss"])}
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path.name}, line {number}: not a line of a training log ({error})") from error


def _curve(run: Any) -> Curve:
    if isinstance(run, Curve):
        return run
    if isinstance(run, (str, os.PathLike)):
        return read_log(run)
    history = getattr(run, "history", run)
    if hasattr(history, "validation"):
        checks = history.validation
        return Curve(
            np.arange(len(history.loss)),
            history.loss,
            history.lr,
            np.asarray(checks.get("step", ())),
            np.asarray(checks.get("loss", ())),
        )
    losses = np.array(run, np.float64)
    if losses.ndim != 1:
        raise ValueError(f"expected a log, a result of fit or a sequence of losses, got shape {losses.shape}")
    return Curve(np.arange(len(losses)), losses, None, np.array([]), np.array([]))


def _log_if_positive(axis: Any, values: np.ndarray) -> None:
    values = values[np.isfinite(values)]
    if len(values) and values.min() > 0.0:
        axis.set_yscale("log")


def loss(run: Any, *, smoothing: float = 0.95) -> Any:
    """The loss, raw and smoothed, with validation if there was any and the learning rates below it.

    Parameters
    ----------
    run : path, FitResult, Loop, History or sequence of float
        A log of `fastoptim.fit` (``.jsonl`` or ``.csv``), what `fit` returned, or mere losses.
    smoothing : float
        See `smooth`.

    Examples
    --------
    >>> import fastoptim as fo
    >>> figure = fo.plots.loss([2.0, 1.5, 1.2, 1.1])
    """
    curve = _curve(run)
    count = 1 if curve.rates is None else 2
    heights = [3, 1][:count]
    figure, axes = _figure(8, 3.4 + count, count, 1, sharex=True, height_ratios=heights, squeeze=False)
    top = axes[0, 0]
    top.plot(curve.steps, curve.losses, color=COLOURS[5], lw=0.8, alpha=0.6, label="loss of the minibatch")
    smoothed = smooth(curve.losses, smoothing)
    top.plot(curve.steps, smoothed, color=COLOURS[0], lw=2, label="smoothed")
    if len(curve.validation_steps):
        top.plot(curve.validation_steps, curve.validation_losses, "o-", color=COLOURS[1], ms=4, label="validation")
    _log_if_positive(top, np.concatenate([curve.losses, curve.validation_losses]))
    top.set(ylabel="loss")
    top.grid(alpha=0.3, which="both")
    top.legend()
    if curve.rates is not None:
        axes[1, 0].plot(curve.steps, curve.rates, color=COLOURS[6])
        axes[1, 0].set(ylabel="learning rate", ylim=(0, None))
        axes[1, 0].grid(alpha=0.3)
    axes[-1, 0].set(xlabel="step")
    return figure


def probe(result: ProbeResult) -> Any:
    """The candidates of `fastoptim.probe_lr`: their curves, and their rates against their final losses.

    Colours are verdicts; the chosen rate is drawn thick and marked.
    """
    from matplotlib.lines import Line2D

    figure, (left, right) = _figure(11, 4.4, 1, 2)
    start = max(candidate.losses[0] for candidate in result.probes)
    scores = np.array([candidate.score for candidate in result.probes])
    ceiling = 10.0 * start if start > 0.0 else math.inf
    for candidate in result.probes:
        chosen = candidate.lr == result.lr
        colour = VERDICT_COLOURS[candidate.verdict]
        shown = np.where(candidate.losses <= ceiling, candidate.losses, math.nan)
        left.plot(shown, color=colour, lw=3 if chosen else 1.2, zorder=3 if chosen else 2)
    present = [verdict for verdict in VERDICT_COLOURS if any(p.verdict == verdict for p in result.probes)]
    handles = [Line2D([], [], color=VERDICT_COLOURS[verdict], lw=2, label=verdict) for verdict in present]
    handles.append(Line2D([], [], color="black", lw=3, label=f"chosen: {result.lr:g}"))
    left.set(xlabel="step", ylabel="loss on the anchor batch", title="candidates")
    _log_if_positive(left, np.concatenate([candidate.losses for candidate in result.probes]))
    left.legend(handles=handles, fontsize="small")

    rates = np.array([candidate.lr for candidate in result.probes])
    shown = np.where(np.isfinite(scores) & (scores <= ceiling), scores, ceiling)
    right.plot(rates, np.where(np.isfinite(shown), shown, math.nan), color="0.7", lw=1, zorder=1)
    for candidate, height in zip(result.probes, shown, strict=True):
        off = not candidate.score <= ceiling
        right.plot(candidate.lr, height, "^" if off else "o", color=VERDICT_COLOURS[candidate.verdict], ms=8, zorder=2)
    right.axvline(result.lr, color="black", lw=1, ls="--")
    best = next(candidate for candidate in result.probes if candidate.lr == result.lr)
    if math.isfinite(best.score):
        right.plot(result.lr, min(best.score, ceiling), "o", mfc="none", mec="black", ms=14, mew=2, zorder=3)
    right.set(xscale="log", xlabel="learning rate", ylabel="loss at the end", title="rate against final loss")
    _log_if_positive(right, shown)
    if any(not candidate.score <= ceiling for candidate in result.probes):
        right.text(0.98, 0.02, "triangles: off the scale", transform=right.transAxes, ha="right", fontsize="small")
    for axis in (left, right):
        axis.grid(alpha=0.3, which="major")
    return figure


def range_test(test: RangeTest) -> Any:
    """The sweep of `fastoptim.lr_range_test`: loss against learning rate, raw and smoothed."""
    figure, axis = _figure(8, 4.4)
    axis.plot(test.rates, test.losses, color=COLOURS[5], lw=0.8, alpha=0.6, label="loss of the minibatch")
    axis.plot(test.rates, test.smoothed, color=COLOURS[0], lw=2, label="smoothed")
    for name, value, colour in (("steepest fall", test.steepest, COLOURS[2]), ("blow-up", test.blow_up, COLOURS[1])):
        if math.isfinite(value):
            axis.axvline(value, color=colour, ls="--", label=f"{name}: {value:.2g}")
    axis.set(xscale="log", xlabel="learning rate", ylabel="loss")
    finite = test.smoothed[np.isfinite(test.smoothed)]
    if len(finite):
        low, high = finite.min(), min(finite.max(), finite[0] + 2.0 * (finite[0] - finite.min()) + 1e-12)
        axis.set_ylim(low - 0.1 * (high - low), high + 0.1 * (high - low))
    axis.grid(alpha=0.3)
    axis.legend()
    return figure


# --- The narrow valley --------------------------------------------------------------------------------------------

VALLEY = np.array([0.05, 1.0])  # curvatures along and across
VALLEY_MINIMUM = np.array([2.0, 0.5])
VALLEY_START = np.array([-8.0, 2.5])
VALLEY_STEPS = 60


def valley_paths() -> dict[str, np.ndarray]:
    """Where SGD, momentum, Adam and AdamW walk in a valley that is 20 times steeper across than along."""
    makers: dict[str, Any] = {
        "SGD, lr 1.8": lambda x: SGD(x, lr=1.8),
        "momentum 0.9, lr 0.1": lambda x: SGD(x, lr=0.1, momentum=0.9),
        "Adam, lr 0.3": lambda x: Adam(x, lr=0.3),
        "AdamW, lr 0.3, weight decay 0.05": lambda x: AdamW(x, lr=0.3, weight_decay=0.05),
    }
    paths = {}
    for name, make in makers.items():
        x = VALLEY_START.copy()
        opt: Optimizer = make(x)
        path = [x.copy()]
        for _ in range(VALLEY_STEPS):
            opt.step(VALLEY * (x - VALLEY_MINIMUM))
            path.append(x.copy())
        paths[name] = np.array(path)
    return paths


def valley() -> Any:
    """SGD, momentum, Adam and AdamW in a narrow valley, over its contours, and their losses."""
    figure, axes = _figure(11, 6.4, 2, 2, sharex=True, sharey=True)
    across, along = np.meshgrid(np.linspace(-3.2, 3.8, 141), np.linspace(-9, 5, 281))
    height = 0.5 * (VALLEY[0] * (along - VALLEY_MINIMUM[0]) ** 2 + VALLEY[1] * (across - VALLEY_MINIMUM[1]) ** 2)
    levels = np.geomspace(0.01, 10.0, 13)
    for axis, colour, (name, path) in zip(axes.flat, (1, 0, 2, 3), valley_paths().items(), strict=True):
        axis.contour(along, across, height, levels=levels, colors="0.75", linewidths=0.8)
        axis.plot(*path.T, ".-", color=COLOURS[colour], lw=1.4, ms=5)
        axis.plot(*VALLEY_MINIMUM, "*", color="black", ms=13)
        end = 0.5 * np.sum(VALLEY * (path[-1] - VALLEY_MINIMUM) ** 2)
        axis.set_title(f"{name}: loss {end:.2g} after {VALLEY_STEPS} steps", fontsize="medium")
    figure.supxlabel("along the valley")
    figure.supylabel("across (20 times steeper)")
    return figure


# --- Updates against weights --------------------------------------------------------------------------------------


class UpdateRatios:
    """A callback for `fastoptim.fit`: how large updates are, compared with the weights, for every parameter array.

    Attributes
    ----------
    names : tuple of str
        Of the parameter arrays.
    steps : list of int
        Steps at which the ratios were taken.
    ratios : list of list of float
        For each of these steps and each array, ``norm(update) / norm(weights before it)``.

    Parameters
    ----------
    params : array or nesting of arrays
        Those that `fit` trains.
    every : int
        Steps from one measurement to the next; each costs a copy of the parameters.

    Examples
    --------
    >>> import numpy as np, fastoptim as fo
    >>> w = np.full(4, 2.0)
    >>> ratios = fo.plots.UpdateRatios(w)
    >>> def loss_and_grad(w, batch):
    ...     return 0.5 * np.sum(w**2), 1.0 * w
    >>> result = fo.fit(loss_and_grad, w, None, fo.SGD(w, lr=0.1), steps=3, callbacks=[ratios])
    >>> np.round(ratios.ratios, 3).ravel().tolist()
    [0.1, 0.1, 0.1]
    """

    def __init__(self, params: Any, every: int = 1):
        structure = Structure(params)
        self.names, self._arrays, self.every = structure.names, structure.leaves(params), count("every", every)
        self.steps: list[int] = []
        self.ratios: list[list[float]] = []
        self._before: list[np.ndarray] | None = None

    def begin(self, loop: Any) -> None:
        """Before the first step, and after a checkpoint was restored: take the weights as they are."""
        self._before = [np.array(p) for p in self._arrays] if loop.steps % self.every == 0 else None

    def __call__(self, loop: Any) -> None:
        if self._before is not None:
            pairs = zip(self._arrays, self._before, strict=True)
            self.ratios.append([_ratio(np.asarray(p, np.float64), before) for p, before in pairs])
            self.steps.append(loop.steps - 1)
        self.begin(loop)


def _ratio(p: np.ndarray, before: np.ndarray) -> float:
    size = float(np.linalg.norm(before))
    return float(np.linalg.norm(p - before)) / size if size else math.nan


def update_ratios(record: UpdateRatios) -> Any:
    """How large updates are compared with the weights; around 1e-3 is usual, 1e-2 is fast, 1e-5 hardly moves.

    Parameters
    ----------
    record : UpdateRatios
        The callback, after training.
    """
    figure, axis = _figure(8, 4.4)
    ratios = np.array(record.ratios).reshape(len(record.steps), len(record.names))
    for i, name in enumerate(record.names):
        style = ("-", "--", ":", "-.")[i // len(COLOURS) % 4]
        axis.plot(record.steps, ratios[:, i], style, color=COLOURS[i % len(COLOURS)], lw=1.4, label=name)
    axis.axhline(1e-3, color="black", lw=1, ls=":")
    axis.set(xlabel="step", ylabel="norm of update / norm of weights")
    _log_if_positive(axis, ratios[ratios > 0.0])
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small", ncols=1 + len(record.names) // 8)
    return figure


# --- Command line -------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str]) -> int:
    """``fastoptim plot run.jsonl [--out picture.png]``."""
    parser = argparse.ArgumentParser(prog="fastoptim plot", description="Draw the log that fit(..., log=...) wrote.")
    parser.add_argument("log", type=Path, help="run.jsonl or run.csv")
    parser.add_argument("--out", type=Path, help="the picture (default: the name of the log, with .png)")
    parser.add_argument("--smoothing", type=float, default=0.95, help="weight of the past, from 0 to below 1")
    options = parser.parse_args(list(arguments))
    out = options.out or options.log.with_suffix(".png")
    try:
        loss(options.log, smoothing=options.smoothing).savefig(out)
    except (OSError, ValueError, ImportError) as error:
        print(f"fastoptim plot: {error}", file=sys.stderr)
        return 2
    print(out)
    return 0
