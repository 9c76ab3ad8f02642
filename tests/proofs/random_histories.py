"""Takes random optimizers through random histories, on several backends at once, beside a few lines that keep it all.

    python -m tests.proofs.random_histories [first seed] [how many]

A history is of steps with options, gradients of None and `Rows`, changed hyperparameters, replaced and overwritten
parameters, refused and skipped steps, `forget`, and round trips through state dicts, pickles and files. After each of
these every parameter, state, number and step count must be that of `Kept`, to the last bit.
"""

from __future__ import annotations

import copy
import pickle
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np

import fastoptim as fo
from fastoptim.backends import get_backend
from fastoptim.optimizers.names import FAMILIES
from fastoptim.optimizers.states import begin
from fastoptim.rules import clip_factor, norm_from_squares, reference
from tests.support.cases import same_bits

CLASSES = [*dict.fromkeys([fo.SGD, fo.Adam, fo.AdamW, *FAMILIES.values()])]
BACKENDS = (("numpy", 1), ("c", 1), ("c", 3))
GROUPINGS = (None, {"n": {"lr": 0.07}}, {"n.1": None}, {"t": {"lr": 0.2}, "s": None})
VALUES = {  # what a hyperparameter is set to, where a class has it
    "lr": (0.1, 0.03, 0.5),
    "momentum": (0.9, 0.5),
    "weight_decay": (0.0, 0.1),
    "eps_mode": ("torch", "hat", "root", "keras"),
    "momentum_mode": ("torch", "lr_inside", "damped"),
    "mode": ("torch", "optax", "mlcommons", "authors"),
    "initial_accumulator_value": (0.1, 1.0),
    "warmup_steps": (0, 3),
    "t0": (1e6, 2.0),
    "update_clip": (None, "rms", 0.3),
    **dict.fromkeys(("amsgrad", "centered", "nesterov", "decoupled_weight_decay", "maximize"), (False, True)),
    **dict.fromkeys(("cautious", "adapt", "trust_clip", "bias_correction", "grad_averaging"), (False, True)),
}
ACTS = (
    *["step"] * 6,
    *["options", "none", "rows", "hyperparameter"] * 3,
    *("refused", "skipped", "overwrite", "replace", "forget", "state_dict", "pickle", "deepcopy", "file"),
)


class Kept:
    """What an optimizer keeps, parameter by parameter, and its steps by the reference alone."""

    def __init__(self, arrays):
        self.arrays = {name: x.copy() for name, x in arrays.items()}
        self.entries = {name: {"step": 0} for name in arrays}

    def forget(self, name):
        self.entries[name] = {"step": 0}

    def step(self, opt, grads, scale):
        for group in opt.param_groups:
            spec = type(opt)._spec(*opt._read(group))
            rule = spec.kernel.rule
            for name in group["names"]:
                p, g, entry = self.arrays[name], grads[name], self.entries[name]
                if g is None:
                    continue
                fresh = [state for state in rule.states if state not in entry]
                for state in fresh:
                    entry[state] = np.zeros_like(p)
                    begin(get_backend("numpy"), entry[state], p, rule.initial.get(state, 0.0), group)
                numbers = tuple(entry.get(number, first) for number, first in rule.scalars.items())
                t = entry["step"] = entry["step"] + 1
                head, *rest = spec.scalars(t, bool(fresh), numbers)
                states = [entry[state] for state in rule.states]
                if spec.measured is not None:
                    row = finished(spec, p.reshape(-1), g.reshape(-1), states, (head * scale, *rest), t, numbers, entry)
                    reference.update(spec.kernel, p, g, states, row)
                elif isinstance(g, fo.Rows):
                    rows = np.unique(g.indices)
                    part = [x[rows] for x in (p, *states)]
                    reference.update(spec.kernel, part[0], g.to_dense(len(p))[rows], part[1:], (head * scale, *rest))
                    for x, new in zip((p, *states), part, strict=True):
                        x[rows] = new
                else:
                    reference.update(spec.kernel, p, g, states, (head * scale, *rest))
                if spec.measured is None:
                    new = spec.advance(t, *numbers) if spec.advance else numbers
                    entry.update(zip(rule.scalars, new, strict=True))


def finished(spec, p, g, states, row, t, numbers, entry):
    """The scalars of a step that depends on norms, by the reference; the rule's own go into `entry`."""
    norms = []
    for kernel, scalars in spec.measured.measures:

        def sums(k, j, kernel=kernel, scalars=scalars):
            flat = [x.reshape(-1) for x in states]
            return reference.tree_sum(reference.measure(kernel, p, g, flat, scalars(row), k)[j])

        norms += [norm_from_squares(partial(sums, j=j)) for j in range(kernel.rule.terms)]
    if spec.measured.keep is not None:
        numbers = spec.measured.keep(norms, t, *numbers)
    entry.update(zip(spec.kernel.rule.scalars, numbers, strict=True))
    return spec.measured.finish(row, tuple(norms), p.size, *numbers)


def laid_out(x, layout):
    """A copy in C or Fortran order ("C", "F"), or with gaps ("S")."""
    return (
        np.repeat(x, 2, -1)[..., ::2] if layout == "S" and x.ndim else np.array(x, order="F" if layout == "F" else "C")
    )


class Subject:
    """One optimizer on one backend, with the tree of its parameters."""

    def __init__(self, make, arrays, grouping, backend, threads, layout):
        self._make, self._grouping = make, grouping
        self._options = {"backend": backend, "threads": threads}
        self.arrays = {name: laid_out(x, layout) for name, x in arrays.items()}
        self.opt = self.made()

    def tree(self, values):
        return {"t": values["t"], "n": [values["n.0"], values["n.1"]], "s": values["s"]}

    def made(self, **options):
        tree = self.tree(self.arrays)
        return self._make(fo.groups(tree, self._grouping) if self._grouping else tree, **self._options, **options)

    def named(self):
        return {n: p for g in self.opt.param_groups for n, p in zip(g["names"], g["params"], strict=True)}

    def content(self):
        states = {name: dict(entry) for name, entry in self.opt.state.items()}
        return pickle.dumps(copy.deepcopy((self.named(), states, [g["lr"] for g in self.opt.param_groups])))

    def round_trip(self, act):
        if act == "state_dict":
            saved = self.opt.state_dict()
            self.opt = self.made(lr=0.9)
            self.opt.load_state_dict(saved)
        elif act == "file":
            with tempfile.TemporaryDirectory() as folder:
                self.opt.save(Path(folder, "file"), extra={"act": act})
                for p in self.named().values():
                    p[...] = 3
                self.opt = self.made(lr=0.9)
                assert self.opt.load(Path(folder, "file")) == {"act": act}
        else:
            self.opt = copy.deepcopy(self.opt) if act == "deepcopy" else pickle.loads(pickle.dumps(self.opt))
            self.arrays |= self.named()


def attempt(subject, call, *args, **options):
    """What the call returns; "refused" if it is, and then nothing has changed."""
    before = subject.content()
    try:
        return call(*args, **options)
    except (TypeError, ValueError):
        assert subject.content() == before, "a refused call has changed something"
        return "refused"


def history(seed, cls=None, length=20):
    """One history of a class, or of one that the seed says; AssertionError that tells what differs."""
    rng = np.random.default_rng(seed)
    cls = cls or CLASSES[seed % len(CLASSES)]

    def pick(items):
        return items[rng.integers(len(items))]

    dtype, other = pick((np.float32, np.float64)), pick((np.float32, np.float64))
    shapes = {"t": ((6, 3), dtype), "n.0": ((7,), other), "n.1": ((2, 2), dtype), "s": ((), dtype)}

    def drawn():
        return {name: np.array(rng.standard_normal(shape), kind) for name, (shape, kind) in shapes.items()}

    arrays, grouping, layout = drawn(), pick(GROUPINGS), pick("CFS")

    def make(params, lr=0.1, **options):
        return cls(params, lr=lr, **options)

    subjects = [Subject(make, arrays, grouping, *backend, layout) for backend in BACKENDS]
    kept, first = Kept(arrays), subjects[0]
    stepped, told = sorted(first.named()), [cls.__name__]
    for _ in range(length):
        act, grads = pick(ACTS), drawn()
        told.append(act)
        options = {}
        if act in ("options", "rows"):
            options = {"grad_scale": pick((1.0, 0.5, -2.0)), "max_norm": pick((None, 0.01, 1e9))}
        if act == "none":
            grads |= {name: None for name in grads if rng.random() < 0.4}
        if act == "rows":
            rows = rng.integers(0, 6, rng.integers(0, 6))
            grads["t"] = fo.Rows(rows, rng.standard_normal((len(rows), 3)).astype(dtype), lazy=True)
        name, value = pick(stepped), drawn()
        if act in ("step", "options", "none", "rows"):
            infos = {attempt(s, s.opt.step, s.tree(grads), **options) for s in subjects}
            assert len(infos) == 1 and ("refused" not in infos or act == "rows"), f"{told}: {infos}"
            info = infos.pop()
            if info != "refused":
                factor = 1.0 if info.grad_norm is None else clip_factor(info.grad_norm, options["max_norm"])
                kept.step(first.opt, grads, options.get("grad_scale", 1.0) * factor)
        elif act == "hyperparameter":
            key = pick([key for key in VALUES if key in cls._names])
            chosen = pick(VALUES[key])
            for s in subjects:
                attempt(s, setattr, s.opt, key, chosen)
        elif act == "refused":
            bad = grads | {name: np.zeros(99)}
            for s in subjects:
                for how in ({}, {"max_norm": 1.0}, {"skip_nonfinite": True}):
                    assert attempt(s, s.opt.step, s.tree(bad), **how) == "refused", f"{told}: a bad gradient was taken"
        elif act == "skipped":
            grads[name] = np.full_like(grads[name], np.nan)
            for s in subjects:
                before = s.content()
                assert not s.opt.step(s.tree(grads), skip_nonfinite=True).applied and s.content() == before, told
        elif act in ("overwrite", "replace"):
            kept.arrays[name] = value[name]
            for s in subjects:
                if act == "overwrite":
                    s.named()[name][...] = value[name]
                    continue
                group = next(g for g in s.opt.param_groups if name in g["names"])
                group["params"][group["names"].index(name)] = s.arrays[name] = value[name].copy()
        elif act == "forget":
            kept.forget(name)
            for s in subjects:
                s.opt.forget(name)
        else:
            for s in subjects:
                s.round_trip(act)
        for s in subjects:
            compare(s, kept, f"seed {seed}, {s.opt.backend}: {told}")


def compare(subject, kept, what):
    """AssertionError unless an optimizer has what `kept` has."""
    for name, p in subject.named().items():
        assert same_bits(np.asarray(p), kept.arrays[name]), f"{what}: parameter {name}"
        entry, wanted = subject.opt.state[name], kept.entries[name]
        assert set(entry) == set(wanted), f"{what}: {name} has {set(entry)}, not {set(wanted)}"
        for key, x in wanted.items():
            same = same_bits(entry[key], x) if isinstance(x, np.ndarray) else entry[key] == x
            assert same, f"{what}: {key} of {name}"


if __name__ == "__main__":
    start, count = [*map(int, sys.argv[1:]), *(0, 500)[len(sys.argv) - 1 :]]
    for seed in range(start, start + count):
        history(seed)
    print(f"{count} histories of {len(CLASSES)} classes on {len(BACKENDS)} backends: the same bits as kept")
