"""The table of update rules that backends, tests and benchmarks go through."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from . import updates as law

# Kinds of weight decay: none, entering the gradient, apart from it. A rule has kernels for those that it names.
DECAYS = ("none", "coupled", "decoupled")
NONE, INSIDE, APART = ("none",), ("none", "coupled"), ("none", "decoupled")

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
        a hyperparameter (0 for an optimizer without it). States that are not named begin at zero.
    squares : tuple of str
        The states that are means or sums of squares, which float8 stores as their roots.
    scalars : mapping
        Name -> first value of the numbers that are kept beside the step count (float64, on the host).
    decays : tuple of str
        Which of `DECAYS` it can be asked for; nothing is compiled for the others.
    still : tuple of two tuples of str, optional
        For which coefficients a step leaves an element without a gradient, and its states, as they are: the first ones
        are 1, the sum of the second ones is above 0. None: it may change them.
    terms : int
        0 for an update rule. A measure has so many results, of which norms are taken; it writes nothing, and reads the
        states that it names, which are the first ones of the rules that it is for.
    written : str
        What its user calls it, where a user has written it; `name` is that of the function made of it.
    """

    function: Callable[..., tuple[Any, ...]]
    states: tuple[str, ...]
    coefficients: tuple[str, ...]
    gives: str = "step"
    initial: Mapping[str, float | str] = field(default_factory=dict)
    scalars: Mapping[str, float] = field(default_factory=dict)
    decays: tuple[str, ...] = DECAYS
    squares: tuple[str, ...] = ()
    still: tuple[tuple[str, ...], tuple[str, ...]] | None = None
    terms: int = 0
    written: str = ""

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
        return bool(self.written)

    def __reduce__(self) -> Any:
        if self.own:
            raise TypeError(f"{self.written} is a rule of your own: pickle the class that has it, or its optimizers")
        return ((MEASURES if self.terms else RULES).__getitem__, (self.name,))


def row(function: Callable[..., tuple[Any, ...]], *states: str, **options: Any) -> Rule:
    """A rule whose coefficients are named by the signature of its function."""
    names = function.__code__.co_varnames[2 + len(states) : function.__code__.co_argcount]
    if len(states) > MAX_STATES or len(names) > MAX_COEFFICIENTS:
        raise ValueError(f"a rule has at most {MAX_STATES} states and {MAX_COEFFICIENTS} coefficients")
    if options.get("gives") == "parameter":  # there is no step that a decoupled decay could be added to
        options.setdefault("decays", INSIDE)
    options.setdefault("squares", tuple(state for state in states if state in _SQUARES))
    return Rule(function, states, names, **options)


# A state of one of these names holds squares, whatever the rule.
_SQUARES = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "acc_delta", "exp_avg_var", "accumulator")
_YOGI = {"exp_avg": "initial_accumulator_value", "exp_avg_sq": "initial_accumulator_value"}
_RMSPROP: dict[str, Any] = {
    "initial": {"square_avg": "initial_accumulator_value"},
    "still": (("a", "b"), ("er", "eps")),  # Adagrad's
}
_FTRL = {"accumulator": "initial_accumulator_value"}
_SCHEDULE_FREE: dict[str, Any] = {
    "gives": "parameter",
    "initial": {"z": "parameter"},
    "scalars": {"lr_max": 0.0, "weight_sum": 0.0},
}

RULES: dict[str, Rule] = {
    rule.name: rule
    for rule in (
        row(law.sgd, still=((), ())),
        row(law.momentum, "momentum_buffer"),
        row(law.nesterov, "momentum_buffer"),
        row(law.adam, "exp_avg", "exp_avg_sq"),
        row(law.amsgrad, "exp_avg", "exp_avg_sq", "max_exp_avg_sq"),
        row(law.cautious_adam, "exp_avg", "exp_avg_sq"),
        row(law.cautious_amsgrad, "exp_avg", "exp_avg_sq", "max_exp_avg_sq"),
        row(law.average, decays=NONE),
        row(law.signsgd, decays=APART),
        row(law.signum, "momentum_buffer", decays=APART),
        row(law.lion, "exp_avg", decays=APART),
        row(law.cautious_lion, "exp_avg", decays=APART),
        row(law.novograd, "exp_avg", decays=NONE, scalars={"exp_avg_sq": 0.0}),
        row(law.rprop, "prev", "step_size", decays=NONE, initial={"step_size": "lr"}),
        row(law.asgd, "ax", decays=INSIDE, gives="parameter"),
        row(law.schedule_free_sgd, "z", decays=INSIDE, **_SCHEDULE_FREE),
        row(law.rmsprop, "square_avg", decays=INSIDE, **_RMSPROP),
        row(law.rmsprop_momentum, "square_avg", "momentum_buffer", decays=INSIDE),
        row(law.rmsprop_centered, "square_avg", "grad_avg", decays=INSIDE),
        row(law.rmsprop_centered_momentum, "square_avg", "grad_avg", "momentum_buffer", decays=INSIDE),
        row(law.adadelta, "square_avg", "acc_delta", decays=INSIDE),
        row(law.adamax, "exp_avg", "exp_inf", decays=INSIDE),
        row(law.nadam, "exp_avg", "exp_avg_sq", scalars={"mu_product": 1.0}),
        row(law.adabelief, "exp_avg", "exp_avg_var", decays=APART),
        row(law.yogi, "exp_avg", "exp_avg_sq", decays=APART, initial=_YOGI),
        row(law.adopt, "exp_avg", "exp_avg_sq", decays=APART),
        row(law.laprop, "exp_avg", "exp_avg_sq", decays=APART, scalars={"exp_avg_lr": 0.0}),
        row(law.ademamix, "exp_avg", "exp_avg_sq", "exp_avg_slow", decays=APART),
        row(law.adan, "exp_avg", "exp_avg_sq", "exp_avg_diff", "previous_grad", decays=APART),
        row(law.schedule_free_adamw, "z", "exp_avg_sq", decays=NONE, **_SCHEDULE_FREE),
        row(law.ftrl, "accumulator", "linear", decays=NONE, gives="parameter", initial=_FTRL),
    )
}


# What is measured before a step: see `measures`.
MEASURES: dict[str, Rule] = {
    rule.name: rule
    for rule in (
        row(law.gradient, decays=NONE, terms=1),
        row(law.weight_and_gradient, decays=INSIDE, terms=2),
        row(law.trust, "exp_avg", "exp_avg_sq", decays=NONE, terms=2),
        row(law.stable, "exp_avg", "exp_avg_sq", decays=INSIDE, terms=1),
        row(law.agreement, "exp_avg", decays=INSIDE, terms=1),
    )
}


def rules_of(optimizer: Any) -> list[Rule]:
    """The rules that an optimizer or its class may use, which it names or, where a user has written them, holds."""
    return [RULES[rule] if isinstance(rule, str) else rule for rule in optimizer._rules]


Scalars = tuple[float, ...]  # (scale, decay, *coefficients) of a kernel
ScalarRows = tuple[Scalars, ...]  # of each run


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
    """Every kernel of `rules`, or of the table of update rules."""
    return [Kernel(rule, decay) for rule in (RULES.values() if rules is None else rules) for decay in rule.decays]
