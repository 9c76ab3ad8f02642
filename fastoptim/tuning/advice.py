"""Recommends an optimizer, a starting rate and a batch size: from answers, or measured from a model."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..arrays.checks import real_array
from ..arrays.rows import Rows
from ..common.public import public
from ..common.trees import Structure
from ..common.validation import count, flag, names_arguments, real
from ..optimizers.selecting import GroupedParams
from ..training.data import positional
from ..training.diagnosis import diagnose
from ..training.loop import LossAndGrad
from .sandbox import Sandbox

# What counts as badly scaled and as sparse; docs/guide/choosing.md shows the figures of some models.
SPREAD = 1e3  # ratio of the largest to the smallest typical gradient
SPARSE = 0.5  # share of zeros among the gradients that are not always zero
_EXAMPLES = 32  # single examples that are looked at
# What else came out well on such a problem, its rate there, and the figures (benchmarks/which_optimizer.py).
_BESIDE: dict[str, tuple[dict[str, float], str]] = {
    "attention": (
        {"schedule_free_adamw": 0.0032, "lamb": 0.01},
        "Beside it, by the held-out loss of a small GPT: schedule_free_adamw 2.26, lamb 2.34, adamw 2.48; after 120 "
        "steps, which favours those that are quick at the start.",
    ),
    "sparse": (
        {"adagrad": 3.2, "ftrl": 1.0},
        "Beside it, by right answers on 2,000 lines of sparse words: adagrad 87.1 %, adam 86.8 %, ftrl 86.2 %; these "
        "differences may be chance. adagrad has half the states, ftrl exact zeros by l1. Gradients of a few rows are "
        "fastoptim.Rows, which adagrad takes.",
    ),
    "": (
        {"yogi": 0.01, "nadam": 0.01},
        "Other rules rarely pay: on digits, yogi 97.3 %, nadam 97.1 %, adam 96.7 % right; the seed matters as much.",
    ),
}
_FEWEST = 8  # examples of the smallest batch to recommend: a step of a small network on fewer takes NumPy about as long


@public
@dataclass(frozen=True)
class Recommendation:
    """What to start with, and why.

    Attributes
    ----------
    optimizer : {"adam", "adamw", "momentum"}
        A name that `fastoptim.fit` and `fastoptim.probe_lr` take; "momentum" is SGD with momentum 0.9.
    lr : float
        The rate to start from. `fastoptim.probe_lr` goes on from there.
    lr_range : tuple of float
        Where the final rate usually lies.
    batch_size : int or None
        A batch size worth trying; None if nothing is known.
    reasons : tuple of str
        One sentence for each consideration, with the figure that it rests on.
    figures : dict
        What was measured; empty if it was answers only.
    beside : dict
        Names of other optimizers worth a try, with the rates that were best for them on such a problem.
    """

    optimizer: str
    lr: float
    lr_range: tuple[float, float]
    batch_size: int | None
    reasons: tuple[str, ...]
    figures: dict[str, float] = field(default_factory=dict)
    beside: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        batch = "" if self.batch_size is None else f", batch size {self.batch_size}"
        return "\n".join([f"{self.optimizer}, lr {self.lr:g}{batch}", *(f"- {reason}" for reason in self.reasons)])


@public
@names_arguments
def recommend(
    loss_and_grad: LossAndGrad | None = None,
    params: Any = None,
    data: Any = None,
    *,
    sparse: bool | None = None,
    badly_scaled: bool | None = None,
    attention: bool = False,
    time_to_tune: bool = False,
    unstable: bool | None = None,
    losses: Sequence[float] | np.ndarray | None = None,
    lr: float | None = None,
    batches: int = 16,
    batch_size: int | None = None,
    rng: int | np.random.Generator | None = None,
    generators: Iterable[Any] = (),
    buffers: Any = (),
) -> Recommendation:
    """Recommend an optimizer, a rate to start from and a batch size, with the reasons.

    The rule: unsure, or gradients that are sparse or differ by orders of magnitude: Adam at 1e-3 (AdamW for
    attention); well scaled, and time to tune rate and schedule: SGD with momentum 0.9 at 0.1 to 0.01; unstable: first
    lower the rate, then momentum or Adam, then a larger batch.

    Parameters
    ----------
    loss_and_grad, params, data, batch_size, rng, generators, buffers
        As for `fastoptim.probe_lr`; what is not answered is then measured, and everything is put back.
    sparse : bool, optional
        Whether most gradients are zero in most batches (embeddings, rare features). None: unknown, or measured.
    badly_scaled : bool, optional
        Whether gradients differ by orders of magnitude between parameters. None: unknown, or measured.
    attention : bool
        Whether the model is attention-style.
    time_to_tune : bool
        Whether the final result is worth the time to tune rate and schedule.
    unstable : bool, optional
        Whether training has been unstable. None: read from `losses`, if given.
    losses : sequence of float, optional
        Training losses of a run so far, for `fastoptim.diagnose`.
    lr : float, optional
        The rate of that run, > 0. If it was unstable, no larger rate than this one lowered is recommended.
    batches : int
        Minibatches to measure on, at least 2.

    Returns
    -------
    Recommendation
        `figures` may hold ``spread`` (typical gradients, as root mean squares over minibatches: the 95th percentile
        over the 5th percentile of the elements, or the largest over the smallest parameter array if that is more),
        ``sparsity`` (share of zeros in a minibatch, among the elements that are not zero in all of them),
        ``example_spread`` (largest over median norm of the gradients of single examples), ``noise_scale`` (the batch
        size at which noise and gradient are equally large, at most ten times the examples looked at), ``batch_size``
        (the one that was measured with) and ``examples`` (all there are). Noise and sparsity need two different
        minibatches.

    Raises
    ------
    TypeError, ValueError
        Bad arguments, or gradients from which nothing can be told: all zero, or not finite.

    Notes
    -----
    The noise scale is ``B = tr(S) / |G|**2`` with the gradient ``G`` and the covariance ``S`` of the gradients of
    single examples, both estimated without bias from the norms of the gradients of minibatches and of their mean,
    which are drawn without replacement from the data at hand. A step with a batch of b makes ``1 / (1 + B / b)`` of
    the progress of a step without noise.

    References
    ----------
    McCandlish et al., "An empirical model of large-batch training", 2018.

    Examples
    --------
    >>> import fastoptim as fo
    >>> advice = fo.recommend(badly_scaled=False, sparse=False, time_to_tune=True)
    >>> advice.optimizer, advice.lr, advice.lr_range
    ('momentum', 0.1, (0.01, 0.1))
    >>> print(fo.recommend())
    adam, lr 0.001
    - Nothing is known that speaks against it, and Adam's default rate works for most models.
    - Other rules rarely pay: on digits, yogi 97.3 %, nadam 97.1 %, adam 96.7 % right; the seed matters as much.
    >>> fo.recommend(attention=True).beside
    {'schedule_free_adamw': 0.0032, 'lamb': 0.01}
    """
    answers = {
        "sparse": sparse,
        "badly_scaled": badly_scaled,
        "attention": attention,
        "time_to_tune": time_to_tune,
        "unstable": unstable,
    }
    for name, answer in answers.items():
        if answer is not None:
            flag(name, answer)
    lr = None if lr is None else real("lr", lr, 0.0)
    if lr == 0.0:
        raise ValueError("lr must be > 0, as a run with 0 stands still")
    batches = count("batches", batches, 2)
    figures: dict[str, float] = {}
    if loss_and_grad is not None:
        with Sandbox(loss_and_grad, params, data, None, batch_size, rng, generators, buffers) as sandbox:
            figures = _measure(sandbox, *_stepped(params), batches)
    elif params is not None or data is not None:
        raise TypeError("to measure, all of loss_and_grad, params and data are needed")
    reasons: list[str] = []
    optimizer, rate, rates, beside = _choose(sparse, badly_scaled, attention, time_to_tune, figures, reasons)
    size = _batch(figures, reasons)
    factor = _calm(unstable, losses, lr, reasons)
    if factor < 1.0:
        # The run may have been of another optimizer, whose rates are larger.
        rate = rate * factor if lr is None else min(rate, lr * factor)
        rates = (min(rate, rates[0]), max(rate, rates[0]))
    return Recommendation(optimizer, rate, rates, size, tuple(reasons), figures, beside)


def _choose(
    sparse: bool | None,
    badly_scaled: bool | None,
    attention: bool,
    time_to_tune: bool,
    figures: dict[str, float],
    reasons: list[str],
) -> tuple[str, float, tuple[float, float], dict[str, float]]:
    """Optimizer, rate to start from, range of rates, and what else to try; the reasons are appended."""
    if attention:
        reasons.append("Attention-style models are trained with AdamW, whose weight decay is apart from the gradient.")
    if sparse is None and "sparsity" in figures:
        sparse = figures["sparsity"] > SPARSE
        told = f"In a minibatch {figures['sparsity']:.0%} of the gradients are zero (without those that always are)"
    else:
        told = "Gradients are said to be sparse" if sparse else "Gradients are said not to be sparse"
    if sparse is not None:
        reasons.append(f"{told}: {'Adam takes large steps for rare ones' if sparse else 'nothing that needs Adam'}.")
    if badly_scaled is None and "spread" in figures:
        badly_scaled = figures["spread"] > SPREAD
        told = f"Typical gradients differ by a factor of {figures['spread']:.3g} between parameters"
    else:
        told = f"Gradients are said to be {'badly' if badly_scaled else 'well'} scaled"
    if badly_scaled is not None:
        reasons.append(f"{told}: {'no single rate of SGD suits all' if badly_scaled else 'one rate can suit all'}.")
    others, told = _BESIDE["attention" if attention else "sparse" if sparse else ""]
    beside = dict(others)
    if attention or sparse or badly_scaled:
        reasons.append(told)
        return ("adamw", 1e-3, (1e-4, 3e-3), beside) if attention else ("adam", 1e-3, (1e-4, 1e-2), beside)
    if badly_scaled is False and time_to_tune:
        reasons.append(
            "With time to tune, SGD with momentum 0.9 reached on digits what Adam did, with half its states, at a rate "
            "of 0.1; on a small GPT it stayed behind. Let probe_lr find the rate: elsewhere 0.1 may diverge."
        )
        return "momentum", 0.1, (0.01, 0.1), {"adam": 0.01}
    if sparse is None and badly_scaled is None:
        reasons.append("Nothing is known that speaks against it, and Adam's default rate works for most models.")
    else:
        reasons.append("Without time to tune, Adam's default rate of 0.001 is the safer start.")
    reasons.append(told)
    return "adam", 1e-3, (1e-4, 1e-2), beside


def _batch(figures: dict[str, float], reasons: list[str]) -> int | None:
    """A batch size worth trying; the reason is appended."""
    spread = figures.get("example_spread", 0.0)
    if spread > 10.0:
        reasons.append(
            f"The largest gradient of a single example is {spread:.3g} times the median one: clip with max_norm."
        )
    if "noise_scale" not in figures:
        return None
    scale, present = figures["noise_scale"], int(figures["batch_size"])
    share = 1.0 / (1.0 + scale / present)
    told = (
        f"The gradient noise scale is about {scale:.3g} examples: a step with {present} makes about {share:.0%} of the "
        "progress of one without noise"
    )
    if share < 0.2:
        size = min(1 << round(math.log2(scale)), 16 * present, int(figures["examples"]))
        reasons.append(f"{told}; larger batches, up to about {size}, save steps almost in proportion.")
        return size
    size = max(1 << round(math.log2(max(scale, 1.0))), _FEWEST)
    if share > 0.8 and size < present:
        reasons.append(f"{told}; smaller batches, down to about {size}, make more of every example.")
        return size
    reasons.append(f"{told}, which is a good batch size.")
    return present


def _calm(
    unstable: bool | None, losses: Sequence[float] | np.ndarray | None, lr: float | None, reasons: list[str]
) -> float:
    """What to multiply the rate by because training is unstable; the reason is appended."""
    factor, told = (0.1 if unstable else 1.0), "Training is said to be unstable"
    if lr is not None:
        told += f" (try {lr * factor:.3g} there)"
    if unstable is None and losses is not None:
        found = diagnose(losses, lr=lr)
        if found.verdict in ("diverged", "oscillating"):
            factor, told = found.lr_factor, str(found).removesuffix(".")
    if factor < 1.0:
        reasons.append(f"{told}. First lower the rate, then use momentum or Adam, then a larger batch.")
    return factor


def _stepped(params: Any) -> tuple[Structure, list[int]]:
    """The structure of parameters, and the positions of those that are not frozen."""
    if isinstance(params, GroupedParams):
        return Structure(params.params), sorted(i for group in params.groups for i in group.positions)
    structure = Structure(params)
    return structure, list(range(len(structure.names)))


def _measure(sandbox: Sandbox, structure: Structure, positions: Sequence[int], count: int) -> dict[str, float]:
    """Gradient scales, sparsity and noise of the parameters at these positions of the structure, as they are now."""
    params = structure.leaves(sandbox.params)

    def gradient(batch: Any) -> list[np.ndarray]:  # None is no gradient: zeros
        found = structure.leaves(sandbox.evaluate(batch)[1])
        return [_checked(structure.names[i], found[i], params[i]) for i in positions]

    batches = sandbox.batches
    if batches is None or batches.batch_size == batches.examples:
        gradients = [gradient(sandbox.next_batch())]
        _vectors(gradients)
        return {"spread": _spread(gradients)}
    gradients, epochs, seen = [], [], 0
    while len(gradients) < count and (batches.shuffle or seen < len(batches)):  # again in order tells nothing new
        whole, epoch = batches.next_size() == batches.batch_size, batches.epoch if batches.shuffle else 0
        drawn, seen = sandbox.next_batch(), seen + 1
        if whole:  # the estimate of the noise needs batches of one size
            batch = drawn
            gradients.append(gradient(batch))
            epochs.append(epoch)
    vectors = _vectors(gradients)
    figures = {"spread": _spread(gradients)}
    if len(gradients) > 1:
        ever = (vectors != 0).any(axis=0)
        figures |= {
            "sparsity": float(np.mean(vectors[:, ever] == 0)),
            "noise_scale": _noise_scale(vectors, batches.batch_size, batches.examples, epochs),
            "batch_size": float(batches.batch_size),
            "examples": float(batches.examples),
        }
    parts = [positional(part) for part in batches.parts(batch)]
    examples = [
        batches.assemble([part[i : i + 1] for part in parts]) for i in range(min(_EXAMPLES, batches.batch_size))
    ]
    sizes = [float(_rms(np.concatenate(gradient(example)))) for example in examples]
    if np.median(sizes) > 0.0:
        figures["example_spread"] = min(max(sizes) / float(np.median(sizes)), sys.float_info.max)
    return figures


def _checked(name: str, g: Any, p: np.ndarray) -> np.ndarray:
    """The gradient of a parameter as one vector; TypeError or ValueError unless it is one."""
    if g is None:
        return np.zeros(p.size)
    if isinstance(g, Rows):
        g = g.to_dense(len(p)) if p.ndim else g.values
    values = real_array(f"gradient of parameter {name!r}", g)
    if values.shape != p.shape:
        raise ValueError(f"gradient of parameter {name!r}: expected shape {p.shape}, got {values.shape}")
    return values.astype(np.float64).ravel()


def _vectors(gradients: list[list[np.ndarray]]) -> np.ndarray:
    """Each gradient as one vector; ValueError if nothing can be told from them."""
    vectors = np.array([np.concatenate(arrays) for arrays in gradients])
    if not np.isfinite(vectors).all():
        raise ValueError("gradients are not finite at these parameters: nothing can be told from them")
    if not vectors.any():
        raise ValueError("all gradients are zero at these parameters: nothing can be told from them")
    return vectors


def _spread(gradients: list[list[np.ndarray]]) -> float:
    """Largest over smallest typical gradient: between elements (95th over 5th percentile) or between arrays."""
    typical = [_rms(np.array(column)) for column in zip(*gradients, strict=True)]
    elements = np.concatenate(typical)
    elements = elements[elements > 0.0]
    if len(elements) == 0:
        return 1.0
    high, low = np.percentile(np.log(elements), (95, 5))  # of logarithms: of a few elements they are interpolated
    arrays = [size for size in (float(_rms(x)) for x in typical if x.size) if size > 0.0]
    return math.exp(min(max(high - low, math.log(max(arrays)) - math.log(min(arrays))), 709.0))


def _rms(x: np.ndarray) -> np.ndarray:
    """Root mean square along the first axis, also of numbers whose squares are none."""
    largest = np.abs(x).max(axis=0, initial=0.0)
    unit = np.where(largest > 0.0, largest, 1.0)
    size: np.ndarray = unit * np.sqrt(np.mean(np.square(x / unit), axis=0))
    return size


def _noise_scale(vectors: np.ndarray, size: int, examples: int, epochs: Sequence[int]) -> float:
    """Batch size at which noise and gradient are equal; at most ten times the examples that were looked at.

    Batches of an epoch are drawn without replacement: a mean over b of N examples has the variance S (1/b - 1/N), and
    so has that over all batches of an epoch together; different epochs are independent.
    """
    count = len(vectors)
    vectors = vectors / np.abs(vectors).max()
    small = float(np.mean(np.sum(vectors**2, axis=1)))
    mean = vectors.mean(axis=0)
    large = float(mean @ mean)
    together = np.unique(epochs, return_counts=True)[1]
    of_one = 1.0 / size - 1.0 / examples
    of_mean = 1.0 / (count * size) - float(np.sum(together.astype(float) ** 2)) / (count**2 * examples)
    noise = max(small - large, 0.0) / (of_one - of_mean)
    signal = small - noise * of_one
    limit = 10.0 * count * size
    return noise / signal if signal * limit > noise else limit
