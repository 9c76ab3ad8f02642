"""Takes random optimizers through random histories, on several backends at once, beside a few lines that keep it all.

    python -m tests.proofs.random_histories [first seed] [how many]

A history is of steps with options, gradients of None and `Rows`, steps to new arrays (`apply`), hyperparameters changed
for all or for one group, added groups, other numbers of threads, replaced and overwritten parameters, refused and
skipped steps, `forget`, and round trips through pickles, files and state dicts, also those of another backend;
parameters and gradients lie in memory in one of five ways. After each of these every parameter, state, number and step
count must be that of `Kept`, to the last bit; and so must be what the functional form makes of the same arrays. Where
states or parameters are stored in fewer bits, the NumPy backend without any round trip stands in for `Kept`.
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
from fastoptim.arrays.storage import small_dtype
from fastoptim.backends import available, get_backend
from fastoptim.optimizers.names import FAMILIES
from fastoptim.optimizers.states import begin
from fastoptim.rules import reference
from fastoptim.rules.norm import clip_factor, norm_from_squares

CLASSES = [*dict.fromkeys([fo.SGD, fo.Adam, fo.AdamW, *FAMILIES.values()])]
BACKENDS = (("numpy", 1), ("c", 1), ("c", 3))
ALL_BACKENDS = (*BACKENDS, *[("numba", 2)] * (available("numba") is None))  # which compiles every rule, the first time
FORMS = {cls: name for name, cls in FAMILIES.items()}
EXTRA = ("cautious", "update_clip")  # which `functional.sgd`, `momentum` and `adam` have not
STORAGES = (  # dtype of the parameters, options
    ("float32", {"state_dtype": "bfloat16"}),
    ("float32", {"state_dtype": "float8", "seed": 3}),
    ("float32", {"state_dtype": "bfloat16", "rounding": "nearest"}),
    ("bfloat16", {"state_dtype": "float8"}),
    ("float16", {"rounding": "nearest"}),
    ("bfloat16", {"state_dtype": "bfloat16", "master": True}),
)
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
    *["apply", "group", "state_dict"] * 2,
    *("refused", "skipped", "overwrite", "replace", "forget", "add", "threads", "pickle", "deepcopy", "file"),
)
LAYOUTS = "CFSNM"


class Kept:
    """What an optimizer keeps, parameter by parameter, and its steps by the reference alone."""

    def __init__(self, arrays):
        self.arrays = {name: x.copy() for name, x in arrays.items()}
        self.entries = {name: {"step": 0} for name in arrays}

    def add(self, name, x):
        self.arrays[name] = x.copy()
        self.forget(name)

    def forget(self, name):
        self.entries[name] = {"step": 0}

    def step(self, opt, grads, scales, points=None):
        """One step of these parameters, or of `points` in their place; `scales` has a factor for each gradient."""
        for group in opt.param_groups:
            spec = opt._spec_of(group)
            rule = spec.kernel.rule
            for name in group["names"]:
                p, g, entry, scale = (points or self.arrays)[name], grads[name], self.entries[name], scales[name]
                if g is None:
                    continue
                fresh = [state for state in rule.states if state not in entry]
                for state in fresh:
                    entry[state] = np.zeros_like(p)
                    own = self.arrays[name]
                    begin(get_backend("numpy"), entry[state], own, rule.initial.get(state, 0.0), group)
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


class Seen:
    """What an optimizer has, in the place of `Kept`."""

    def __init__(self, subject):
        self._subject = subject

    def step(self, opt, grads, scales, points=None):
        if points is not None:
            points |= self._subject.applied

    def add(self, name, x):
        pass

    def forget(self, name):
        pass

    @property
    def arrays(self):
        return self._subject.named()

    @property
    def entries(self):
        return self._subject.opt.state


def clipped(grads, info, grad_scale=1.0, max_norm=None, clip="norm", **_):
    """What gradients become in a step with these options, and the factor of each that is left."""
    if max_norm is None or clip == "norm":
        factor = 1.0 if max_norm is None else clip_factor(info.grad_norm, max_norm)
        return grads, dict.fromkeys(grads, grad_scale * factor)
    present = {name: g for name, g in grads.items() if g is not None}
    if clip == "value":
        limited = {name: np.clip(g * g.dtype.type(grad_scale), -max_norm, max_norm) for name, g in present.items()}
        return grads | {name: g.astype(grads[name].dtype) for name, g in limited.items()}, dict.fromkeys(grads, 1.0)
    norms = {name: fo.grad_norm(g, grad_scale=grad_scale, backend="numpy") for name, g in present.items()}
    return grads, {name: grad_scale * clip_factor(norm, max_norm) for name, norm in norms.items()}


def by_the_form(opt, kept, grads, scales, backends):
    """(name, array, entry) of each parameter after a step by the functional form of the class, on each backend."""
    cls = type(opt)
    for group in opt.param_groups:
        rule = opt._spec_of(group).kernel.rule
        values = {name: group[name] for name in cls._names}
        for name in group["names"]:
            g, entry = grads[name], dict(kept.entries[name])
            needed = {"step", *rule.states, *rule.scalars}
            begun, rest = needed <= set(entry), {key: entry[key] for key in set(entry) - needed}  # of other options
            if g is None or isinstance(g, fo.Rows) or not (begun or entry == {"step": 0}):
                continue
            if cls not in FORMS and any(map(values.get, EXTRA)):
                continue
            for backend, threads in backends:
                p = kept.arrays[name].copy()
                options = {"grad_scale": scales[name], "backend": backend, "threads": threads}
                state = {key: np.array(x) if isinstance(x, np.ndarray) else x for key, x in entry.items()}
                state = {key: x for key, x in state.items() if key in needed}
                if cls in FORMS:
                    state = state if begun else {}
                    getattr(fo.functional, FORMS[cls])(p, g, state, **values, **options)
                else:
                    arrays = [state.setdefault(slot, np.zeros_like(p)) for slot in rule.states]
                    state["step"] += 1
                    options |= values | {"decoupled": values.get("decoupled_weight_decay", cls is fo.AdamW)}
                    options = {k: x for k, x in options.items() if k not in ("decoupled_weight_decay", *EXTRA)}
                    if cls is fo.SGD and not arrays:
                        for key in ("momentum", "dampening", "nesterov", "momentum_mode"):
                            del options[key]
                        fo.functional.sgd(p, g, **options)
                    elif cls is fo.SGD:
                        fo.functional.momentum(p, g, *arrays, first=not begun, **options)
                    else:
                        del options["amsgrad"]
                        fo.functional.adam(p, g, *arrays, step=state["step"], **options)
                yield f"{name} by the functional form on {backend}", name, p, state | rest


def laid_out(x, layout):
    """A copy in C or Fortran order ("C", "F"), with gaps ("S"), with its last row first ("N"), or misaligned ("M")."""
    if layout == "M":
        copy = np.ndarray(x.shape, x.dtype, np.empty(x.nbytes + 1, np.uint8), offset=1)
        copy[...] = x
        return copy
    if layout in "SN" and x.ndim:
        return np.repeat(x, 2, -1)[..., ::2] if layout == "S" else x[::-1].copy()[::-1]
    return np.array(x, order="F" if layout == "F" else "C")


def placed(g, layout):
    """A gradient as it is handed to one of the optimizers."""
    return laid_out(g, layout) if isinstance(g, np.ndarray) else g


class Subject:
    """One optimizer on one backend, with the tree of its parameters."""

    def __init__(self, make, arrays, grouping, storage, backend, threads, layout):
        self._make, self._grouping = make, grouping
        self._options = {"backend": backend, "threads": threads} | storage
        self.applied = {}  # what `apply` returned, by name
        self._layout = layout
        self.arrays = {name: laid_out(x, layout) for name, x in arrays.items()}
        self.added = {}  # the hyperparameters of what groups were added, by the name of their array
        self.opt = self.made()

    def tree(self, values):
        first = {"t": values["t"], "n": [values["n.0"], values["n.1"]], "s": values["s"]}
        return [first, *[values[name] for name in self.added]] if self.added else first

    def made(self, **options):
        tree = self.tree(self.arrays)
        first = tree[0] if self.added else tree
        opt = self._make(fo.groups(first, self._grouping) if self._grouping else first, **self._options, **options)
        for name, values in self.added.items():
            opt.add_param_group({"params": self.arrays[name], **values})
        return opt

    def add(self, name, x, values):
        self.arrays[name] = laid_out(x, self._layout)
        self.opt.add_param_group({"params": self.arrays[name], **values})
        self.added[name] = values

    def named(self):
        return {n: p for g in self.opt.param_groups for n, p in zip(g["names"], g["params"], strict=True)}

    def apply(self, points, grads, **options):
        found = self.opt.apply(self.tree(points), self.tree(grads), **options)
        first, *added = found if self.added else [found]
        self.applied = {"t": first["t"], "n.0": first["n"][0], "n.1": first["n"][1], "s": first["s"]}
        self.applied |= zip(self.added, added, strict=True)
        return "applied"

    def content(self):
        states = {name: dict(entry) for name, entry in self.opt.state.items()}
        return pickle.dumps(copy.deepcopy((self.named(), states, [g["lr"] for g in self.opt.param_groups])))

    def round_trip(self, act, saved):
        if act == "state_dict":
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


def history(seed, cls=None, length=20, backends=BACKENDS):
    """One history of a class, or of one that the seed says; AssertionError that tells what differs."""
    rng = np.random.default_rng(seed)
    cls = cls or CLASSES[seed % len(CLASSES)]
    storage = {}

    def pick(items):
        return items[rng.integers(len(items))]

    dtype, other = pick((np.float32, np.float64)), pick((np.float32, np.float64))
    if rng.random() < 0.3:
        name, storage = pick(STORAGES)
        dtype = other = small_dtype(name)
    shapes = {
        "t": ((6, pick((3, 3, 128))), dtype),  # 128 numbers of float8 have one scale
        "n.0": ((pick((7, 7, 7, 4099)),), other),
        "n.1": (pick(((2, 2), (0, 3), (1,))), dtype),
        "s": ((), dtype),
    }

    def drawn():
        return {name: np.array(rng.standard_normal(shape)).astype(kind) for name, (shape, kind) in shapes.items()}

    arrays, grouping = drawn(), pick(GROUPINGS)

    def make(params, lr=0.1, **options):
        return cls(params, lr=lr, **options)

    try:
        subjects = [Subject(make, arrays, grouping, storage, *backend, pick(LAYOUTS)) for backend in backends]
    except ValueError as error:
        assert storage and "depends on norms" in str(error), error
        return
    first = subjects[0]
    kept = Seen(first) if storage else Kept(arrays)
    stepped, told = sorted(first.named()), [cls.__name__, storage]
    for _ in range(length):
        act, grads = pick(ACTS), drawn()
        told.append(act)
        options = {}
        if act in ("options", "rows"):
            options = {"grad_scale": pick((1.0, 0.5, -2.0, 0.0)), "max_norm": pick((None, 0.01, 1e9))}
            options["skip_nonfinite"] = bool(rng.random() < 0.3)
        if act == "options" and options["max_norm"] is not None:
            options["clip"] = pick(("norm", "value", "norm_per_array"))
        if act == "none" or (act == "apply" and rng.random() < 0.3):
            grads |= {name: None for name in grads if rng.random() < 0.4}
        if act == "rows":
            rows = rng.integers(0, 6, rng.integers(0, 6))
            values = rng.standard_normal((len(rows), *shapes["t"][0][1:])).astype(np.float32 if storage else dtype)
            grads["t"] = fo.Rows(rows, values, lazy=bool(rng.random() < 0.8))
        name, value = pick(stepped), drawn()
        if act in ("step", "options", "none", "rows"):
            infos = {
                attempt(s, s.opt.step, s.tree({n: placed(g, pick(LAYOUTS)) for n, g in grads.items()}), **options)
                for s in subjects
            }
            assert len(infos) == 1 and ("refused" not in infos or act == "rows" or storage), f"{told}: {infos}"
            info = infos.pop()
            if info != "refused":
                grads, scales = (grads, {}) if storage else clipped(grads, info, **options)
                forms = [] if storage else list(by_the_form(first.opt, kept, grads, scales, backends))
                kept.step(first.opt, grads, scales)
                for what, key, p, entry in forms:
                    same(p, entry, kept, key, f"seed {seed}: {told}: {what}")
        elif act == "apply":
            points, scale = value, pick((1.0, 0.5, -2.0))
            found = {name: x.copy() for name, x in points.items()}
            infos = {attempt(s, s.apply, points, grads, grad_scale=scale) for s in subjects}
            assert len(infos) == 1 and ("refused" not in infos or storage), f"{told}: {infos}"
            if infos == {"applied"}:
                kept.step(first.opt, grads, dict.fromkeys(grads, scale), found)
                for s in subjects:
                    for key, x in s.applied.items():
                        assert alike(x, found[key]), f"seed {seed}, {s.opt.backend}: {told}: {key} of apply"
        elif act == "hyperparameter":
            key = pick([key for key in VALUES if key in cls._names])
            chosen = pick(VALUES[key])
            for s in subjects:
                attempt(s, setattr, s.opt, key, chosen)
        elif act == "group":
            key = pick([key for key in VALUES if key in cls._names])
            chosen, index = pick(VALUES[key]), rng.integers(len(first.opt.param_groups))
            for s in subjects:
                group = s.opt.param_groups[index]
                before, group[key] = group[key], chosen
                if attempt(s, s.opt.step, s.tree(dict.fromkeys(grads))) == "refused":
                    group[key] = before
        elif act == "add" and len(first.added) < 2:
            name, values = f"{len(first.opt.param_groups)}.0", {"lr": pick((0.1, 0.01))}
            shapes[name] = ((5,), dtype)
            x = drawn()[name]
            kept.add(name, x)
            for s in subjects:
                s.add(name, x, values)
            stepped.append(name)
        elif act == "threads":
            for s in subjects:
                s.opt.threads = pick((1, 2, 3))
        elif act == "refused":
            bad = grads | {name: np.zeros(99)}
            for s in subjects:
                for how in ({}, {"max_norm": 1.0}, {"skip_nonfinite": True}):
                    assert attempt(s, s.opt.step, s.tree(bad), **how) == "refused", f"{told}: a bad gradient was taken"
        elif act == "skipped" and grads[name].size:
            grads[name] = np.full_like(grads[name], np.nan)
            for s in subjects:
                before = s.content()
                info = attempt(s, s.opt.step, s.tree(grads), skip_nonfinite=True)
                assert storage if info == "refused" else not info.applied and s.content() == before, told
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
        elif act in ("state_dict", "pickle", "deepcopy", "file"):
            saved = pick(subjects).opt.state_dict()
            for s in subjects[bool(storage) :]:
                s.round_trip(act, saved)
        for s in subjects:
            compare(s, kept, f"seed {seed}, {s.opt.backend}: {told}")


def alike(a, b):
    """Whether two arrays have the same bits, whatever they are stored in."""
    a, b = np.asarray(a), np.asarray(b)
    return (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


def same(p, entry, kept, name, what):
    """AssertionError unless a parameter and what is kept beside it are as `kept` has them."""
    wanted = kept.entries[name]
    assert alike(p, kept.arrays[name]), f"{what}: parameter {name}"
    assert set(entry) == set(wanted), f"{what}: {name} has {set(entry)}, not {set(wanted)}"
    for key, x in wanted.items():
        assert alike(entry[key], x) if isinstance(x, np.ndarray) else entry[key] == x, f"{what}: {key} of {name}"


def compare(subject, kept, what):
    """AssertionError unless an optimizer has what `kept` has."""
    for name, p in subject.named().items():
        same(p, subject.opt.state[name], kept, name, what)


if __name__ == "__main__":
    start, count = [*map(int, sys.argv[1:]), *(0, 500)[len(sys.argv) - 1 :]]
    for seed in range(start, start + count):
        history(seed, backends=ALL_BACKENDS)
        if not (seed + 1) % 100:
            print(f"{seed + 1 - start} of {count}", flush=True)
    print(f"{count} histories of {len(CLASSES)} classes on {len(ALL_BACKENDS)} backends: the same bits as kept")
