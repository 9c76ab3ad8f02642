"""The tests with the oldest and the newest of every dependency, on each Python at hand, from a built wheel.

    python -m tests.proofs.versions [--wheel FILE] [--python FILE...] [NAME...] [-- PYTEST_OPTION...]

NAME is a Python and an age, as "3.11-oldest" or "3.13-newest"; default: the oldest dependencies on the oldest Python,
and the newest on every one. Each gets an environment of its own, from the package registry, with the wheel, NumPy and
the extras that tests make use of; the tests are copied, so that neither sources nor a compiler stand beside them.
"Oldest" is what ``pyproject.toml`` says. An interpreter is looked for on the path, among pyenv's, and in --python;
which of them are missing is said. Exit status 1 if a test fails.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from tests.support import ROOT

PYTHONS = ("3.11", "3.12", "3.13", "3.14", "3.15", "3.14t")
EXTRAS = ("train", "checkpoint", "lowprec")
# What meets Python, NumPy, Numba, cffi and ml_dtypes from several sides, in two minutes of processor time: not the
# histories and proofs of the rules, nor Numba's golden hashes, as test_numba compares its bits.
LEFT_OUT = "not test_a_sample_of and not test_other_host_backends"
OPTIMIZERS = ("functional", "refusals", "saving", "storage")
TESTS = (
    *("common", "arrays", "checkpoint", "backends/test_golden.py", "backends/test_numba.py"),
    *(f"optimizers/test_{name}.py" for name in OPTIMIZERS),
)
WORDS = ("pass", "FAIL", "skipped for want of an interpreter")
ASK = (
    "import sys, sysconfig as s; "
    "print('%d.%d' % sys.version_info[:2] + 't' * bool(s.get_config_var('Py_GIL_DISABLED')))"
)


def interpreters(named: list[Path]) -> dict[str, Path]:
    """Version -> an interpreter that runs."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    on_path = [shutil.which(f"python{version}") for version in PYTHONS]
    found: dict[str, Path] = {}
    for path in [*named, *sorted(pyenv.glob("versions/3.1*/bin/python")), *(Path(x) for x in on_path if x)]:
        done = subprocess.run([path, "-c", ASK], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            found.setdefault(done.stdout.strip(), path)
    return found


def requirements(age: str) -> list[str]:
    """What to install beside the wheel."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = list(project["dependencies"]) + [x for name in EXTRAS for x in project["optional-dependencies"][name]]
    plain = [re.split(r"[;#]", x)[0].strip() for x in listed]
    return [x.replace(">=", "==") for x in plain] if age == "oldest" else plain


# A checkout on PYTHONPATH would count as installed.
def run(python: Path, *command: object, cwd: Path = ROOT, **more: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": "", "FASTOPTIM_REQUIRE_C": "1"} | more
    given = {"cwd": cwd, "env": environment, "capture_output": True, "text": True}
    return subprocess.run([python, *map(str, command)], check=False, **given)


def tried(interpreter: Path, age: str, wheel: Path, options: list[str], folder: Path) -> tuple[bool, str]:
    """Whether all went well, and what came out."""
    made = run(interpreter, "-m", "venv", "--without-pip", folder / "venv")
    python = folder / "venv" / "bin" / "python"
    pip = ("-m", "pip", "--python", python, "install", "-q", "--prefer-binary")
    wanted, here = requirements(age), Path(sys.executable)
    made = made if made.returncode else run(here, *pip, *wanted, "pytest", "hypothesis")
    if "t" in run(interpreter, "-c", ASK).stdout:  # free-threaded: no stable ABI
        made = made if made.returncode else run(here, *pip, "setuptools>=77", "cffi>=2.1")
        build = ("-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-build-isolation", ROOT)
        made = made if made.returncode else run(here, *build)
    else:
        made = made if made.returncode else run(here, *pip, "--no-deps", wheel)
    if made.returncode:
        return False, "not installed: " + (made.stderr.strip().splitlines() or ["?"])[-1]
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(ROOT / "pyproject.toml", folder)
    alone = {"PATH": str(python.parent)}
    names = sorted({re.split(r"[=<>!\[ ]", x)[0] for x in wanted})
    ask = f"from importlib.metadata import version; print(*[x + ' ' + version(x) for x in {names}], sep=', ')"
    versions = run(python, "-c", ask, cwd=folder, **alone).stdout.strip()
    said = run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, cwd=folder, **alone)
    lines = said.stdout.strip().splitlines() or said.stderr.strip().splitlines() or ["?"]
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR", "E  "))]
    return said.returncode == 0, "\n    ".join([f"{lines[-1].strip('= ')}  ({versions})", *failed])


def main() -> int:
    arguments = [*sys.argv[1:], "--"]
    cut = arguments.index("--")
    rest = arguments[cut + 1 : -1]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    wheels = sorted((ROOT / "dist").glob("*-cp311-abi3-manylinux*_x86_64.whl"))
    parser.add_argument("--wheel", type=Path, default=wheels[-1] if wheels else None)
    parser.add_argument("--python", type=Path, action="append", default=[], help="an interpreter to try")
    parser.add_argument("names", nargs="*", metavar="NAME")
    options = parser.parse_args(arguments[:cut])
    if options.wheel is None:
        parser.error("no wheel in dist/: run `make wheels` first, or name one with --wheel")
    found, passed, failed, skipped = interpreters(options.python), [], [], []
    tests = rest or ["-k", LEFT_OUT, *(f"tests/{name}" for name in TESTS)]
    for name in options.names or [f"{PYTHONS[0]}-oldest", *(f"{version}-newest" for version in PYTHONS)]:
        version, _, age = name.partition("-")
        if version not in found:
            print(f"{name:13} SKIPPED: no Python {version} is at hand", flush=True)
            skipped.append(name)
            continue
        with tempfile.TemporaryDirectory() as folder:
            well, words = tried(found[version], age or "newest", options.wheel.resolve(), tests, Path(folder))
        (passed if well else failed).append(name)
        print(f"{name:13} {words}", flush=True)
    print("; ".join(f"{word}: {', '.join(x)}" for word, x in zip(WORDS, (passed, failed, skipped), strict=True) if x))
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
