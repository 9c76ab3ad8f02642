"""The table of update rules that backends, tests and benchmarks go through."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .updates import adam, amsgrad, average, momentum, nesterov, sgd

MAX_STATES, MAX_COEFFICIENTS = 4, 16  # what the C kernels have room for


@dataclass(frozen=True)
class Rule:
    """One update rule.

    Attributes
    ----------
    function : callable
        ``function(g, p, *states, *coefficients) -> (step, *states)``; see `updates`.
    states : tuple of str
        Names of the state arrays, torch's where torch has a name.
    coefficients : tuple of str
        Names of the scalars, in the order in which `function` takes them.
    gives : {"step", "parameter"}
        Whether the first result is the step, to be subtracted from the parameter, or the new parameter itself.
    initial : mapping
        State -> what it holds before the first step: a number, "parameter" for a copy of the parameter, or the name of
        a hyperparameter. States that are not named begin at zero.
    scalars : mapping
        Name -> first value of the numbers that are kept beside the step count (float64, on the host).
    """

    function: Callable[..., tuple[Any, ...]]
    states: tuple[str, ...]
    coefficients: tuple[str, ...]
    gives: str = "step"
    initial: Mapping[str, float | str] = field(default_factory=dict)
    scalars: Mapping[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.function.__name__

    @property
    def memory_streams(self) -> int:
        """Passes through memory of a step: parameter and states are read and written, the gradient is read."""
        return 3 + 2 * len(self.states)

    def __hash__(self) -> int:
        return hash(self.function)

    @property
    def own(self) -> bool:
        """Whether a user has written it, so that it is not in the table."""
        return RULES.get(self.name) is not self

    def __reduce__(self) -> Any:
        if self.own:
            raise TypeError(f"{self.name} is a rule of your own: pickle the class that has it, or its optimizers")
        return (RULES.__getitem__, (self.name,))


def row(function: Callable[..., tuple[Any, ...]], *states: str, **options: Any) -> Rule:
    """A rule whose coefficients are named by the signature of its function."""
    names = function.__code__.co_varnames[2 + len(states) : function.__code__.co_argcount]
    if len(states) > MAX_STATES or len(names) > MAX_COEFFICIENTS:
        raise ValueError(f"a rule has at most {MAX_STATES} states and {MAX_COEFFICIENTS} coefficients")
    return Rule(function, states, names, **options)


RULES: dict[str, Rule] = {
    rule.name: rule
    for rule in (
        row(sgd),
        row(momentum, "momentum_buffer"),
        row(nesterov, "momentum_buffer"),
        row(adam, "exp_avg", "exp_avg_sq"),
        row(amsgrad, "exp_avg", "exp_avg_sq", "max_exp_avg_sq"),
        row(average),
    )
}
DECAYS = ("none", "coupled", "decoupled")


def rules_of(optimizer: Any) -> list[Rule]:
    """The rules that an optimizer or its class may use, which it names or, where a user has written them, holds."""
    return [RULES[rule] if isinstance(rule, str) else rule for rule in optimizer._rules]


class Kernel(NamedTuple):
    """What is compiled: a rule with one kind of weight decay.

    It works on arrays (parameter, gradient, states) and on one tuple of floats, ``(scale, decay, *coefficients)``: the
    factor of the gradient, the coefficient of the decay, those of the rule.
    """

    rule: Rule
    decay: str

    @property
    def name(self) -> str:
        return f"{self.rule.name}_{self.decay}"


def kernels(rules: Iterable[Rule] | None = None) -> list[Kernel]:
    """Every kernel of `rules`, or of the table. A rule that gives the parameter itself knows no decoupled decay."""
    return [
        Kernel(rule, decay)
        for rule in (RULES.values() if rules is None else rules)
        for decay in DECAYS
        if not (rule.gives == "parameter" and decay == "decoupled")
    ]
