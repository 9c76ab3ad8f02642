"""Pictures of training runs, by matplotlib: ``fastoptim plot LOG [LOG ...]``.

Every function returns a ``matplotlib.figure.Figure`` that belongs to no window and no global state: show it in a
notebook, or ``figure.savefig("picture.png")``.
"""

from __future__ import annotations

import argparse
import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .checkpoint.files import replace
from .common.text import printable
from .common.trees import Structure
from .common.validation import count, real
from .optimizers.adam import Adam, AdamW
from .optimizers.base import Optimizer
from .optimizers.sgd import SGD
from .training.diagnose_cli import STANDARD_INPUT, add_reading_options, failed, read
from .training.diagnosis import numbers
from .training.log_formats import Curve
from .training.log_reading import of_losses, read_curve, read_log
from .tuning.probe import ProbeResult
from .tuning.range_test import RangeTest

__all__ = [
    "UpdateRatios",
    "compare",
    "loss",
    "probe",
    "range_test",
    "read_curve",
    "read_log",
    "smooth",
    "update_ratios",
    "valley",
    "valley_paths",
]

# Blue, orange and so on in shades that differ for the colour-blind too (Okabe and Ito).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
STYLES = ("-", "--", ":", "-.")
VERDICT_COLOURS = {
    "healthy": COLOURS[2],
    "plateau": COLOURS[5],
    "too slow": COLOURS[0],
    "oscillating": COLOURS[4],
    "diverged": COLOURS[1],
    "unclear": COLOURS[3],
    "too short": COLOURS[6],
}


def _figure(width: float, height: float, *grid: int, **options: Any) -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install matplotlib") from error
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
    for loss in numbers(losses):
        if math.isfinite(loss):
            mean = beta * mean + (1.0 - beta) * loss
            weight = beta * weight + (1.0 - beta)
        out.append(mean / weight if weight else math.nan)
    return np.array(out)


def _curve(run: Any) -> Curve:
    if isinstance(run, Curve):
        return run
    if isinstance(run, (str, os.PathLike)):
        return read_curve(run)
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
    return of_losses(run)


def _log_if_positive(axis: Any, values: np.ndarray) -> None:
    values = values[np.isfinite(values)]
    if len(values) and values.min() > 0.0:
        axis.set_yscale("log")


def loss(run: Any, *, smoothing: float = 0.95, title: str = "training loss") -> Any:
    """Draw the loss, raw and smoothed, with validation if there was any and the learning rates below it.

    Parameters
    ----------
    run : path, FitResult, Loop, History or sequence of float
        A log, of `fastoptim.fit` or anybody else (`read_curve`), what `fit` returned, or mere losses.
    smoothing : float
        See `smooth`.
    title : str
        What stands above it.

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
    top.set(ylabel=_label(curve.column), title=_label(title))
    top.grid(alpha=0.3, which="both")
    top.legend()
    if curve.rates is not None:
        axes[1, 0].plot(curve.steps, curve.rates, color=COLOURS[6])
        axes[1, 0].set(ylabel="learning rate", ylim=(0, None))
        axes[1, 0].grid(alpha=0.3)
    axes[-1, 0].set(xlabel="step")
    return figure


def compare(runs: Mapping[str, Any], *, smoothing: float = 0.95) -> Any:
    """Draw the losses of several runs in one picture, raw and smoothed, with validation dashed.

    Parameters
    ----------
    runs : mapping
        From the name of a run to whatever `loss` takes.
    smoothing : float
        See `smooth`.

    Examples
    --------
    >>> import fastoptim as fo
    >>> figure = fo.plots.compare({"sgd": [2.0, 1.5, 1.2], "adam": [2.0, 1.2, 0.9]})
    """
    if not isinstance(runs, Mapping):
        raise TypeError(f'runs: expected a mapping such as {{"sgd": result}}, got {type(runs).__name__}')
    figure, axis = _figure(8, 4.8)
    curves = {name: _curve(run) for name, run in runs.items()}
    for i, (name, curve) in enumerate(curves.items()):
        colour, style = COLOURS[i % len(COLOURS)], STYLES[i // len(COLOURS) % len(STYLES)]
        axis.plot(curve.steps, curve.losses, color=colour, lw=0.6, alpha=0.25)
        axis.plot(curve.steps, smooth(curve.losses, smoothing), style, color=colour, lw=2, label=_label(str(name)))
        if len(curve.validation_steps):
            axis.plot(curve.validation_steps, curve.validation_losses, "o--", color=colour, ms=3, lw=1)
    parts = [part for curve in curves.values() for part in (curve.losses, curve.validation_losses)]
    _log_if_positive(axis, np.concatenate([*parts, np.array([])]))
    dashed = ", validation dashed" if any(len(curve.validation_steps) for curve in curves.values()) else ""
    axis.set(xlabel="step", ylabel="loss", title=f"training loss, smoothed{dashed}")
    axis.grid(alpha=0.3, which="both")
    axis.legend(fontsize="small")
    return figure


def _label(text: str) -> str:
    """A text of the user's as matplotlib shows it as it is: no formula, no control characters, not hidden."""
    return ("\u200b" if text.startswith("_") else "") + printable(text, keep="\n").replace("$", r"\$")


def probe(result: ProbeResult) -> Any:
    """Draw the candidates of `fastoptim.probe_lr`: their curves, and their rates against their final losses.

    Colours are verdicts; every curve ends with its rate, and the chosen one is drawn thick and marked. The losses are
    those of one fixed batch, the same for all.
    """
    from matplotlib.lines import Line2D

    figure, (left, right) = _figure(11, 4.4, 1, 2)
    start = max(candidate.losses[0] for candidate in result.probes)
    scores = np.array([candidate.score for candidate in result.probes])
    ceiling = 10.0 * start if start > 0.0 else math.inf
    ends: list[tuple[float, float, str, str]] = []
    for candidate in result.probes:
        chosen = candidate.lr == result.lr
        colour = VERDICT_COLOURS[candidate.verdict]
        shown = np.where(candidate.losses <= ceiling, candidate.losses, math.nan)
        left.plot(shown, color=colour, lw=3 if chosen else 1.2, zorder=3 if chosen else 2)
        last = np.flatnonzero(np.isfinite(shown))
        if len(last):
            ends.append((float(last[-1]), float(shown[last[-1]]), f"{candidate.lr:g}", colour))
    present = [verdict for verdict in VERDICT_COLOURS if any(p.verdict == verdict for p in result.probes)]
    handles = [Line2D([], [], color=VERDICT_COLOURS[verdict], lw=2, label=verdict) for verdict in present]
    handles.append(Line2D([], [], color="black", lw=3, label=f"chosen: {result.lr:g}"))
    left.set(xlabel="step", ylabel="loss on a fixed batch", title="what each learning rate does to the loss")
    _log_if_positive(left, np.concatenate([candidate.losses for candidate in result.probes]))
    _label_ends(left, ends)
    left.legend(handles=handles, fontsize="small")

    rates = np.array([candidate.lr for candidate in result.probes])
    shown = np.where(np.isfinite(scores) & (scores <= ceiling), scores, ceiling)
    right.plot(rates, np.where(np.isfinite(shown), shown, math.nan), color="0.7", lw=1, zorder=1)
    for candidate, height in zip(result.probes, shown, strict=True):
        off = not candidate.score <= ceiling
        right.plot(candidate.lr, height, "^" if off else "o", color=VERDICT_COLOURS[candidate.verdict], ms=8, zorder=2)
    right.axvline(result.lr, color="black", lw=1, ls="--")
    best = next((candidate for candidate in result.probes if candidate.lr == result.lr), None)
    if best is not None and math.isfinite(best.score):  # longer trials may choose a rate that only they have tried
        right.plot(result.lr, min(best.score, ceiling), "o", mfc="none", mec="black", ms=14, mew=2, zorder=3)
    right.set(
        xscale="log",
        xlabel="learning rate",
        ylabel="loss on the fixed batch at the end",
        title="the lowest that is fit for use is chosen",
    )
    _log_if_positive(right, shown)
    if any(not candidate.score <= ceiling for candidate in result.probes):
        right.text(0.98, 0.02, "triangles: off the scale", transform=right.transAxes, ha="right", fontsize="small")
    for axis in (left, right):
        axis.grid(alpha=0.3, which="major")
    return figure


def _label_ends(axis: Any, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Write the text of each curve at its end (x, y, text, colour); at the right edge, one above the other."""
    if not ends:
        return
    edge = max(x for x, *_ in ends)
    axis.set_xlim(right=edge)
    to_axes = axis.transData + axis.transAxes.inverted()
    lowest = -math.inf
    for height, x, text, colour in sorted((to_axes.transform((x, y))[1], x, *rest) for x, y, *rest in ends):
        if x == edge:
            lowest = max(height, lowest + 0.045)
            axis.text(1.01, lowest, text, transform=axis.transAxes, color=colour, fontsize="x-small", va="center")
        else:
            axis.text(to_axes.transform((x, 0.5))[0], height, text, transform=axis.transAxes, color=colour,
                      fontsize="x-small", va="bottom")  # fmt: skip


def range_test(test: RangeTest) -> Any:
    """Draw the sweep of `fastoptim.lr_range_test`: loss against learning rate, raw and smoothed."""
    figure, axis = _figure(8, 4.4)
    axis.plot(test.rates, test.losses, color=COLOURS[5], lw=0.8, alpha=0.6, label="loss of the minibatch")
    axis.plot(test.rates, test.smoothed, color=COLOURS[0], lw=2, label="smoothed")
    for name, value, colour in (("steepest fall", test.steepest, COLOURS[2]), ("blow-up", test.blow_up, COLOURS[1])):
        if math.isfinite(value):
            axis.axvline(value, color=colour, ls="--", label=f"{name}: {value:.2g}")
    axis.set(xscale="log", xlabel="learning rate", ylabel="loss", title="one run in which the learning rate grows")
    finite = test.smoothed[np.isfinite(test.smoothed)]
    if len(finite):
        low, high = finite.min(), min(finite.max(), finite[0] + 2.0 * (finite[0] - finite.min()) + 1e-12)
        axis.set_ylim(low - 0.1 * (high - low), high + 0.1 * (high - low))
    axis.grid(alpha=0.3)
    axis.legend()
    return figure


# --- The narrow valley --------------------------------------------------------------------------------------------

VALLEY = np.array([0.01, 1.0])  # curvatures along and across
VALLEY_MINIMUM = np.array([2.0, 0.5])
VALLEY_START = np.array([-8.0, 2.5])
VALLEY_STEPS = 150


def valley_paths() -> dict[str, np.ndarray]:
    """Compute the paths of SGD, momentum, Adam and AdamW in a valley that is 100 times steeper across than along."""
    makers: dict[str, Any] = {
        "SGD, lr 1.8": lambda x: SGD(x, lr=1.8),
        "momentum 0.9, lr 0.2": lambda x: SGD(x, lr=0.2, momentum=0.9),
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
    """Draw SGD, momentum, Adam and AdamW in a narrow valley, over its contours, with their losses."""
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
    figure.suptitle("a narrow valley: SGD's rate is limited by the steep walls, so along the floor it creeps")
    figure.supxlabel("along the valley")
    figure.supylabel(f"across ({VALLEY[1] / VALLEY[0]:.0f} times steeper)")
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
        self._before = [np.array(p, np.float64) for p in self._arrays] if loop.steps % self.every == 0 else None

    def __call__(self, loop: Any) -> None:
        if self._before is not None:
            pairs = zip(self._arrays, self._before, strict=True)
            self.ratios.append([_ratio(np.asarray(p, np.float64), before) for p, before in pairs])
            self.steps.append(loop.steps - 1)
        self.begin(loop)


def _ratio(p: np.ndarray, before: np.ndarray) -> float:
    size = float(np.linalg.norm(before))  # in float64: squares of float16 overflow
    return float(np.linalg.norm(p - before)) / size if size else math.nan


def update_ratios(record: UpdateRatios) -> Any:
    """Draw how large updates are compared with the weights; around 1e-3 is usual, 1e-2 is fast, 1e-5 hardly moves.

    Parameters
    ----------
    record : UpdateRatios
        The callback, after training.
    """
    figure, axis = _figure(8, 4.4)
    ratios = np.array(record.ratios).reshape(len(record.steps), len(record.names))
    ratios[ratios == 0.0] = math.nan  # a step at rate 0 has no place on a logarithmic axis
    for i, name in enumerate(record.names):
        style = STYLES[i // len(COLOURS) % len(STYLES)]
        axis.plot(record.steps, ratios[:, i], style, color=COLOURS[i % len(COLOURS)], lw=1.4, label=_label(name))
    axis.axhline(1e-3, color="black", lw=1, ls=":")
    axis.set(xlabel="step", ylabel="norm of update / norm of weights", title="how far each step moves each array")
    _log_if_positive(axis, ratios[ratios > 0.0])
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small", ncols=1 + len(record.names) // 8)
    return figure


def save(figure: Any, path: Path) -> None:
    """Write a picture, of the format that its name says; one that was there stays until this one is whole."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format=path.suffix[1:] or "png")
    replace(path, drawn.getvalue())


# --- Command line -------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str]) -> int:
    """``fastoptim plot LOG [LOG ...] [--out picture.png]``."""
    parser = argparse.ArgumentParser(prog="fastoptim plot", description="Draw training logs, whoever wrote them.")
    parser.add_argument("logs", nargs="+", metavar="LOG", help="a table, JSON, numbers or text; - is standard input")
    add_reading_options(parser)
    parser.add_argument("--out", type=Path, help="the picture (default: the name of the log, or comparison, with .png)")
    parser.add_argument("--smoothing", type=float, default=0.95, help="weight of the past, from 0 to below 1")
    options = parser.parse_args(list(arguments))
    try:
        curves = {name: read(name, options.column, options.pattern) for name in options.logs}
        out = options.out or _picture_of(options.logs)
        if out.is_dir():
            out /= _picture_of(options.logs).name
        elif not out.suffix and not out.exists():
            out = out.with_suffix(".png")  # as matplotlib would do without saying so
        if any(os.path.exists(name) and os.path.exists(out) and os.path.samefile(name, out) for name in options.logs):
            raise ValueError(f"{out} would be overwritten by its picture; name another by --out")
        if len(curves) == 1:
            (name, curve), *_ = curves.items()
            title = "training loss" if name == STANDARD_INPUT else Path(name).name
            figure = loss(curve, smoothing=options.smoothing, title=title)
        else:
            figure = compare(curves, smoothing=options.smoothing)
        save(figure, out)
    except (OSError, ValueError, ImportError) as error:
        return failed("plot", error)
    print(printable(str(out), keep="\n"))
    return 0


def _picture_of(logs: Sequence[str]) -> Path:
    """Where the picture goes: beside a single log, else into this folder."""
    if len(logs) > 1 or logs[0] == STANDARD_INPUT:
        return Path("comparison.png" if len(logs) > 1 else "log.png")
    return Path(logs[0]).with_suffix(".png")
