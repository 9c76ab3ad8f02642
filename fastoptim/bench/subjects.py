"""Defines who is timed: fastoptim's backends and the optimizers that people would use instead.

A subject is a row of `SUBJECTS`; its factory turns arrays into a `Stepper`. Factories import what they time.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from ..arrays.storage import small_dtype
from ..optimizers.names import FAMILIES
from ..rules.table import RULES, Kernel
from .cases import Case

Array = np.ndarray
LR, MOMENTUM, BETAS, EPS = 1e-3, 0.9, (0.9, 0.999), 1e-8


class Unsupported(Exception):
    """This subject has no such optimizer; the message says what it lacks."""


@dataclass
class Stepper:
    """A ready optimizer."""

    step: Callable[[], Any]  # one step, finished when it returns
    values: Callable[[], Sequence[Any]]  # the parameters now, as NumPy arrays, one for each that was handed in
    # Called with the step's number before each step and not timed: hands over this step's gradients.
    prepare: Callable[[int], None] | None = None
    # Called once after the first step, each returns a loop to time: "roofline" moves the step's bytes and computes next
    # to nothing, "divide" does one square root and one division per element, "dense" steps a whole table.
    roofline_loops: dict[str, Callable[[], Callable[[], Any]]] = field(default_factory=dict)
    state_bytes: Callable[[], int] | None = None  # called after the first steps: what is kept beside the parameters


ALL_SECTIONS = ("size", "list", "launch", "training", "clip", "rows")
MODEST = 20_000_000


@dataclass(frozen=True)
class Subject:
    """One row of the table."""

    title: str
    family: str  # what `--against` calls it; "fastoptim" for the backends
    # "module:function", called as ``function(case, params, gradients)``, where `gradients` is a list of gradient sets
    # that alternate; returns a `Stepper` that updates its own copies or `params` themselves.
    factory: str
    requires: tuple[str, ...] = ()  # modules that must be importable
    sections: tuple[str, ...] = ALL_SECTIONS[:-2]  # sections of cases that it can do
    memory: float = 1.3  # bytes needed while stepping, in multiples of the parameters, gradients and states
    max_arrays: int = 1_000_000  # longest list that it gets ready in reasonable time
    max_elements: int = 1 << 60  # what is many times slower than memory there would take most of the run
    threaded: bool = False  # whether it uses more than one thread
    eps_mode: str = "torch"  # its convention for Adam's eps, "torch" or "hat", in which its result is checked
    quick: bool = True  # whether a quick run times it too
    stored: tuple[str, str] = ("float32", "float32")  # as in a `Case`
    compared: bool = True  # whether its results are compared with the reference


def make_stepper(subject: Subject, case: Case, params: list[Array], gradients: list[list[Array]]) -> Stepper:
    """Call the subject's factory."""
    module, function = subject.factory.split(":")
    stepper: Stepper = getattr(importlib.import_module(module), function)(case, params, gradients)
    return stepper


_HERE = __name__
_FULL: dict[str, Any] = {"sections": ALL_SECTIONS, "threaded": True}
_COMPILED: dict[str, Any] = {"memory": 2.5, "max_arrays": 200, "threaded": True}
_LISTS = ("size", "list", "launch")

# fmt: off
SUBJECTS: dict[str, Subject] = {
    "c": Subject("fastoptim (C)", "fastoptim", f"{_HERE}:fastoptim_c", (), (*ALL_SECTIONS, "storage"), threaded=True),
    "numba": Subject("fastoptim (Numba)", "fastoptim", f"{_HERE}:fastoptim_numba", ("numba",), **_FULL),
    "reference": Subject("fastoptim (NumPy)", "fastoptim", f"{_HERE}:fastoptim_numpy", (), ALL_SECTIONS,
                         max_elements=MODEST),
    "numpy-in-place": Subject("NumPy in place", "numpy", f"{_HERE}:numpy_in_place",
                              (), (*ALL_SECTIONS[:-2], "rows"), memory=1.5),
    "numpy-naive": Subject("NumPy naive", "numpy", f"{_HERE}:numpy_naive", memory=2.5),
    "torch-fused": Subject("torch fused", "torch", f"{_HERE}:torch_fused", ("torch",), ALL_SECTIONS[:-1],
                           threaded=True),
    "torch-default": Subject("torch default", "torch", f"{_HERE}:torch_default", ("torch",),
                             (*ALL_SECTIONS[:-2], "rows"), max_elements=MODEST, memory=2.0, threaded=True),
    "torch-foreach": Subject("torch foreach", "torch", f"{_HERE}:torch_foreach", ("torch",), max_elements=MODEST,
                             memory=2.5, threaded=True, quick=False),
    "optax": Subject("Optax (jitted)", "optax", f"{_HERE}:optax_jitted", ("optax", "jax"), (*_LISTS, "clip"),
                     **_COMPILED),
    "jax": Subject("JAX (jitted by hand)", "jax", f"{_HERE}:jax_jitted", ("jax",), _LISTS, max_elements=MODEST,
                   quick=False, **_COMPILED),
    "numexpr": Subject("numexpr", "numexpr", f"{_HERE}:numexpr_evaluate", ("numexpr",), max_elements=MODEST,
                       threaded=True),
    "thinc": Subject("thinc", "thinc", f"{_HERE}:thinc_optimizer", ("thinc",), max_elements=MODEST, memory=2.0,
                     eps_mode="hat"),
    "sklearn": Subject("scikit-learn", "sklearn", f"{_HERE}:sklearn_optimizer", ("sklearn",), max_elements=MODEST,
                       memory=4.0, eps_mode="hat"),
}
# fmt: on


def distribution(module: str) -> str:
    """Name under which a module is installed."""
    return {"sklearn": "scikit-learn"}.get(module, module)


# Rule -> the class whose default it is with these hyperparameters, beside lr: fastoptim's, and torch's if it has one.
OPTIMIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    **{rule: (FAMILIES[rule].__name__, {}) for rule in RULES if rule in FAMILIES},
    "sgd": ("SGD", {}),
    "momentum": ("SGD", {"momentum": MOMENTUM}),
    "nesterov": ("SGD", {"momentum": MOMENTUM, "nesterov": True}),
    "adam": ("Adam", {"betas": BETAS, "eps": EPS}),
    "amsgrad": ("Adam", {"betas": BETAS, "eps": EPS, "amsgrad": True}),
    "rmsprop_momentum": ("RMSprop", {"momentum": MOMENTUM}),
    "rmsprop_centered": ("RMSprop", {"centered": True}),
    "rmsprop_centered_momentum": ("RMSprop", {"momentum": MOMENTUM, "centered": True}),
    "cautious_adam": ("Adam", {"cautious": True}),
    "cautious_amsgrad": ("Adam", {"cautious": True, "amsgrad": True}),
    "cautious_lion": ("Lion", {"cautious": True}),
}


def tables(case: Case, params: list[Array]) -> list[Array]:
    """The same arrays, as tables where gradients are of rows."""
    return params if case.rows is None else [p.reshape(-1, case.rows[1]) for p in params]


def optimizer(
    rule: str, params: list[Array], backend: str, threads: int, eps_mode: str = "torch", states: str = "float32"
) -> Any:
    """fastoptim's optimizer for `rule`, or one that the table alone makes up for a rule that no class has."""
    from ..optimizers.base import Optimizer
    from ..optimizers.hyperparameters import UpdateSpec

    if rule in OPTIMIZERS:
        name, options = OPTIMIZERS[rule]
        if eps_mode != "torch" and name == "Adam":
            options = options | {"eps_mode": eps_mode}
        if states != "float32":
            options = options | {"state_dtype": states}
        cls = getattr(importlib.import_module("fastoptim"), name)
        return cls(params, lr=LR, **options, backend=backend, threads=threads)

    class OfTheTable(Optimizer):
        _rules, _checks = (rule,), {"rule": str, "coefficients": tuple}
        _update = staticmethod(
            lambda given: UpdateSpec(Kernel(RULES[given.rule], "none"), (1.0, 0.0), given.coefficients)
        )

    # Arithmetic takes as long with any numbers.
    return OfTheTable(params, {"rule": rule, "coefficients": (0.5,) * len(RULES[rule].coefficients)}, backend, threads)


# --- fastoptim ----------------------------------------------------------------------------------------------------


def _fastoptim(backend: str, case: Case, params: list[Array], gradients: list[list[Array]]) -> Stepper:
    from ..backends import get_backend

    dtype, states = case.stored
    if dtype != "float32":
        params, *gradients = ([x.astype(small_dtype(dtype)) for x in arrays] for arrays in (params, *gradients))
    mode = "hat" if case.rows else "torch"
    opt = optimizer(case.rule, tables(case, params), backend, case.threads, mode, states)
    options: dict[str, Any] = {} if case.max_norm is None else {"max_norm": case.max_norm}
    current, prepare = _rotating(gradients)
    stepper = Stepper(partial(opt.step, current, **options), lambda: params, prepare)
    if case.section == "storage":
        stepper.state_bytes = lambda: sum(
            x.nbytes for entry in opt.state.values() for x in entry.values() if isinstance(x, np.ndarray)
        )
    native: Any = get_backend(backend)
    if case.rows is not None and backend == "c":

        def dense() -> Callable[[], Any]:
            twin = optimizer(case.rule, [p.copy() for p in params], backend, case.threads)
            return partial(twin.step, [np.full_like(p, 1e-3) for p in params])

        stepper.roofline_loops["dense"] = dense
    plain = case.stored == ("float32", "float32")
    if hasattr(native, "roofline") and case.section in ("size", "list") and plain:

        def roofline() -> Callable[[], Any]:
            states = [tuple(entry[name] for name in RULES[case.rule].states) for entry in opt.state.values()]
            run: Callable[[], Any] = native.roofline(case.rule, params, gradients[0], states, case.threads)
            return run

        def divide() -> Callable[[], Any]:
            p, g = (np.linspace(1, 2, case.elements, dtype=case.dtype) for _ in range(2))
            run: Callable[[], Any] = native.root_and_divide(p, g, case.threads)
            return run

        stepper.roofline_loops["roofline"] = roofline
        if case.count == 1 and case.rule in ("adam", "amsgrad"):
            stepper.roofline_loops["divide"] = divide
    return stepper


fastoptim_c, fastoptim_numba, fastoptim_numpy = (partial(_fastoptim, name) for name in ("c", "numba", "numpy"))


# --- Helpers for the others ---------------------------------------------------------------------------------------


def _rotating(gradients: list[list[Array]]) -> tuple[list[Array], Callable[[int], None] | None]:
    """A list that holds the gradients of the step, and what fills it before each step."""
    current = list(gradients[0])
    if len(gradients) == 1:
        return current, None

    def prepare(k: int) -> None:
        current[:] = gradients[k % len(gradients)]

    return current, prepare


def only(case: Case, *known: str, clip: bool = False) -> None:
    """Unsupported, unless this is a case of one of these rules, and without clipping or with `clip`."""
    if case.rule not in known:
        raise Unsupported(f"has no {case.rule}")
    if case.max_norm is not None and not clip:
        raise Unsupported("has no clipping")


# --- NumPy, as people write it ------------------------------------------------------------------------------------


def numpy_naive(case: Case, params: list[Array], gradients: list[list[Array]]) -> Stepper:
    """One expression per line of the formula, as in a tutorial; every operation makes a new array."""
    only(case, "sgd", "momentum", "adam")
    grads, prepare = _rotating(gradients)
    b1, b2 = BETAS
    ms = [np.zeros_like(p) for p in params]
    vs = [np.zeros_like(p) for p in params]
    t = 0

    def sgd() -> None:
        for p, g in zip(params, grads, strict=True):
            p -= LR * g

    def momentum() -> None:
        for i, (p, g) in enumerate(zip(params, grads, strict=True)):
            ms[i] = MOMENTUM * ms[i] + g
            p -= LR * ms[i]

    def adam() -> None:
        nonlocal t
        t += 1
        for i, (p, g) in enumerate(zip(params, grads, strict=True)):
            ms[i] = b1 * ms[i] + (1 - b1) * g
            vs[i] = b2 * vs[i] + (1 - b2) * g**2
            m_hat = ms[i] / (1 - b1**t)
            v_hat = vs[i] / (1 - b2**t)
            p -= LR * m_hat / (np.sqrt(v_hat) + EPS)

    return Stepper({"sgd": sgd, "momentum": momentum, "adam": adam}[case.rule], lambda: params, prepare)


def numpy_in_place(case: Case, params: list[Array], gradients: list[list[Array]]) -> Stepper:
    """Every operation in place, with one scratch array: what NumPy can do without writing C."""
    only(case, *(("sgd",) if case.rows else ("sgd", "momentum", "adam")))
    grads, prepare = _rotating(gradients)
    if case.rows:

        def rows() -> None:
            for p, g in zip(tables(case, params), grads, strict=True):
                np.subtract.at(p, g.indices, LR * g.values)  # type: ignore[attr-defined]

        return Stepper(rows, lambda: params, prepare)
    b1, b2 = BETAS
    ms = [np.zeros_like(p) for p in params]
    vs = [np.zeros_like(p) for p in params]
    buffer = np.empty(max(p.size for p in params), params[0].dtype)
    scratch = [buffer[: p.size].reshape(p.shape) for p in params]
    t = 0

    def sgd() -> None:
        for p, g, s in zip(params, grads, scratch, strict=True):
            np.multiply(g, LR, out=s)
            np.subtract(p, s, out=p)

    def momentum() -> None:
        for p, g, m, s in zip(params, grads, ms, scratch, strict=True):
            np.multiply(m, MOMENTUM, out=m)
            np.add(m, g, out=m)
            np.multiply(m, LR, out=s)
            np.subtract(p, s, out=p)

    def adam() -> None:
        nonlocal t
        t += 1
        step, root = LR / (1 - b1**t), (1 - b2**t) ** -0.5
        for p, g, m, v, s in zip(params, grads, ms, vs, scratch, strict=True):
            np.multiply(g, 1 - b1, out=s)
            np.multiply(m, b1, out=m)
            np.add(m, s, out=m)
            np.multiply(g, g, out=s)
            np.multiply(s, 1 - b2, out=s)
            np.multiply(v, b2, out=v)
            np.add(v, s, out=v)
            np.sqrt(v, out=s)
            np.multiply(s, root, out=s)
            np.add(s, EPS, out=s)
            np.divide(m, s, out=s)
            np.multiply(s, step, out=s)
            np.subtract(p, s, out=p)

    return Stepper({"sgd": sgd, "momentum": momentum, "adam": adam}[case.rule], lambda: params, prepare)


def numexpr_evaluate(case: Case, params: list[Array], gradients: list[list[Array]]) -> Stepper:
    """One fused expression per array that is written."""
    import numexpr

    only(case, "sgd", "momentum", "adam")
    numexpr.set_num_threads(case.threads)
    grads, prepare = _rotating(gradients)
    T = params[0].dtype.type
    ms = [np.zeros_like(p) for p in params]
    vs = [np.zeros_like(p) for p in params]
    constants = {"lr": T(LR), "mu": T(MOMENTUM), "b1": T(BETAS[0]), "b2": T(BETAS[1]), "eps": T(EPS)}
    constants |= {"c1": T(1 - BETAS[0]), "c2": T(1 - BETAS[1])}
    t = 0

    def evaluate(expression: str, out: Array, **arrays: Any) -> None:
        numexpr.evaluate(expression, local_dict=constants | arrays, global_dict={}, out=out)

    def sgd() -> None:
        for p, g in zip(params, grads, strict=True):
            evaluate("p - lr * g", p, p=p, g=g)

    def momentum() -> None:
        for p, g, m in zip(params, grads, ms, strict=True):
            evaluate("mu * m + g", m, m=m, g=g)
            evaluate("p - lr * m", p, p=p, m=m)

    def adam() -> None:
        nonlocal t
        t += 1
        step, root = T(LR / (1 - BETAS[0] ** t)), T((1 - BETAS[1] ** t) ** -0.5)
        for p, g, m, v in zip(params, grads, ms, vs, strict=True):
            evaluate("b1 * m + c1 * g", m, m=m, g=g)
            evaluate("b2 * v + c2 * g * g", v, v=v, g=g)
            evaluate("p - step * m / (sqrt(v) * root + eps)", p, p=p, m=m, v=v, step=step, root=root)

    return Stepper({"sgd": sgd, "momentum": momentum, "adam": adam}[case.rule], lambda: params, prepare)


# --- torch --------------------------------------------------------------------------------------------------------


def _torch(flags: dict[str, bool], case: Case, params: list[Array], gradients: list[list[Array]]) -> Stepper:
    import torch

    only(case, *OPTIMIZERS, clip=True)
    name, options = OPTIMIZERS[case.rule]
    if case.rows and name == "Adam":
        name = "SparseAdam"
    cls = getattr(torch.optim, name, None)
    if cls is None:
        raise Unsupported(f"has no {name}")
    if lacking := [option for option in options | flags if option not in inspect.signature(cls).parameters]:
        raise Unsupported(f"{name} has no {lacking[0]} form")
    torch.set_num_threads(case.threads)
    tensors = [torch.from_numpy(p).requires_grad_() for p in tables(case, params)]

    def tensor_of(g: Any) -> Any:
        if not case.rows:
            return torch.from_numpy(g)
        index, values = torch.from_numpy(g.indices[None]), torch.from_numpy(g.values)
        return torch.sparse_coo_tensor(index, values, tensors[0].shape, check_invariants=False)

    sets = [[tensor_of(g) for g in grads] for grads in gradients]
    for tensor, g in zip(tensors, sets[0], strict=True):
        tensor.grad = g
    opt = cls(tensors, lr=LR, **options, **flags)
    stepper = Stepper(opt.step, lambda: params)
    max_norm = case.max_norm
    if max_norm is not None:

        def clipped() -> None:
            torch.nn.utils.clip_grad_norm_(tensors, max_norm)
            opt.step()

        stepper.step = clipped
    # torch clips the gradients themselves, and its foreach form of nesterov overwrites them.
    overwrites = case.max_norm is not None or (case.rule == "nesterov" and "foreach" in flags)
    originals = [g.clone() for g in sets[0]] if overwrites else []

    def prepare(k: int) -> None:
        for tensor, g in zip(tensors, sets[k % len(sets)], strict=True):
            tensor.grad = g
        for g, original in zip(sets[0], originals, strict=False):
            g.copy_(original)

    if len(sets) > 1 or originals:
        stepper.prepare = prepare
    return stepper


torch_fused, torch_foreach = partial(_torch, {"fused": True}), partial(_torch, {"foreach": True})
torch_default = partial(_torch, {})


# --- JAX ----------------------------------------------------------------------------------------------------------


def _jax(
    update: Callable[..., Any], init: Callable[..., Any], params: list[Array], gradients: list[list[Array]]
) -> Stepper:
    import jax

    jitted = jax.jit(update, donate_argnums=(0, 1))
    sets = [[jax.numpy.asarray(g) for g in grads] for grads in gradients]
    live = [jax.numpy.array(p) for p in params]
    state = init(live)
    grads = sets[0]

    def prepare(k: int) -> None:
        nonlocal grads
        grads = sets[k % len(sets)]

    def step() -> None:
        nonlocal live, state
        live, state = jitted(live, state, grads)
        jax.block_until_ready(live)

    return Stepper(step, lambda: [np.asarray(p) for p in live], prepare if len(sets) > 1 else None)


def _jax_setting(case: Case) -> None:
    import jax

    if case.dtype == "float64":
        jax.config.update("jax_enable_x64", True)


def optax_jitted(case: Case, params: list[Array], gradients: list[list[Array]]) -> Stepper:
    """Optax as its manual shows it: init, update and apply_updates in one jitted function, buffers donated."""
    _jax_setting(case)
    import optax

    only(case, "sgd", "momentum", "nesterov", "adam", "amsgrad", clip=True)
    transform = {
        "sgd": lambda: optax.sgd(LR),
        "momentum": lambda: optax.sgd(LR, momentum=MOMENTUM),
        "nesterov": lambda: optax.sgd(LR, momentum=MOMENTUM, nesterov=True),
        "adam": lambda: optax.adam(LR, b1=BETAS[0], b2=BETAS[1], eps=EPS),
        "amsgrad": lambda: optax.amsgrad(LR, b1=BETAS[0], b2=BETAS[1], eps=EPS),
    }[case.rule]()
    if case.rule == "amsgrad":
        raise Unsupported("its amsgrad keeps the largest corrected v, another formula")
    if case.max_norm is not None:
        transform = optax.chain(optax.clip_by_global_norm(case.max_norm), transform)

    def update(params: Any, state: Any, grads: Any) -> Any:
        updates, state = transform.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return _jax(update, transform.init, params, gradients)


def jax_jitted(case: Case, params: list[Array], gradients: list[list[Array]]) -> Stepper:
    """The formula written in jax.numpy, jitted, buffers donated."""
    _jax_setting(case)
    import jax.numpy as jnp

    only(case, "sgd", "momentum", "adam")
    b1, b2 = BETAS

    def init(live: Any) -> Any:
        zeros = [jnp.zeros_like(p) for p in live]
        return 0, zeros, [jnp.zeros_like(p) for p in live]

    def sgd(params: Any, state: Any, grads: Any) -> Any:
        return [p - LR * g for p, g in zip(params, grads, strict=True)], state

    def momentum(params: Any, state: Any, grads: Any) -> Any:
        t, ms, vs = state
        ms = [MOMENTUM * m + g for m, g in zip(ms, grads, strict=True)]
        return [p - LR * m for p, m in zip(params, ms, strict=True)], (t, ms, vs)

    def adam(params: Any, state: Any, grads: Any) -> Any:
        t, ms, vs = state
        t = t + 1
        ms = [b1 * m + (1 - b1) * g for m, g in zip(ms, grads, strict=True)]
        vs = [b2 * v + (1 - b2) * g * g for v, g in zip(vs, grads, strict=True)]
        step, root = LR / (1 - b1**t), (1 - b2**t) ** -0.5
        live = [p - step * m / (jnp.sqrt(v) * root + EPS) for p, m, v in zip(params, ms, vs, strict=True)]
        return live, (t, ms, vs)

    return _jax({"sgd": sgd, "momentum": momentum, "adam": adam}[case.rule], init, params, gradients)


# --- thinc and scikit-learn ---------------------------------------------------------------------------------------


def thinc_optimizer(case: Case, params: list[Array], gradients: list[list[Array]]) -> Stepper:
    """thinc's optimizers; they zero the gradient they are given, so it is written anew before each step (not timed)."""
    from thinc.optimizers import SGD, Adam

    only(case, "sgd", "adam")
    if case.dtype != "float32":
        raise Unsupported("knows float32 only")
    if case.rule == "adam":
        opt = Adam(LR, beta1=BETAS[0], beta2=BETAS[1], eps=EPS, L2=0.0, grad_clip=0.0, use_averages=False)
    else:
        opt = SGD(LR, L2=0.0, grad_clip=0.0, use_averages=False)
    given = [np.empty_like(g) for g in gradients[0]]
    rows = list(enumerate(zip(params, given, strict=True)))

    def prepare(k: int) -> None:
        for target, g in zip(given, gradients[k % len(gradients)], strict=True):
            target[...] = g

    def step() -> None:
        for i, (p, g) in rows:
            opt((i, "p"), p, g)
        opt.step_schedules()

    return Stepper(step, lambda: params, prepare)


def sklearn_optimizer(case: Case, params: list[Array], gradients: list[list[Array]]) -> Stepper:
    """The optimizers behind scikit-learn's MLPClassifier and MLPRegressor."""
    from sklearn.neural_network._stochastic_optimizers import AdamOptimizer, SGDOptimizer

    only(case, "sgd", "momentum", "nesterov", "adam")
    grads, prepare = _rotating(gradients)
    if case.rule == "adam":
        opt = AdamOptimizer(params, LR, beta_1=BETAS[0], beta_2=BETAS[1], epsilon=EPS)
    else:
        mu = 0.0 if case.rule == "sgd" else MOMENTUM
        opt = SGDOptimizer(params, LR, momentum=mu, nesterov=case.rule == "nesterov")
    return Stepper(lambda: opt.update_params(params, grads), lambda: params, prepare)
