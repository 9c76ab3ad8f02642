"""Counterparts of the classes in other libraries, what they are called with, and how far the two lie apart.

A row of `PEERS` gives random options for both sides; `distance` walks some steps on each and returns the largest one,
in machine epsilons of ``|p| + distance travelled``: libraries evaluate other trees, with FMA.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

import fastoptim as fo

Step = Callable[[np.ndarray], np.ndarray]  # gradient -> parameter after the step


class Peer(NamedTuple):
    """One class of fastoptim, and its counterpart in a library."""

    library: str
    cls: str
    make: Callable[[np.ndarray, dict[str, Any]], Step]  # (start, the options of fastoptim's) -> their step
    options: Callable[[np.random.Generator], dict[str, Any]]

    @property
    def label(self) -> str:
        return f"{self.library}-{self.cls}"


def _between(low: float, high: float) -> Callable[[np.random.Generator], float]:
    return lambda rng: float(rng.uniform(low, high))


def _power(low: float, high: float) -> Callable[[np.random.Generator], float]:
    return lambda rng: float(10 ** rng.uniform(low, high))


def _coin(rng: np.random.Generator) -> bool:
    return bool(rng.integers(2))


def _maybe(other: Callable[[np.random.Generator], float]) -> Callable[[np.random.Generator], float]:
    return lambda rng: other(rng) if rng.random() < 0.5 else 0.0


def _one_of(*values: Any) -> Callable[[np.random.Generator], Any]:
    return lambda rng: values[rng.integers(len(values))]


def _betas(*ranges: tuple[float, float]) -> Callable[[np.random.Generator], tuple[float, ...]]:
    return lambda rng: tuple(float(rng.uniform(*x)) for x in ranges)


_LR, _EPS, _DECAY = _power(-4, -1), _power(-10, -3), _maybe(_power(-4, -1))
_PAIR = _betas((0.1, 0.95), (0.8, 0.9999))
_TRIPLE = _betas((0.1, 0.98), (0.1, 0.98), (0.8, 0.999))
_MOMENT = {"lr": _LR, "betas": _PAIR, "eps": _EPS}


def _drawn(**draws: Any) -> Callable[[np.random.Generator], dict[str, Any]]:
    return lambda rng: {name: draw(rng) if callable(draw) else draw for name, draw in draws.items()}


# --- torch ---------------------------------------------------------------------------------------------------------


def _torch(name: str, **draws: Any) -> Peer:
    def make(start: np.ndarray, options: dict[str, Any]) -> Step:
        import torch

        p = torch.nn.Parameter(torch.from_numpy(start.copy()))
        # torch keeps NAdam's product and ASGD's rate in its default dtype.
        before = torch.get_default_dtype()
        torch.set_default_dtype(p.dtype)
        try:
            opt = getattr(torch.optim, name)([p], **options)
        finally:
            torch.set_default_dtype(before)

        def step(g: np.ndarray) -> np.ndarray:
            torch.set_default_dtype(p.dtype)
            try:
                p.grad = torch.from_numpy(g.copy())
                opt.step()
            finally:
                torch.set_default_dtype(before)
            return p.detach().numpy()

        return step

    return Peer("torch", name, make, _drawn(**draws))


_TORCH = (
    _torch("SGD", lr=_LR, momentum=_maybe(_between(0.1, 0.95)), weight_decay=_DECAY, maximize=_coin),
    _torch("Adam", **_MOMENT, weight_decay=_DECAY, amsgrad=_coin, maximize=_coin),
    _torch("RMSprop", lr=_LR, alpha=_between(0.1, 0.99), eps=_EPS, weight_decay=_DECAY,
           momentum=_maybe(_between(0.1, 0.95)), maximize=_coin),
    # v - a**2 loses digits where gradients hardly vary, which no bound on rounding survives: eps keeps them in sight.
    _torch("RMSprop", lr=_LR, alpha=_between(0.9, 0.99), eps=_power(-2, 0), weight_decay=_DECAY,
           momentum=_maybe(_between(0.1, 0.95)), centered=True, maximize=_coin),
    _torch("Adagrad", lr=_LR, lr_decay=_maybe(_power(-3, -1)), weight_decay=_DECAY,
           initial_accumulator_value=_maybe(_power(-2, 0)), eps=_EPS, maximize=_coin),
    _torch("Adadelta", lr=_power(-1, 0.5), rho=_between(0.1, 0.99), eps=_EPS, weight_decay=_DECAY, maximize=_coin),
    _torch("Adamax", **_MOMENT, weight_decay=_DECAY, maximize=_coin),
    _torch("NAdam", **_MOMENT, weight_decay=_DECAY, momentum_decay=_power(-3, 0), decoupled_weight_decay=_coin,
           maximize=_coin),
    _torch("RAdam", **_MOMENT, weight_decay=_DECAY, decoupled_weight_decay=_coin, maximize=_coin),
    _torch("Rprop", lr=_LR, etas=_betas((0.2, 0.9), (1.05, 2.0)), step_sizes=_betas((1e-6, 1e-4), (0.1, 50.0)),
           maximize=_coin),
    _torch("ASGD", lr=_LR, lambd=_power(-4, -1), alpha=_between(0.5, 1.0), t0=_one_of(0.0, 5.0, 1e6),
           weight_decay=_DECAY, maximize=_coin),
)  # fmt: skip


# --- Optax ---------------------------------------------------------------------------------------------------------


def _optax(cls: str, build: Callable[[Any, dict[str, Any]], Any], **draws: Any) -> Peer:
    def make(start: np.ndarray, options: dict[str, Any]) -> Step:
        import jax
        import optax

        jax.config.update("jax_enable_x64", True)
        transform = build(optax, options)
        update = jax.jit(transform.update)
        kept = {"p": jax.numpy.asarray(start)}
        kept["state"] = transform.init(kept["p"])

        def step(g: np.ndarray) -> np.ndarray:
            updates, kept["state"] = update(jax.numpy.asarray(g), kept["state"], kept["p"])
            kept["p"] = optax.apply_updates(kept["p"], updates)
            return np.asarray(kept["p"])

        return step

    return Peer("optax", cls, make, _drawn(**draws))


def _with_decay(optax: Any, scale: Any, o: dict[str, Any]) -> Any:
    decay = [optax.add_decayed_weights(o["weight_decay"])] if o.get("weight_decay") else []
    return optax.chain(scale, *decay, optax.scale_by_learning_rate(o["lr"]))


def _pair(o: dict[str, Any]) -> dict[str, float]:
    return {"b1": o["betas"][0], "b2": o["betas"][1], "eps": o["eps"]}


_OPTAX = (
    _optax("SGD", lambda x, o: x.sgd(o["lr"], o["momentum"] or None, o["nesterov"]),
           lr=_LR, momentum=_between(0.1, 0.95), nesterov=_coin),
    _optax("Adam", lambda x, o: x.adam(o["lr"], **_pair(o)), **_MOMENT),
    _optax("AdamW", lambda x, o: x.adamw(o["lr"], **_pair(o), weight_decay=o["weight_decay"]),
           **_MOMENT, weight_decay=_DECAY),
    _optax("RMSprop", lambda x, o: x.rmsprop(o["lr"], o["alpha"], o["eps"], centered=o["centered"],
                                             momentum=o["momentum"] or None),
           lr=_LR, alpha=_between(0.1, 0.99), eps=_power(-5, -3), momentum=_maybe(_between(0.1, 0.95)),
           centered=False, eps_mode="root", momentum_mode="lr_inside"),
    _optax("Adagrad", lambda x, o: x.adagrad(o["lr"], o["initial_accumulator_value"], o["eps"]),
           lr=_LR, initial_accumulator_value=_power(-2, 0), eps=_EPS, eps_mode="root"),
    _optax("Adadelta", lambda x, o: x.adadelta(o["lr"], o["rho"], o["eps"]),
           lr=_power(-1, 0.5), rho=_between(0.1, 0.99), eps=_EPS),
    _optax("Adamax", lambda x, o: x.adamax(o["lr"], **_pair(o)), **_MOMENT),
    _optax("NAdam", lambda x, o: x.nadam(o["lr"], **_pair(o)), **_MOMENT, mode="optax"),
    _optax("Lion", lambda x, o: x.lion(o["lr"], *o["betas"], weight_decay=o["weight_decay"]),
           lr=_LR, betas=_PAIR, weight_decay=_DECAY),
    _optax("SignSGD", lambda x, o: _with_decay(x, x.scale_by_sign(), o), lr=_LR, weight_decay=_DECAY),
    _optax("AdaBelief", lambda x, o: _with_decay(x, x.scale_by_belief(**_pair(o), eps_root=o["eps_root"]), o),
           **_MOMENT, eps_root=_power(-16, -6), weight_decay=_DECAY),
    _optax("ADOPT", lambda x, o: _with_decay(x, x.contrib.scale_by_adopt(**_pair(o)), o),
           lr=_LR, betas=_PAIR, eps=_power(-6, -3), weight_decay=_DECAY),
    _optax("Yogi", lambda x, o: _with_decay(x, x.scale_by_yogi(
        **_pair(o), eps_root=0.0, initial_accumulator_value=o["initial_accumulator_value"]), o),
           lr=_LR, betas=_PAIR, eps=_power(-4, -2), initial_accumulator_value=_power(-6, -3), weight_decay=_DECAY),
    _optax("AdEMAMix", lambda x, o: _with_decay(x, x.contrib.scale_by_ademamix(
        *o["betas"], alpha=o["alpha"], eps=o["eps"]), o),
           lr=_LR, betas=_TRIPLE, eps=_EPS, alpha=_between(0.5, 8.0), weight_decay=_DECAY),
    _optax("Adan", lambda x, o: _with_decay(x, x.scale_by_adan(*o["betas"], eps=o["eps"]), o),
           lr=_LR, betas=_TRIPLE, eps=_EPS, weight_decay=_DECAY, mode="optax"),
    _optax("LAMB", lambda x, o: x.lamb(o["lr"], **_pair(o), weight_decay=o["weight_decay"]),
           **_MOMENT, weight_decay=_DECAY),
    _optax("LARS", lambda x, o: x.lars(o["lr"], o["weight_decay"], trust_coefficient=o["trust_coefficient"],
                                       eps=o["eps"], momentum=o["momentum"], nesterov=o["nesterov"]),
           lr=_power(-1, 1), weight_decay=_DECAY, trust_coefficient=_power(-3, -1), eps=_maybe(_EPS),
           momentum=_between(0.1, 0.95), nesterov=_coin, mode="optax"),
    _optax("NovoGrad", lambda x, o: x.novograd(o["lr"], **_pair(o), weight_decay=o["weight_decay"]),
           lr=_LR, betas=_betas((0.1, 0.95), (0.1, 0.99)), eps=_EPS, weight_decay=_DECAY),
)  # fmt: skip


# --- Keras ---------------------------------------------------------------------------------------------------------


def _keras(cls: str, build: Callable[[Any, dict[str, Any]], Any], **draws: Any) -> Peer:
    def make(start: np.ndarray, options: dict[str, Any]) -> Step:
        import os

        os.environ.setdefault("KERAS_BACKEND", "jax")
        import jax
        import keras

        jax.config.update("jax_enable_x64", True)
        keras.backend.set_floatx(start.dtype.name)
        p = keras.Variable(start, dtype=start.dtype.name)
        opt = build(keras.optimizers, options)
        opt.build([p])

        def step(g: np.ndarray) -> np.ndarray:
            opt.apply([keras.ops.convert_to_tensor(g)], [p])
            return np.asarray(p.value)

        return step

    return Peer("keras", cls, make, _drawn(**draws))


def _named(o: dict[str, Any]) -> dict[str, float]:
    return {"learning_rate": o["lr"], "beta_1": o["betas"][0], "beta_2": o["betas"][1], "epsilon": o["eps"]}


# Keras takes 1 - beta_2**t in float32, whose rounding the first steps show the more, the nearer beta_2 is to 1.
_KERAS_MOMENT = {"lr": _LR, "betas": _betas((0.1, 0.95), (0.8, 0.98)), "eps": _EPS}
_KERAS = (
    _keras("SGD", lambda x, o: x.SGD(o["lr"], o["momentum"], o["nesterov"]),
           lr=_LR, momentum=_between(0.1, 0.95), nesterov=_coin, momentum_mode="lr_inside"),
    _keras("Adam", lambda x, o: x.Adam(**_named(o)), **_KERAS_MOMENT, eps_mode="hat"),
    _keras("AdamW", lambda x, o: x.AdamW(**_named(o), weight_decay=o["weight_decay"]),
           **_KERAS_MOMENT, weight_decay=_power(-4, -1), eps_mode="hat"),
    _keras("RMSprop", lambda x, o: x.RMSprop(o["lr"], o["alpha"], momentum=o["momentum"], epsilon=o["eps"]),
           lr=_LR, alpha=_between(0.1, 0.99), eps=_power(-5, -3), momentum=_maybe(_between(0.1, 0.95)),
           eps_mode="root", momentum_mode="lr_inside"),
    _keras("Adagrad", lambda x, o: x.Adagrad(o["lr"], o["initial_accumulator_value"], o["eps"]),
           lr=_LR, initial_accumulator_value=_power(-2, 0), eps=_EPS, eps_mode="root"),
    _keras("Adadelta", lambda x, o: x.Adadelta(o["lr"], o["rho"], o["eps"]),
           lr=_power(-1, 0.5), rho=_between(0.1, 0.99), eps=_EPS),
    _keras("Adamax", lambda x, o: x.Adamax(**_named(o)), **_MOMENT, eps_mode="keras"),
    _keras("NAdam", lambda x, o: x.Nadam(**_named(o)), **_KERAS_MOMENT, momentum_decay=1.0),
    _keras("Lion", lambda x, o: x.Lion(o["lr"], *o["betas"]), lr=_LR, betas=_PAIR),
    _keras("FTRL", lambda x, o: x.Ftrl(
        o["lr"], initial_accumulator_value=o["initial_accumulator_value"], l1_regularization_strength=o["l1"],
        l2_regularization_strength=o["l2"], beta=o["beta"]),
           lr=_power(-2, 0), l1=_maybe(_power(-2, 0)), l2=_maybe(_power(-2, 0)), beta=_maybe(_power(-2, 0)),
           initial_accumulator_value=_power(-2, 0)),
    _keras("LAMB", lambda x, o: x.Lamb(**_named(o)), **_MOMENT),
)  # fmt: skip

# --- the authors' schedule-free ------------------------------------------------------------------------------------


def _schedule_free(cls: str, theirs: str, **draws: Any) -> Peer:
    def make(start: np.ndarray, options: dict[str, Any]) -> Step:
        import schedulefree
        import torch

        p = torch.nn.Parameter(torch.from_numpy(start.copy()))
        opt = getattr(schedulefree, theirs)([p], **options, foreach=False)
        opt.train()

        def step(g: np.ndarray) -> np.ndarray:
            p.grad = torch.from_numpy(g.copy())
            opt.step()
            return p.detach().numpy()

        return step

    return Peer("schedulefree", cls, make, _drawn(**draws))


_WEIGHTS: dict[str, Any] = {
    "warmup_steps": _one_of(0, 0, 7),
    "r": _maybe(_between(0.0, 2.0)),
    "weight_lr_power": _one_of(2.0, 1.0),
    "weight_decay": _DECAY,
}
_AUTHORS = (
    _schedule_free("ScheduleFreeSGD", "SGDScheduleFree", lr=_LR, momentum=_between(0.5, 0.95), **_WEIGHTS),
    _schedule_free("ScheduleFreeAdamW", "AdamWScheduleFree", **_MOMENT | {"betas": _betas((0.5, 0.95), (0.8, 0.9999))},
                   **_WEIGHTS),
)  # fmt: skip

PEERS = (*_TORCH, *_OPTAX, *_KERAS, *_AUTHORS)
# More options of torch's, whose distances the guide does not tell.
MORE = (
    _torch("SGD", lr=_LR, momentum=_between(0.1, 0.99), nesterov=True, weight_decay=_DECAY, maximize=_coin),
    _torch("SGD", lr=_LR, momentum=_between(0.1, 0.99), dampening=_between(0.0, 0.9), weight_decay=_DECAY),
    _torch("AdamW", **_MOMENT, weight_decay=_DECAY, amsgrad=_coin, maximize=_coin),
)


BOUND = 20.0  # machine epsilons


def bound(peer: Peer, options: dict[str, Any], steps: int) -> float:
    """How far the two may lie apart: torch and Keras round p after its decay, half an epsilon of it in every step."""
    apart = options.get("decoupled_weight_decay", peer.cls in ("AdamW", "ASGD") and peer.library != "optax")
    return BOUND + (steps / 2 if apart and (options["weight_decay"] or peer.cls == "ASGD") else 0.0)


def gradients(rng: np.random.Generator, dtype: type, count: int, steps: int) -> Iterator[np.ndarray]:
    """Noise around a direction, so that means are not all near zero."""
    direction = rng.standard_normal(count)
    for _ in range(steps):
        yield (direction + rng.standard_normal(count)).astype(dtype)


class Distance(NamedTuple):
    """How far two libraries lie apart after any step of a walk with these options."""

    share: float  # of what is allowed
    epsilons: float
    options: dict[str, Any]


def distance(peer: Peer, dtype: type, rng: np.random.Generator, steps: int) -> Distance:
    """The largest distance in one random configuration."""
    options, count = peer.options(rng), 64
    start = (rng.standard_normal(count) * 10 ** rng.uniform(-2, 1)).astype(dtype)
    if peer.cls == "FTRL":
        start[:] = 0.0
    p = start.copy()
    mine, theirs = getattr(fo, peer.cls)(p, **options), peer.make(start, options)
    travelled, largest = np.zeros(count), 0.0
    for g in gradients(rng, dtype, count, steps):
        before = p.astype(np.float64)
        mine.step(g)
        other = theirs(g)
        assert other.dtype == p.dtype, (peer.label, other.dtype)
        travelled += np.abs(p - before)
        apart = np.abs(p.astype(np.float64) - other)
        scale = np.finfo(dtype).eps * (np.abs(p) + travelled)
        ratio = np.divide(apart, scale, out=np.where(apart > 0, np.inf, 0.0), where=scale > 0)
        largest = max(largest, float(ratio.max()))
    assert travelled.max() > 0, "nothing moved"
    return Distance(largest / bound(peer, options, steps), largest, options)
