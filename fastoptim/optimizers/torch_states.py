"""Converts the state dicts of optimizers to those of torch.optim, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..arrays.checks import DTYPES
from ..arrays.storage import unpack
from ..common.public import public
from ..common.validation import count, names_arguments
from ..rules.coefficients import asgd_coefficients
from ..rules.table import Rule, rules_of
from .base import Optimizer
from .groups import fixed
from .states import begin

# What a torch group has that says how torch computes or what it is called, not what is computed.
_ASIDE = ("params", "param_names", "initial_lr", "foreach", "fused", "capturable", "differentiable")
_CLASSES = (
    *("ASGD", "Adadelta", "Adagrad", "Adam", "AdamW", "Adamax"),
    *("NAdam", "RAdam", "RMSprop", "Rprop", "SGD", "SparseAdam"),
)
_DECOUPLED = "decoupled_weight_decay"  # by which torch's Adam becomes its AdamW
_RENAMED = {"Adagrad": {"sum": "square_avg"}}  # class -> torch's name of a state -> ours
_FOLLOWS = {"ASGD": ("eta", "mu")}  # what torch keeps although it follows from the step count


@public
@names_arguments
def to_torch_state(optimizer: Optimizer, names: Sequence[str] | None = None) -> dict[str, Any]:
    """Convert states and hyperparameters to a state dict for the torch.optim class of the same name.

    Parameters
    ----------
    optimizer : Optimizer
        Of a class that torch has, with torch's conventions (``eps_mode="torch"`` and the like).
    names : sequence of str, optional
        Names of the parameters in the order of torch's, which have numbers only. Default: their order in `optimizer`.

    Returns
    -------
    dict
        For the torch optimizer's ``load_state_dict``: one group for each of `optimizer`; the tensors are copies.

    Raises
    ------
    TypeError, ValueError
        torch has no such class, hyperparameter or convention, or keeps something that `optimizer` does not.
    ImportError
        torch is missing.

    Examples
    --------
    With a torch model whose parameters have the names and shapes of ours::

        torch_opt = torch.optim.Adam(model.parameters())
        torch_opt.load_state_dict(fo.to_torch_state(opt, [name for name, _ in model.named_parameters()]))
    """
    kind, whole = _kind(optimizer), optimizer.state_dict()
    import torch

    torch_class = getattr(torch.optim, kind.__name__)
    groups: list[dict[str, Any]] = []
    states: dict[int, dict[str, Any]] = {}
    arrays = {q.name: p for q, p in zip(optimizer._model.parameters, optimizer._model.arrays(), strict=True)}
    for own, numbers in _numbered(whole["param_groups"], names):
        hyper = {name: value for name, value in own.items() if name != "params"}
        dummy = torch.nn.Parameter(torch.ones(1))
        torch_names = torch_class([dummy]).defaults
        _check_conventions(kind, {name: value for name, value in hyper.items() if name not in torch_names})
        hyper = {name: value for name, value in hyper.items() if name in torch_names}
        torch_optimizer: Any = torch_class([dummy], **hyper)
        groups.append({**torch_optimizer.param_groups[0], **hyper, "params": list(numbers)})
        from_start = bool(torch_optimizer.state)  # whether torch keeps states before the first step
        dummy.grad = torch.ones_like(dummy)
        if kind.__name__ == "SparseAdam":
            dummy.grad = dummy.grad.to_sparse()
        torch_optimizer.step()  # shows what torch keeps
        spec = kind._checked(optimizer._read(own)).spec
        for number, name in numbers.items():
            entry, kept = whole["state"][name] | _following(kind, own, whole["state"][name]["step"]), {}
            began = from_start or entry["step"] or len(whole["state"][name]) > 1
            for key, example in torch_optimizer.state[dummy].items() if began else ():
                ours = _RENAMED.get(kind.__name__, {}).get(key, key)
                first = spec.kernel.rule.initial.get(ours, 0.0)
                if ours in entry:
                    kept[key] = _as_torch(
                        torch, _plain(name, arrays[name].dtype, ours, entry, spec.kernel.rule), example
                    )
                elif ours not in spec.kernel.rule.states or first == "parameter":
                    raise ValueError(f"torch's {kind.__name__} keeps {key!r} for parameter {name!r}, which is not here")
                elif spec.first is None:  # else the state's first step is another, for torch as well
                    state = optimizer._backend.zeros_like(arrays[name])
                    begin(optimizer._backend, state, arrays[name], first, own)
                    kept[key] = torch.from_numpy(optimizer._backend.host_copy(state))
            if kept:
                states[number] = kept
    return {"state": states, "param_groups": groups}


@public
@names_arguments
def from_torch_state(
    optimizer: Optimizer, state_dict: Mapping[str, Any], names: Sequence[str] | None = None, step: int = 0
) -> dict[str, Any]:
    """Convert a state dict of torch.optim to one for ``optimizer.load_state_dict``. torch need not be installed.

    Parameters
    ----------
    optimizer : Optimizer
        Of the class of the same name, with as many groups and parameters. It is not changed.
    state_dict : mapping
        What ``state_dict`` of the torch optimizer returned. Its tensors may also be NumPy arrays.
    names : sequence of str, optional
        Names of the parameters in the order of torch's, which have numbers only. Default: their order in `optimizer`.
    step : int
        Step count of the parameters for which torch keeps none, as SGD does not.

    Raises
    ------
    TypeError, ValueError
        Other groups, or something in them that `optimizer` does not compute.

    Examples
    --------
    >>> import numpy as np, fastoptim as fo
    >>> opt = fo.SGD(np.zeros(2), lr=0.1)
    >>> torch_state = {
    ...     "state": {0: {"momentum_buffer": np.ones(2)}},  # or a tensor
    ...     "param_groups": [{"lr": 0.5, "momentum": 0.9, "params": [0]}],
    ... }
    >>> opt.load_state_dict(fo.from_torch_state(opt, torch_state, step=7))
    IncompatibleKeys(missing_keys=[], unexpected_keys=[])
    >>> opt.lr, opt.state["0"]["momentum_buffer"]
    (0.5, array([1., 1.]))
    """
    kind, whole = _kind(optimizer), optimizer.state_dict()
    step = count("step", step, 0)
    try:
        theirs, ours = state_dict["param_groups"], whole["param_groups"]
        kept = {int(number): entry for number, entry in state_dict["state"].items()}  # JSON makes strings of numbers
        numbered = [number for group in theirs for number in group["params"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            'not a state dict of torch.optim: it has "state", by numbers, and "param_groups" with "params" each '
            f"({type(error).__name__}: {error})"
        ) from error
    if strange := [number for number in kept if number not in numbered]:
        raise ValueError(f"torch's state dict has states of the parameters {strange}, which no group has")
    counts = [[len(group["params"]) for group in groups] for groups in (theirs, ours)]
    if counts[0] != counts[1]:
        raise ValueError(f"torch's groups have {counts[0]} parameters, those of this optimizer {counts[1]}")
    scalars = {name for rule in rules_of(optimizer) for name in rule.scalars}
    states: dict[str, dict[str, Any]] = {}
    groups = []
    for (own, numbers), group in zip(_numbered(ours, names), theirs, strict=True):
        _check_foreign(kind, group)
        hyper = {name: fixed(group[name]) for name in kind._names if name in group}
        groups.append({"params": list(own["params"]), **_conventions(kind), **hyper})
        for number, name in zip(group["params"], numbers.values(), strict=True):
            renamed, follows = _RENAMED.get(kind.__name__, {}), _FOLLOWS.get(kind.__name__, ())
            entry = {
                renamed.get(key, key): x
                for key, x in kept.get(number, {}).items()
                if x is not None and key not in follows
            }
            t = _whole_number(name, entry.pop("step", step))
            states[name] = {key: float(x) if key in scalars else _as_numpy(x) for key, x in entry.items()}
            states[name]["step"] = t
    return whole | {"state": states, "param_groups": groups}


def _kind(optimizer: Any) -> type[Optimizer]:
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"expected an optimizer such as fo.Adam(params), got {type(optimizer).__name__}")
    if type(optimizer).__name__ not in _CLASSES:
        raise ValueError(f"torch.optim has no {type(optimizer).__name__}")
    return type(optimizer)


def _numbered(
    groups: Sequence[Mapping[str, Any]], names: Sequence[str] | None
) -> Iterator[tuple[Mapping[str, Any], dict[int, str]]]:
    """Each of our groups with number -> name of its parameters in torch's order."""
    ordered = [name for group in groups for name in group["params"]] if names is None else list(names)
    start = 0
    for i, group in enumerate(groups):
        part = ordered[start : start + len(group["params"])]
        if sorted(part) != sorted(group["params"]):
            raise ValueError(f"names: group {i} has the parameters {group['params']}, not {part}")
        yield group, dict(enumerate(part, start))
        start += len(part)
    if start != len(ordered):
        raise ValueError(f"names: expected {start}, got {len(ordered)}")


def _plain(name: str, dtype: np.dtype[Any], state: str, entry: Mapping[str, Any], rule: Rule) -> Any:
    """A state or number of an entry; states that are stored in fewer bits than their parameter in its dtype."""
    value = entry[state]
    if dtype not in DTYPES:
        raise TypeError(
            f"parameter {name!r} is {dtype.name}: only states of float32 and float64 parameters go to torch"
        )
    if not isinstance(value, np.ndarray) or value.dtype == dtype:
        return value
    return unpack(state, entry, state in rule.squares)


def _following(kind: type[Optimizer], hyper: Mapping[str, Any], t: int) -> dict[str, float]:
    """What torch keeps behind step `t` for the step after it, although it follows from the count."""
    if kind.__name__ not in _FOLLOWS:
        return {}
    _, eta, _, mu = asgd_coefficients(hyper["lr"], hyper["lambd"], hyper["alpha"], hyper["t0"], t + 1)
    return {"eta": eta, "mu": mu}


def _conventions(kind: type[Optimizer]) -> dict[str, Any]:
    """Hyperparameters at their defaults, where what torch has no name for is what torch computes."""
    return {name: getattr(kind, name).default for name in kind._names}


def _check_conventions(kind: type[Optimizer], hyper: Mapping[str, Any]) -> None:
    """ValueError unless hyperparameters that torch does not have are at their defaults."""
    for name, value in hyper.items():
        if value != _conventions(kind)[name]:
            raise ValueError(f"torch's {kind.__name__} has no {name}={value!r}")


def _check_foreign(kind: type[Optimizer], group: Mapping[str, Any]) -> None:
    """ValueError for hyperparameters in a group of torch's that would mean something and that `kind` does not have."""
    foreign = {name: value for name, value in group.items() if name not in (*kind._names, *_ASIDE)}
    if kind.__name__ in ("Adam", "AdamW") and _DECOUPLED in foreign:
        decoupled = foreign.pop(_DECOUPLED)
        if group.get("weight_decay") and bool(decoupled) != (kind.__name__ == "AdamW"):
            raise ValueError(f"{kind.__name__} is not what torch computes with {_DECOUPLED}={decoupled}")
    for name, value in foreign.items():
        if value:
            raise ValueError(f"{kind.__name__} has no {name}, which torch's state dict sets to {value!r}")


def _as_torch(torch: Any, value: Any, example: Any) -> Any:
    """A state or count of ours in the form that torch keeps it in."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(value).reshape(value.shape))
    if not isinstance(example, torch.Tensor):
        return type(example)(value)
    number = torch.tensor(value, dtype=example.dtype)
    return number if number.item() == value else torch.tensor(value, dtype=torch.float64)


def _whole_number(name: str, value: Any) -> int:
    """A step count, which torch keeps as a float."""
    number = float(value)
    if not (number >= 0 and number.is_integer()):
        raise ValueError(f"parameter {name!r}: step must be a whole number from 0, got {number}")
    return int(number)


def _as_numpy(x: Any) -> np.ndarray[Any, Any]:
    if hasattr(x, "detach"):
        x = x.detach().cpu()
        x = (x.float() if str(x.dtype) == "torch.bfloat16" else x).numpy()  # which NumPy has no name for
    return np.array(x)
