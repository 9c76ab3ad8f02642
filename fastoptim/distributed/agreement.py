"""Describes what ranks must agree on before they build an optimizer or step it, in words that an error can quote."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from .. import __version__
from ..arrays import layout
from ..common.validation import choice, count, flag
from ..optimizers.base import Optimizer
from ..optimizers.hyperparameters import text_of

REDUCTIONS = ("mean", "sum")


def plain_optimizer(
    kind: type[Optimizer], params: Any, backend: str, threads: int | None, hyper: Mapping[str, Any]
) -> Optimizer:
    """Make the plain optimizer over the whole parameters: it knows structures and groups, and allocates no state."""
    if not isinstance(kind, type) or not issubclass(kind, Optimizer) or kind is Optimizer:
        raise TypeError(f"kind must be a class of optimizers, such as fastoptim.Adam, got {kind!r}")
    whole = kind(params, backend=backend, threads=threads, **hyper)
    if whole.backend == "cuda":
        raise TypeError("ShardedOptimizer takes NumPy arrays; its kernels run on the host")
    return whole


def options(reduction: Any, deterministic: Any, buffer_bytes: Any, overwrite_grads: Any) -> dict[str, Any]:
    """Check what `ShardedOptimizer` adds to the hyperparameters."""
    return {
        "reduction": choice("reduction", reduction, REDUCTIONS),
        "deterministic": flag("deterministic", deterministic),
        "buffer_bytes": count("buffer_bytes", buffer_bytes),
        "overwrite_grads": flag("overwrite_grads", overwrite_grads),
    }


def check_updates(whole: Optimizer) -> None:
    """Check the hyperparameters of all groups; ValueError where a step needs norms of whole parameters."""
    for group in whole.param_groups:
        if whole._spec_of(group).measured is not None:
            raise ValueError(
                f"{type(whole).__name__} takes norms of whole parameters, of which several ranks have a slice each: "
                "leave out update_clip and cautious, or set adapt=False; NovoGrad is for one rank"
            )


def description(whole: Optimizer, options: dict[str, Any]) -> dict[str, str]:
    """Describe everything in which ranks must not differ, by name."""
    check_updates(whole)
    said = {"fastoptim's version": __version__, "numpy's version": np.__version__, "kind": type(whole).__name__}
    said |= {name: repr(value) for name, value in (options | whole._storage._asdict()).items()} | hyper_texts(whole)
    for number, group in enumerate(whole.param_groups):
        said[f"names of group {number}"] = ", ".join(group["names"])
        for name, p in zip(group["names"], group["params"], strict=True):
            content = hashlib.sha256(layout.flat(np.asarray(p)).view(np.uint8).data).hexdigest()[:16]
            said[f"parameter {name!r}"] = f"shape {p.shape}, {p.dtype.name}, content {content}"
    return said


def hyper_texts(whole: Optimizer) -> dict[str, str]:
    """Describe the hyperparameters of all groups, by name."""
    return {
        f"{name} of group {number}": text_of(group[name])
        for number, group in enumerate(whole.param_groups)
        for name in whole._names
    }
