"""The tests with Windows' Python under wine: python -m tests.proofs.windows FOLDER [--wheel FILE] [-- PYTEST_OPTION...]

FOLDER holds the ``python.exe`` of an unpacked CPython 3.13 for x86-64. Packages for Windows are put into its
``site-packages``, and the wheel that ``make wheels`` built; neither sources nor a compiler stand beside the tests.
Where only Python files have changed since, ``wheels/make_wheels.py x86_64-windows`` packs them anew within seconds.

Wine is not Windows, and lacks two things that NumPy and the tests ask for: `_wmi`, which ends the process, is taken
away, and Python does without; the parts and sizes of complex numbers are in a small library that ``zig cc`` compiles.
What fails is printed, with a reason where it is not fastoptim's; exit status 1 if there is none.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support import ROOT

PACKAGES = (
    "numpy",
    "cffi",
    "numba",
    "ml_dtypes",
    "safetensors",
    "tqdm",
    "matplotlib",
    "pytest",
    "hypothesis",
    "colorama",
    "threadpoolctl",
)
BACKENDS = ("golden", "bits", "threads", "stored_bits", "measures")
GROUPS = ("common", "arrays", "checkpoint", "optimizers", "training", "tuning", "test_cli.py")
TESTS = (*(f"backends/test_{x}.py" for x in BACKENDS), *GROUPS)
# Words of a failure -> why it is none of fastoptim's.
EXPECTED = {
    "test_signals_reach_the_main_thread_only": "wine shows the /proc of Linux, where its threads have other numbers",
    "test_the_safetensors_library_reads_the_same": "wine cannot load the library of safetensors",
    "test_other_wrong_uses_are_one_line": "wine has other words for a file that is not there",
    "got ShardedOptimizer": "mpi4py is not installed",
    "test_the_order_of_few_data_hardly_moves": "scikit-learn is not installed",
    "test_other_files_are_refused": "wine cannot load the library of safetensors",
}
# Equally long, as one stands in place of the other in NumPy's libraries.
THEIRS, OURS = b"api-ms-win-crt-math-l1-1-0.dll", b"fastoptim-crt-math-of-wine.dll"
COMPLEX = re.compile(r"_?c(real|imag|abs)([fl]?)")  # wine's other complex functions are not called by any test
BODIES = {"real": "x.re", "imag": "x.im", "abs": "__builtin_hypot(x.re, x.im)"}


def mend(site: Path) -> None:
    """Has NumPy's libraries find the functions that wine lacks in a library of our own, which passes the others on."""
    names: set[str] = set()
    using = [
        path for path in site.glob("numpy*/**/*") if path.suffix in (".pyd", ".dll") and THEIRS in path.read_bytes()
    ]
    for path in using:
        said = subprocess.run(["llvm-objdump", "-p", path], capture_output=True, text=True, check=True).stdout
        for part in said.split("DLL Name: ")[1:]:
            if part.startswith(THEIRS.decode()):
                names |= set(re.findall(r"^\s+\d+\s+(\w+)$", part, re.M))
    with tempfile.TemporaryDirectory() as folder:
        code, exports = "", f"LIBRARY {OURS.decode()}\nEXPORTS\n"
        for name in sorted(names):
            found = COMPLEX.fullmatch(name)
            exports += f"  {name} = {f'our_{name}' if found else f'ucrtbase.{name}'}\n"
            if found:
                number = "float" if found[2] == "f" else "double"
                code += f"{number} our_{name}(struct {{ {number} re, im; }} x) {{ return {BODIES[found[1]]}; }}\n"
        Path(folder, "math.c").write_text(code)
        Path(folder, "math.def").write_text(exports)
        command = [sys.executable, "-m", "ziglang", "cc", "-target", "x86_64-windows-gnu", "-shared", "-w"]
        subprocess.run([*command, "math.c", "math.def", "-o", OURS.decode()], cwd=folder, check=True)
        shutil.copy2(Path(folder, OURS.decode()), site.parents[1])
    for path in using:
        path.write_bytes(path.read_bytes().replace(THEIRS, OURS))


def main() -> int:
    arguments = [*sys.argv[1:], "--"]
    cut = arguments.index("--")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    wheels = sorted((ROOT / "dist").glob("*-win_amd64.whl"))
    parser.add_argument("--wheel", type=Path, default=wheels[-1] if wheels else None)
    options = parser.parse_args(arguments[:cut])
    if options.wheel is None:
        parser.error("no wheel in dist/: run `make wheels` first, or name one with --wheel")
    if missing := [name for name in ("wine", "llvm-objdump") if shutil.which(name) is None]:
        parser.error(f"{', '.join(missing)} missing: apt-get install wine wine64 llvm")
    site = options.folder / "Lib" / "site-packages"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--target", site, "--upgrade", "--only-binary", ":all:"]
    pip += ["--platform", "win_amd64", "--python-version", "3.13"]
    subprocess.run([*pip, *PACKAGES], check=True)
    subprocess.run([*pip, "--no-deps", options.wheel], check=True)
    mend(site)
    (options.folder / "DLLs" / "_wmi.pyd").unlink(missing_ok=True)
    rest = arguments[cut + 1 : -1]
    python = options.folder.resolve() / "python.exe"
    environment = os.environ | {"WINEDEBUG": "-all", "PYTHONPATH": "", "FASTOPTIM_REQUIRE_C": "1"}
    counted, unknown = dict.fromkeys(("passed", "skipped", "failed", "error"), 0), 0
    with tempfile.TemporaryDirectory() as folder:
        for name in ("tests", "benchmarks", "docs"):  # of which tests read some
            shutil.copytree(ROOT / name, Path(folder, name), ignore=shutil.ignore_patterns("__pycache__", "_build"))
        shutil.copy2(ROOT / "pyproject.toml", folder)
        for tests in [rest] if rest else [["-k", "not test_a_sample_of", f"tests/{name}"] for name in TESTS]:
            command = ["wine", str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
            given = {"cwd": folder, "env": environment, "stdin": subprocess.DEVNULL, "capture_output": True}
            done = subprocess.run(command, text=True, check=False, **given)
            lines = done.stdout.strip().splitlines() or done.stderr.strip().splitlines() or ["?"]
            print(f"{tests[-1]:32} {lines[-1].strip('= ')}", flush=True)
            for word in counted:
                counted[word] += sum(map(int, re.findall(rf"(\d+) {word}", lines[-1])))
            for line in lines:
                if line.startswith(("FAILED", "ERROR")):
                    reason = next((why for words, why in EXPECTED.items() if words in line), "")
                    unknown += not reason
                    print(f"    {line}  [{reason or 'UNEXPECTED'}]", flush=True)
            unknown += done.returncode not in (0, 1)  # it did not come to its end
    print(", ".join(f"{n} {word}" for word, n in counted.items()) + f"; {unknown} of these without a known reason")
    return int(unknown > 0)


if __name__ == "__main__":
    sys.exit(main())
