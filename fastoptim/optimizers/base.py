"""`Optimizer`, the base of all optimizers: parameter groups, and the step as a transaction.

A step validates everything before it touches anything; it happens whole, or raises and leaves every byte and every
counter as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import compress
from operator import is_, is_not
from threading import get_ident
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, dataclass_transform, overload

import numpy as np

from ..arrays.autograd import tell_autograd
from ..arrays.storage import Storage
from ..backends import resolve
from ..backends.base import StepInfo
from ..backends.offload import OffloadBackend
from ..common.busy import BUSY, Busy, check_free, exclusive
from ..common.public import public
from ..common.signals import deferred_signals
from ..common.threads import resolve_threads
from ..common.trees import Structure, leaves_of, picker
from ..common.validation import check_no_method, check_range, flag, step_options, unknown_name
from ..rules.table import Rule
from . import pickling, saving, state_dicts
from .applying import applied
from .groups import NO_GROUP, Groups, ParamGroup, ParamGroups, fixed, is_grouped, listed, one_or_each
from .hyperparameters import Checked, Hyper, NotNeeded, Rate, UpdateSpec
from .selecting import GroupedParams, Members, select
from .state_dicts import IncompatibleKeys
from .states import Plan, check_members, make_plan, member_of, state_view
from .update import APPLIED, PLAIN, StepOptions

_NOTHING, _AT_ONCE = object(), nullcontext()


def _one_group(group: Mapping[str, Any]) -> tuple[Any, tuple[Members, ...]]:
    """The structure of a group dict, and all its leaves as members of one group."""
    params = listed(group["params"])
    values = {name: value for name, value in group.items() if name != "params"}
    return params, (Members(values, tuple(range(len(leaves_of(params))))),)


@public
@dataclass_transform(eq_default=False)  # what subclasses state are arguments, see `Family`
class Optimizer:
    """Base of the optimizers.

    Subclasses say how each of their hyperparameters is checked (`_checks`), and turn an object whose attributes they
    are, checked, into an `UpdateSpec` (`_update`) for one of `_rules`.
    Hyperparameters are attributes: reading gives the value that all groups share (ValueError if they differ), setting
    sets all groups; a list sets one value per group.
    """

    _rules: tuple[str | Rule, ...]
    _checks: Mapping[str, Callable[[Any], Any]] = {}  # name -> what checks and converts it
    _below_one: Collection[str] = ()  # names of those that must not round to 1
    _names: tuple[str, ...]
    _update: Callable[[Any], UpdateSpec]
    _read: Callable[[Mapping[str, Any]], tuple[Any, ...]]  # the hyperparameters of a group, in the order of their names
    _resolve = staticmethod(resolve)
    _lazy = False  # whether gradients that are `Rows` leave other rows as they are
    lr: Hyper[float] = Rate(0.0)  # these two all have
    maximize: Hyper[bool] = Hyper(False)

    def __init__(
        self,
        params: Any,
        defaults: dict[str, Any],
        backend: str = "auto",
        threads: int | None = None,
        state_dir: Any = None,
        memory_budget: int | str | None = None,
        max_norm: float | None = None,
        clip: str = "norm",
        **storage: Any,
    ):
        params = listed(params)
        self._storage = Storage.checked(**storage)
        self._threads = resolve_threads(threads)
        self._start(defaults)
        self.max_norm, self.clip = max_norm, clip
        grouped = self._model.grouped = is_grouped(params)
        if isinstance(params, GroupedParams):
            trees = [(params.params, params.groups)]
        else:
            trees = [_one_group(group) for group in (params if grouped else [{"params": params}])]
        arrays: list[Any] = []
        for tree, members in trees:
            leaves = leaves_of(tree)
            arrays += [leaves[i] for m in members for i in m.positions]
        self._backend = self._resolve(backend, tuple(arrays))
        if state_dir is not None or memory_budget is not None:
            self._backend = OffloadBackend(self._backend, state_dir, memory_budget)
        for tree, members in trees:
            self._add_groups(tree, members, prefixed=grouped)
        if not self._model.parameters:
            raise ValueError("there are no parameters to step")

    def _start(self, defaults: dict[str, Any]) -> None:
        self._busy: Busy = []
        self._model = Groups(defaults, type(self).__name__)
        self._plan: Plan | None = None
        self._options = PLAIN

    def _locked(self, reading: bool = False) -> AbstractContextManager[None]:
        return exclusive(self._busy, reading)

    # --- parameters, groups, hyperparameters

    @property
    def param_groups(self) -> ParamGroups:
        """The groups: dicts with "params", "names" and the hyperparameters, which are re-read at every step."""
        return self._model.groups

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Add ``{"params": ..., "lr": ..., ...}``; from then on `step` takes a list with one entry per group."""
        with self._locked():
            self._append_group(group)

    def _append_group(self, group: Mapping[str, Any]) -> None:
        if not isinstance(group, Mapping) or "params" not in group:
            raise TypeError(NO_GROUP)
        with deferred_signals():
            self._add_groups(*_one_group(group), prefixed=True)
            self._model.grouped = True

    def forget(self, names: Any) -> None:
        """Drop states and step counts of some parameters, which then go on as if they had never been stepped.

        Parameters
        ----------
        names : str, tuple of str, list of str, or callable
            Names or patterns, or a function ``(name, array) -> bool``: a selector of `groups`.

        Raises
        ------
        ValueError
            It selects nothing; nothing was changed.
        """
        with self._locked():
            model = self._model
            selector = tuple(names) if isinstance(names, list) else names
            chosen = select(selector, [q.name for q in model.parameters], model.arrays())
            with deferred_signals():
                self._drop_plan()
                for i in chosen:
                    model.parameters[i].forget()

    def _add_groups(
        self, params: Any, members: Sequence[Members], prefixed: bool = False, names: Sequence[str] | None = None
    ) -> None:
        """Add groups of the arrays of one structure; its gradients are one entry of what `step` takes."""
        model, backend = self._model, self._backend
        every = [model.checked(m.hyperparameters) for m in members]
        structure = Structure(params)
        leaves = structure.leaves(params, "parameters")
        names = names or model.new_names(structure, prefixed)
        stepped = sorted(i for m in members for i in m.positions)
        for i in stepped:
            backend.check_parameter(names[i], leaves[i])
        memory_maps = any(isinstance(leaves[i], np.memmap) for i in stepped)
        if memory_maps and not isinstance(backend, OffloadBackend):
            backend = OffloadBackend(backend)
        spans = [backend.span(f"parameter {names[i]!r}", leaves[i]) for i in stepped]
        spans += [
            backend.span(f"parameter {q.name!r}", p) for q, p in zip(model.parameters, model.arrays(), strict=True)
        ]
        backend.check_disjoint(spans, ())
        described: list[Any] = [None] * len(leaves)
        for i in stepped:
            described[i] = backend.describe(leaves[i])
        entries = []
        for values, (_, positions) in zip(every, members, strict=True):
            dtypes = {described[i][1] for i in positions}
            entry = ParamGroup.make([leaves[i] for i in positions], [names[i] for i in positions], values, dtypes)
            spec = self._spec_of(entry)
            for i in positions:
                shape, dtype = described[i]
                member_of(names[i], shape, dtype, spec, self._storage)
            entries.append(entry)
        with deferred_signals():
            self._backend = backend
            self._drop_plan()
            model.append(structure, entries, [m.positions for m in members], described)

    def _spec_of(self, group: ParamGroup) -> UpdateSpec:
        """What a group's hyperparameters come to; TypeError or ValueError for what they cannot be."""
        given, checked = self._read(group), group.checked
        if checked is None or not all(map(is_, checked.given, given)):
            checked = group.checked = self._checked(given, group.dtypes, checked)
        return checked.spec

    @classmethod
    def _checked(
        cls, given: tuple[Any, ...], dtypes: Iterable[np.dtype[Any]] = (), known: Checked | None = None
    ) -> Checked:
        """What hyperparameters come to; an error for what they cannot be, or is beyond a type. `known` were checked."""
        before = (_NOTHING,) * len(given) if known is None else known.given
        changed = list(compress(zip(cls._names, given, strict=True), map(is_not, given, before)))
        checks, values = cls._checks, {} if known is None else dict(known.values)
        for name, value in changed:
            values[name] = checks[name](value)
        spec = cls._update(SimpleNamespace(**values))
        for name, value in changed:
            for number in value if isinstance(value, tuple) else (value,):
                for dtype in dtypes if isinstance(number, (int, float)) else ():
                    check_range(name, number, dtype, not name.startswith("eps"), name in cls._below_one)
        return Checked(given, values, spec)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls._names = tuple(cls._checks)
        cls._read = staticmethod(picker(cls._names))

    def _set_attribute(self, name: str, value: Any) -> None:
        if not name.startswith("_") and name not in self._names:
            if not hasattr(type(self), name):
                raise AttributeError(unknown_name(type(self).__name__, name, self._names))
            check_no_method(self, name, value)
        object.__setattr__(self, name, value)

    if not TYPE_CHECKING:  # type checkers know the hyperparameters from the annotations of the classes
        __setattr__ = _set_attribute
        zero_grad = NotNeeded("gradients are arguments of step, there is nothing to reset")
        register_step_pre_hook = NotNeeded("call your function before step")
        register_step_post_hook = NotNeeded("call your function after step")

    def _set(self, name: str, values: list[Any]) -> None:
        groups = self._model.groups
        if len(values) != len(groups):
            raise ValueError(f"{name}: expected {one_or_each(len(groups))}, got {len(values)}")
        found = []  # all are checked before one is set
        place = self._names.index(name)
        for group, value in zip(groups, values, strict=True):
            before = self._read(group)
            given = (*before[:place], fixed(value), *before[place + 1 :])
            checked = self._checked(given, group.dtypes, group.checked)
            if checked.spec.measured is not None:
                check_members(self._model, group, checked.spec, self._storage)
            found.append(checked)
        with deferred_signals() if len(groups) > 1 else _AT_ONCE:
            for group, checked in zip(groups, found, strict=True):
                group.put(name, checked.given[place])
                group.checked = checked

    @property
    def max_norm(self) -> float | None:
        """The bound of steps that name none; None: gradients are not clipped."""
        return self._options.max_norm

    @max_norm.setter
    def max_norm(self, value: float | None) -> None:
        self._set_options(value, self._options.clip)

    @property
    def clip(self) -> str:
        """What `max_norm` bounds in steps that do not say: "norm", "value" or "norm_per_array"."""
        return self._options.clip

    @clip.setter
    def clip(self, value: str) -> None:
        self._set_options(self._options.max_norm, value)

    def _set_options(self, max_norm: Any, clip: Any) -> None:
        options = StepOptions(*step_options(1.0, max_norm, False, clip))
        self._options = PLAIN if options == PLAIN else options

    @property
    def backend(self) -> str:
        """Name of the backend that steps run on."""
        return self._backend.name

    @property
    def threads(self) -> int:
        """Number of threads that a step may use."""
        return self._threads

    @threads.setter
    def threads(self, value: int | None) -> None:
        with self._locked():
            threads = resolve_threads(value)
            self._drop_plan()
            self._threads = threads

    # --- the step

    def step(
        self,
        grads: Any,
        grad_scale: float = 1.0,
        max_norm: float | None = None,
        skip_nonfinite: bool = False,
        clip: str | None = None,
    ) -> StepInfo:
        """Update the parameters in place.

        Parameters
        ----------
        grads : same structure as the parameters
            One gradient per parameter, of its shape and dtype; never written to. ``None`` skips its parameter, whose
            step count then does not move. With groups given as a list: a list with one entry per group.
        grad_scale : float
            Factor for every gradient, for example ``1 / loss_scale``.
        max_norm : float, optional
            Global-norm clipping: gradients are multiplied by ``min(1, max_norm / (norm + 1e-6))``, where `norm` is the
            Euclidean norm of all gradients after `grad_scale`, in float64. Infinity means no limit. Default: that of
            the optimizer, ``opt.max_norm``.
        skip_nonfinite : bool
            Leave everything as it was if a gradient holds a NaN or an infinity (after `grad_scale`), or if the norm of
            them all is beyond float64.
        clip : {"norm", "value", "norm_per_array"}, optional
            What `max_norm` bounds: "value": each element, to -max_norm .. max_norm, after `grad_scale`; NaN stays NaN.
            The gradients are copied first, in float32 where they have 16 bits. "norm_per_array": the norm of each array
            by itself. Default: that of the optimizer, ``opt.clip``.

        Returns
        -------
        StepInfo
            ``applied``, False where the step was skipped or all gradients are None; and ``grad_norm``, that of all
            gradients, None unless clipping by a norm or `skip_nonfinite` asked for it.

        Raises
        ------
        TypeError, ValueError
            Wrong structure, shape, dtype, byte order, overlap or hyperparameter; nothing was changed.
        RuntimeError
            Another thread is stepping this optimizer.
        """
        thread, busy = get_ident(), self._busy  # as `common.busy.exclusive`, in a tenth of its time
        if busy:
            check_free(busy)
        try:
            busy.append(thread)
            if busy[0] != thread:
                raise RuntimeError(BUSY)
            plan = self._plan
            if plan is None or plan.version != plan.changes[0]:
                plan = self._current_plan()
            options, native, leaves = self._options, plan.native_step, None
            scaled = type(grad_scale) is not float or grad_scale != 1.0
            if scaled or max_norm is not None or skip_nonfinite is not False or clip is not None:
                options = self._step_options(plan, grad_scale, max_norm, skip_nonfinite, clip)
            elif options is not PLAIN:
                options = plan.update.options(*options)
            elif native is not None:
                leaves, rows = grads if plan.is_list else plan.leaves(grads), plan.native_rows or plan.kept_rows
                if native(plan.params, leaves, plan.states, rows or plan.rows()):
                    return APPLIED
            if leaves is None or plan.is_list:
                leaves = plan.leaves(grads)
            info = plan.update.step(
                plan.params, leaves, plan.states, plan.kept_rows or plan.rows, options, plan.native_rows
            )
            if plan.tensors and info.applied:
                tell_autograd(plan.tensors)
            return info
        finally:
            try:  # noqa: SIM105 - `suppress` would cost time
                busy.remove(thread)
            except ValueError:  # a debugger, or what measures coverage, let Ctrl-C in before it was there
                pass

    def _step_options(self, plan: Plan, grad_scale: Any, max_norm: Any, skip_nonfinite: Any, clip: Any) -> StepOptions:
        """The options of a step; what it does not say is the optimizer's."""
        limit = self._options.max_norm if max_norm is None else max_norm
        if clip is not None and limit is None:
            raise ValueError("clip says what max_norm bounds: give max_norm, too")
        return plan.update.options(grad_scale, limit, skip_nonfinite, self._options.clip if clip is None else clip)

    def apply(
        self,
        params: Any,
        grads: Any,
        grad_scale: float = 1.0,
        max_norm: float | None = None,
        skip_nonfinite: bool = False,
    ) -> Any:
        """Return new parameters, a step on from `params`; nothing that was handed in is written to.

        Step counts and states are this optimizer's, as in `step`. Its own parameters say which shapes and dtypes there
        are, and where states begin that begin at the parameters. Points that others keep stay what they were. Ctrl-C
        that comes between the step and its return leaves the states a step on, and the new parameters are lost.

        Parameters
        ----------
        params, grads : same structure as the parameters
            Arrays of their shapes and dtypes, or Python numbers for arrays of no dimension. Where the optimizer has a
            single array, a list or tuple of numbers will do for it. A gradient of ``None`` leaves its parameter.
        grad_scale, max_norm, skip_nonfinite
            As for `step`; a step that is skipped returns copies.

        Returns
        -------
        Same structure as `params`
            New arrays; numbers and lists where `params` has them. On a GPU they are arrays of numba.cuda, made by way
            of the host.

        Raises
        ------
        TypeError, ValueError, RuntimeError
            As for `step`; nothing was changed.

        Examples
        --------
        >>> import numpy as np, fastoptim as fo
        >>> start = np.array([1.0, 2.0])
        >>> opt = fo.SGD(start.copy(), lr=0.5)
        >>> opt.apply(start, np.array([1.0, 1.0])), start
        (array([0.5, 1.5]), array([1., 2.]))
        """
        thread, busy = get_ident(), self._busy  # as in `step`
        if busy:
            check_free(busy)
        try:
            busy.append(thread)
            if busy[0] != thread:
                raise RuntimeError(BUSY)
            plan, options = self._ready_plan(), self._options
            if self._storage.master and plan.has_master:
                raise ValueError("apply steps what it is given, and master=True copies of its own: use step")
            scaled = type(grad_scale) is not float or grad_scale != 1.0
            if scaled or max_norm is not None or skip_nonfinite is not False or options is not PLAIN:
                options = self._step_options(plan, grad_scale, max_norm, skip_nonfinite, None)
            return applied(self._model, plan, self._backend, params, grads, options)
        finally:
            try:  # noqa: SIM105 - as in `step`
                busy.remove(thread)
            except ValueError:
                pass

    def _ready_plan(self) -> Plan:
        """The plan that the next step will use."""
        plan = self._plan
        return plan if plan is not None and plan.version == plan.changes[0] else self._current_plan()

    def _current_plan(self) -> Plan:
        """The plan, made or brought up to date with the groups."""
        model = self._model
        version = model.changes[0]
        specs = {id(group): self._spec_of(group) for group in model.groups}
        plan = self._plan
        if plan is None or not plan.adopt(specs):
            self._drop_plan()
            storage, lazy = self._storage, self._lazy
            plan = make_plan(model, specs, storage, self._backend, self._threads, self._skipped, lazy)
            self._plan = plan
        if plan.arrays_version != model.changes[1]:
            plan.take_params(model.arrays())
            plan.changes, plan.arrays_version = model.changes, model.changes[1]
            plan.leaves, plan.is_list = model.leaves, model.is_list and plan.update.in_c
        plan.version = -1 if plan.unsettled else version
        return plan

    def _skipped(self, stepped: list[bool]) -> None:
        """Count a step in which some gradients were None: the counts of parameters part."""
        if self._plan is not None:
            self._plan.write_back(stepped)
            self._plan = None

    def _drop_plan(self) -> None:
        """Hand states and step counts back to the parameters, and forget the plan."""
        if self._plan is not None:
            self._plan.write_back()
            self._plan = None

    # --- states, saved and restored

    @property
    def state(self) -> Mapping[str, Mapping[str, Any]]:
        """Name of a parameter -> ``{"step": int, name of a state: array, ...}``.

        The mapping is read-only (`load_state_dict` replaces states); the arrays are the live ones. Their values may be
        changed; their flags, dtype and strides belong to the optimizer. Reading changes nothing.
        """
        return state_view(self._model, self._plan)

    def state_dict(self) -> dict[str, Any]:
        """Step counts, states in their exact dtypes, and hyperparameters, as copies.

        Not the parameters, nor what is no hyperparameter: `max_norm`, `clip`, backend and threads. ValueError for
        hyperparameters that nobody could load.
        """
        with self._locked(reading=True):
            return state_dicts.snapshot(self, self._backend.host_copy)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> IncompatibleKeys:
        """Restore what `state_dict` returned; names, shapes and dtypes must match, or nothing changes.

        Parameters
        ----------
        state_dict : mapping
            Its groups in the same order; names within them in any.
        strict : bool
            False: load what fits, parameter by parameter, and return the names of the rest. Whatever is not loaded
            stays as it is. States of another class load as far as both have them (Adam's into AdamW); hyperparameters
            do not then, since they may mean something else.

        Returns
        -------
        IncompatibleKeys
            ``missing_keys`` and ``unexpected_keys``, both empty if `strict`.
        """
        with self._locked():
            return state_dicts.load_snapshot(self, state_dict, flag("strict", strict))

    def save(self, path: Any, extra: Any = None) -> None:
        """Write parameters, states, step counts and hyperparameters to a checkpoint file.

        Parameters
        ----------
        path : path
            A file that is there is replaced in one moment, and stays as ``<name>.previous``.
        extra : nesting of mappings, lists and tuples, optional
            What else belongs to this moment: the step, the state of a random generator, a history. Its leaves are None,
            bool, int, float, str, NumPy scalars and arrays; `load` returns them with the same values, types and dtypes
            (dicts for mappings; subclasses become what they are derived from).

        Raises
        ------
        TypeError, ValueError
            `extra` holds something else; the error names where, and nothing was written.
        """
        saving.save_optimizer(self, path, extra)

    @overload
    def load(self, path: Any, strict: Literal[True] = True) -> Any: ...

    @overload
    def load(self, path: Any, strict: Literal[False]) -> tuple[Any, IncompatibleKeys]: ...

    def load(self, path: Any, strict: bool = True) -> Any:
        """Read what `save` wrote, into this optimizer and its parameters, in place; return its `extra`, or None.

        ``extra, keys = opt.load(path, strict=False)`` loads what fits, as `load_state_dict` does, and tells the rest.

        Raises
        ------
        CheckpointError
            The file is not a whole checkpoint, or does not fit; nothing was changed.
        """
        extra, keys = saving.load_optimizer(self, path, strict)
        return extra if strict else (extra, keys)

    # --- copies

    def __copy__(self) -> Any:
        raise TypeError("a shallow copy would share groups and states with this optimizer; use copy.deepcopy")

    def __getstate__(self) -> dict[str, Any]:
        with self._locked(reading=True):
            return pickling.picklable(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        pickling.unpickle(self, state)

    def __repr__(self) -> str:
        groups = "; ".join(
            f"{(n := len(group['params']))} parameter{'s' * (n != 1)}, "
            + ", ".join(f"{name}={group[name]!r}" for name in self._names)
            for group in self._model.groups
        )
        return f"{type(self).__name__}({groups}; backend={self.backend!r}, threads={self.threads})"
