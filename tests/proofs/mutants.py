"""Planted bugs must be caught: python -m tests.proofs.mutants [--table training] [--only WORD]

Each mutant changes a few characters in a copy of the tree in a temporary folder, and the tests named beside it are run
there. The table "kernels" is about the C code, the law and what drives it: for it the copy is built. The table
"training" is about checkpoints, `fit`, minibatches, schedules, diagnosis, probe and plots, with the extension as it is
here. A mutant is killed if one of its tests fails. The script exits with 1 if fewer than 95 % are killed, if the
unchanged copy fails, or if a mutant cannot be made (its text is gone, or it does not compile).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import runpy
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).parents[2]
COPIED = (
    "csrc",
    "fastoptim",
    "tests",
    "setup.py",
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "MANIFEST.in",
    "docs",
    "benchmarks",
)
TARGET = 0.95
PREFIX: list[str] = []
SECONDS = 600  # a mutant that takes longer hangs: killed

GOLDEN, BITS, ORACLE, RANDOM, THREADS, REFUSALS, OBJECTS, DISPATCH = (
    f"tests/test_{name}.py"
    for name in ("golden", "bits", "oracle", "random_cases", "threads", "refusals", "objects", "dispatch")
)
EMULATED = "tests/backends/test_emulated.py"
GOLDEN_C = f"{GOLDEN}::test_c_on_every_instruction_set"
OPTIMIZERS, FUNCTIONAL = "tests/optimizers/test_optimizers.py", "tests/optimizers/test_functional.py"


class Mutant(NamedTuple):
    """`old` becomes `new` at its place number `which` in a file; `tests` are to notice."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...] = (GOLDEN_C, RANDOM, BITS)
    which: int = 0


def planted(file: str, tests: tuple[str, ...], *bugs: tuple[str, str, str] | tuple[str, str, str, int]) -> list[Mutant]:
    return [Mutant(name, file, old, new, tests, *which) for name, old, new, *which in bugs]


LAW, REFERENCE, COEFFICIENTS = "fastoptim/rules.py", "fastoptim/reference.py", (ORACLE, GOLDEN, OPTIMIZERS)
RULES, LOOPS, PLAN, POOL, CPU, BIND = (
    f"csrc/{name}" for name in ("rules.h", "loops.inc", "plan.c", "pool.c", "cpu.c", "bind.c")
)
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
    Mutant("sgd: ascends", RULES, "p = p - c * g", "p = p + c * g"),
    Mutant("scale: neutral", RULES, "return s * g;", "return g;"),
    Mutant("coupled decay: factor on the sum", RULES, "return g + wd * p;", "return wd * (g / wd + p);"),
    Mutant("decoupled decay: subtracted", RULES, "return p * keep;", "return p - p * (1 - keep);"),
    # The loops
    Mutant(
        "decay after the update",
        LOOPS,
        "p[i] = rule(pi, gi, state, k);",
        "p[i] = rule(p[i], gi, state, k); if (decay == FO_DECAY_DECOUPLED) p[i] = NAME(decoupled)(p[i], wd);",
    ),
    Mutant("coupled decay ignored", LOOPS, "decay == FO_DECAY_COUPLED)", "decay == FO_DECAY_COUPLED && 0)"),
    Mutant("dropped tail", LOOPS, "i < n; i++) {\n        T pi", "i + 3 < n; i++) {\n        T pi"),
    Mutant("one element too many", LOOPS, "i < n; i++) {\n        T pi", "i <= n; i++) {\n        T pi"),
    Mutant("line lost before the last", LOOPS, "whole -= 2 * NAME(line)", "whole -= 3 * NAME(line)"),
    Mutant("line beside the end computed twice", LOOPS, "i += NAME(line), whole -= 2", "whole -= 1"),
    Mutant("end one element early", LOOPS, "n - NAME(line), data)", "n - NAME(line) - 1, data)"),
    Mutant("gradients written", LOOPS, "if (slot != 1)", "if (1)", ("tests/arrays/test_layouts.py",)),
    Mutant("decay coefficient in float", LOOPS, "wd = (T)run->decay_coefficient", "wd = (float)run->decay_coefficient"),
    Mutant("coefficients in float", LOOPS, "k[i] = (T)run->coefficients[i]", "k[i] = (float)run->coefficients[i]"),
    Mutant("scale in float", LOOPS, "s = (T)scale", "s = (float)scale"),
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
    Mutant("maximize ignored", PLAN, "run->maximize ? -j->scale : j->scale", "j->scale"),
    Mutant(
        "offset of chunks in elements", PLAN, "(size_t)start * fo_storage_size(entry->storage[i])", "(size_t)start * 4"
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
    Mutant("default float mode flushes on aarch64", CPU, '::"r"((uint64_t)0)', '::"r"((uint64_t)1 << 24)', (EMULATED,)),
    Mutant("children forget nothing", POOL, "pthread_atfork(0, 0, forget)", "(void)forget", (THREADS,)),
    Mutant("signals reach the pool's threads", POOL, "sigfillset(&all)", "sigemptyset(&all)", (THREADS,)),
    Mutant("interpreter held during steps", BIND, "RELEASE_BYTES = 64e3", "RELEASE_BYTES = 64e30", (THREADS,)),
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
    Mutant("moved gradients not noticed", BIND, "else if (grad_moved && known == ALL)", "else if (0)", DRIVER),
    Mutant("gradients that a norm has read not compared", BIND, "if (moved && plan->known == ALL)", "if (0)", DRIVER),
    Mutant("a fitting gap closed", BIND, "low - before >= plan->least_gradient", "low - before > 160", DRIVER),
    Mutant("gaps closed", BIND, "low - before >= plan->least_gradient", "0", DRIVER),
    Mutant(
        "states taken for other states",
        BIND,
        "bind(state[slot - 2], entry, slot, &entry->state_order)",
        "bind(state[(slot - 2) ^ (entry->slots > 3)], entry, slot, &entry->state_order)",
        NATIVE,
    ),
    Mutant("read-only not noticed", BIND, "(slot == 1 ? 0 : NPY_ARRAY_WRITEABLE)", "0", DRIVER),
    Mutant("shape not looked at", BIND, "if (PyArray_DIM(array, i) != entry->shape[i])", "if (0)", DRIVER),
    Mutant("byte order not looked at", BIND, " || dtype->byteorder != '='", "", DRIVER),
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
        "PyArray_DATA((PyArrayObject *)state[slot - 2]) == entry->data[slot]",
        "1",
        DRIVER,
    ),
    Mutant("order of known states forgotten", BIND, "*order &= entry->state_order;", "", DRIVER),
    Mutant("steps not counted", BIND, "PyList_SetItem(b->counter, 0, number);", "Py_DECREF(number);", DRIVER),
    # The law
    Mutant("law: parenthesis of the square", LAW, "c2 * (g * g)", "(c2 * g) * g", COEFFICIENTS),
    Mutant(
        "law: product and quotient swapped",
        LAW,
        "(step * m) / (sqrt(v) * r2 + eps)",
        "step * (m / (sqrt(v) * r2 + eps))",
        COEFFICIENTS,
    ),
    Mutant("law: > instead of >=", LAW, "where(x >= v, x, v)", "where(x > v, x, v)", COEFFICIENTS),
    Mutant("law: nesterov without its look ahead", LAW, "p = p - c * (e * v + f * g)", "p = p - c * v", COEFFICIENTS),
    Mutant("law: neutral scale", LAW, "return s * g", "return g", COEFFICIENTS),
    Mutant(
        "law: decay after the update",
        REFERENCE,
        "results = rule.function(new_p, g, *states, *k)",
        "results = rule.function(p, g, *states, *k)\n"
        "        results = (results[0] * (wd if new_p is not p else 1), *results[1:])",
        COEFFICIENTS,
    ),
    Mutant(
        "law: betas swapped",
        LAW,
        "return (beta1, 1.0 - beta1, beta2, 1.0 - beta2, step",
        "return (beta2, 1.0 - beta2, beta1, 1.0 - beta1, step",
        COEFFICIENTS,
    ),
    Mutant("law: bias correction of the second moment", LAW, "1.0 / math.sqrt(bc2)", "1.0 / bc2", COEFFICIENTS),
    Mutant(
        "law: eps-hat without bias correction", LAW, "lr * math.sqrt(bc2) / bc1, 1.0", "lr / bc1, 1.0", COEFFICIENTS
    ),
    Mutant("law: first step damped", LAW, "1.0 if first else 1.0 - dampening", "1.0 - dampening", COEFFICIENTS),
    Mutant(
        "law: look ahead with the plain gradient",
        LAW,
        "return (a, b, c, momentum, b)",
        "return (a, b, c, momentum, 1.0)",
        COEFFICIENTS,
    ),
    Mutant(
        "law: keep without the rate", LAW, "return 1.0 - lr * weight_decay", "return 1.0 - weight_decay", COEFFICIENTS
    ),
    Mutant(
        "law: clip factor without its 1e-6",
        LAW,
        "factor = max_norm / (norm + 1e-6)",
        "factor = max_norm / norm",
        COEFFICIENTS,
    ),
    Mutant(
        "law: coefficients in the wrong precision",
        REFERENCE,
        "k = [T(c) for c in coefficients]",
        "k = [T(np.float32(c)) for c in coefficients]",
        COEFFICIENTS,
    ),
    Mutant("law: norm overflows", LAW, "if total == math.inf:", "if False:", (BITS,)),
    Mutant(
        "law: steps counted from zero",
        "fastoptim/optimizers.py",
        "self.base + steps + 1",
        "self.base + steps + 2",
        COEFFICIENTS,
    ),
    *planted(
        "fastoptim/optimizers.py",
        (OPTIMIZERS, "tests/checkpoint/test_checkpoint.py"),
        (
            "a turn within a turn",
            "        if turn:\n            raise",
            "        if turn and turn[0] != thread:\n            raise",
        ),
        ("anybody reads in the midst of a step", "if not reading or thread not in turn:", "if not reading:"),
        ("states not looked at", '                backend.check_parameter(name, state, "a state of parameter")\n', ""),
        ("states made for another array", "p = parameter.array(self._backend)", "p = parameter.group['params'][0]"),
        ("a missing state loaded as zeros", "if t and (missing :=", "if False and (missing :="),
        ("replaced parameters not seen", "        self.changes[0] += 1\n", "", 1),
        ("half an update of a group", "for key in new:\n", "for key in ():\n"),
    ),
    *planted(
        "fastoptim/interrupts.py",
        (FUNCTIONAL,),
        ("signals handled in the midst", "_signal(number, self._collect)", "pass"),
        ("signals lost", "handlers[number](number, frame)", "pass"),
        (
            "signals after one that raises lost",
            "            finally:\n",
            "            except BaseException:\n                raise\n            if True:\n",
        ),
    ),
    Mutant(
        "a plan in use lent again",
        "fastoptim/functional.py",
        "kept.pop(key, (None, None))",
        "kept.get(key, (None, None))",
        (FUNCTIONAL,),
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
    ("threads on any core, tried as often as ever, headers not fetched", "the same"),
)


# --- The training side: Python alone, nothing to build --------------------------------------------------------------

SAVING, FITTING, BATCHES, RATES, READING, PROBING, DRAWING = (
    f"tests/test_{name}.py" for name in ("checkpoint", "training", "data", "schedules", "diagnosis", "probe", "plots")
)
CHECKPOINT, TRAINING, DATA, SCHEDULES, DIAGNOSIS, PROBE, SANDBOX, PLOTS = (
    f"fastoptim/{name}.py"
    for name in ("checkpoint", "training", "data", "schedules", "diagnosis", "probe", "sandbox", "plots")
)


TRAINING_MUTANTS = (
    *planted(
        CHECKPOINT,
        (SAVING, FITTING),
        ("checksum not compared", " or digest.hexdigest().encode() != header[digits]", ""),
        ("file not synced", "    file.flush()\n    os.fsync(file.fileno())\n", "    file.flush()\n"),
        ("folder not synced", "    _sync_folder(os.path.dirname(target))\n", ""),
        ("previous checkpoint not kept", "if keep_previous:", "if False:"),
        ("previous checkpoint always kept", "if keep_previous:", "if True:"),
        ("previous made by moving the target away", "os.link(target, spare)", "os.rename(target, spare)"),
        ("no way without hard links", "        os.replace(target, previous)\n        return", "        return"),
        (
            "temporary file left behind",
            "            os.unlink(temporary)\n        raise",
            "            pass\n        raise",
        ),
        ("dead writers' files kept", "_remove_if_abandoned(os.path.join(folder, entry))", "pass"),
        ("live writers' files removed", "        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)\n", ""),
        ("own temporary file not locked", "        fcntl.flock(file, fcntl.LOCK_EX)\n", ""),
        ("removed before it was locked, not noticed", "return os.path.exists(path)", "return True"),
        ("another writer's files taken for its own", 'rf"\\.{re.escape(name)}\\.', 'rf"\\..*\\.'),
        (
            "link replaced instead of its target",
            "target = os.path.realpath(os.fspath(path))",
            "target = os.fspath(path)",
        ),
        ("scalars come back as arrays", 'array[()] if form == "scalar"', 'array if form == "scalar"'),
        ("Fortran order lost", 'np.asfortranarray(array) if form == "F" else array', "array"),
        (
            "tuples come back as lists",
            'return tuple(_decode(item, arrays) for item in value["$tuple"])',
            'return [_decode(item, arrays) for item in value["$tuple"]]',
        ),
        ("names of arrays collide", "while name in arrays:", "while False:"),
        (
            "byte order not turned",
            'np.ascontiguousarray(array, array.dtype.newbyteorder("<"))',
            "np.ascontiguousarray(array)",
        ),
        ("arrays not aligned in the file", "key=lambda item: -item[1].itemsize", "key=lambda item: item[1].itemsize"),
        ("header not padded", 'b" " * (-len(header) % 8)', 'b""'),
        ("newer version read", "> VERSION:", "> VERSION + 1:"),
        ("long header read", "min(MAX_HEADER, size - 8)", "size - 8"),
        ("long header written", "if len(header) > MAX_HEADER:", "if False:"),
        ("kind not looked at", 'if metadata["kind"] not in kinds:', "if False:"),
        ("names twice taken", "if len(result) != len(pairs):", "if False:"),
        ("unnamed array taken", "    if arrays:\n        raise", "    if False:\n        raise"),
        ("offsets not looked at", "offsets != [begin, end] or end > available", "end > available"),
        ("bytes of no array taken", "if end != available:", "if end > available:"),
        ("truth value of two", "raw.max() > 1", "raw.max() > 2"),
        ("file that is no file", "if not stat.S_ISREG(os.fstat(descriptor).st_mode):", "if False:"),
        (
            "previous not asked where the last is gone",
            "except (FileNotFoundError, CheckpointError) as error:\n        if not",
            "except CheckpointError as error:\n        if not",
        ),
        (
            "previous not asked where the last is damaged",
            "except (FileNotFoundError, CheckpointError) as error:\n        if not",
            "except FileNotFoundError as error:\n        if not",
        ),
        (
            "read-only parameters not noticed in time",
            "            optimizer._backend.check_parameter(name, p)\n",
            "            pass\n",
        ),
        ("step count beyond int64", ' or entry["step"] >= 2**63', ""),
        ("hyper-parameter may be an array", "isinstance(value, (np.ndarray, dict))", "False"),
        ("dtype of parameters not compared", "x.dtype != dtype or x.shape", "x.shape"),
        ("shape of parameters not compared", " or x.shape != tuple(shape)", ""),
        (
            "saved while somebody steps",
            "    with optimizer._locked(reading=True):\n        write(",
            "    if True:\n        write(",
        ),
        ("parameters not written back", "                assign(p, saved[name])\n", "                pass\n"),
        (
            "slices of the checkpoint before it removed",
            "for path in (target, previous_path(target)):",
            "for path in (target,):",
        ),
        ("old slices kept", "if match and match[1] not in keep:", "if False:"),
        ("slice of another checkpoint taken", 'if content["token"] != tree["token"]:', "if False:"),
        ("slice from another folder", "if os.path.basename(file) != file:", "if False:"),
        ("hole between slices", "if any(missing.values()) or", "if"),
        ("step counts of slices differ", 'target["step"] != step or ', ""),
        (
            "slice put one element late",
            "common[0] - wanted[0] : common[1] - wanted[0]] = x[common[0] - start",
            "common[0] - wanted[0] : common[1] - wanted[0]] = x[max(common[0] - start - 1, 0)",
        ),
        ("slice of another dtype", "if x.dtype != dtype:", "if False:"),
    ),
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

TRAINING_EQUIVALENT = (
    ("warm-up that ends with `>` instead of `>=`", "at step `steps` its equation gives the schedule's first rate, too"),
    ("position of minibatches without copying the permutation", "an epoch draws a new array, none is written to"),
    ("copies of a sandbox in C order", "values are put back into the arrays as they lie"),
    ("more or fewer buffers in a pool, another limit for small batches", "only speed and memory depend on them"),
)

TABLES = {"kernels": (MUTANTS, EQUIVALENT), "training": (TRAINING_MUTANTS, TRAINING_EQUIVALENT)}


def copy_tree(target: Path) -> Path:
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__", "*.o", "build"))
        elif source.exists():
            shutil.copy2(source, target / name)
    return target


def run(command: list[str], folder: Path) -> tuple[int, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("FASTOPTIM_", "PYTEST_"))}
    environment = kept | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.Popen(
        [*PREFIX, *command],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        output, _ = done.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(done.pid, signal.SIGKILL)  # with the children that the tests have forked
        done.communicate()
        return -signal.SIGKILL, f"no end within {SECONDS} s"
    return done.returncode, output


def build(folder: Path, objects: Path, changed: str = "") -> None:
    """Compile the extension as setup.py does, but only the sources that may differ from those of `objects`."""
    here = runpy.run_path(str(folder / "csrc" / "build_ffi.py"))
    for library in (folder / "fastoptim").glob("_c*.so"):
        library.unlink()
    with contextlib.redirect_stdout(None):
        here["ffi"].emit_c_code(str(folder / "csrc" / "_c.c"))
    paths = [f"-I{path}" for path in (folder / "csrc", np.get_include(), sysconfig.get_path("include"))]
    linked = []
    for name in (*here["SOURCES"], "_c.c"):
        target = objects / f"{name}.o"
        if Path(changed).suffix != ".c" or changed == name:
            if changed:
                target = folder / f"{name}.o"
            command = ["gcc", *here["FLAGS"], "-fPIC", "-DPy_LIMITED_API=0x030B0000", *paths]
            compiled(folder, [*command, "-c", str(folder / "csrc" / name), "-o", str(target)])
        linked.append(str(target))
    compiled(folder, ["gcc", "-shared", *linked, "-lpthread", "-lm", "-o", str(folder / "fastoptim" / "_c.abi3.so")])


def compiled(folder: Path, command: list[str]) -> None:
    status, output = run(command, folder)
    if status:
        raise RuntimeError(f"the copy does not build:\n{output[-2000:]}")


def tests_fail(folder: Path, tests: tuple[str, ...]) -> str | None:
    """What noticed the mutant: the first failing test, or how the process ended; None if all tests pass."""
    status, output = run([sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests], folder)
    if status == 0:
        return None
    failed = [line for line in output.splitlines() if line.startswith(("FAILED", "ERROR"))]
    if status == 1 and failed:
        return failed[0].split()[1].partition("::")[2] or failed[0]
    if status < 0 or status > 5 or not failed:
        return f"process ended with {status}"
    raise RuntimeError(f"the tests could not be run ({status}):\n{output[-2000:]}")


def applies(tree: Path, mutant: Mutant) -> bool:
    return (tree / mutant.file).read_text().count(mutant.old) > mutant.which


def mutate(path: Path, mutant: Mutant) -> None:
    parts = path.read_text().split(mutant.old)
    at = mutant.which + 1
    path.write_text(mutant.old.join(parts[:at]) + mutant.new + mutant.old.join(parts[at:]))


def outcome(base: Path, mutant: Mutant) -> str | None:
    if not applies(base, mutant):
        return "NOT MADE: its text is gone"
    try:
        return try_mutant(base, mutant)
    except RuntimeError as error:
        return f"NOT MADE: {error}"


def try_mutant(base: Path, mutant: Mutant) -> str | None:
    with tempfile.TemporaryDirectory(prefix="mutant") as name:
        folder = Path(name) / "tree"
        shutil.copytree(base, folder)
        mutate(folder / mutant.file, mutant)
        if mutant.file.startswith("csrc"):
            build(folder, base.with_name("objects"), Path(mutant.file).name)
        return next(filter(None, (tests_fail(folder, (test,)) for test in mutant.tests)), None)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--table", choices=TABLES, default="kernels")
    parser.add_argument("--only", default="", help="mutants whose name or file holds this")
    parser.add_argument("--jobs", type=int, default=1, help="how many are tried at once")
    parser.add_argument("--prefix", default="", help="what tests and compilers are started with, for example 'nice'")
    options = parser.parse_args()
    PREFIX.extend(options.prefix.split())
    mutants, equivalent = TABLES[options.table]
    chosen = [m for m in mutants if options.only in m.name or options.only in m.file]
    begin, survivors, not_made = time.perf_counter(), [], []
    with tempfile.TemporaryDirectory(prefix="mutants") as name, ThreadPoolExecutor(options.jobs) as pool:
        base = copy_tree(Path(name) / "base")
        if options.table == "kernels":
            base.with_name("objects").mkdir()
            build(base, base.with_name("objects"))
        where = run([sys.executable, "-c", "import fastoptim; print(fastoptim.__file__)"], base)[1].strip()
        if not where.startswith(str(base)):
            raise RuntimeError("the copy's tests would import another fastoptim")
        every = list(dict.fromkeys(test.partition("::")[0] for mutant in chosen for test in mutant.tests))
        failed = [found for found in pool.map(lambda test: tests_fail(base, (test,)), every) if found]
        if failed:
            print(f"the unchanged copy fails: {failed}")
            return 1
        print(f"the unchanged copy passes {len(every)} files of tests", flush=True)
        for number, (mutant, noticed) in enumerate(
            zip(chosen, pool.map(lambda m: outcome(base, m), chosen), strict=True), 1
        ):
            if noticed is None:
                survivors.append(mutant)
            elif noticed.startswith("NOT MADE"):
                not_made.append(mutant)
            print(f"{number:3} {mutant.name:48} {mutant.file:24} {noticed or 'SURVIVED'}", flush=True)
    killed = len(chosen) - len(survivors) - len(not_made)
    print("\nEquivalent changes, not counted:")
    for change, reason in equivalent:
        print(f"    {change}: {reason}")
    print(f"\n{killed} of {len(chosen)} mutants killed, {len(not_made)} not made, {time.perf_counter() - begin:.0f} s")
    return 0 if chosen and not not_made and killed >= TARGET * len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
