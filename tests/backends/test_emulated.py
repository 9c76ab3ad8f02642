"""The kernels on other processors: cross-compiled or emulated, against the golden hashes.

``tests/support/emulated/steps.c`` is linked with the C files of the extension (all but the one that needs Python)
and runs the jobs of `golden` under qemu's user-mode emulator, in threads that flush subnormal numbers to zero and
round upward.

Most of the time goes into compiling. Here the programs have one rule of each number of states and kind of result, and
those for x86-64 are barely optimized; ``tests/proofs/golden_elsewhere.py`` runs all, as optimized as what is installed.
"""

from __future__ import annotations

import platform
import runpy
import signal
import struct
import subprocess
from collections.abc import Collection
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from fastoptim.backends.c import RULE_NAMES
from fastoptim.rules.table import DECAYS, RULES
from tests.support import ROOT, golden
from tests.support.cases import EVERY_CASE, VARIANTS
from tests.support.csrc import sources_with

from .test_objects import check, functions, tool

BUILD = runpy.run_path(str(ROOT / "csrc" / "build_ffi.py")) if (ROOT / "csrc").is_dir() else {}
SOURCES = [name for name in BUILD.get("SOURCES", ()) if name != "bind.c"]
GOLDEN = golden.load()
_KINDS = {(len(rule.states), rule.gives): name for name, rule in reversed(RULES.items())}
SAMPLE = [name for name in RULES if EVERY_CASE or name in _KINDS.values()]
_LABELS = {variant.label for variant in VARIANTS if variant.rule.name in SAMPLE}
HASHES = {name: x for name, x in GOLDEN["hashes"].items() if name.split()[0] in _LABELS}
FEWER = {name: x for i, (name, x) in enumerate(HASHES.items()) if EVERY_CASE or i % 3 == 0}  # emulators are slow
ISAS = ["baseline", "avx2", "avx512"]

if not (ROOT / "csrc").is_dir():
    pytest.skip("LOUD: no C sources beside the tests", allow_module_level=True)


def build(compiler: str, target: Path, *flags: str, csrc: Path = ROOT / "csrc") -> Path:
    command = [compiler, *BUILD["FLAGS"], *flags, f"-I{csrc}", "-Wall", "-Wextra", "-Werror", "-o", target]
    command += [ROOT / "tests/support/emulated/steps.c", *(csrc / name for name in SOURCES), "-pthread", "-lm"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """The sources with the rules of the sample."""
    return sources_with(SAMPLE, tmp_path_factory.mktemp("sample") / "csrc")


@pytest.fixture(scope="module")
def native(sample):
    """The program built for this machine, statically, so that emulating an old processor starts no newer libc code."""
    if platform.machine() != "x86_64":
        pytest.skip("LOUD: this machine is not x86-64")
    return build(tool("gcc", "gcc"), sample.parent / "native", "-static", "-O1", csrc=sample)


@pytest.fixture(scope="module")
def aarch64(tmp_path_factory):
    """The program in a folder of its own, with the objects that it was linked of."""
    compiler = tool("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu libc6-dev-arm64-cross")
    folder = tmp_path_factory.mktemp("aarch64")
    csrc = sources_with(SAMPLE, folder / "csrc", more=True)
    return build(compiler, folder / "steps", "-static", "-save-temps=obj", csrc=csrc)


def request(jobs: list[golden.Job], order: str, rules: list[str]) -> bytes:
    """What `steps` with these rules reads, in the byte order of its machine: "=", "<" or ">"."""

    def raw(x: np.ndarray) -> bytes:
        return x.astype(x.dtype.newbyteorder(order)).tobytes()

    parts = []
    for job in jobs:
        variant = job.variant
        storage = 0 if job.dtype is np.float32 else 1
        parts.append(
            struct.pack(
                f"{order}6iqd",
                rules.index(variant.rule.name),
                DECAYS.index(variant.decay),
                storage,
                job.threads,
                len(job.grads),
                0,
                len(job.entries),
                golden.SCALE,
            )
        )
        parts.append(raw(np.array([p.size for p, *_ in job.entries], np.int64)))
        parts += [raw(x) for entry in job.entries for x in entry]
        for step, grads in enumerate(job.grads):
            scalars = job.scalars(step)
            parts.append(struct.pack(f"{order}18d", *scalars, *[0.0] * (18 - len(scalars))))
            parts += [raw(g) for g in grads]
    return b"".join(parts)


def answers(jobs: list[golden.Job], output: bytes, order: str = "=") -> list[list[np.ndarray]]:
    found, at = [], 0
    for job in jobs:
        found.append([])
        for template in [*(x for entry in job.entries for x in entry), np.zeros(1)]:
            x = np.frombuffer(output, template.dtype.newbyteorder(order), template.size, at)
            found[-1].append(x.astype(template.dtype))
            at += template.nbytes
    assert at == len(output)
    return found


def started(command: list, data: bytes = b"") -> tuple[int, str, bytes]:
    """Exit status, what the program itself said on standard error (qemu warns there too), and its output."""
    done = subprocess.run(command, input=data, capture_output=True, check=False, timeout=900)
    lines = done.stderr.decode().strip().splitlines()
    return done.returncode, "\n".join(line for line in lines if not line.startswith(("qemu-", "wine"))), done.stdout


@cache
def jobs_of(names: frozenset[str]) -> list[tuple[str, list[golden.Job]]]:
    return [(name, jobs) for name, jobs in golden.jobs(GOLDEN) if name in names]


def run(
    command: list, order: str = "=", names: Collection[str] = GOLDEN["hashes"], rules: list[str] = RULE_NAMES
) -> tuple[str, dict[str, str]]:
    """The instruction set that the program with these rules chose, and the hash for every name."""
    named = jobs_of(frozenset(names))
    every = [job for _, jobs in named for job in jobs]
    status, chosen, output = started(command, request(every, order, rules))
    assert status == 0, (status, chosen)
    remaining = iter(answers(every, output, order))
    return chosen, {name: golden.hash_of([next(remaining) for _ in jobs]) for name, jobs in named}


def sample_is_equal(command: list, isa: str, hashes: dict[str, str] = HASHES) -> None:
    assert run(command, names=hashes, rules=SAMPLE) == (isa, hashes)


@pytest.mark.parametrize(
    ("sanitizers", "callers"),
    # Memory and arithmetic; races between the pool's threads, and between threads that step at once.
    [("address,undefined", [1]), ("thread", [1, 3])],
    ids=["address,undefined", "thread, one caller and three"],
)
def test_sanitizers_find_nothing(tmp_path, sample, sanitizers, callers):
    compiler = tool("gcc", "gcc")
    # The loops of other instruction sets are the same source, which takes three times as long to compile.
    flags = ["-O1", "-DFO_BASELINE", f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"]
    (tmp_path / "probe.c").write_text("int main(void) { return 0; }")
    probe = [compiler, *flags, "-o", tmp_path / "probe", tmp_path / "probe.c"]
    if subprocess.run(probe, capture_output=True, check=False).returncode or started([tmp_path / "probe"])[0]:
        pytest.skip(f"LOUD: this compiler or machine has no -fsanitize={sanitizers}; apt-get install gcc libc6-dev")
    program = build(compiler, tmp_path / "steps", *flags, csrc=sample)
    for count in callers:
        sample_is_equal([program, f"-{count}"], "baseline")


@pytest.mark.parametrize("isa", ISAS)
def test_native_build_gives_the_golden_hashes(native, isa):
    _, best, _ = started([native])
    if ISAS.index(isa) > ISAS.index(best):
        status, message, _ = started([native, isa])
        assert status == 1 and "lacks" in message
        pytest.skip(f"LOUD: this machine stops at {best}")
    sample_is_equal([native, isa], isa)


def test_aarch64_gives_the_golden_hashes(aarch64):
    sample_is_equal([tool("qemu-aarch64", "qemu-user"), aarch64], "neon", FEWER)


def test_objects_for_aarch64(aarch64):
    objdump, found = tool("aarch64-linux-gnu-objdump", "binutils-aarch64-linux-gnu"), {}
    for path in aarch64.parent.glob("*.o"):
        found |= functions(path, objdump)
    check(found, ("only",), SAMPLE)


@pytest.mark.parametrize(
    ("processor", "isa"),
    [
        ("Nehalem", "baseline"),
        ("SandyBridge", "baseline"),  # AVX, but not AVX2
        ("Haswell", "avx2"),
        ("Haswell,-avx2", "baseline"),
        ("Haswell,-xsave", "baseline"),  # AVX2 whose registers the system does not save
        ("Skylake-Server,-avx512f", "avx2"),
    ],
)
def test_dispatcher_stays_within_the_emulated_processor(native, processor, isa):
    command = [tool("qemu-x86_64", "qemu-user"), "-cpu", processor, native]
    status, chosen, _ = started(command)
    if isa == "avx2" and (status, chosen) == (0, "baseline"):
        pytest.skip("LOUD: this qemu does not emulate AVX2; apt-get install qemu-user, version 7.2 or newer")
    assert (status, chosen) == (0, isa)
    if processor in ("Nehalem", "Haswell"):
        sample_is_equal(command, isa, FEWER)
    for better in ISAS[ISAS.index(isa) + 1 :]:
        status, message, _ = started([*command, better])
        assert status == 1 and "lacks" in message


def test_an_instruction_that_the_emulated_processor_lacks_ends_the_program(tmp_path):
    """The net that the test above relies on."""
    if platform.machine() != "x86_64":
        pytest.skip("LOUD: this machine is not x86-64")
    qemu, compiler = tool("qemu-x86_64", "qemu-user"), tool("gcc", "gcc")
    (tmp_path / "leak.c").write_text('int main(void) { __asm__ volatile("vpaddd %ymm0, %ymm0, %ymm0"); return 0; }')
    subprocess.run([compiler, "-static", "-o", tmp_path / "leak", tmp_path / "leak.c"], check=True)
    assert started([qemu, "-cpu", "Haswell", tmp_path / "leak"])[0] == 0
    assert started([qemu, "-cpu", "Nehalem", tmp_path / "leak"])[0] == -signal.SIGILL
