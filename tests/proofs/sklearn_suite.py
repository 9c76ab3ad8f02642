"""Run scikit-learn's own neural-network tests, from its installed wheel, under the adapter.

    python tests/proofs/sklearn_suite.py [pytest arguments]

Every test of ``sklearn/neural_network/tests`` runs with fused updates switched on; how many updates were fused and how
many scikit-learn's own code took is printed, so that a run that accelerated nothing fails. Exits with pytest's status.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest
import sklearn
from sklearn import neural_network

from fastoptim.adapters import _update
from fastoptim.adapters import sklearn as adapter


class Count:
    """A pytest plugin that accelerates the session and counts updates."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def counted(self, name, function):
        def call(*args, **kwargs):
            self.counts[name] += 1
            return function(*args, **kwargs)

        return call

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self, session):
        _update.RuleUpdate.__call__ = self.counted("fused", _update.RuleUpdate.__call__)
        adapter._adam_rounded_once = self.counted("fused", adapter._adam_rounded_once)
        adapter._own_sgd_update = self.counted("scikit-learn's own", adapter._own_sgd_update)
        adapter._own_adam_update = self.counted("scikit-learn's own", adapter._own_adam_update)
        with adapter.accelerate():
            return (yield)


def main(arguments: list[str]) -> int:
    count = Count()
    tests = Path(neural_network.__file__).parent / "tests"
    options = ["-q", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", str(tests)]
    status = pytest.main([str(tests), *options, *arguments], plugins=[count])
    print(f"scikit-learn {sklearn.__version__}: updates {dict(count.counts)}")
    if not count.counts["fused"]:
        print("no update was fused: the adapter was not at work")
        return 1
    return int(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
