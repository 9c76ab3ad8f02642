"""Steps of one array that the caller owns: a function for each class of `names.FAMILIES`, its types in forms.pyi."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

from ..common.validation import unknown_name
from ..rules.table import rules_of
from .family import Family, step_array
from .names import FAMILIES

__all__ = [*FAMILIES]  # noqa: PLE0604 (keys are strings)

_DOCSTRING = """Take one step of `fastoptim.{cls}` in place, on arrays that the caller owns.

`state` is a dict, empty at first, that keeps {kept}.
`grad_scale` multiplies g; all else, errors included, is as for the class.
"""


def _form(name: str, cls: type[Family]) -> Callable[..., None]:
    stated = [signature(cls.__init__).parameters[key] for key in cls._names]
    defaults = {p.name: p.default for p in stated}

    def form(
        p: Any,
        g: Any,
        state: dict[str, Any],
        *,
        grad_scale: float = 1.0,
        backend: str = "auto",
        threads: int | None = None,
        **hyper: Any,
    ) -> None:
        values = tuple((defaults | hyper).values())
        if len(values) > len(defaults):
            unknown = next(key for key in hyper if key not in defaults)
            raise TypeError(unknown_name(name, unknown, own.parameters))
        step_array(cls, p, g, state, values, grad_scale, backend, threads)

    given = signature(form)
    *arrays, grad_scale, backend, threads, _ = given.parameters.values()
    hyper = [p.replace(kind=p.KEYWORD_ONLY) for p in stated]
    own = given.replace(parameters=[*arrays, *hyper, grad_scale, backend, threads])
    names = dict.fromkeys(x for rule in rules_of(cls) for x in (*rule.states, *rule.scalars))
    kept = ", ".join(f'"{key}"' for key in ("step", *names)) + " (what it needs)" * (len(cls._rules) > 1)
    form.__signature__ = own  # type: ignore[attr-defined]
    form.__name__ = form.__qualname__ = name
    form.__module__ = "fastoptim.functional"
    form.__doc__ = _DOCSTRING.format(cls=cls.__name__, kept=kept)
    return form


globals().update({name: _form(name, cls) for name, cls in FAMILIES.items()})
