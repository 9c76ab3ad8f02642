"""Which instruction set is chosen: from what the processor and the operating system offer, and what the user forces."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import pytest

import fastoptim as fo
from fastoptim.backends import c, get_backend
from fastoptim.backends.c import ISA_NAMES, lib

BASELINE, AVX2, AVX512 = range(3)

# Bits as the processor manuals number them: CPUID.1:ECX, CPUID.(7,0):EBX and XCR0.
LEAF1 = {"osxsave": 27, "avx": 28, "fma": 12}
LEAF7 = {"avx2": 5, "avx512f": 16, "avx512dq": 17, "avx512bw": 30, "avx512vl": 31, "bmi2": 8}
XCR0 = {"x87": 0, "xmm": 1, "ymm": 2, "opmask": 5, "zmm low": 6, "zmm high": 7}
NEEDED = {
    AVX2: {"osxsave", "avx", "avx2", "xmm", "ymm"},
    AVX512: {"avx512f", "avx512dq", "avx512bw", "avx512vl", "opmask", "zmm low", "zmm high"},
}


@pytest.mark.parametrize("name", ["fo_rule_terms", "fo_plan_new", "FO_ALONE_BELOW"])
def test_an_extension_of_older_sources_is_not_used(monkeypatch, name):
    older = SimpleNamespace(**{known: getattr(lib, known) for known in dir(lib) if known != name})
    monkeypatch.setattr(c, "lib", older)
    with pytest.raises(ImportError, match=f"was built from other sources .*{name}.*: install fastoptim again"):
        c.CBackend()


def test_an_extension_for_pythons_with_a_lock_is_not_used_by_one_without():
    if ".abi3" not in c._c.__file__:
        pytest.skip("LOUD: the extension is not one of the stable ABI")
    code = "import sys; sys.abiflags = 't'; import fastoptim.backends.c"
    found = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert "was not built for a free-threaded Python" in found.stderr and "ImportError" in found.stderr
    assert found.returncode == 1


def subsets(table):
    for count in range(len(table) + 1):
        yield from combinations(table, count)


def register(table, names):
    return sum(1 << table[name] for name in names)


def wanted(features, max_leaf):
    if max_leaf < 7 or not features >= NEEDED[AVX2]:
        return BASELINE
    return AVX512 if features >= NEEDED[AVX512] else AVX2


def test_every_subset_of_features():
    seen = {BASELINE: 0, AVX2: 0, AVX512: 0}
    for leaf1 in subsets(LEAF1):
        for leaf7 in subsets(LEAF7):
            for xcr0 in subsets(XCR0):
                registers = register(LEAF1, leaf1), register(LEAF7, leaf7), register(XCR0, xcr0)
                isa = wanted({*leaf1, *leaf7, *xcr0}, 7)
                assert lib.fo_x86_isa(7, *registers) == isa, (leaf1, leaf7, xcr0)
                seen[isa] += 1
    assert sum(seen.values()) == 2 ** (len(LEAF1) + len(LEAF7) + len(XCR0)) and min(seen.values()) > 0


@pytest.mark.parametrize("max_leaf", [0, 1, 6, 7, 13, 0x20])
def test_leaf_7_is_read_only_where_there_is_one(max_leaf):
    ones = (1 << 32) - 1
    assert lib.fo_x86_isa(max_leaf, ones, ones, (1 << 64) - 1) == (AVX512 if max_leaf >= 7 else BASELINE)


def test_a_system_that_saves_no_zmm_registers_gets_avx2():
    ones = (1 << 32) - 1
    assert lib.fo_x86_isa(13, ones, ones, 0x7) == AVX2
    assert lib.fo_x86_isa(13, ones, ones, 0x3) == BASELINE
    assert lib.fo_x86_isa(13, ones & ~(1 << 27), ones, 0) == BASELINE


def test_the_best_is_what_the_operating_system_reports():
    try:
        with open("/proc/cpuinfo") as file:
            flags = next((set(line.split()) for line in file if line.startswith("flags")), None)
    except OSError:
        flags = None
    if flags is None or ISA_NAMES[0] != "baseline":
        pytest.skip("LOUD: no list of x86 features in /proc/cpuinfo to compare with")
    best = BASELINE
    if flags >= {"avx", "avx2", "xsave"}:
        best = AVX512 if flags >= {"avx512f", "avx512dq", "avx512bw", "avx512vl"} else AVX2
    assert lib.fo_cpu_isa() == best


# --- What the user forces; in processes of their own, since the choice is made once -------------------------------

STEP = """
import warnings, numpy as np, fastoptim as fo
warnings.simplefilter("error")
p = np.ones(100, np.float32)
opt = fo.Adam(p, backend={backend!r})
opt.step(np.ones(100, np.float32))
from fastoptim.backends import get_backend
print(opt.backend, getattr(get_backend(opt.backend), "isa", None), float(p[0]).hex())
"""
WITHOUT_C = 'import sys; sys.modules["fastoptim._c"] = None\n'


def python(code, **environment):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FASTOPTIM_")}
    return subprocess.run(
        [sys.executable, "-c", code], env=kept | environment, capture_output=True, text=True, check=False, timeout=120
    )


@pytest.mark.parametrize("isa", ISA_NAMES)
def test_environment_forces_an_instruction_set(isa):
    c = get_backend("c")
    done = python(STEP.format(backend="c"), FASTOPTIM_ISA=isa)
    if isa in c.isas:
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == ["c", isa, python(STEP.format(backend="numpy")).stdout.split()[2]]
    else:
        assert done.returncode != 0
        assert isa in done.stderr and "is not available" in done.stderr


@pytest.mark.parametrize("name", ["avx", "AVX2", "sse9", "roof0", "neon" if ISA_NAMES[0] == "baseline" else "avx2"])
def test_an_instruction_set_that_was_not_built_is_an_error(name):
    done = python(STEP.format(backend="auto"), FASTOPTIM_ISA=name)
    assert done.returncode != 0
    assert "ValueError" in done.stderr and repr(name) in done.stderr and ISA_NAMES[0] in done.stderr


def test_selecting_in_the_process():
    c = get_backend("c")
    before = c.isa
    try:
        for name in c.isas:
            c.set_isa(name)
            assert c.isa == name
        with pytest.raises(ValueError, match="'mmx'"):
            c.set_isa("mmx")
        assert c.isa == c.isas[-1]
    finally:
        c.set_isa(before)
    for number in (-1, len(ISA_NAMES), 1 << 20):
        assert lib.fo_isa_select(number) == 0
    assert c.isa == before


def test_unset_and_empty_mean_the_best():
    best = get_backend("c").isas[-1]
    for environment in ({}, {"FASTOPTIM_ISA": ""}):
        assert python(STEP.format(backend="auto"), **environment).stdout.split()[:2] == ["c", best]


@pytest.mark.parametrize("name", ["c", "numpy"])
def test_environment_forces_a_backend_where_auto_is_asked_for(name):
    done = python(STEP.format(backend="auto"), FASTOPTIM_BACKEND=name)
    assert done.stdout.split()[0] == name, done.stderr


def test_an_unknown_backend_is_an_error():
    done = python(STEP.format(backend="auto"), FASTOPTIM_BACKEND="fortran")
    assert done.returncode != 0
    assert "ValueError" in done.stderr and "'fortran'" in done.stderr and "one of auto, c, numba" in done.stderr


def test_a_forced_backend_that_is_missing_is_an_error():
    done = python(WITHOUT_C + STEP.format(backend="auto"), FASTOPTIM_BACKEND="c")
    assert done.returncode != 0
    assert "ImportError" in done.stderr and "missing" in done.stderr


def test_without_the_extension_one_warning_and_the_same_numbers():
    code = WITHOUT_C + STEP.format(backend="auto").replace('"error"', '"always"') + "\nfo.SGD(np.ones(3))"
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("RuntimeWarning") == 1 and "the C extension of fastoptim is missing" in done.stderr
    root = Path(fo.__file__).parents[1]
    sources = f"the sources at {root}: run from another folder, or build in place"
    assert (sources in done.stderr) == (root / "csrc").exists()
    backend, _, value = done.stdout.split()
    assert backend in ("numba", "numpy")
    assert value == python(STEP.format(backend="c")).stdout.split()[2]


def test_forced_kernels_without_the_extension_are_an_error():
    done = python(WITHOUT_C + STEP.format(backend="auto"), FASTOPTIM_ISA="avx2")
    assert done.returncode != 0 and "FASTOPTIM_ISA=avx2" in done.stderr


@pytest.mark.parametrize(
    ("environment", "auto"),
    [
        ({}, "c"),
        ({"FASTOPTIM_BACKEND": "numpy"}, "numpy"),
        ({"FASTOPTIM_BACKEND": "auto"}, "c"),
        ({"FASTOPTIM_BACKEND": "foo"}, "error: backend must be one of"),
        ({"FASTOPTIM_ISA": "mmx"}, "error: FASTOPTIM_ISA: instruction set 'mmx'"),
    ],
)
def test_info_says_what_auto_takes_or_why_it_cannot(environment, auto):
    done = python("import fastoptim as fo, json; print(json.dumps(fo.info()))", **environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["auto"].startswith(auto)
    assert ("missing" in found["backends"]["c"]) == ("FASTOPTIM_ISA" in environment)


def test_require_c_makes_a_missing_extension_an_error():
    done = python(WITHOUT_C + STEP.format(backend="auto"), FASTOPTIM_REQUIRE_C="1")
    assert done.returncode != 0
    assert "ImportError" in done.stderr and "the C extension of fastoptim is missing" in done.stderr
    assert python(STEP.format(backend="auto"), FASTOPTIM_REQUIRE_C="1").returncode == 0
