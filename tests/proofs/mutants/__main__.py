"""Planted bugs must be caught: python -m tests.proofs.mutants [--table kernels] [--only WORD]

Each mutant changes a few characters in a copy of the tree in a temporary folder, and the tests named beside it are run
there, first of all the one that noticed it in the last run. The table "kernels" is about the C code, the update rules
and what drives them: for it the copy is built. The others ("checkpoint", "training", "tuning") are about Python alone,
with the extension as it is here. A mutant is killed if one of its tests fails. The script exits with 1 if fewer than
95 % are killed, if the unchanged copy fails, or if a mutant cannot be made (its text is gone, or it does not compile).
Some change what only AVX-512 does; where that is missing they are not tried, and not counted.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
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

import numpy as np

from fastoptim.backends import get_backend

from . import checkpoint, kernels, storage, training, tuning
from .mutant import GOLDEN_C, OBJECTS, Mutant

ROOT = Path(__file__).parents[3]
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
    "examples",
)
TARGET = 0.95
UNTRIED = "NOT TRIED"
PREFIX: list[str] = []
SECONDS = 600  # a mutant that takes longer hangs: killed

SOURCES = (".py", ".c", ".h", ".inc")
TABLES = {
    "kernels": (kernels.MUTANTS, kernels.EQUIVALENT),
    "checkpoint": (checkpoint.MUTANTS, checkpoint.EQUIVALENT),
    "training": (training.MUTANTS, training.EQUIVALENT),
    "tuning": (tuning.MUTANTS, tuning.EQUIVALENT),
    "storage": (storage.MUTANTS, storage.EQUIVALENT),
}


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


def build(folder: Path, objects: Path, changed: str = "", *level: str) -> None:
    """Compile the extension as setup.py does, but only the sources that may differ from those of `objects`."""
    here = runpy.run_path(str(folder / "csrc" / "build_ffi.py"))
    flags = [*here["FLAGS"], *level]
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
            target.parent.mkdir(parents=True, exist_ok=True)
            command = ["gcc", *flags, "-fPIC", "-DPy_LIMITED_API=0x030B0000", *paths]
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


def noticed_before(table: str) -> dict[str, str]:
    """What noticed the mutants of a table in its last run: the names of tests, by that of the mutant."""
    path = ROOT / "benchmarks" / "results" / f"mutants_{table}.txt"
    text = path.read_text() if path.exists() else ""
    return dict(re.findall(r"^ *\d+ (\S.*?) +(?:csrc|fastoptim)\S* +(test_\w+.*)$", text, re.MULTILINE))


def noticed_again(folder: Path, mutant: Mutant, before: str | None) -> str | None:
    """The test that noticed the mutant in the last run, if it fails."""
    for file in dict.fromkeys(test.partition("::")[0] for test in mutant.tests if before):
        status, _ = run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"{file}::{before}"], folder)
        if status == 1:  # another one says that there is no such test
            return before
    return None


def place_of(tree: Path, mutant: Mutant) -> Path | None:
    """The file that holds the text of a mutant; None if it is gone, or in several files of a folder."""
    path = tree / mutant.file
    files = [file for file in path.rglob("*.*") if file.suffix in SOURCES] if path.is_dir() else [path]
    found = [file for file in files if file.read_text().count(mutant.old) > mutant.which]
    return found[0] if len(found) == 1 else None


def mutate(tree: Path, mutant: Mutant) -> Path:
    """Plant the bug; returns the changed file."""
    path = place_of(tree, mutant)
    assert path is not None
    parts, at = path.read_text().split(mutant.old), mutant.which + 1
    path.write_text(mutant.old.join(parts[:at]) + mutant.new + mutant.old.join(parts[at:]))
    return path


def outcome(base: Path, mutant: Mutant, before: str | None) -> str | None:
    if place_of(base, mutant) is None:
        return "NOT MADE: its text is gone, or in several files"
    if mutant.name in kernels.AVX512_ALONE and "avx512" not in get_backend("c").info()["isas"]:
        return f"{UNTRIED}: this processor has no AVX-512"
    try:
        return try_mutant(base, mutant, before)
    except RuntimeError as error:
        return f"NOT MADE: {error}"


def try_mutant(base: Path, mutant: Mutant, before: str | None) -> str | None:
    with tempfile.TemporaryDirectory(prefix="mutant") as name:
        folder = Path(name) / "tree"
        shutil.copytree(base, folder)
        changed = str(mutate(folder, mutant).relative_to(folder))
        if changed.startswith("csrc/"):
            objects, name = base.with_name("objects"), changed.removeprefix("csrc/")
            if name.startswith("kernels/") and GOLDEN_C in mutant.tests:
                # The loops of one instruction set compile in a third of the time, and mostly tell.
                build(folder, objects, name, "-O1", "-DFO_BASELINE")
                if noticed := tests_fail(folder, (GOLDEN_C,)):
                    return noticed
            # Bits do not depend on the level of optimization; object code is read as it is shipped.
            build(folder, objects, name, *([] if OBJECTS in mutant.tests else ["-O1"]))
        again = noticed_again(folder, mutant, before)
        return again or next(filter(None, (tests_fail(folder, (test,)) for test in mutant.tests)), None)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--table", choices=TABLES, default="kernels")
    parser.add_argument("--only", default="", help="mutants whose name or file holds this")
    parser.add_argument(
        "--begin", type=int, default=1, help="number to go on with after a run that was cut off; it has tried the copy"
    )
    parser.add_argument("--jobs", type=int, default=1, help="how many are tried at once")
    parser.add_argument("--prefix", default="", help="what tests and compilers are started with, for example 'nice'")
    options = parser.parse_args()
    PREFIX.extend(options.prefix.split())
    mutants, equivalent = TABLES[options.table]
    chosen = [m for m in mutants if options.only in m.name or options.only in m.file][options.begin - 1 :]
    begin, survivors, not_made, untried = time.perf_counter(), [], [], []
    before = noticed_before(options.table)
    with tempfile.TemporaryDirectory(prefix="mutants") as name, ThreadPoolExecutor(options.jobs) as pool:
        base = copy_tree(Path(name) / "base")
        if options.table == "kernels":
            base.with_name("objects").mkdir()
            build(base, base.with_name("objects"))
        where = run([sys.executable, "-c", "import fastoptim; print(fastoptim.__file__)"], base)[1].strip()
        if not where.startswith(str(base)):
            raise RuntimeError("the copy's tests would import another fastoptim")
        every = list(dict.fromkeys(test.partition("::")[0] for mutant in chosen for test in mutant.tests))
        if options.begin == 1:
            failed = [found for found in pool.map(lambda test: tests_fail(base, (test,)), every) if found]
            if failed:
                print(f"the unchanged copy fails: {failed}")
                return 1
            print(f"the unchanged copy passes {len(every)} files of tests", flush=True)
        for number, (mutant, noticed) in enumerate(
            zip(chosen, pool.map(lambda m: outcome(base, m, before.get(m.name)), chosen), strict=True), options.begin
        ):
            if noticed is None:
                survivors.append(mutant)
            elif noticed.startswith("NOT MADE"):
                not_made.append(mutant)
            elif noticed.startswith(UNTRIED):
                untried.append(mutant)
            print(f"{number:3} {mutant.name:48} {mutant.file:24} {noticed or 'SURVIVED'}", flush=True)
    tried = len(chosen) - len(untried)
    killed = tried - len(survivors) - len(not_made)
    print("\nEquivalent changes, not counted:")
    for change, reason in equivalent:
        print(f"    {change}: {reason}")
    rest = f"{len(not_made)} not made, {len(untried)} {UNTRIED} (no AVX-512 here), {time.perf_counter() - begin:.0f} s"
    print(f"\n{killed} of {tried} mutants killed, {rest}")
    return 0 if tried and not not_made and killed >= TARGET * tried else 1


if __name__ == "__main__":
    sys.exit(main())
