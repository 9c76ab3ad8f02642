"""Defines who is timed with arrays in fewer bits: fastoptim's storages, and the 8-bit Adam of bitsandbytes."""

from __future__ import annotations

from typing import Any

from .cases import Case
from .subjects import BETAS, EPS, LR, Array, Stepper, Subject, only

_C = "fastoptim.bench.subjects:fastoptim_c"


def _stored(title: str, dtype: str, states: str) -> Subject:
    return Subject(title, "fastoptim", _C, ("ml_dtypes",), ("storage",), threaded=True, stored=(dtype, states))


# The leader of a run stands beside them, in float32.
STORAGES: dict[str, Subject] = {
    "c-bfloat16-states": _stored("bfloat16 states", "float32", "bfloat16"),
    "c-bfloat16": _stored("bfloat16 everywhere", "bfloat16", "bfloat16"),
    "c-float8-states": _stored("float8 states", "float32", "float8"),
    "bitsandbytes": Subject(
        "bitsandbytes 8-bit Adam",
        "bitsandbytes",
        f"{__name__}:bitsandbytes_8_bits",
        ("bitsandbytes", "torch"),
        ("storage",),
        max_elements=20_000_000,
        threaded=True,
        compared=False,
    ),
}


def bitsandbytes_8_bits(case: Case, params: list[Array], gradients: list[list[Array]]) -> Stepper:
    import bitsandbytes
    import torch

    only(case, "adam")
    torch.set_num_threads(case.threads)
    tensors = [torch.from_numpy(p).requires_grad_() for p in params]
    for tensor, g in zip(tensors, gradients[0], strict=True):
        tensor.grad = torch.from_numpy(g)
    opt = bitsandbytes.optim.Adam8bit(tensors, lr=LR, betas=BETAS, eps=EPS)

    def state_bytes() -> int:
        arrays: list[Any] = [x for state in opt.state.values() for x in state.values() if torch.is_tensor(x)]
        tables = {x.data_ptr(): x for x in arrays}  # all parameters share those of what a code stands for
        return sum(x.numel() * x.element_size() for x in tables.values())

    return Stepper(opt.step, lambda: params, state_bytes=state_bytes)
