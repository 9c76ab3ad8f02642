"""Update rules in the style of Stanford's course CS231n: ``rule(w, dw, config) -> (w, config)``.

    from fastoptim.adapters.cs231n import adam, sgd, sgd_momentum

Convention: that of the course's ``optim.py``. `config` is a dict of hyper-parameters and states, whose missing entries
are filled in with the course's defaults; momentum keeps the rate inside the velocity,
``v <- mu v - lr dw; w <- w + v``;
``config["t"]`` is incremented before it is used. `w` and the states are updated in place and returned.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import numpy as np

from .. import rules
from ._update import update_array

__all__ = ["adam", "sgd", "sgd_momentum"]

Config = MutableMapping[str, Any]


def sgd(w: Any, dw: Any, config: Config | None = None) -> tuple[Any, Config]:
    """``w <- w - learning_rate * dw``; config: learning_rate (1e-2)."""
    config = {} if config is None else config
    config.setdefault("learning_rate", 1e-2)
    update_array("sgd", w, dw, (), (config["learning_rate"],))
    return w, config


def sgd_momentum(w: Any, dw: Any, config: Config | None = None) -> tuple[Any, Config]:
    """``v <- momentum * v - learning_rate * dw; w <- w + v``.

    config: learning_rate (1e-2), momentum (0.9), velocity.
    """
    config = {} if config is None else config
    config.setdefault("learning_rate", 1e-2)
    config.setdefault("momentum", 0.9)
    if config.get("velocity") is None:
        config["velocity"] = np.zeros_like(w)
    coefficients = (config["momentum"], config["learning_rate"], -1.0)
    update_array("momentum", w, dw, (config["velocity"],), coefficients, maximize=True)
    return w, config


def adam(w: Any, dw: Any, config: Config | None = None) -> tuple[Any, Config]:
    """Adam; config: learning_rate (1e-3), beta1 (0.9), beta2 (0.999), epsilon (1e-8), m, v, t (0)."""
    config = {} if config is None else config
    for name, value in (("learning_rate", 1e-3), ("beta1", 0.9), ("beta2", 0.999), ("epsilon", 1e-8), ("t", 0)):
        config.setdefault(name, value)
    for name in ("m", "v"):
        if config.get(name) is None:
            config[name] = np.zeros_like(w)
    t = config["t"] + 1
    coefficients = rules.adam_coefficients(
        t, config["learning_rate"], config["beta1"], config["beta2"], config["epsilon"]
    )
    update_array("adam", w, dw, (config["m"], config["v"]), coefficients)
    config["t"] = t
    return w, config
