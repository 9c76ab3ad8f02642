"""Bugs in diagnosis, probe and plots."""

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
DIAGNOSIS = "fastoptim/training/diagnosis.py"
PROBE = "fastoptim/tuning/probe.py"
SANDBOX = "fastoptim"
PLOTS = "fastoptim/plots.py"

MUTANTS = (
    *planted(
        DIAGNOSIS,
        (READING,),
        ("sign of the trend", "np.sign(x[later] - x[earlier])", "np.sign(x[earlier] - x[later])"),
        (
            "halves a rate that has diverged",
            '"diverged", evidence, 0.1, lr, "The loss is no longer',
            '"diverged", evidence, 0.5, lr, "The loss is no longer',
        ),
        ("momentum given no time to settle", "math.ceil(2.0 / (1.0 - momentum))", "2"),
        ("cycles of a slope", "    e -= time * (time @ e) / (time @ time)\n", ""),
        ("cycle without a dip", "if r[k] > best and lowest < 0.0:", "if r[k] > best:"),
        ("noise taken for a rise", "above_start = -drop > _ABOVE_START + doubt", "above_start = -drop > _ABOVE_START"),
        ("ringing taken for oscillation", "and not (falling or ringing)", "and not falling"),
        ("lost gains not seen", "lost > max(_REGAINED, chance)", "False"),
        ("straight line called healthy", "if drop < _STRAIGHT and _straight(z, start) and not flat:", "if False:"),
        (
            "flat curve called healthy",
            '    if flat:\n        return verdict("plateau"',
            '    if False:\n        return verdict("plateau"',
        ),
    ),
    *planted(
        PROBE,
        (PROBING,),
        ("one worse neighbour is enough", "_REACH = 2", "_REACH = 1"),
        ("bad rate may win", "    if a.bad or b.bad:\n", "    if a.bad and b.bad:\n"),
        ("score is the last loss", "losses[-max(5, len(losses) // 10) :]", "losses[-1:]"),
        ("no loss after the last step", "losses.append(sandbox.evaluate(sandbox.next_batch())[0])", "pass"),
        ("running mean biased", "mean / (1.0 - smoothing ** len(losses))", "mean"),
        ("sweep does not stop", "(stop - 1.0) * abs(best)", "1e9 * abs(best)"),
        ("longer horizon ignored", "                best -= 1\n", "                break\n"),
        (
            "interval does not know the longer horizon",
            "(k for k in (*search.done, *longer) if k < best)",
            "(k for k in search.done if k < best - 1)",
        ),
        (
            "budget ends a search that had ended",
            "return best, k is not None or self.done[best].bad",
            "return best, True",
        ),
    ),
    *planted(
        SANDBOX,
        (PROBING,),
        (
            "buffers not put back",
            "leaves = [*Structure(params).leaves(params), *Structure(buffers).leaves(buffers)]",
            "leaves = [*Structure(params).leaves(params)]",
        ),
        ("Python's generator not put back", "        random.setstate(python_state)\n", ""),
        ("NumPy's generator not put back", "        np.random.set_state(numpy_state)\n", ""),
        (
            "position in the data not put back",
            "            self.batches.load_state_dict(self._position)",
            "            pass",
        ),
        ("Ctrl-C heard while things are put back", "        if self._open:\n", "        if True:\n"),
        (
            "Ctrl-C before a call lost",
            "if self._pending is not None:\n            args,",
            "if False:\n            args,",
        ),
        ("handler of Ctrl-C not put back", "signal.signal(signal.SIGINT, self._previous)", "pass"),
        ("groups lose the ratio of their rates", 'group["lr"] = float(lr) * ratio', 'group["lr"] = float(lr)'),
        (
            "anchor from what is trained on",
            "        for _ in range(steps):\n            self.batches.next_batch()\n",
            "",
        ),
        (
            "candidate begins where the last one ended",
            "        self.restore()\n        optimizer = self._new",
            "        optimizer = self._new",
        ),
        ("keyword defaults not searched for generators", ", *(item.__kwdefaults__ or {}).values()]", "]"),
        (
            "globals not searched for generators",
            "inner += [item.__globals__[name] for name in names if name in item.__globals__]",
            "pass",
        ),
        ("functions within not searched for generators", "if isinstance(constant, CodeType):", "if False:"),
    ),
    *planted(
        PLOTS,
        (DRAWING,),
        ("smoothing biased", "out.append(mean / weight if weight", "out.append(mean if weight"),
        ("smoothing stopped by NaN", "        if math.isfinite(loss):\n", "        if True:\n"),
        (
            "line numbers of csv files one less",
            "enumerate(csv.DictReader(file), 2)",
            "enumerate(csv.DictReader(file), 1)",
        ),
        ("cut line refused", "if number == len(lines) > 1:", "if False:"),
        ("bad line anywhere passed over", "if number == len(lines) > 1:", "if number > 1:"),
        ("logarithm of zero", "values.min() > 0.0", "values.min() >= 0.0"),
        (
            "validations of a result at wrong steps",
            'np.asarray(checks.get("step", ())),',
            'np.arange(len(checks.get("step", ()))),',
        ),
        (
            "validations of a log at wrong steps",
            'np.array([row["step"] for row in checks]),',
            "np.arange(len(checks)),",
        ),
        (
            "rates drawn where the losses belong",
            "axes[1, 0].plot(curve.steps, curve.rates",
            "axes[1, 0].plot(curve.steps, curve.losses",
        ),
        ("chosen rate not thick", "lw=3 if chosen else 1.2", "lw=1.2"),
        (
            "losses beyond the ceiling drawn",
            "np.where(candidate.losses <= ceiling, candidate.losses, math.nan)",
            "candidate.losses",
        ),
        ("ceiling ten times too high", "ceiling = 10.0 * start", "ceiling = 100.0 * start"),
        ("no triangles off the scale", '"^" if off else "o"', '"o"'),
        (
            "colours of verdicts in the wrong place",
            "color=VERDICT_COLOURS[candidate.verdict], ms=8",
            "color=COLOURS[0], ms=8",
        ),
        (
            "circle around another rate",
            "right.plot(result.lr, min(best.score, ceiling)",
            "right.plot(rates[0], min(best.score, ceiling)",
        ),
        (
            "findings of the sweep at the wrong rate",
            "axis.axvline(value, color=colour",
            "axis.axvline(test.rates[0], color=colour",
        ),
        ("contours of another valley", "(along - VALLEY_MINIMUM[0]) ** 2 + VALLEY[1]", "along ** 2 + VALLEY[1]"),
        ("minimum marked elsewhere", 'axis.plot(*VALLEY_MINIMUM, "*"', 'axis.plot(*VALLEY_START, "*"'),
        (
            "ratio to the weights after the update",
            "return float(np.linalg.norm(p - before)) / size if size",
            "return float(np.linalg.norm(p - before)) / float(np.linalg.norm(p)) if size",
        ),
        ("ratio of several updates", " if loop.steps % self.every == 0 else None", ""),
        ("step of a ratio one late", "self.steps.append(loop.steps - 1)", "self.steps.append(loop.steps)"),
        ("ratios of arrays mixed up", "ratios[:, i], style", "ratios[:, 0], style"),
        ("arrays beyond the seventh look like the first", "[i // len(COLOURS) % 4]", "[0]"),
        ("smoothing of the command ignored", "loss(options.log, smoothing=options.smoothing)", "loss(options.log)"),
    ),
)

EQUIVALENT: tuple[tuple[str, str], ...] = (
    ("copies of a sandbox in C order", "values are put back into the arrays as they lie"),
)
