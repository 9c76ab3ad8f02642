"""Write fastoptim/optimizers/forms.pyi, the types of the functional forms: python -m tests.proofs.forms_write

What it writes is committed, and a test compares it.
"""

from __future__ import annotations

import inspect
import textwrap
from pathlib import Path

import fastoptim
from fastoptim.optimizers import forms

FILE = Path(fastoptim.__file__).with_name("optimizers") / "forms.pyi"

HEADER = """\
# Written by tests/proofs/forms_write.py; do not edit.
# fmt: off
from typing import Any
"""


def form(name: str) -> str:
    """The stub of one function."""
    own = inspect.signature(getattr(forms, name))
    arguments = [f"{p.name}: {p.annotation}" for p in list(own.parameters.values())[:3]] + ["*"]
    arguments += [f"{p.name}: {p.annotation} = {_shown(p.default)}" for p in list(own.parameters.values())[3:]]
    whole = ", ".join(argument.replace(" ", "\0") for argument in arguments)  # lines end between arguments
    told = textwrap.indent("\n".join(textwrap.wrap(whole, 115)), "    ").replace("\0", " ")
    return f"def {name}(\n{told},\n) -> {own.return_annotation}: ...\n"


def _shown(value: object) -> str:
    return repr(value).replace("'", '"')


def text() -> str:
    whole = f"__all__ = [{', '.join(map(_shown, sorted(forms.__all__)))}]"
    listed = "\n".join(textwrap.wrap(whole, 116, subsequent_indent="    "))
    return "\n".join([HEADER, listed, "", *map(form, forms.__all__)]).rstrip() + "\n"


if __name__ == "__main__":
    FILE.write_text(text())
