"""Update rules in the style of Stanford's course CS231n: ``rule(w, dw, config) -> (w, config)``.

    from fastoptim.adapters.cs231n import adam, sgd, sgd_momentum

Convention: that of the course's ``optim.py``. `config` is a dict of hyperparameters and states, whose missing entries
are filled in with the course's defaults; momentum keeps the rate inside the velocity,
``v <- mu v - lr dw; w <- w + v``;
``config["t"]`` is incremented before it is used. `w` and the states are updated in place and returned.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import numpy as np

from ..common.signals import deferred_signals
from ..common.validation import count, real
from ._update import adam_coefficients, step_array, velocity_coefficients

__all__ = ["adam", "sgd", "sgd_momentum"]

Config = MutableMapping[str, Any]


def _entries(w: Any, config: Config, defaults: dict[str, Any], *states: str) -> dict[str, Any]:
    """`config` with what it lacks."""
    entries = {**defaults, **config}
    for name in states:
        if entries.get(name) is None:
            entries[name] = np.zeros_like(w)
    return entries


def _stepped(
    rule: str, w: Any, dw: Any, config: Config, entries: dict[str, Any], states: tuple[str, ...], coefficients: Any
) -> tuple[Any, Config]:
    """What the functions return; `config` is filled in once the step has succeeded."""
    with deferred_signals():
        step_array(rule, w, dw, tuple(entries[name] for name in states), coefficients, called=states)
        config.update(entries)
    return w, config


def sgd(w: Any, dw: Any, config: Config | None = None) -> tuple[Any, Config]:
    """``w <- w - learning_rate * dw``; config: learning_rate (1e-2)."""
    config = {} if config is None else config
    entries = _entries(w, config, {"learning_rate": 1e-2})
    return _stepped("sgd", w, dw, config, entries, (), (real("learning_rate", entries["learning_rate"]),))


def sgd_momentum(w: Any, dw: Any, config: Config | None = None) -> tuple[Any, Config]:
    """``v <- momentum * v - learning_rate * dw; w <- w + v``.

    config: learning_rate (1e-2), momentum (0.9), velocity.
    """
    config = {} if config is None else config
    entries = _entries(w, config, {"learning_rate": 1e-2, "momentum": 0.9}, "velocity")
    mu, rate = (real(name, entries[name]) for name in ("momentum", "learning_rate"))
    return _stepped("momentum", w, dw, config, entries, ("velocity",), velocity_coefficients(mu, rate))


def adam(w: Any, dw: Any, config: Config | None = None) -> tuple[Any, Config]:
    """Adam; config: learning_rate (1e-3), beta1 (0.9), beta2 (0.999), epsilon (1e-8), m, v, t (0)."""
    config = {} if config is None else config
    defaults = {"learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "t": 0}
    entries = _entries(w, config, defaults, "m", "v")
    entries["t"] = count("t", entries["t"], 0) + 1
    coefficients = adam_coefficients(*(entries[name] for name in ("t", "learning_rate", "beta1", "beta2", "epsilon")))
    return _stepped("adam", w, dw, config, entries, ("m", "v"), coefficients)
