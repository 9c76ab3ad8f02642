"""Collects what determines the steps of a run: compared with the checkpoint where training goes on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..checkpoint.files import CheckpointError
from ..optimizers.averages import Average
from ..optimizers.hyperparameters import text_of
from .data import Minibatches
from .ranks import whole_of
from .rates import Rates


class Settings:
    """What the program asks for, taken before anything has changed it.

    `override` names the settings that may differ from those of the checkpoint.
    """

    def __init__(
        self,
        optimizer: Any,
        batches: Any,
        rates: Rates,
        *,
        accumulate: int,
        max_norm: float | None,
        clip: str,
        skip_nonfinite: bool,
        average: Average | None,
        override: str | Iterable[str],
    ):
        self._optimizer = optimizer
        self._hyper = [{k: v for k, v in group.items() if k not in _ARRAYS} for group in optimizer.param_groups]
        self.texts = {name: self._hyper_text(name) for group in self._hyper for name in group}
        how = "" if clip == "norm" else f" by {clip}"
        self.texts |= {
            "schedules": rates.other_text(),
            "lr": rates.text(),
            "max_norm": f"{max_norm!r}{how}",
            "skip_nonfinite": repr(skip_nonfinite),
        }
        self.texts["accumulate"] = str(accumulate)
        if isinstance(batches, Minibatches):
            self.texts |= {"batch_size": str(batches.asked_size), "rng": batches.seed}
        if rates.monitor is not None:
            self.texts["monitor"] = rates.monitor
        storage = getattr(whole_of(optimizer), "_storage", None)
        if storage is not None:  # states of another storage are converted
            self.texts |= {name: str(getattr(storage, name)) for name in ("rounding", "seed")}
        if average is not None:
            self.texts["average"] = f"decay={average._decay}, start={average._start}"
        self._override = _names(override)
        known = sorted(self.texts.keys() - set(_OF_THE_BEGINNING))
        unknown = [name for name in self._override if name not in known]
        if unknown:
            raise ValueError(f"override: there is no {unknown}; it may name {known}")

    def _hyper_text(self, name: str) -> str:
        texts = [text_of(group[name]) for group in self._hyper]
        return texts[0] if len(set(texts)) == 1 else f"[{', '.join(texts)}]"

    def overridden(self, saved: Mapping[str, str]) -> set[str]:
        """Names of what differs from the checkpoint's; CheckpointError unless all of it may."""
        different = [name for name, text in self.texts.items() if saved.get(name, text) != text]
        refused = [name for name in different if name not in self._override]
        if refused:
            pairs = ((name, self.texts[name], saved[name]) for name in refused)
            differences = "; ".join(f"{name} is {here} here, {there!s:.1000} there" for name, here, there in pairs)
            possible = [name for name in different if name not in _OF_THE_BEGINNING]
            instead = f", or pass override={possible} to continue with the values given here" if possible else ""
            raise CheckpointError(
                f"the checkpoint was written with other settings: {differences}. Use the same{instead}"
            )
        return set(different)

    def apply(self, names: set[str]) -> None:
        """Put hyperparameters that the checkpoint has replaced back to what is asked for."""
        if "schedules" in names:  # what they have made of others
            names = names | self._hyper[0].keys() - {"lr"}
        for group, own in zip(self._optimizer.param_groups, self._hyper, strict=True):
            group.update({name: own[name] for name in names if name in own})


_ARRAYS = ("params", "names")
_OF_THE_BEGINNING = ("rng", "seed")  # seeds, in whose place a checkpoint has what has become of them


def _names(override: Any) -> tuple[str, ...]:
    names = (override,) if isinstance(override, str) else override
    given = () if isinstance(names, Mapping) or not isinstance(names, Iterable) else tuple(names)
    if (names and not given) or not all(isinstance(name, str) for name in given):
        raise TypeError(f"override holds names of settings, whose values are given as ever; got {override!r}")
    return given
