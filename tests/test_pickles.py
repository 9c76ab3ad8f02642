"""Pickles name public things only, so that what is private can move and old pickles still load."""

from __future__ import annotations

import importlib
import pickle
import pickletools
import sys
import warnings
from functools import reduce
from types import SimpleNamespace

import numpy as np
import pytest

import fastoptim as fo
from fastoptim import schedules
from tests.test_schedules import EVERY

OTHERS = {"numpy", "sklearn", "thinc", "mpi4py", "__builtin__", "copy_reg"}  # the last two: Python 2's, in protocol 2


def loss_and_grad(params, batch):
    return float(np.sum(params["w"] ** 2)), {"w": 2.0 * params["w"]}


def stepped(kind, **options):
    params, grads = {"w": np.ones(3)}, {"w": np.full(3, 0.5)}
    opt = kind(params, **options)
    opt.step(grads)
    return opt


def groups():
    opt = fo.AdamW([{"params": [np.ones(2)]}, {"params": {"w": np.ones(3, np.float32)}, "lr": 0.1}])
    opt.step([[np.ones(2)], {"w": None}])
    return opt


def fitted(steps, **options):
    return fo.fit(loss_and_grad, {"w": np.ones(3)}, None, "momentum", lr=0.01, steps=steps, progress=False, **options)


def validated():
    return fitted(3, validation=lambda params: {"loss": 1.0, "accuracy": 0.5}, validate_every=1)


def dict_optimizer(kind):
    opt = kind()
    opt.update({"w": np.ones(3), "b": 1.0}, {"w": np.ones(3), "b": 1.0})
    return opt


def numpy_ml(name):
    opt = getattr(fo.adapters.numpy_ml, name)()
    opt(np.ones(3), np.ones(3), "w")
    return opt


def network(name, **options):
    pytest.importorskip("sklearn")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = getattr(fo.adapters.sklearn, name)(hidden_layer_sizes=(3,), max_iter=2, random_state=0, **options)
        return made.fit(np.eye(6), np.arange(6) % 2)


def thinc():
    pytest.importorskip("thinc")
    return fo.adapters.thinc.Adam(0.1)


def ratios():
    record = fo.plots.UpdateRatios({"w": np.ones(2)})
    record.begin(SimpleNamespace(steps=0))
    return record


def sharded():
    pytest.importorskip("mpi4py")
    return stepped(lambda params: fo.distributed.ShardedOptimizer(fo.Adam, params))


KINDS = {
    "SGD": lambda: stepped(fo.SGD, momentum=0.9),
    "Adam": lambda: stepped(fo.Adam, amsgrad=True),
    "AdamW": lambda: stepped(fo.AdamW, backend="numpy"),
    "groups": groups,
    "GroupedParams": lambda: fo.groups({"w": np.ones(2), "b": np.ones(1)}, {"b": {"lr": 0.1}}),
    "Rows": lambda: fo.Rows(np.array([1]), np.ones((1, 2))),
    "IncompatibleKeys": lambda: groups().load_state_dict(groups().state_dict()),
    "param_groups": lambda: groups().param_groups,
    "params of a group": lambda: groups().param_groups[0]["params"],
    "state_dict": lambda: groups().state_dict(),
    "StepInfo": lambda: fo.SGD([np.ones(2)]).step([np.ones(2)], max_norm=1.0),
    "FitResult": lambda: fitted(60),
    "FitResult of a short run": lambda: fitted(3),
    "FitResult with validation": validated,
    "History": lambda: fitted(3).history,
    "position": lambda: fo.minibatches(np.ones(5), 2).state_dict(),
    "Diagnosis": lambda: fo.diagnose(np.linspace(1.0, 0.1, 50)),
    "Recommendation": lambda: fo.recommend(sparse=True),
    "ProbeResult": lambda: fo.probe_lr(loss_and_grad, {"w": np.ones(3)}, steps=10, max_probes=2),
    "RangeTest": lambda: fo.lr_range_test(loss_and_grad, {"w": np.ones(3)}, steps=20),
    "errors": lambda: (fo.CheckpointError("no"), fo.TrainingWarning("no")),
    "schedules": lambda: [*EVERY.values()],
    "Plateau": lambda: schedules.scale(schedules.Plateau(0.1), 0.5),
    "UpdateRatios": ratios,
    "functions": lambda: [getattr(fo, name) for name in fo._EXPORTS] + [fo.functional.adam, fo.schedules.cosine],
    "info": fo.info,
    "ShardedOptimizer": sharded,
    "dicts.SGD": lambda: dict_optimizer(fo.adapters.dicts.SGD),
    "dicts.Momentum": lambda: dict_optimizer(fo.adapters.dicts.Momentum),
    "dicts.Nesterov": lambda: dict_optimizer(fo.adapters.dicts.Nesterov),
    "dicts.Adam": lambda: dict_optimizer(fo.adapters.dicts.Adam),
    "numpy_ml.SGD": lambda: numpy_ml("SGD"),
    "numpy_ml.Adam": lambda: numpy_ml("Adam"),
    "sklearn.MLPClassifier": lambda: network("MLPClassifier"),
    "sklearn.MLPRegressor": lambda: network("MLPRegressor", solver="sgd"),
    "thinc.Optimizer": thinc,
}


def globals_in(data):
    """(module, qualified name) of every global that a pickle of protocol 2 names."""
    return {tuple(arg.split(" ")) for op, arg, _ in pickletools.genops(data) if op.name == "GLOBAL"}


def private(module, name):
    """Whether a pickle that names this would bind code of this package that is not public."""
    if module.partition(".")[0] != "fastoptim":
        return module.partition(".")[0] not in OTHERS | sys.stdlib_module_names
    parts = [*module.split(".")[1:], *name.split(".")]
    if parts[0] not in fo.__all__ or any(part.startswith("_") for part in parts):
        return True
    return reduce(getattr, parts, fo) is not reduce(getattr, name.split("."), importlib.import_module(module))


@pytest.mark.parametrize("kind", KINDS)
def test_pickles_name_public_things_only(kind):
    data = pickle.dumps(KINDS[kind](), 2)
    assert {found for found in globals_in(data) if private(*found)} == set()
    pickle.loads(data)


def test_private_things_are_seen():
    from fastoptim.adapters._collection import Collection
    from fastoptim.common.trees import Structure

    for thing in (Structure([1]), Collection, schedules._decayed):
        assert any(private(*found) for found in globals_in(pickle.dumps(thing, 2)))
    assert not private("numpy._core.multiarray", "_reconstruct") and private("tests.support", "x")


def test_what_is_loaded_goes_on_as_the_original():
    opt, grads = groups(), [[np.ones(2)], {"w": np.ones(3, np.float32)}]
    again = pickle.loads(pickle.dumps(opt))
    for o in (opt, again):
        o.step(grads)
    np.testing.assert_equal(again.state_dict(), opt.state_dict())
    assert again.weight_decay == opt.weight_decay and type(again) is fo.AdamW
    divided = [pickle.loads(pickle.dumps(KINDS["GroupedParams"]())), KINDS["GroupedParams"]()]
    assert [group["lr"] for group in fo.SGD(divided[0]).param_groups] == [0.001, 0.1]
    assert divided[0].groups == divided[1].groups and type(divided[0].groups[0]) is type(divided[1].groups[0])
    one = dict_optimizer(fo.adapters.dicts.Adam)
    two = pickle.loads(pickle.dumps(one))
    results = [{"w": np.ones(3), "b": 1.0} for _ in range(2)]
    for o, params in zip((one, two), results, strict=True):
        o.update(params, {"w": np.ones(3), "b": 1.0})
    assert (results[0]["w"] == results[1]["w"]).all() and results[0]["b"] == results[1]["b"]


@pytest.mark.parametrize("steps", [3, 60])
def test_results_are_whole_after_pickling(steps):
    result = fitted(steps)
    again = pickle.loads(pickle.dumps(result))
    assert again.diagnosis == result.diagnosis and (result.diagnosis is None) == (steps < 10)
    assert (again.history.loss == result.history.loss).all() and again.reason == result.reason
