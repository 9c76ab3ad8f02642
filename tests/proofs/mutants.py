"""Planted bugs must be caught: python -m tests.proofs.mutants [--only WORD]

Each mutant changes a few characters of the C code, of the law or of what drives it, in a copy of the tree in a
temporary folder; the copy is built and the tests named beside it are run there. A mutant is killed if one of them
fails. The script exits with 1 if fewer than 95 % are killed, if the unchanged copy fails, or if a mutant cannot be made
(its text is gone, or it does not compile).
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
COPIED = ("csrc", "fastoptim", "tests", "setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in")
TARGET = 0.95
PREFIX: list[str] = []
SECONDS = 600  # a mutant that takes longer hangs: killed

GOLDEN, BITS, ORACLE, RANDOM, THREADS, REFUSALS, OBJECTS, DISPATCH = (
    f"tests/test_{name}.py"
    for name in ("golden", "bits", "oracle", "random_cases", "threads", "refusals", "objects", "dispatch")
)
EMULATED = "tests/test_emulated.py"
GOLDEN_C = f"{GOLDEN}::test_c_on_every_instruction_set"
OPTIMIZERS = "tests/test_optimizers.py"


class Mutant(NamedTuple):
    """`old` becomes `new` at its place number `which` in a file; `tests` are to notice."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...] = (GOLDEN_C, RANDOM, BITS)
    which: int = 0


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
    Mutant("gradients written", LOOPS, "if (slot != 1)", "if (1)", ("tests/test_layouts.py",)),
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
        "lane[j] = lane[2 * j] + lane[2 * j + 1]",
        "lane[j] = lane[j] + lane[j + width]",
    ),
    Mutant("norm: scaled in double", LOOPS, "k * (double)NAME(scale)(g[i + j], s)", "k * ((double)g[i + j] * s)"),
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
        "for (int i = 0; i < slots; i++)\n        if ((char *)before",
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
    Mutant("selection beyond the machine", "csrc/kernels.c", "isa > fo_cpu_isa()", "isa > 2", (DISPATCH, EMULATED)),
    # What reads the arrays
    Mutant(
        "overlap of parameters not noticed",
        BIND,
        "if (!sort_written(plan))\n        return 0;",
        "sort_written(plan);",
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
    Mutant("moved arrays not noticed", BIND, "wrote_elsewhere |= slot != 1 && moved[slot];", "", DRIVER),
    Mutant("read-only not noticed", BIND, "(slot == 1 ? 0 : NPY_ARRAY_WRITEABLE)", "0", DRIVER),
    Mutant("shape not looked at", BIND, "if (PyArray_DIM(array, i) != entry->shape[i])", "if (0)", DRIVER),
    Mutant("byte order not looked at", BIND, " || dtype->byteorder != '='", "", DRIVER),
    Mutant(
        "memory order not looked at",
        BIND,
        "moved[slot] < 0 || !order",
        "moved[slot] < 0",
        (*DRIVER, "tests/test_layouts.py"),
    ),
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
)


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
    parser.add_argument("--only", default="", help="mutants whose name or file holds this")
    parser.add_argument("--jobs", type=int, default=1, help="how many are tried at once")
    parser.add_argument("--prefix", default="", help="what tests and compilers are started with, for example 'nice'")
    options = parser.parse_args()
    PREFIX.extend(options.prefix.split())
    chosen = [m for m in MUTANTS if options.only in m.name or options.only in m.file]
    begin, survivors, not_made = time.perf_counter(), [], []
    with tempfile.TemporaryDirectory(prefix="mutants") as name, ThreadPoolExecutor(options.jobs) as pool:
        base = copy_tree(Path(name) / "base")
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
    for change, reason in EQUIVALENT:
        print(f"    {change}: {reason}")
    print(f"\n{killed} of {len(chosen)} mutants killed, {len(not_made)} not made, {time.perf_counter() - begin:.0f} s")
    return 0 if chosen and not not_made and killed >= TARGET * len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
