"""Bugs in the C code, the update rules and what drives them."""

from __future__ import annotations

from .mutant import (
    BITS,
    DISPATCH,
    EMULATED,
    FUNCTIONAL,
    GOLDEN,
    GOLDEN_C,
    OBJECTS,
    OPTIMIZERS,
    ORACLE,
    RANDOM,
    REFUSALS,
    THREADS,
    Mutant,
    planted,
)

HOSTILE = "tests/optimizers/test_hostile.py"
UPDATES, REFERENCE, COEFFICIENTS = "fastoptim/rules", "fastoptim/rules/reference.py", (ORACLE, GOLDEN, OPTIMIZERS)
RULES, LOOPS, PLAN, POOL, PACE, CPU, BIND = (
    f"csrc/{name}"
    for name in ("kernels/rules.h", "kernels/loops.inc", "plan.c", "pool.c", "pace.c", "kernels/cpu.c", "bind.c")
)
STORED = "tests/backends/test_stored_bits.py"
NATIVE = (GOLDEN_C, RANDOM, EMULATED, BITS, THREADS)
DRIVER = (REFUSALS, OPTIMIZERS, RANDOM, THREADS)

MUTANTS = (
    # The kernels' arithmetic
    Mutant("adam: parenthesis of the square", RULES, "c2 * (g * g)", "(c2 * g) * g"),
    Mutant("amsgrad: parenthesis of the square", RULES, "c2 * (g * g)", "(c2 * g) * g", which=1),
    Mutant(
        "adam: product and quotient swapped",
        RULES,
        "(step * m) / (SQRT(v) * r2 + eps)",
        "step * (m / (SQRT(v) * r2 + eps))",
    ),
    Mutant("adam: eps inside the root", RULES, "SQRT(v) * r2 + eps", "SQRT(v + eps) * r2"),
    Mutant("adam: root divided instead of multiplied", RULES, "SQRT(v) * r2 + eps", "SQRT(v) / (1 / r2) + eps"),
    Mutant("adam: first moment of the last step", RULES, "(step * m) / (SQRT(v)", "(step * state[0]) / (SQRT(v)"),
    Mutant("adam: second moment of the last step", RULES, "SQRT(v) * r2", "SQRT(state[1]) * r2"),
    Mutant("adam: moment as a lerp", RULES, "m = b1 * m + c1 * g", "m = m + c1 * (g - m)"),
    Mutant("adam: betas swapped", RULES, "b1 = k[0], c1 = k[1], b2 = k[2]", "b1 = k[2], c1 = k[1], b2 = k[0]"),
    Mutant("adam: constants in double", RULES, "m = b1 * m + c1 * g", "m = (T)((double)b1 * m + (double)c1 * g)"),
    Mutant("amsgrad: > instead of >=", RULES, "x >= v ? x : v", "x > v ? x : v"),
    Mutant("amsgrad: NaN kept out of the maximum", RULES, "x >= v ? x : v", "v > x ? v : x"),
    Mutant("amsgrad: maximum not used", RULES, "SQRT(x)", "SQRT(v)"),
    Mutant("amsgrad: maximum not stored", RULES, ", state[2] = x", ""),
    Mutant("momentum: coefficients swapped", RULES, "v = a * v + b * g", "v = b * v + a * g"),
    Mutant("momentum: neutral share of the gradient", RULES, "v = a * v + b * g", "v = a * v + g"),
    Mutant("momentum: velocity not stored", RULES, "state[0] = v;", ""),
    Mutant("nesterov: neutral factor of the gradient", RULES, "c * (e * v + f * g)", "c * (e * v + g)"),
    Mutant("nesterov: distributed product", RULES, "c * (e * v + f * g)", "(c * e * v + c * f * g)"),
    Mutant("sgd: ascends", RULES, "u = c * g;", "u = -c * g;"),
    Mutant("scale: neutral", RULES, "return s * g;", "return g;"),
    Mutant("coupled decay: factor on the sum", RULES, "return g + wd * p;", "return wd * (g / wd + p);"),
    Mutant("decoupled decay: apart from the step", RULES, "return p - (w * p + u);", "return p - w * p - u;"),
    # The loops
    Mutant(
        "coupled decay of the unscaled gradient",
        LOOPS,
        "g = NAME(coupled)(g, p, by->decay);",
        "g = NAME(coupled)(g, p, by->decay * by->s);",
    ),
    Mutant("coupled decay ignored", LOOPS, "decay == FO_DECAY_COUPLED)", "decay == FO_DECAY_COUPLED && 0)"),
    Mutant("dropped tail", LOOPS, "i < n; i++) {\n        T state", "i + 3 < n; i++) {\n        T state"),
    Mutant("one element too many", LOOPS, "i < n; i++) {\n        T state", "i <= n; i++) {\n        T state"),
    Mutant("line lost before the last", LOOPS, "whole -= 2 * NAME(line)", "whole -= 3 * NAME(line)"),
    Mutant("line beside the end computed twice", LOOPS, "i += NAME(line), whole -= 2", "whole -= 1"),
    Mutant("end one element early", LOOPS, "n - NAME(line), data)", "n - NAME(line) - 1, data)"),
    Mutant("gradients written", LOOPS, "if (slot != SLOT_GRAD)", "if (1)", ("tests/arrays/test_layouts.py",)),
    Mutant("decay coefficient in float", LOOPS, "(T)run->scalars[1]", "(float)run->scalars[1]"),
    Mutant("coefficients in float", LOOPS, "by.k[i] = (T)run->scalars[2 + i]", "by.k[i] = (float)run->scalars[2 + i]"),
    Mutant("scale in float", LOOPS, "(T)run->scalars[0]", "(float)run->scalars[0]"),
    Mutant("FMA allowed", "csrc/build_ffi.py", "-ffp-contract=off", "-ffp-contract=fast", (GOLDEN_C, OBJECTS)),
    Mutant("reassociation allowed", "csrc/build_ffi.py", '"-fno-trapping-math"', '"-ffast-math"', (GOLDEN_C, OBJECTS)),
    Mutant("errno of roots kept", "csrc/build_ffi.py", '"-fno-math-errno", ', "", (OBJECTS,)),
    Mutant(
        "AVX2 everywhere",
        "csrc/build_ffi.py",
        '"-fno-math-errno", ',
        '"-fno-math-errno", "-mavx2", ',
        (OBJECTS, EMULATED),
    ),
    # The norm
    Mutant(
        "norm: other pairs of lanes",
        LOOPS,
        "lane.one[j] = lane.one[2 * j] + lane.one[2 * j + 1]",
        "lane.one[j] = lane.one[j] + lane.one[j + width]",
    ),
    Mutant("norm: scaled in double", LOOPS, "k * (double)NAME(scale)(g, s)", "k * ((double)g * s)"),
    Mutant("norm: squared before it is widened", LOOPS, "return x * x;", "return (T)x * (T)x;"),
    Mutant("norm: one of four twice", LOOPS, "NAME(square)(s, k, x[3])", "NAME(square)(s, k, x[2])"),
    Mutant("norm: tail dropped", LOOPS, "for (int j = 0; i + j < n; j++)", "for (int j = 0; i + j + 1 < n; j++)"),
    Mutant("norm: odd block of the tree dropped", PLAN, "if (n % 2)\n            tree", "if (0)\n            tree"),
    Mutant(
        "norm: sum in order instead of a tree",
        PLAN,
        "tree[i] = tree[2 * i] + tree[2 * i + 1];",
        "tree[i] = i ? tree[2 * i] + tree[2 * i + 1] : tree[0] + (tree[1] + 0x1p-40 * tree[0]);",
    ),
    # The plan
    Mutant("chunks end inside blocks", PLAN, "left < whole ? left : whole", "left < room ? left : room", (*NATIVE,)),
    Mutant("chunks overlap", PLAN, "? plan->chunk_start[chunk + 1] :", "? plan->entries[e].n :", NATIVE),
    Mutant(
        "chunk borders one element late",
        PLAN,
        "int64_t n = stop_of(plan, chunk, e) - start;",
        "int64_t n = stop_of(plan, chunk, e) - start + (start > 0);",
        NATIVE,
    ),
    Mutant(
        "entries merged though only parameters adjoin",
        PLAN,
        "for (int i = 0; i < before->slots; i++)\n        if ((char *)before",
        "for (int i = 0; i < 1; i++)\n        if ((char *)before",
    ),
    Mutant("entries of two runs merged", PLAN, "before->run != after->run || ", ""),
    Mutant("scalars of another run", BIND, "run->scalars[i] =", "plan->runs[0].scalars[i] =", NATIVE),
    Mutant(
        "offset of chunks in elements", PLAN, "(size_t)start * fo_storage_size(param->storage[i])", "(size_t)start * 4"
    ),
    # Threads
    Mutant("first chunk lost to threads", POOL, "(count * i / parts) << 32", "(count * i / parts + !i) << 32", NATIVE),
    Mutant(
        "helper takes the chunk behind the last",
        POOL,
        "return first ? from : to - 1",
        "return first ? from : to",
        NATIVE,
    ),
    Mutant(
        "helpers not waited for",
        POOL,
        "for (unsigned i = 1; atomic_load(&gate); i++)",
        "for (unsigned i = 1; 0; i++)",
        NATIVE,
    ),
    Mutant(
        "one chunk too many",
        POOL,
        "(count * (i + 1) / parts));",
        "(count * (i + 1) / parts + (i + 1 == parts)));",
        NATIVE,
    ),
    Mutant(
        "flush-to-zero survives in serial work",
        POOL,
        "fo_float_mode mode = fo_float_mode_set_default();",
        "fo_float_mode mode = 0x1f80;",
        NATIVE,
        which=1,
    ),
    Mutant(
        "flush-to-zero survives in threads",
        POOL,
        "fo_float_mode mode = fo_float_mode_set_default();",
        "fo_float_mode mode = 0x1f80;",
        NATIVE,
    ),
    Mutant("float mode not restored", POOL, "fo_float_mode_restore(mode);", "(void)mode;", NATIVE, which=1),
    Mutant(
        "default float mode flushes", CPU, "__builtin_ia32_ldmxcsr(0x1f80)", "__builtin_ia32_ldmxcsr(0x9fc0)", NATIVE
    ),
    Mutant(
        "others' rounding kept",
        CPU,
        "__builtin_ia32_ldmxcsr(0x1f80)",
        "__builtin_ia32_ldmxcsr((unsigned)mode & ~0x8040u)",
        (EMULATED,),
    ),
    Mutant("tree of the norm rounded as others like", PLAN, "fo_float_mode_set_default()", "0x1f80", (EMULATED,)),
    Mutant("default float mode flushes on aarch64", CPU, '::"r"((uint64_t)0)', '::"r"((uint64_t)1 << 24)', (EMULATED,)),
    Mutant("children forget nothing", POOL, "pthread_atfork(0, 0, begin_child)", "(void)begin_child", (THREADS,)),
    Mutant("signals reach the pool's threads", POOL, "sigfillset(&all)", "sigemptyset(&all)", (THREADS,)),
    Mutant(
        "workers leave the cores imposed on them",
        POOL,
        "CPU_AND(&wanted, &own->allowed, &callers);",
        "wanted = own->allowed;",
        (THREADS,),
    ),
    Mutant(
        "workers stay on the caller's core", POOL, "        leave_core(&cores);\n", "        (void)cores;\n", (THREADS,)
    ),
    Mutant("a core once left is lost", POOL, "own->allowed = present;", "", (THREADS,)),
    Mutant("interpreter held during steps", BIND, "RELEASE_BYTES = 64e3", "RELEASE_BYTES = 64e30", (THREADS,)),
    *planted(
        "fastoptim/common/threads.py",
        ("tests/common/test_threads.py",),
        ("a child waits for a thread of its parent", "if self._holder != threading.get_ident():", "if False:"),
        ("a child takes a lock from itself", "if self._holder != threading.get_ident():", "if True:"),
        ("a lock free after the first release", "max(0, self._depth - 1)", "0"),
    ),
    # Whether threads pay
    *planted(
        PACE,
        ("tests/backends/test_pace.py",),
        ("no refresh runs", "return !refresh && ", "return "),
        ("middling jobs wake workers", "(in_burst || fo_pace_worth_waking(bytes))", "1"),
        ("idle starts taken for bursts", "idle_ns < FO_BURST_NS", "idle_ns >= 0"),
        ("spinning workers not seen", "spinning || idle_ns", "idle_ns"),
        ("serial work pays nothing off", "pace->serial_only_ns -= elapsed_ns;", ""),
        ("serial run right after threads believed", "if (position(pace) != FIRST_REFRESH)", "if (1)"),
        ("interrupted serial run believed", "lesser(mean, 1.1 * pace->serial_ns)", "mean"),
        ("quicker serial run believed late", " || elapsed_ns < mean", ""),
        ("threads judged by nothing", "    if (pace->serial_ns <= 0)\n        return;\n", ""),
        (
            "long runs may lose more",
            "lesser(TRIAL_RUNS * pace->serial_ns, TRIAL_RUNS_NS)",
            "TRIAL_RUNS * pace->serial_ns",
        ),
        (
            "one interruption condemns threads",
            "greater(pace->serial_ns - elapsed_ns, -worst)",
            "pace->serial_ns - elapsed_ns",
        ),
        ("waiting taken for an interruption", "greater(waited_ns, trial)", "trial"),
        ("credit without a limit", "    pace->credit_ns = lesser(pace->credit_ns, most);\n", ""),
        ("failures never forgiven", "pace->credit_ns > most || pace->backoff <= 0", "pace->backoff <= 0"),
        ("threads tried again too soon", "-pace->backoff * pace->credit_ns", "-pace->credit_ns"),
        ("second trial as soon as the first", "        pace->backoff *= 2;", "        ;"),
        ("threads given up for hours", "if (pace->serial_only_ns < RETRY_NS)", "if (1)"),
        ("a loss counted twice", "    pace->credit_ns = 0;\n", ""),
    ),
    # Arrays of fewer bits
    *planted(
        "csrc/stored.c",
        (STORED,),
        ("storage: dither reused by two slots", "mix(mix(h, (uint64_t)slot)", "mix(mix(h, 0)"),
        (
            "storage: dither begins anew in every chunk",
            "(uint32_t)(param->stored.first + at)",
            "(uint32_t)(at - start)",
        ),
        (
            "storage: scales of the block before",
            "address(param, scales++, at)",
            "address(param, scales++, at ? at - FO_BLOCK : 0)",
        ),
        ("storage: fused loops round as others are asked to", " && !param->stored.nearest", ""),
        (
            "storage: fused chunks begin anew",
            "(uint32_t)(param->stored.first + start)",
            "(uint32_t)param->stored.first",
        ),
        ("storage: gradients are encoded", "slot != SLOT_GRAD && is_low", "is_low"),
        ("storage: squares are not roots", ".square = slot >= SLOT_STATE", ".square = slot > FO_SLOTS"),
    ),
    *planted(
        "csrc/kernels/codecs.inc",
        (STORED,),
        (
            "storage: block off by one",
            "from->scales[block / FO_BLOCK]",
            "from->scales[block ? block / FO_BLOCK - 1 : 0]",
        ),
        ("storage: dither begins anew in every block", "to->first + (uint32_t)block", "to->first"),
        ("storage: dither reused by two fused slots", "dither(key1,", "dither(key0,"),
        ("storage: floor left out", "(uint32_t)to->square, to->key", "0, to->key"),
    ),
    # The choice of the instruction set
    Mutant("operating system not asked for ymm", CPU, "(xcr0 & ymm) != ymm", "0", (DISPATCH,)),
    Mutant("zmm without its upper half", CPU, "zmm = 0xe6", "zmm = 0x66", (DISPATCH,)),
    Mutant("AVX-512 without VL", CPU, " | 1u << 31; /* leaf 7", "; /* leaf 7", (DISPATCH,)),
    Mutant("OSXSAVE not looked at", CPU, "!(leaf1_ecx & osxsave) || ", "", (DISPATCH,)),
    Mutant(
        "selection beyond the machine", "csrc/kernels/kernels.c", "isa > fo_cpu_isa()", "isa > 2", (DISPATCH, EMULATED)
    ),
    # What reads the arrays
    Mutant(
        "overlap of parameters not noticed",
        BIND,
        "if (low < before)\n            return 0;",
        "if (0)\n            return 0;",
        DRIVER,
    ),
    Mutant("overlap of gradients not noticed", BIND, "plan->written[2 * from] < high", "0", DRIVER),
    Mutant(
        "touching taken for overlapping",
        BIND,
        "plan->written[2 * middle + 1] > low",
        "plan->written[2 * middle + 1] >= low",
        DRIVER,
    ),
    Mutant("moved arrays not noticed", BIND, "if (moved)\n", "if (0)\n", DRIVER),
    Mutant("moved gradients not noticed", BIND, "else if (grad_moved && disjoint == ALL)", "else if (0)", DRIVER),
    Mutant(
        "gradients that a norm has read not compared", BIND, "if (moved && plan->disjoint == ALL)", "if (0)", DRIVER
    ),
    Mutant("a fitting gap closed", BIND, "low - before >= plan->least_gradient", "low - before > 160", DRIVER),
    Mutant("gaps closed", BIND, "low - before >= plan->least_gradient", "0", DRIVER),
    Mutant(
        "states taken for other states",
        BIND,
        "PyObject *x = state[slot - SLOT_STATE];",
        "PyObject *x = state[(slot - SLOT_STATE) ^ (param->slots > 3)];",
        NATIVE,
    ),
    Mutant("read-only not noticed", BIND, "(slot == SLOT_GRAD ? 0 : NPY_ARRAY_WRITEABLE)", "0", DRIVER),
    Mutant("shape not looked at", BIND, "if (PyArray_DIM(array, i) != param->shape[i])", "if (0)", DRIVER),
    Mutant("byte order not looked at", BIND, " || dtype->byteorder == NPY_OPPBYTE", "", DRIVER),
    Mutant("rounding of the caller not looked at", BIND, "!fo_rounds_to_nearest() || ", "", (HOSTILE,)),
    Mutant(
        "memory order not looked at",
        BIND,
        "(moved | grad_moved) < 0 || !order",
        "(moved | grad_moved) < 0",
        (*DRIVER, "tests/arrays/test_layouts.py"),
    ),
    Mutant("owners of their memory taken for views", BIND, "if (!owners && count > 1)", "if (count > 1)", DRIVER),
    Mutant("other states taken for known ones", BIND, "views == args[2]", "views != 0", DRIVER),
    Mutant("callers' states kept alive", BIND, "if (!owners && count > 1)", "if (!owners)", (FUNCTIONAL,)),
    Mutant(
        "states elsewhere taken for known ones",
        BIND,
        "PyArray_DATA((PyArrayObject *)state[slot - SLOT_STATE]) == param->data[slot]",
        "1",
        DRIVER,
    ),
    Mutant("order of known states forgotten", BIND, "*order &= param->state_order;", "", DRIVER),
    Mutant("steps not counted", BIND, "PyList_SetItem(b->counter, 0, number);", "Py_DECREF(number);", DRIVER),
    # The rules in Python, and what drives them
    Mutant("rules: parenthesis of the square", UPDATES, "c2 * (g * g)", "(c2 * g) * g", COEFFICIENTS),
    Mutant(
        "rules: product and quotient swapped",
        UPDATES,
        "(step * m) / (sqrt(v) * r2 + eps)",
        "step * (m / (sqrt(v) * r2 + eps))",
        COEFFICIENTS,
    ),
    Mutant("rules: > instead of >=", UPDATES, "where(x >= v, x, v)", "where(x > v, x, v)", COEFFICIENTS),
    Mutant("rules: nesterov without its look ahead", UPDATES, "u = c * (e * v + f * g)", "u = c * v", COEFFICIENTS),
    Mutant("rules: neutral scale", UPDATES, "return s * g", "return g", COEFFICIENTS),
    Mutant(
        "rules: decoupled decay of the new parameter", UPDATES, "p - (w * p + u)", "(p - u) * (1.0 - w)", COEFFICIENTS
    ),
    Mutant(
        "rules: betas swapped",
        UPDATES,
        "return (beta1, 1.0 - beta1, beta2, 1.0 - beta2, lr / bc1",
        "return (beta2, 1.0 - beta2, beta1, 1.0 - beta1, lr / bc1",
        COEFFICIENTS,
    ),
    Mutant("rules: bias correction of the second moment", UPDATES, "1.0 / sqrt(bc2)", "1.0 / bc2", COEFFICIENTS),
    Mutant(
        "rules: eps-hat without bias correction", UPDATES, "lr * sqrt(bc2) / bc1, 1.0", "lr / bc1, 1.0", COEFFICIENTS
    ),
    Mutant("rules: first step damped", UPDATES, "1.0 if first else 1.0 - dampening", "1.0 - dampening", COEFFICIENTS),
    Mutant(
        "rules: look ahead with the plain gradient",
        UPDATES,
        "return (a, b, c, momentum, b)",
        "return (a, b, c, momentum, 1.0)",
        COEFFICIENTS,
    ),
    Mutant("rules: decay without the rate", UPDATES, "return lr * weight_decay", "return weight_decay", COEFFICIENTS),
    Mutant(
        "rules: clip factor without its 1e-6",
        UPDATES,
        "factor = max_norm / (norm + 1e-6)",
        "factor = max_norm / norm",
        COEFFICIENTS,
    ),
    Mutant(
        "rules: coefficients in the wrong precision",
        REFERENCE,
        "(T(x) for x in scalars)",
        "(T(np.float32(x)) for x in scalars)",
        COEFFICIENTS,
    ),
    Mutant("rules: norm overflows", UPDATES, "if total == math.inf:", "if False:", (BITS,)),
    Mutant(
        "rules: steps counted from zero",
        "fastoptim/optimizers",
        "t = steps + 1",
        "t = steps + 2",
        COEFFICIENTS,
    ),
    *planted(
        "fastoptim/optimizers",
        (OPTIMIZERS, "tests/checkpoint/test_checkpoint.py"),
        (
            "a step within a step",
            "        if busy:\n            raise",
            "        if busy and busy[0] != thread:\n            raise",
        ),
        (
            "states not looked at",
            '            self._backend.check_parameter(name, state, f"{slot} of parameter")\n',
            "",
        ),
        ("states made for another array", "p = parameter.array(backend)", "p = parameter.group['params'][0]"),
        ("a missing state loaded as zeros", "if t and (missing :=", "if False and (missing :="),
        ("replaced parameters not seen", "        self.changes[0] += 1\n", "", 1),
        ("half an update of a group", "for key in new:\n", "for key in ():\n"),
    ),
    *planted(
        "fastoptim/optimizers/update.py",
        (FUNCTIONAL, OPTIMIZERS, REFUSALS, HOSTILE),
        ("unscaled step after a norm", "scaled = self._scaled(scalars, options, norm)", "scaled = scalars"),
        (
            "clipping left out of a bound step",
            "scaled = scalars if options is PLAIN else self._scaled(scalars, options, norm)",
            "scaled = scalars",
        ),
        ("what was prepared kept though arrays moved", " == bound.layouts else None", " is not None else None"),
        ("a partly skipped step counted for all", "if bound.whole:", "if True:"),
        ("odd layouts not copied back", "for form in bound.copies:", "for form in ():"),
        (
            "bad input let pass where the norm skips",
            "                self._check(params, grads, states)",
            "                pass",
        ),
        ("overlaps not looked at", "        backend.check_disjoint(written, read)\n", ""),
        ("scales that vanish taken", "        for dtype in self._dtypes:\n", "        for dtype in ():\n"),
        ("clip factors that vanish taken", "self._dtypes == {SINGLE}", "False"),
    ),
    *planted(
        "fastoptim/optimizers/states.py",
        (OPTIMIZERS, ORACLE, HOSTILE, "tests/optimizers/test_room.py"),
        ("numbers of a rule one step late", "self.base + steps + 1):", "self.base + steps):"),
        ("counts of runs mixed", "member.t = run.base + steps + own", "member.t = steps + own"),
        (
            "reading takes a step",
            "steps = self.counter[0]\n        found",
            "steps = self.counter[0] + 1\n        found",
        ),
        ("new hyperparameters not taken", "            run.take(specs[id(run.group)])\n", ""),
        ("first step like the others", "self.fresh and steps == 0", "False"),
    ),
    Mutant(
        "anybody reads in the midst of a step",
        "fastoptim/common/busy.py",
        "if not reading or thread not in busy:",
        "if not reading:",
        (OPTIMIZERS,),
    ),
    Mutant(
        "clipping in the caller's mode",
        "fastoptim/backends/c.py",
        "        mode = lib.fo_float_mode_set_default()\n",
        "        mode = lib.fo_float_mode_set_default()\n        lib.fo_float_mode_restore(mode)\n",
        (FUNCTIONAL,),
    ),
    Mutant(
        "warnings in the midst of clipping",
        "fastoptim/backends/base.py",
        'with np.errstate(all="ignore"):',
        "if True:",
        (FUNCTIONAL,),
    ),
)

# Changes that no test can see, and why; they are built into no figure.
EQUIVALENT = (
    ("sgd: p - c * g as p + (-c) * g", "negation is exact, and so is the difference as a sum with the negated product"),
    ("(g * g) * c2 for c2 * (g * g)", "one multiplication; IEEE multiplication commutes, but for the payload of a NaN"),
    (
        "whole lines that do not begin at the parameter's cache lines",
        "every element is computed by itself: only speed depends on it",
    ),
    ("chunks of another size, in whole blocks", "the same, and the norm is cut into blocks before chunks are"),
    ("a step run by one thread instead of several", "the same; which threads work is a question of speed"),
    (
        "an update in use lent again to a call within the call",
        "every step binds all that it uses, and the extension gives up what it keeps before other code can run",
    ),
    ("headers not fetched", "the same"),
)
