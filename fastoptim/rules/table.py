"""The table of update rules that backends, tests and benchmarks walk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .updates import adam, amsgrad, momentum, nesterov, sgd


@dataclass(frozen=True)
class Rule:
    """One row of the table: what tests, benchmarks and backends walk.

    Attributes
    ----------
    function : callable
        The law, ``function(p, g, *states, *coefficients) -> (p, *states)``.
    states : tuple of str
        Names of the state arrays, torch's where torch has a name.
    coefficients : tuple of str
        Names of the scalars, in the order in which `function` takes them.
    """

    function: Callable[..., tuple]
    states: tuple[str, ...]
    coefficients: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.function.__name__

    @property
    def streams(self) -> int:
        """Array passes through memory per step: parameter and states are read and written, the gradient is read."""
        return 3 + 2 * len(self.states)

    def __reduce__(self) -> Any:
        return (RULES.__getitem__, (self.name,))


def _row(function: Callable[..., tuple], *states: str) -> Rule:
    names = function.__code__.co_varnames[2 + len(states) : function.__code__.co_argcount]
    return Rule(function, states, names)


RULES: dict[str, Rule] = {
    rule.name: rule
    for rule in (
        _row(sgd),
        _row(momentum, "momentum_buffer"),
        _row(nesterov, "momentum_buffer"),
        _row(adam, "exp_avg", "exp_avg_sq"),
        _row(amsgrad, "exp_avg", "exp_avg_sq", "max_exp_avg_sq"),
    )
}
DECAYS = ("none", "coupled", "decoupled")
