"""Write fastoptim/optimizers/forms.py, the functional forms, from the classes: python -m tests.proofs.forms_write

What it writes is committed, and a test compares it.
"""

from __future__ import annotations

import inspect
import textwrap
from pathlib import Path

import fastoptim
from fastoptim.optimizers.family import Family
from fastoptim.optimizers.names import FAMILIES
from fastoptim.rules.table import RULES

FILE = Path(fastoptim.__file__).with_name("optimizers") / "forms.py"

HEADER = '''"""Steps of one array that the caller owns, one function for each class of `names.FAMILIES`.

Written by tests/proofs/forms_write.py; do not edit.
"""
# fmt: off

from __future__ import annotations

from typing import Any

from .family import step_array
'''

DOCSTRING = """\
Take one step of `fastoptim.{cls}` in place, on arrays that the caller owns.

`state` is a dict, empty at first, that keeps {keys}. `grad_scale` multiplies g; all else, errors included, is as for \
the class.
"""


def form(name: str, cls: type[Family]) -> str:
    """The source of one function."""
    signature = inspect.signature(cls.__init__).parameters
    stated = [signature[key] for key in cls._names]
    hyperparameters = [f"{p.name}: {p.annotation} = {_shown(p.default)}" for p in stated]
    arguments = ["p: Any", "g: Any", "state: dict[str, Any]", "*", *hyperparameters, "grad_scale: float = 1.0"]
    arguments += ['backend: str = "auto"', "threads: int | None = None"]
    kept = dict.fromkeys(x for rule in cls._rules for x in (*RULES[rule].states, *RULES[rule].scalars))
    keys = ", ".join(f'"{key}"' for key in ("step", *kept)) + (" (what it needs)" if len(cls._rules) > 1 else "")
    paragraphs = DOCSTRING.format(cls=cls.__name__, keys=keys).splitlines()
    lines = [line for paragraph in paragraphs for line in textwrap.wrap(paragraph, 116) or [""]]
    lines[0] = '"""' + lines[0]
    lines += ['"""', f"values = ({', '.join(cls._names)})"]
    lines += [f"step_array({cls.__name__}, p, g, state, values, grad_scale, backend, threads)"]
    body = textwrap.indent("\n".join(lines), "    ")
    whole = ", ".join(argument.replace(" ", "\0") for argument in arguments)  # lines end between arguments
    told = textwrap.indent("\n".join(textwrap.wrap(whole, 115)), "    ").replace("\0", " ")
    return f"def {name}(\n{told},\n) -> None:\n{body}\n"


def _shown(value: object) -> str:
    return repr(value).replace("'", '"')


def text() -> str:
    modules: dict[str, list[str]] = {}
    for cls in FAMILIES.values():
        modules.setdefault(cls._update.__module__.rpartition(".")[2], []).append(cls.__name__)
    for module, names in modules.items():
        modules[module] = sorted(names, key=lambda name: (not name.isupper(), name.lower()))
    *head, family = HEADER.splitlines()
    imports = sorted([family, *(f"from .{module} import {', '.join(names)}" for module, names in modules.items())])
    listed = textwrap.wrap(f"__all__ = [{', '.join(map(_shown, sorted(FAMILIES)))}]", 116, subsequent_indent="    ")
    top = "\n".join([*head, *imports, "", *listed])
    return "\n\n\n".join([top, *map(str.rstrip, map(form, FAMILIES, FAMILIES.values()))]) + "\n"


if __name__ == "__main__":
    FILE.write_text(text())
