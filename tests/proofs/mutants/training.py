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
            '{"next": self._next, "warned"',
            '{"next": _FIRST, "warned"',
        ),
        (
            "cadence of the diagnosis not restored",
            "self._next, self._warned, self._resumed = next_one,",
            "self._next, self._warned, self._resumed = _FIRST,",
        ),
        (
            "diagnosis switched on by a resume comes at once",
            "self._next = _FACTOR * loop.steps + 1.0",
            "self._next = loop.steps + 1.0",
        ),
        ("cadence of another type after a resume", "_FACTOR = 300.0, 4.0", "_FACTOR = 300, 4"),
        ("diagnosis at every later step", "self._next = _FACTOR * loop.steps\n", "pass\n"),
        (
            "position in the data not rolled back",
            "for part, its_state in before:",
            "for part, its_state in before[1:]:",
        ),
        (
            "schedules and callbacks not rolled back",
            "for part, its_state in before:",
            "for part, its_state in before[:1]:",
        ),
        ("warnings given not saved", '"warned": list(self._warned)}', '"warned": []}'),
        ("patience not saved", '"bad": self._bad}', '"bad": 0}'),
        ("best parameters not saved", '"params": self._best_params}', '"params": None}'),
        ("best loss not saved", '"loss": self.best_loss, "params"', '"loss": math.inf, "params"'),
        (
            "states of callbacks not saved",
            "{name: part.state_dict() for name, part in",
            "{name: (type(part)() if name[-1] in '0123456789' else part).state_dict() for name, part in",
        ),
        (
            "frozen arrays not restored",
            '            matching.assign(p, state["frozen"][name])\n',
            "            pass\n",
        ),
        (
            "epoch of the data not taken over",
            "        self._seen_epoch = self.batches.epoch\n        self.steps, self.epoch",
            "        self.steps, self.epoch",
        ),
        (
            "log not cut",
            "self._file.truncate(self._offset)\n            self._file.seek(self._offset)",
            "self._file.seek(0, 2)",
        ),
        ("log shorter than its checkpoint continued", "len(tail) == min(offset, _TAIL) and ", ""),
        ("epoch of a step one late in the log", "loop.epoch - loop.epoch_ended", "loop.epoch"),
        ("schedule one step late", "rate = schedule(steps)", "rate = schedule(max(steps - 1, 0))"),
        ("rate not validated before it is set", 'rate = real("lr", rate, 0.0)', "rate"),
        ("rate of the step before recorded", "            add_rate(rate)\n", "            add_rate(self.lr)\n"),
        ("infinite loss stepped", "if not (skip or -math.inf < loss < math.inf):", "if not skip and loss != loss:"),
        (
            "loss of not a number stepped",
            "if not (skip or -math.inf < loss < math.inf):",
            "if not skip and abs(loss) == math.inf:",
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
            "self._bad >= self._patience",
            "self._bad > self._patience",
        ),
        ("min_delta ignored", "< self.best_loss - self._min_delta", "< self.best_loss"),
        ("no validation at the end", "        if self.reason is not None:\n            return True\n", ""),
        (
            "checkpoint_every forgotten without events",
            "return math.inf if every is None else (self.steps",
            "return math.inf if True else (self.steps",
        ),
        ("plateau told the mean of all epochs", "ends[-2] if len(ends) > 1 else 0 :", "0 :"),
        ("best parameters not put back", "if loop.reason is None or best is None:", "if True:"),
        (
            "best parameters are live arrays",
            "matching.to_host(p).copy() for name",
            "matching.to_host(p) for name",
        ),
        (
            "history of epochs one step late",
            '_columns["epoch_ends"].append(self.steps)',
            '_columns["epoch_ends"].append(self.steps + 1)',
        ),
        (
            "accumulate of the checkpoint not compared",
            "!= loop.accumulate:\n        raise",
            "< 0:\n        raise",
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
        ("permutation with an entry twice", "if not seen.all():", "if False:"),
        ("position within a batch", " or cursor % self.batch_size", ""),
        ("share counted as the whole", "return size - size % self._share[1]", "return size"),
        ("shares overlap", "start += rank * part", "start += rank * (part - 1)"),
        ("drop_last ignored", "if self.drop_last else 0)", "if False else 0)"),
    ),
    *planted(
        "fastoptim/common/generators.py",
        (BATCHES,),
        (
            "generator left changed by a bad state",
            "        rng.bit_generator.state = before\n        raise",
            "        raise",
            1,
        ),
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
