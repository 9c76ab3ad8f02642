"""The progress bar."""

from __future__ import annotations

import math
import sys
from typing import Any

from ..common.validation import flag
from .loop import Loop


class Progress:
    """Show a bar by tqdm; part of `Loop`."""

    def __init__(self, bar_class: Any):
        self._bar_class = bar_class
        self._bar: Any = None

    def begin(self, loop: Loop) -> None:
        self._bar = self._bar_class(total=_total(loop), unit="step", dynamic_ncols=True)
        self._bar.update(loop.steps)

    def __call__(self, loop: Loop) -> None:
        bar = self._bar
        bar.update(1)
        if bar.n == bar.last_print_n:  # it has just been drawn
            bar.set_postfix_str(f"loss {loop.loss:.4g}, lr {loop.lr:.3g}", refresh=False)

    def end(self, loop: Loop) -> None:
        if self._bar is not None:
            self._bar.close()


def _total(loop: Loop) -> float | None:
    per_epoch = -(-len(loop.batches) // loop.accumulate) if math.isfinite(loop.last_epoch) else 0
    total = min(loop.last_step, loop.last_epoch * per_epoch if per_epoch else math.inf)
    return total if math.isfinite(total) else None


def bar_class(progress: bool | None) -> Any:
    """tqdm, or None: by default where there is neither a terminal nor a notebook, or tqdm is not installed."""
    notebook, terminal = _in_notebook(), sys.stderr is not None and sys.stderr.isatty()
    if not (notebook or terminal if progress is None else flag("progress", progress)):
        return None
    try:
        if notebook:
            from tqdm.auto import tqdm
        else:
            from tqdm import tqdm
    except ImportError as error:
        if progress:
            raise ImportError("progress=True needs tqdm: pip install tqdm") from error
        return None
    return tqdm


def _in_notebook() -> bool:
    """Whether this process runs the cells of a notebook."""
    if "ipykernel" not in sys.modules or "IPython" not in sys.modules:
        return False
    return hasattr(sys.modules["IPython"].get_ipython(), "kernel")
