"""Divides optimizer states among the processes of an MPI job: ZeRO stage 1 for NumPy models.

Each rank owns one contiguous slice of the flat parameters of every group and dtype, and only that slice's states. A
step adds up the gradients of all ranks, each rank getting the sum of its slice (reduce-scatter); updates the slice; and
sends it to all others (all-gather). All three go bucket by bucket, so that the communication of one bucket runs beside
the kernel of another. See docs/howto/mpi.md for when this pays.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..arrays import layout
from ..arrays.storage import compute_dtype
from ..backends import StepInfo
from ..common.signals import deferred_signals
from ..common.threads import threads_from_environment
from ..common.validation import check_no_method, check_range, step_options
from ..optimizers.base import Optimizer
from ..optimizers.groups import ParamGroups
from ..optimizers.states import StateView
from .agreement import description, hyper_texts, options, plain_optimizer
from .slices import Array
from .states import States
from .step import Steps

__all__ = ["ShardedOptimizer"]


# What is the plain optimizer's own where there is one rank.
_METHODS = ("step", "add_param_group", "state_dict", "load_state_dict", "save", "load")


class ShardedOptimizer(Steps, States):
    """Divide an optimizer's states among the ranks of an MPI communicator.

    Every rank holds all parameters, calls every method together with the others, and hands `step` the gradients of its
    own share of the data. Afterwards all ranks have the same parameters: those that one process would have got from the
    reduced gradients, bit for bit. Gradients in 16 bits are added up in float32, and so applied.

    Parameters
    ----------
    kind : type
        The class of the optimizer, such as `fastoptim.Adam`.
    params : array, sequence, mapping, nesting of these, or list of group dicts
        As for `kind`, NumPy arrays; the same on every rank, values included.
    comm : mpi4py.MPI.Intracomm, optional
        Default: all processes of the job.
    reduction : {"mean", "sum"}
        What is made of the ranks' gradients. "mean" divides their sum by the number of ranks.
    deterministic : bool
        Add up gradients in the order of ranks, so that the result does not depend on the MPI library's algorithm.
        Slower, see docs/howto/mpi.md.
    buffer_bytes : int
        Size of all buffers that gradients and parameters pass through, of the three buckets that are on their way at a
        time; buckets are made to fit, but hold at least one or two blocks of 4096 elements of every rank.
    overwrite_grads : bool
        With `max_norm` or `skip_nonfinite` no parameter may change before the last gradient has arrived. By default
        the gradients are therefore added up twice: for their norm, of which nothing but sums is kept, and again for the
        update (and a third time where squares overflow float64 or vanish in it). If this is True, they are added up
        once, and this rank's slice of the result waits in the arrays that were given to `step`, whose contents are then
        undefined and which must not overlap each other; where one is None or read-only, in memory of its own.
    backend, threads, and all others
        As for `kind`. `threads` is by default this rank's share of the host's cores.

    Attributes
    ----------
    comm : mpi4py.MPI.Intracomm
        As given.
    param_groups, lr, backend, hyperparameters
        As for `kind`: groups hold whole parameters; hyperparameters are re-read at every step, the same on all ranks.

    Raises
    ------
    TypeError, ValueError
        As for `kind`; and on every rank if the ranks' parameters, hyperparameters or versions differ.
    RuntimeError
        Another rank has raised.
    ImportError
        mpi4py is missing.

    Notes
    -----
    With one rank this is the plain optimizer and costs no more.

    The memory of a step is that of parameters, gradients, this rank's slice of the states and `buffer_bytes`.

    Gradients that are added up twice must come to the same bits, if the norm is to be exactly that of the gradients
    that are applied. With `deterministic` they do. Else it is up to the MPI library: the standard recommends it, for
    the same arguments in the same order. Whatever it does, all ranks take the same norm and have the same parameters.

    With several ranks, an exception that nobody catches ends the whole job once its traceback was printed (by
    ``sys.excepthook`` and ``MPI_Abort``); otherwise the other ranks would wait for ever. Leave by an exception, not by
    ``sys.exit``, where the others are not told.

    References
    ----------
    Rajbhandari et al., "ZeRO: memory optimizations toward training trillion parameter models", SC 2020 (stage 1).

    Examples
    --------
    Under ``mpiexec -n 4 python train.py`` each process runs this:

    >>> import numpy as np, fastoptim as fo
    >>> params = {"w": np.ones(8, np.float32)}
    >>> opt = fo.distributed.ShardedOptimizer(fo.Adam, params, lr=0.1)
    >>> opt.step({"w": np.ones(8, np.float32)}, max_norm=1.0).applied
    True
    >>> params["w"][0].round(4)
    np.float32(0.9)
    """

    param_groups: ParamGroups
    lr: float
    backend: str

    def __init__(
        self,
        kind: type[Optimizer],
        params: Any,
        *,
        comm: Any = None,
        reduction: str = "mean",
        deterministic: bool = False,
        buffer_bytes: int = 1 << 25,
        overwrite_grads: bool = False,
        backend: str = "auto",
        threads: int | None = None,
        **hyper: Any,
    ):
        try:
            from . import channel
        except (ImportError, RuntimeError) as missing:  # mpi4py without an MPI library raises the latter
            raise ImportError(
                f"ShardedOptimizer needs mpi4py and an MPI library: pip install mpi4py mpich ({missing})"
            ) from missing
        self.comm = channel.communicator(comm)
        if self.comm.size == 1:
            self._whole = plain_optimizer(kind, params, backend, threads, hyper)
            options(reduction, deterministic, buffer_bytes, overwrite_grads)
            self.__dict__ |= {name: getattr(self._whole, name) for name in _METHODS}
            return
        channel.end_job_on_error()
        self._channel = channel.Channel(self.comm)
        share = self._channel.share_of_cores()  # asked of all ranks, whichever of them need it

        def build() -> dict[str, str]:
            number = share if threads is None and threads_from_environment() is None else threads
            self._whole = plain_optimizer(kind, params, backend, number, hyper)
            self._options = options(reduction, deterministic, buffer_bytes, overwrite_grads)
            return description(self._whole, self._options)

        self._channel.together("building the optimizer", build, dict)
        self._channel.mean, self._channel.deterministic = reduction == "mean", self._options["deterministic"]
        self._buckets, self._pieces = [], []
        self._add_buckets(0)

    # --- the interface of a plain optimizer

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name.startswith("_"):
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            value = getattr(self._whole, name)
            if callable(value) and self.comm.size > 1:  # it would look for states where there are none
                raise AttributeError(
                    f"a ShardedOptimizer on several ranks has no {name!r}: each rank keeps a slice of the states alone"
                )
            return value

    def __setattr__(self, name: str, value: Any) -> None:
        check_no_method(self, name, value)
        own = name.startswith("_") or name == "comm" or hasattr(type(self), name)
        if own:
            object.__setattr__(self, name, value)
        else:
            setattr(self._whole, name, value)

    @property
    def threads(self) -> int:
        """Number of threads that a step of this rank may use."""
        return self._whole.threads

    @threads.setter
    def threads(self, value: int | None) -> None:
        self._whole.threads = value
        if self.comm.size > 1:
            for piece in self._own():
                piece.optimizer.threads = self._whole.threads

    @property
    def state(self) -> Mapping[str, Any]:
        """Name of a parameter -> its states, as for `Optimizer`; with several ranks a list of this rank's parts of it.

        A part is ``{"start", "stop", "step", name of a state: live 1-d array, ...}``, elements `start` to `stop` of the
        parameter in C order.
        """
        if self.comm.size == 1:
            return self._whole.state
        names = self._names
        result: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for part, entry in self._entries():
            result[names[part.parameter]].append({"start": part.start, "stop": part.stop, **entry})
        return StateView(result)

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """As `Optimizer.add_param_group`, on all ranks together."""
        whole = self._whole
        with self._locked(), deferred_signals():
            grouped, first = whole._model.grouped, len(whole.param_groups)

            def append() -> dict[str, str]:
                whole._append_group(group)
                return description(whole, self._options)

            try:
                self._channel.together("adding a parameter group", append, dict)
            except Exception:
                if len(whole.param_groups) > first:
                    whole._model.remove_last(grouped)
                raise
            self._add_buckets(first)

    # --- the step

    def step(
        self,
        grads: Any,
        grad_scale: float = 1.0,
        max_norm: float | None = None,
        skip_nonfinite: bool = False,
        clip: str | None = None,
    ) -> StepInfo:
        """Update the parameters in place, on all ranks together.

        Arguments, result and errors are those of `Optimizer.step`; the norm is that of the reduced gradients, and all
        ranks skip or none does. A parameter is skipped if its gradient is ``None`` on every rank; where only some have
        one, ``None`` counts as zeros. Several ranks clip by the global norm alone. Options and hyperparameters must be
        the same on all ranks. An error on one rank raises on all of them, before anything was changed.
        """
        with self._locked():
            error: Exception | None = None
            said: dict[str, str] = {}
            params: list[Array] = []
            absent = np.zeros(len(self._whole._model.parameters), np.int64)
            try:
                max_norm = self._whole.max_norm if max_norm is None else max_norm
                clip = self._whole.clip if clip is None else clip
                scale, limit, skip, clip = step_options(grad_scale, max_norm, skip_nonfinite, clip)
                if clip != "norm":
                    raise ValueError(f"a ShardedOptimizer clips by the global norm, not by clip={clip!r}")
                said = {
                    "grad_scale": repr(scale),
                    "max_norm": repr(limit),
                    "skip_nonfinite": repr(skip),
                    **hyper_texts(self._whole),
                }
                params, flats, copies = self._checked(grads)
                for dtype in {compute_dtype(p.dtype) for p in params}:
                    check_range("grad_scale", scale, dtype)
                absent[:] = [g is None for g in flats]
                self._prepare(params)
            except Exception as exception:
                error = exception
            present = self._channel.agree(error, "this step", said, absent) == 0
            with deferred_signals(), self._whole._backend.arithmetic():  # MPI's sums too
                info = self._transaction(params, flats, present, scale, limit, skip)
                if info.applied:
                    for target, copy in copies:
                        layout.put(target, copy.reshape(target.shape))
            return info

    def __repr__(self) -> str:
        return f"<ShardedOptimizer: rank {self.comm.rank} of {self.comm.size}, {self._whole!r}>"
