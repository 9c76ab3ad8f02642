"""Bugs in diagnosis, readers of logs, probe, range test, recommendations and plots."""

from __future__ import annotations

from .mutant import planted

READING, PROBING, ADVISING, DRAWING, LOGS = (
    f"tests/{name}.py"
    for name in (
        "training/test_diagnosis",
        "tuning/test_probe",
        "tuning/test_advice",
        "test_plots",
        "training/test_log_reading",
    )
)

# A folder stands for whichever file in it holds the text.
CURVES = "fastoptim/training/curves.py"
DIAGNOSIS = "fastoptim/training/diagnosis.py"
FORMATS = "fastoptim/training/log_formats.py"
LOG_READER = "fastoptim/training/log_reading.py"
COMMAND = "fastoptim/training/diagnose_cli.py"
PROBE = "fastoptim/tuning/probe.py"
RANGE_TEST = "fastoptim/tuning/range_test.py"
ADVICE = "fastoptim/tuning/advice.py"
SANDBOX = "fastoptim"
PLOTS = "fastoptim/plots.py"

MUTANTS = (
    *planted(
        CURVES,
        (READING,),
        ("sign of the trend", "np.sign(x[later] - x[earlier])", "np.sign(x[earlier] - x[later])"),
        ("cycles of a slope", "    e -= time * float(time @ e) / float(time @ time)\n", ""),
        ("cycle without a dip", "if r[k] > best and lowest < 0.0:", "if r[k] > best:"),
        ("one negative loss changes the unit", "np.mean(stray) <= _STRAY", "np.mean(stray) <= 0.0"),
        (
            "error of a level from single values alone",
            "return max(single, 1.4826 * float(np.median(bends)) / math.sqrt(1.5), self._quantum)",
            "return 0.01 * single",
        ),
        (
            "straight line called healthy",
            "return second / first if first > 0.0",
            "return 0.01 * second / first if first > 0.0",
        ),
        ("low first losses of noise taken for a jump", "max(_JUMP, np.ptp(z[1:]))", "0.0"),
        ("jump taken for the start", "exact_start or self.jumped else", "exact_start else"),
        ("rare large losses do not count", "> _RARE", "> 1e9"),
        ("the median of a few wide losses is a start", "if self.scatter > _WIDE:", "if False:"),
        (
            "easy examples are gains",
            "        lost = min(lost, float(np.mean(self.means[-2:])",
            "        (float(np.mean(self.means[-2:])",
        ),
        ("medians overflow", "return largest * float(np.median(y / largest)) if", "return float(np.median(y)) if"),
        ("a start that is told is not heard", " if start is None else scaled[n])", ")"),
        ("a start is no part of the scale", "y if start is None else np.append(y, start), y_start)", "y, y_start)"),
    ),
    *planted(
        DIAGNOSIS,
        (READING,),
        ("a score that rises has diverged", "if far and not c.like_a_score and", "if far and"),
        ("a constant makes it flat", "max(min(_FLAT, 0.2 * c.drop),", "max(_FLAT,"),
        ("a jump that may be noise lowers the rate", "if rise > _SURE * c.scatter and", "if"),
        ("dropout is the rate's doing", "if c.white and c.noise >= _FLAT and c.swing < 1.0:", "if False:"),
        ("a running mean has diverged", "spread(detrended(late)) and not c.averaged", "spread(detrended(late))"),
        ("a running mean has jumped", "c.bursts and not c.averaged and not (made", "c.bursts and not (made"),
        ("a jump that is made good is the rate's", " and not (made_good and falls)", ""),
        ("a loss that comes to zero has diverged", "far = far and not c.fades", "pass"),
        ("a loss that comes to zero is lost again", "not short and not c.fades and", "not short and"),
        ("a bent line is a straight one", " and not bent", ""),
        ("a constant hides gains", "min(_SLOW, _REMNANT * above)", "_SLOW"),
        ("a rate at its limit is too slow", "        pace = min(pace, _BENT)", "        pass"),
        ("a lost run falls", " and kendall_tau(late) <= _TREND", ""),
        ("rare large losses are not seen", " or c.y[-(c.n // 10) :].mean() >= c.y[0]", ""),
        (
            "halves a rate that has diverged",
            'Finding("not finite", 0.1)',
            'Finding("not finite", 0.5)',
        ),
        ("momentum given no time to settle", "math.ceil(min(2.0 / (1.0 - momentum), len(y)))", "2"),
        ("noise taken for a rise", "above_start = -drop > _ABOVE_START + doubt", "above_start = -drop > _ABOVE_START"),
        ("ringing taken for oscillation", "and not (falling or ringing)", "and not falling"),
        ("lost gains not seen", "or jumped) and lost > enough:", "or jumped) and False:"),
        ("late jump not seen", "or jumped) and lost > enough:", ") and lost > enough:"),
        ("slow while the rate rises", 'if rises and found.verdict in ("too slow", "plateau"):', "if False:"),
        ("masked losses read", "y[np.ma.getmaskarray(losses)] = math.nan", "pass"),
        ("lost gains of minibatches not seen", "min(gained, lost) > enough and lost", "False and lost"),
        (
            "flat curve called healthy",
            "    if flat:\n        return _no_longer_falls(c)",
            "    if False:\n        return _no_longer_falls(c)",
        ),
        ("gaps taken for divergence", "if trailing > 2 * longest else None", "if True else None"),
        ("a long gap in the end taken for missing", "if trailing > 2 * longest else None", "if False else None"),
        ("infinite losses passed over", "infinite[-1] >= len(y) // 2", "False"),
        ("a falling cycle oscillates", "and c.rises > 0.0 and not sinking", "and c.rises > 0.0"),
        ("an order of minibatches alternates", "max(0.5 * limit, 0.8 * c.cycle)", "-1.0"),
        (
            "constant losses of a batch are too slow",
            "drop < _SLOW and drop > 0.0 and c.tail_trend < _TREND",
            "drop < _SLOW",
        ),
        ("a floor is too slow", "        if pace > _BENT:\n", "        if True:\n"),
        ("S-shapes are straight", "c.ends_keep_pace(_PACE) < 1.0", "False"),
        ("a late log is too slow", "bend < 2.0 * math.hypot(1.0, _BENT) * second.error", "False"),
        ("a flat curve is too slow", "    if not throughout or c.whole.sure < _SURE or bend", "    if bend"),
        ("a game between networks has diverged", "rise > 4.0 * spread(", "rise > 0.0 * spread("),
        ("short curves are judged like long ones", "_SHORT = 25", "_SHORT = 0"),
    ),
    *planted(
        FORMATS,
        (LOGS,),
        ("validation before training", "        return 6 if", "        return -1 if"),
        (
            "rows of validation taken for training",
            'if named and any(mode.startswith("train") for mode in said):',
            "if False:",
        ),
        ("runs that take turns read as one", "name.lower() in _RUNS):", "False):"),
        ("large losses that cannot be read dropped", "if len(unread) > _UNREAD *", "if False and _UNREAD *"),
        ("NaN of Windows left out", "            return math.nan\n", "            return None\n"),
        ("decimals of bare numbers taken for losses", "and not _counted(lines):", "and False:"),
        (
            "blanks taken for zeros",
            "    if value is None or isinstance(value, bool):\n        return None",
            "    if not value:\n        return 0.0",
        ),
        ("a summary taken for the curve", "if counts[name] >= enough)", "if True)"),
        ("deep JSON ends the command", "except (ValueError, RecursionError):", "except ValueError:"),
        ("lines of text taken for a table", "    if split is str.split and any(", "    if False and any("),
        ("validation in lines taken for training", "return bool(said) and not said[-1]", "return False"),
        ("half a number with commas read", "(?![\\d.]|,\\d)", ""),
        ("the newest row first read backwards", "        where.sort(key=lambda i: order[i] or 0.0)", "        pass"),
        ("a bar that overwrites its line is one line", r're.split(r"[\r\n]+", text)', r'text.split("\n")'),
    ),
    *planted(
        LOG_READER,
        (LOGS, DRAWING),
        (
            "line numbers of csv files one less",
            "enumerate(csv.DictReader(file), 2)",
            "enumerate(csv.DictReader(file), 1)",
        ),
        ("cut line refused", "if number == len(lines) > 1:", "if False:"),
        ("bad line anywhere passed over", "if number == len(lines) > 1:", "if number > 1:"),
        (
            "validations of a log at wrong steps",
            'np.array([row["step"] for row in checks]),',
            "np.arange(len(checks)),",
        ),
        ("mark of UTF-8 not passed over", '"utf-8-sig"', '"utf-8"'),
    ),
    *planted(
        "fastoptim/common/text.py",
        (LOGS,),
        ("terminal escapes printed", "c if c.isprintable() or", "c if True or"),
    ),
    *planted(
        COMMAND,
        (LOGS,),
        ("late logs not noticed", "first > _LATE * last and", "False and"),
        ("late logs advised to raise the rate", "if late and found.lr_factor > 1.0:", "if False:"),
        ("ranks that take turns taken for oscillation", "and times > 1:", "and False:"),
        ("a bad log ends the command", "            continue\n", "            return status\n"),
    ),
    *planted(
        PROBE,
        (PROBING,),
        ("one worse neighbour is enough", "_REACH = 2", "_REACH = 1"),
        ("bad rate may win", "    if a.bad or b.bad:\n", "    if a.bad and b.bad:\n"),
        ("score is the last loss", "return max(5, count // 10)", "return 1"),
        ("no loss after the last step", "losses.append(sandbox.evaluate(sandbox.next_batch())[0])", "pass"),
        ("longer horizon ignored", "best, unknown = confirmation.run(best)", "_, unknown = confirmation.run(best)"),
        (
            "longer horizon searches by decades",
            "        if self._neighbours_only:\n",
            "        if False:\n",
        ),
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
        ("walks down where nothing moves", "        return a.lr > b.lr\n", "        return a.lr < b.lr\n"),
        ("gradients of zero are probed", "if not sandbox.slope_seen:", "if False:"),
        ("an answer where nothing moves", "if self.done[best].still or", "if"),
        ("round-off taken for a stream", "_ROUNDOFF * abs(first[0])", "0.0"),
        ("chance chooses a rate", " or self._within_noise():", ":"),
        ("no stream has a best rate", "_CHANCE = 4.0", "_CHANCE = 40.0"),
    ),
    *planted(
        RANGE_TEST,
        (PROBING,),
        ("running mean biased", "mean / (1.0 - smoothing ** len(losses))", "mean"),
        ("running mean lags as much at first", "- count * past / (1.0 - past)", ""),
        ("sweep does not stop", "(stop - 1.0) * unit", "1e9 * unit"),
        ("blow-up where a noisy loss crosses zero", "    if min(losses) <= 0.0:", "    if False:"),
        (
            "first values count as the steepest",
            "first = min(math.ceil(1.0 / (1.0 - smoothing)), len(curve) // 4)",
            "first = 0",
        ),
        ("the steepest fall is chance", " and curve[first] - curve[last] > by_chance)", ")"),
        ("no noisy loss falls", "_CHANCE = 6.0", "_CHANCE = 60.0"),
        ("the steepest step is noise", "width = max(1, min(delay, (last - first) // 2))", "width = 1"),
    ),
    *planted(
        ADVICE,
        (ADVISING,),
        ("batches drawn with replacement", "of_one = 1.0 / size - 1.0 / examples", "of_one = 1.0 / size"),
        ("epochs not told apart", "np.sum(together.astype(float) ** 2)", "np.sum(together.astype(float)) ** 2"),
        ("batches in order looked at again", "(batches.shuffle or seen < len(batches))", "True"),
        ("noise of one batch", "if len(gradients) > 1:", "if True:"),
        ("batches of a few examples", "(scale, 1.0))), _FEWEST)", "(scale, 1.0))), 1)"),
        ("a rate of SGD for Adam", "min(rate, lr * factor)", "lr * factor"),
        ("batches larger than the data", ', int(figures["examples"]))', ")"),
    ),
    *planted(
        "fastoptim/training/live_diagnosis.py",
        (READING,),
        ("no data taken for a fixed batch", "== examples > 1", "== examples"),
        ("scores diagnosed", "if ascends(loop.optimizer):", "if False:"),
    ),
    *planted(
        "fastoptim/tuning/sandbox.py",
        (PROBING,),
        ("a loss that is no number is probed", "if not math.isfinite(loss):", "if False:"),
    ),
    *planted(
        "fastoptim/tuning/probe.py",
        (PROBING,),
        ("steps behind a loss that is no number", "if not math.isfinite(loss):", "if False:"),
    ),
    *planted(
        SANDBOX,
        (PROBING,),
        (
            "buffers not put back",
            "leaves = [*self._structure.leaves(params), *leaves_of(buffers)]",
            "leaves = [*self._structure.leaves(params)]",
        ),
        ("scores probed", "if ascends(self._stepping):", "if False:"),
        ("rates without a ratio probed", "if not self.default_lr and any", "if False and any"),
        ("replaced arrays not put back", "        self._entries.put_back()\n", ""),
        ("a stream taken for a fixed batch", "all(map(_same, first, second))", "_same(first[0], second[0])"),
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
        ("handler of Ctrl-C not put back", "set_handler(signal.SIGINT, self._previous, self._action)", "pass"),
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
        (
            "keyword defaults not searched for generators",
            "*(function.__kwdefaults__ or {}).values(), ",
            "",
        ),
        (
            "globals not searched for generators",
            "inner = [names[name] for name in used if name in names]",
            "inner: list[Any] = []",
        ),
        (
            "slots not searched for generators",
            "                    yield member.__get__(item)\n",
            "                    pass\n",
        ),
        ("classes not searched for generators", "        yield kind\n", ""),
        ("modules not searched for generators", "            inner += attributes\n", ""),
        (
            "data not searched for generators",
            "generators_within(loss_and_grad, data, self.batches)",
            "generators_within(loss_and_grad, self.batches.rng if self.batches else None)",
        ),
        (
            "functions within not searched for generators",
            "            yield from _names_within(constant)",
            "            pass",
        ),
    ),
    *planted(
        SANDBOX,
        (ADVISING,),
        ("read-only arrays written to", "            if array.flags.writeable:\n", "            if True:\n"),
    ),
    *planted(
        PLOTS,
        (DRAWING,),
        ("smoothing biased", "out.append(mean / weight if weight", "out.append(mean if weight"),
        ("smoothing stopped by NaN", "        if math.isfinite(loss):\n", "        if True:\n"),
        ("logarithm of zero", "values.min() > 0.0", "values.min() >= 0.0"),
        (
            "validations of a result at wrong steps",
            'np.asarray(checks.get("step", ())),',
            'np.arange(len(checks.get("step", ()))),',
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
        (
            "arrays beyond the seventh look like the first",
            "STYLES[i // len(COLOURS) % len(STYLES)]\n        axis.plot(record",
            "STYLES[0]\n        axis.plot(record",
        ),
        ("rates of candidates not written", "    _label_ends(left, ends)\n", ""),
        ("rates written over each other", "max(height, lowest + 0.045)", "height"),
        ("a step at rate zero drawn", "    ratios[ratios == 0.0] = math.nan", "    pass"),
        ("a log overwritten by its picture", "os.path.samefile(name, out) for", "False for"),
        ("names taken for formulas", '.replace("$", r"\\$")', ""),
        (
            "smoothing of the command ignored",
            "loss(curve, smoothing=options.smoothing, title=title)",
            "loss(curve, title=title)",
        ),
    ),
)

EQUIVALENT: tuple[tuple[str, str], ...] = (
    (
        "a cycle without rises oscillates",
        "means over whole periods of a curve that never rises fall by more than it cycles",
    ),
    ("copies of a sandbox in C order", "values are put back into the arrays as they lie"),
)
