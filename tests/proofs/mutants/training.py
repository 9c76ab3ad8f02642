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

EVENTS, INTERRUPTS, OVERRIDE, FILES, OTHERS = (
    f"tests/training/test_{name}.py"
    for name in ("fit_events", "interrupts", "override", "files", "schedules_of_others")
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
            "for put_back in undo:",
            "for put_back in undo[1:]:",
        ),
        (
            "schedules and callbacks not rolled back",
            "for put_back in undo:",
            "for put_back in undo[:1]:",
        ),
        ("warnings given not saved", '"warned": list(self._warned)}', '"warned": []}'),
        ("patience not saved", '"bad": self._bad}', '"bad": 0}'),
        (
            "best parameters not saved",
            '"best": self._best._asdict()',
            '"best": self._best._replace(params=None)._asdict()',
        ),
        ("best loss not saved", '"best": self._best._asdict()', '"best": self._best._replace(loss=math.inf)._asdict()'),
        (
            "states of callbacks not saved",
            "{name: part.state_dict() for name, part in _stateful(loop, users=True).items()",
            "{name: type(part)().state_dict() for name, part in _stateful(loop, users=True).items()",
        ),
        (
            "frozen arrays not restored",
            '            matching.assign(p, own["frozen"][name])\n',
            "            pass\n",
        ),
        (
            "epoch of the data not taken over",
            "        self._seen_epoch = self.batches.epoch\n        self.steps, self.epoch",
            "        self.steps, self.epoch",
        ),
        (
            "log not cut",
            "self._file.truncate(offset)\n        self._file.seek(offset)",
            "self._file.seek(0, 2)",
        ),
        ("log shorter than its checkpoint continued", "len(tail) == min(offset, _TAIL) and ", ""),
        ("epoch of a step one late in the log", "loop.epoch - loop.epoch_ended", "loop.epoch"),
        ("schedule one step late", "rate = schedule(steps)", "rate = schedule(max(steps - 1, 0))"),
        ("rate not validated before it is set", 'rate = real("lr", rate, 0.0)', "rate"),
        ("rate of the step before recorded", "            add_rate(rate)\n", "            add_rate(self.lr)\n"),
        ("infinite loss stepped", "if -math.inf < loss < math.inf:", "if loss == loss:"),
        ("loss of not a number stepped", "if -math.inf < loss < math.inf:", "if abs(loss) != math.inf:"),
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
        ("min_delta ignored", "self._best.value - self._min_delta", "self._best.value"),
        ("no validation at the end", "self.reason is not None or self.is_regular", "self.is_regular"),
        (
            "checkpoint_every forgotten without events",
            "return math.inf if every is None else (self.steps",
            "return math.inf if True else (self.steps",
        ),
        ("plateau told the mean of all epochs", "ends[-2] if len(ends) > 1 else 0, None", "0, None"),
        ("best parameters not put back", "if loop.reason is None or best is None:", "if True:"),
        (
            "best parameters are live arrays",
            "kept = {name: matching.to_host(p).copy() for",
            "kept = {name: matching.to_host(p) for",
        ),
        (
            "history of epochs one step late",
            '_columns["epoch_ends"].append(self.steps)',
            '_columns["epoch_ends"].append(self.steps + 1)',
        ),
        (
            "accumulate of the checkpoint not compared",
            'self.texts["accumulate"] = str(accumulate)',
            "pass",
        ),
    ),
    *planted(
        TRAINING,
        (EVENTS,),
        (
            "arrays that were replaced not looked for",
            "check_replaced(self._structure",
            "(lambda *_: 0)(self._structure",
        ),
        ("mean of an epoch with its skipped steps", "[epoch][loop.history.applied[epoch]]", "[epoch]"),
        ("rate compared before it is a float", "type(rate) is not float or rate != group", "rate != group"),
        (
            "numbers as rates set at a resume",
            "if not self._resumed:\n            self._set",
            "if True:\n            self._set",
        ),
        ("additional validation counts", "        if not self.additional:\n", "        if True:\n"),
        ("additional validation not taken back", "            loop.history._forget_validation()\n", ""),
        ("additional validation told to a plateau", "is not None and not self._validation.additional", "is not None"),
        (
            "validation moves what is not stepped",
            "                matching.assign(p, values)\n",
            "                pass\n",
        ),
        ("validation moves the generator", "rng.bit_generator.state = state", "pass"),
        (
            "an exception at the last step keeps its reason",
            "                self.reason = None\n",
            "",
        ),
        ("mode ignored", 'self._sign = 1.0 if self.mode == "min" else -1.0', "self._sign = 1.0"),
        ("only the loss monitored", "value = metrics[self.monitor]", 'value = metrics["loss"]'),
    ),
    *planted(
        TRAINING,
        (INTERRUPTS,),
        ("interrupt waits for the next event", "            self._loop.call_soon()\n", "            pass\n"),
        ("second interrupt waits as well", "if self._seen or self._loop is None:", "if self._loop is None:"),
        (
            "handlers not put back",
            "    def end(self, loop: Loop) -> None:\n        self._put_back()\n",
            "    def end(self, loop: Loop) -> None:\n",
        ),
        ("handler of the user's replaced", "if signal.getsignal(number) == default:", "if True:"),
    ),
    *planted(
        TRAINING,
        (OTHERS,),
        ("schedules not compared", '"schedules": rates.other_text(),', '"schedules": "none",'),
        ("what schedules have made stays", 'if "schedules" in names:', "if False:"),
        (
            "schedules a step late",
            "_set(optimizer, name, parts, steps)",
            "_set(optimizer, name, parts, max(0, steps - 1))",
        ),
        ("a schedule for all groups", "zip_longest(schedules, opt", "zip_longest(schedules[:1] * 2, opt"),
    ),
    *planted(
        TRAINING,
        (OVERRIDE,),
        ("hyperparameters not put back", "        settings.apply(overridden)\n", ""),
        (
            "nothing refused",
            "if name not in self._override]\n        if refused",
            "if name not in self._override]\n        if False",
        ),
        ("override for ever", "return set(different)", "return set(self._override)"),
        (
            "batch begun not begun anew",
            'state["cursor"] // self.batch_size * self.batch_size, last',
            'state["cursor"], last',
        ),
    ),
    *planted(
        TRAINING,
        (FILES,),
        (
            "checkpoint not tried beforehand",
            "            saver.rehearse(loop, callbacks=False)\n",
            "            pass\n",
        ),
        (
            "states of callbacks not tried beforehand",
            "                self.rehearse(loop, callbacks=True)\n",
            "                pass\n",
        ),
        ("shapes not counted", '"room": "-" * _numerals(_arrays_in(whole))', '"room": ""'),
        ("states of the optimizer not counted", 'return [slot for slot in trial.state["0"] if slot != "step"]', "pass"),
        ("log not flushed", "                file.flush()\n", ""),
        ("one more kept", "[*self._kept, loop.steps][-self._keep :]", "[*self._kept, loop.steps][-self._keep - 1 :]"),
    ),
    *planted(
        DATA,
        (BATCHES,),
        (
            "one permutation for all epochs",
            "draws = start == 0 and self._shuffled",
            "draws = self._order is None and self._shuffled",
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
            "self.epoch, self.cursor, self._order, self._begun = epoch, cursor, order, None",
            "self.epoch, self.cursor, self._begun = epoch, cursor, None",
        ),
        ("permutation with an entry twice", "if not seen.all():", "if False:"),
        ("position within a batch", " or cursor % self.batch_size", ""),
        ("share counted as the whole", "return size - size % self._share[1]", "return size"),
        ("shares overlap", "start += rank * part", "start += rank * (part - 1)"),
        ("length of the data not looked at again", "if self._varies and self._begun", "if False and self._begun"),
        (
            "order of the epoch before kept",
            "self._order = examples, size, end, shuffled, None",
            "self._order = examples, size, end, shuffled, getattr(self, '_order', None)",
        ),
        ("drop_last ignored", "if self._drop_last else 0)", "if False else 0)"),
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
        ("cooldown ignored", "cooling, bad = self.cooldown, 0", "cooling, bad = 0, 0"),
        ("one call of patience more", "if bad > self.patience:", "if bad > self.patience + 1:"),
        (
            "count of bad calls not restored",
            "self.best, self.bad, self.cooling = lr, float(best), bad, cooling",
            "self.best, self.cooling = lr, float(best), cooling",
        ),
        ("margin on the wrong side", "side = sign if self.best >= 0 else -sign", "side = sign"),
        ("steps before zero", "if step < 0:", "if False:"),
    ),
)

EQUIVALENT: tuple[tuple[str, str], ...] = (
    ("warm-up that ends with `>` instead of `>=`", "at step `steps` its equation gives the schedule's first rate, too"),
    ("position of minibatches without copying the permutation", "an epoch draws a new array, none is written to"),
    ("more or fewer buffers in a pool, another limit for small batches", "only speed and memory depend on them"),
)
