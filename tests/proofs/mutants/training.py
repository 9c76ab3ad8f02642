"""Bugs in `fit`, minibatches and schedules."""

from __future__ import annotations

from .mutant import planted

SAVING, FITTING, BATCHES, RATES, READING, PROBING, DRAWING = (
    f"tests/{name}.py"
    for name in (
        "checkpoint/test_checkpoint",
        "training/test_training",
        "training/test_data",
        "test_schedules",
        "training/test_diagnosis",
        "tuning/test_probe",
        "test_plots",
    )
)

# A folder stands for whichever file in it holds the text.
TRAINING = "fastoptim/training"
DATA = "fastoptim"
SCHEDULES = "fastoptim/schedules.py"

MUTANTS = (
    *planted(
        TRAINING,
        (FITTING,),
        (
            "cadence of the diagnosis not saved",
            '"next_diagnosis": self._next_diagnosis,',
            '"next_diagnosis": _FIRST_DIAGNOSIS,',
        ),
        (
            "cadence of the diagnosis not restored",
            "max(next_diagnosis, steps + 1.0) if",
            "max(_FIRST_DIAGNOSIS, steps + 1.0) if",
        ),
        ("diagnosis switched on by a resume comes at once", "else _NEXT_DIAGNOSIS * steps + 1.0", "else steps + 1.0"),
        ("cadence of another type after a resume", "_NEXT_DIAGNOSIS = 300.0, 4.0", "_NEXT_DIAGNOSIS = 300, 4"),
        ("diagnosis at every later step", "self._next_diagnosis = _NEXT_DIAGNOSIS * self.steps", "pass"),
        (
            "position in the data not rolled back",
            "for part, saved in zip([self.batches, *parts], before, strict=True):",
            "for part, saved in zip(parts, before[1:], strict=True):",
        ),
        (
            "schedules and callbacks not rolled back",
            "for part, saved in zip([self.batches, *parts], before, strict=True):",
            "for part, saved in zip([self.batches], before[:1], strict=True):",
        ),
        ("warnings given not saved", '"warned": list(self._warned),', '"warned": [],'),
        ("patience not saved", '"bad_validations": self._bad_validations,', '"bad_validations": 0,'),
        ("best parameters not saved", '"params": self._best_params}', '"params": None}'),
        ("best loss not saved", '"loss": self._best_loss, "params"', '"loss": math.inf, "params"'),
        (
            "states of callbacks not saved",
            "[callback.state_dict() for callback in _stateful(self._callbacks)]",
            "[type(callback)().state_dict() for callback in _stateful(self._callbacks)]",
        ),
        (
            "frozen arrays not restored",
            '            checkpoints.assign(p, state["frozen"][name])\n',
            "            pass\n",
        ),
        (
            "epoch of the data not taken over",
            "        self._seen_epoch = self.batches.epoch\n        self.steps, self.epoch",
            "        self.steps, self.epoch",
        ),
        ("log not cut", "self._file.truncate(offset)\n            self._file.seek(offset)", "self._file.seek(0, 2)"),
        ("log shorter than its checkpoint continued", "len(tail) == min(offset, _TAIL) and ", ""),
        ("epoch of a step one late in the log", "self._log.step(self, epoch)", "self._log.step(self, self.epoch)"),
        ("schedule one step late", "rate = schedule(steps)", "rate = schedule(max(steps - 1, 0))"),
        ("rate not validated before it is set", 'rate = real("lr", rate, 0.0)', "rate"),
        ("rate of the step before recorded", "            add_rate(rate)\n", "            add_rate(self.lr)\n"),
        ("infinite loss stepped", "if guarded and not -math.inf < loss < math.inf:", "if guarded and loss != loss:"),
        (
            "loss of not a number stepped",
            "if guarded and not -math.inf < loss < math.inf:",
            "if guarded and abs(loss) == math.inf:",
        ),
        (
            "step mixes epochs",
            "            accumulator.add(grads, weight)\n            if batches.epoch != epoch:",
            "            accumulator.add(grads, weight)\n            if False:",
        ),
        ("short minibatch counts in full", "weight = batches.next_size() / batches.batch_size", "weight = 1.0"),
        (
            "gradients summed in their own dtype",
            "self._sums[i] = np.empty(g.shape)",
            "self._sums[i] = np.empty(g.shape, g.dtype)",
        ),
        (
            "one validation of patience more",
            "self._bad_validations >= self._patience:\n                self.stop",
            "self._bad_validations > self._patience:\n                self.stop",
        ),
        ("min_delta ignored", "< self._best_loss - self._min_delta", "< self._best_loss"),
        ("no validation at the end", "        if self._reason is not None:\n            return True\n", ""),
        (
            "checkpoint_every forgotten without events",
            "is not None else None, self._checkpoint_every]",
            "is not None else None, None]",
        ),
        ("plateau told the mean of all epochs", "ends[-1] if ends else 0 :", "0 :"),
        ("best parameters not put back", "if self._restore_best and self._best_params is not None:", "if False:"),
        (
            "best parameters are live arrays",
            "checkpoints.to_host(p).copy() for name",
            "checkpoints.to_host(p) for name",
        ),
        ("history of epochs one step late", "ends.append(self.steps)", "ends.append(self.steps + 1)"),
        (
            "accumulate of the checkpoint not compared",
            "!= self._accumulate:\n            raise",
            "< 0:\n            raise",
        ),
    ),
    *planted(
        DATA,
        (BATCHES,),
        (
            "one permutation for all epochs",
            "if start == 0 and self._shuffled:",
            "if self._order is None and self._shuffled:",
        ),
        ("full last batch starts another", "if stop < end:", "if stop <= end:"),
        ("buffer used while it is held", "if getrefcount(buffer) == _UNUSED:", "if getrefcount(buffer) >= _UNUSED:"),
        ("buffers never used again", "if getrefcount(buffer) == _UNUSED:", "if False:"),
        (
            "every small batch in a buffer of its own size",
            "return lambda where: take(where, 0)",
            "return lambda where: take(where[:1], 0)",
        ),
        ("views can be written to", "    part.flags.writeable = False\n", ""),
        (
            "whole array copied for each batch",
            "if not (plain.flags.c_contiguous and plain.flags.aligned):",
            "if False:",
        ),
        (
            "permutation not restored",
            "self.epoch, self.cursor, self._order = epoch, cursor, order",
            "self.epoch, self.cursor = epoch, cursor",
        ),
        (
            "generator left changed by a bad state",
            "        rng.bit_generator.state = before\n        raise",
            "        raise",
            1,
        ),
        ("permutation with an entry twice", "if not seen.all():", "if False:"),
        ("position within a batch", " or cursor % self.batch_size", ""),
        ("share counted as the whole", "return size - size % self._share[1]", "return size"),
        ("shares overlap", "start += rank * part", "start += rank * (part - 1)"),
        ("drop_last ignored", "if self.drop_last else 0)", "if False else 0)"),
    ),
    *planted(
        SCHEDULES,
        (RATES,),
        ("milestone one step late", "bisect_right(milestones, step)", "bisect_right(milestones, step - 1)"),
        (
            "parts of a join one step late",
            "i = bisect_right(boundaries, step)",
            "i = bisect_right(boundaries, step - 1)",
        ),
        ("parts of a join count from the very beginning", "step - (boundaries[i - 1] if i else 0)", "step"),
        ("warm-up counts on", "return schedule(step - steps)", "return schedule(step)"),
        ("peak of one cycle one step late", "pct_start * steps - 1.0, (low", "pct_start * steps, (low"),
        ("cycles of one length", "period *= multiplier", "pass"),
        (
            "cosine without its final rate",
            "return final_lr if step >= steps else final_lr + (lr - final_lr) * (1.0 + math.cos",
            "return final_lr if step >= steps else lr * (1.0 + math.cos",
        ),
        ("decay by the root backwards", "left = 1.0 - math.sqrt(done)", "left = math.sqrt(1.0 - done)"),
        ("cooldown ignored", "self.cooling, self.bad = self.cooldown, 0", "self.cooling, self.bad = 0, 0"),
        ("one call of patience more", "if self.bad > self.patience:", "if self.bad > self.patience + 1:"),
        (
            "count of bad calls not restored",
            "self.best, self.bad, self.cooling = lr, float(best), bad, cooling",
            "self.best, self.cooling = lr, float(best), cooling",
        ),
        ("steps before zero", "if step < 0:", "if False:"),
    ),
)

EQUIVALENT: tuple[tuple[str, str], ...] = (
    ("warm-up that ends with `>` instead of `>=`", "at step `steps` its equation gives the schedule's first rate, too"),
    ("position of minibatches without copying the permutation", "an epoch draws a new array, none is written to"),
    ("more or fewer buffers in a pool, another limit for small batches", "only speed and memory depend on them"),
)
