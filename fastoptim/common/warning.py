"""Issues warnings at the line outside the package that led to them, however deep in the package they are found."""

from __future__ import annotations

import os
import sys
import warnings

_PACKAGE = os.path.join(os.path.dirname(os.path.dirname(__file__)), "")


def warn(text: str, category: type[Warning] = RuntimeWarning) -> None:
    """Issue a warning at the innermost line of the call that is outside the package."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith((_PACKAGE, "<frozen importlib")):
        frame = frame.f_back
    module, registry = frame.f_globals.get("__name__", "?"), frame.f_globals.setdefault("__warningregistry__", {})
    # Not by a stack level, from which Python leaves out some frames; `skip_file_prefixes` is new in 3.12.
    warnings.warn_explicit(text, category, frame.f_code.co_filename, frame.f_lineno, module, registry)
