"""What is compiled for CUDA rounds as the update rules do: every kernel's PTX, read without a GPU.

A multiply or add without ``.rn`` may be fused by ptxas, ``.ftz`` loses subnormal numbers, ``.approx`` rounds anyhow.
The machine code that NVIDIA's assembler makes of it is read too, where the disassembler is installed.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import Counter
from functools import cache
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numpy import where

import fastoptim as fo
from fastoptim.backends.cuda import kernels, stored
from fastoptim.backends.cuda.backend import load_overloads
from fastoptim.rules import lowering, updates
from fastoptim.rules.norm import NORM_LANES
from fastoptim.rules.table import RULES, Kernel
from fastoptim.rules.table import kernels as rule_kernels
from tests.support.cases import EVERY_CASE

pytestmark = pytest.mark.skipif(
    find_spec("numba_cuda") is None, reason='LOUD: no PTX was read: pip install ".[cuda]" brings the compiler'
)

DTYPES = [np.dtype(np.float32), np.dtype(np.float64)]
CAPABILITY = (9, 0)
ARCHITECTURE = (*CAPABILITY, "a")  # what numba-cuda compiles for on an H100
# Compiling takes half a second each: in the suite each rule has one dtype and one kind of decay.
COMPILED = [
    (Kernel(rule, decay), dtype)
    for i, rule in enumerate(RULES.values())
    for j, (decay, dtype) in enumerate(product(rule.decays, DTYPES))
    if EVERY_CASE or j == i % (2 * len(rule.decays))
]
OTHERS = sorted(set(kernels.signatures(DTYPES[0])) - {k.name for k in rule_kernels()}) if find_spec("numba") else []
EVERY = [*((kernel.name, dtype) for kernel, dtype in COMPILED), *product(OTHERS, DTYPES)]


@pytest.fixture(autouse=True, scope="module")
def overloads():
    load_overloads()  # beside NumPy 2.5 nothing is compiled without


def label(x):
    return x if isinstance(x, str) else x.name


INSTRUCTION = re.compile(r"^\s*(?:@!?%p\d+\s+)?([a-z]\w*(?:\.\w+)+)", re.MULTILINE)


def faults(ptx):
    """Instructions that may round otherwise than the update rules."""
    found = []
    for name in INSTRUCTION.findall(ptx):
        operation, *modifiers = name.split(".")
        floats = {"f32", "f64", "f16", "f16x2", "f32x2", "bf16"} & set(modifiers)
        if operation in ("fma", "mad") and floats:
            found.append(name)
        if {"ftz", "approx"} & set(modifiers):
            found.append(name)
        if operation in ("mul", "add", "sub", "div", "sqrt") and floats and "rn" not in modifiers:
            found.append(name)
        if operation in ("rcp", "rsqrt", "ex2", "lg2", "sin", "cos", "tanh", "min", "max") and floats:
            found.append(name)
    return found


ROUNDED = re.compile(r"^\s*(?:@!?%p\d+\s+)?(\w+)\.rn\.f(?:32|64)\s+(%\w+), ([^;]+);", re.MULTILINE)


def operations(ptx):
    """How often each arithmetic operation occurs; one that a branch does again on the same values counts once."""
    found, same = set(), {}
    targets = Counter(re.findall(r"^\s*(?:@!?%p\d+\s+)?[a-z][\w.]*\s+(%fd?\d+),", ptx, re.MULTILINE))
    for name, target, operands in ROUNDED.findall(ptx):
        operation = (name, *(same.get(x, x) for x in operands.split(", ")))
        if targets[target] == 1:
            same[target] = operation
        found.add(operation)
    return Counter(operation[0] for operation in found)


@cache
def library(function, signature):
    """What numba-cuda makes of a kernel, which takes most of the time: PTX and intermediate code come from it."""
    from numba import cuda
    from numba.cuda import dispatcher
    from numba.cuda.codegen import CUDACodeLibrary

    made, device = [], SimpleNamespace(compute_capability=ARCHITECTURE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatcher, "get_current_device", lambda: device)
        patch.setattr(CUDACodeLibrary, "get_asm_strs", lambda self, cc: made.append(self) or [""])
        cuda.compile_ptx(function, signature, cc=ARCHITECTURE)
    return made[0]


@cache
def compiled(function, signature):
    (ptx,) = library(function, signature).get_asm_strs(cc=CAPABILITY)
    return ptx


@cache
def module_of(dtype):
    return lowering.load(f"cuda_{dtype.name}", kernels.source(dtype))


@cache
def loaded(name, dtype):
    """The function and its signature."""
    return getattr(module_of(dtype), name), kernels.signatures(dtype)[name]


@pytest.mark.parametrize(("name", "dtype"), EVERY, ids=label)
def test_every_kernel_rounds_each_operation_by_itself(name, dtype):
    ptx = compiled(*loaded(name, dtype))
    assert ".target sm_90" in ptx
    assert ".visible .entry" in ptx
    assert faults(ptx) == []
    assert bool(operations(ptx)) == (name not in ("zero", "move"))


ENDS = {"none": "plain", "coupled": "plain", "decoupled": "decoupled"}


@pytest.mark.parametrize(("kernel", "dtype"), COMPILED, ids=label)
def test_updates_hold_the_operations_of_the_rule_and_wide_loads(kernel, dtype):
    rule, decay = kernel
    streams = 2 + len(rule.states)
    width = 16 // dtype.itemsize
    suffix = {4: "f32", 8: "f64"}[dtype.itemsize]
    text = lowering.scalar(rule.function, calls=True)
    extra = int(decay != "none")
    ptx = compiled(*loaded(kernel.name, dtype))
    counts = operations(ptx)
    end = "" if rule.gives == "parameter" else lowering.scalar(getattr(updates, ENDS[decay]), calls=True)
    copies, rest = divmod(counts["mul"], text.count("mul(") + 1 + extra)
    assert rest == 0, "some multiply of the rule is missing or was added"
    assert copies > width
    assert counts["div"] == copies * text.count("div(")
    assert counts["sqrt"] == copies * text.count("root(")
    assert counts["add"] + counts["sub"] == copies * (
        sum(source.count(f"{name}(") for source in (text, end) for name in ("add", "sub")) + (decay == "coupled")
    )
    assert ptx.count(f"ld.global.v{width}.{suffix}") % streams == 0
    assert ptx.count(f"ld.global.v{width}.{suffix}") > 0


EVERY_FORM = product(("float32", "bfloat16", "float16"), ("float32", "bfloat16", "float8"), (False, True))
# Parameter, gradient, states, whether rounded to nearest, master copy.
FORMS = [
    ("float32", "float32", "bfloat16", False, False),
    ("bfloat16", "bfloat16", "float8", False, True),
    ("float16", "float32", "float32", True, False),
    *((p, p, s, n, p != "float32") for p, s, n in EVERY_FORM if EVERY_CASE),
]


@pytest.fixture(params=FORMS, scope="module", ids=lambda form: "-".join(map(str, form)))
def stored_kernel(request):
    """Adam over arrays of fewer bits: the function and its signature."""
    kernel, form = Kernel(RULES["adam"], "decoupled"), stored.Form(*request.param)
    module = lowering.load("cuda_stored", stored.source(kernel, form))
    return getattr(module, stored.name_of(kernel, form)), stored.signature(kernel)


def test_kernels_over_fewer_bits_round_each_operation_by_itself(stored_kernel):
    ptx = compiled(*stored_kernel)
    assert ".visible .entry" in ptx
    assert ".local" not in ptx, "what threads keep is not in registers"
    assert faults(ptx) == []
    assert operations(ptx)["sqrt"] > 0


def test_sums_and_moves_of_fewer_bits_round_each_operation_by_itself():
    half = np.dtype(np.float16)
    module = lowering.load("cuda_float16", stored.norm_source(half, kernels.THREADS, False))
    ptx = compiled(module.sum_squares_1, kernels.signatures(half)["sum_squares_1"])
    assert faults(ptx) == []
    assert {"add.rn.f64", "ld.global.u16"} <= set(INSTRUCTION.findall(ptx))
    for dtype in (np.dtype(np.uint8), np.dtype(np.uint16)):
        module = lowering.load(f"cuda_{dtype.name}", stored.raw_source(dtype, False))
        assert operations(compiled(module.move, kernels.signatures(dtype)["move"])) == {}


def small(g, p, m, a, b, c):
    m = a * m + b * g
    return where(m < -c, -c, m), m


def test_a_rule_of_somebody_else_rounds_each_operation_by_itself():
    own = [fo.rule(small, states="m", coefficients=lambda lr=0.1: (lr, lr, lr))._rules[0]]
    for dtype in DTYPES:
        module = lowering.load(f"cuda_{dtype.name}", kernels.source(dtype, rules=own))
        signatures = kernels.signatures(dtype, own)
        ptx = compiled(module.own_small_coupled, signatures["own_small_coupled"])
        counts = operations(ptx)
        assert faults(ptx) == []
        assert 3 * counts["mul"] == 4 * (counts["add"] + counts["sub"]) > 0  # scale and decay, then the rule's own


def test_norm_adds_in_float64_whatever_the_dtype():
    for dtype in DTYPES:
        names = INSTRUCTION.findall(compiled(*loaded("sum_squares_1", dtype)))
        assert "add.rn.f64" in names
        assert "add.rn.f32" not in names
        assert "st.shared.f64" in names
    assert NORM_LANES == 16, "threads of a block are dealt out to lanes by 16"


# --- Machine code -------------------------------------------------------------------------------------------------

NVDISASM = next(
    (str(path) for folder in sys.path for path in Path(folder).glob("nvidia/cu*/bin/nvdisasm*") if path.is_file()), None
) or shutil.which("nvdisasm")
needs_nvdisasm = pytest.mark.skipif(
    NVDISASM is None, reason="LOUD: no machine code was read: pip install nvidia-cuda-nvdisasm"
)


def machine_code(function, signature, folder):
    """How often each instruction occurs in what a GPU runs: numba-cuda links intermediate code for its architecture."""
    from cuda.bindings import nvjitlink

    text = library(function, signature).get_ltoir(cc=ARCHITECTURE)
    link = nvjitlink.create(2, ["-lto", "-arch=sm_{}{}{}".format(*ARCHITECTURE)])
    nvjitlink.add_data(link, nvjitlink.InputType.LTOIR, text, len(text), "kernel")
    nvjitlink.complete(link)
    code = bytearray(nvjitlink.get_linked_cubin_size(link))
    nvjitlink.get_linked_cubin(link, code)
    path = folder / "kernel.cubin"
    path.write_bytes(code)
    listing = subprocess.run([NVDISASM, "-c", str(path)], capture_output=True, text=True, check=True).stdout
    found = Counter(re.findall(r"\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]+)", listing))
    assert not [name for name in found if name.startswith(("LDL", "STL"))], "registers are spilt to memory"
    return found


@needs_nvdisasm
@pytest.mark.parametrize(("kernel", "dtype"), COMPILED, ids=label)
def test_machine_code_has_every_multiply_and_add_of_its_own(kernel, dtype, tmp_path):
    function, signature = loaded(kernel.name, dtype)
    counts, code = operations(compiled(function, signature)), machine_code(function, signature, tmp_path)
    letter = {4: "F", 8: "D"}[dtype.itemsize]
    iterates = counts["div"] + counts["sqrt"] > 0  # these become sequences of instructions, fused ones among them
    assert code[f"{letter}MUL"] > 0
    assert iterates or code[f"{letter}FMA"] == 0
    if dtype == np.float32 or not iterates:
        adds = counts["add"] + counts["sub"]
        assert code[f"{letter}MUL"] * adds == code[f"{letter}ADD"] * counts["mul"], "an operation was fused or lost"


@needs_nvdisasm
def test_machine_code_over_fewer_bits_has_every_multiply_and_add_of_its_own(stored_kernel, tmp_path):
    counts, code = operations(compiled(*stored_kernel)), machine_code(*stored_kernel, tmp_path)
    assert code["FMUL"] > 0
    assert code["FMUL"] * (counts["add"] + counts["sub"]) == code["FADD"] * counts["mul"], "one was fused or lost"


@needs_nvdisasm
@pytest.mark.parametrize("name", ["sum_squares_1", "tree", "limit"])
def test_machine_code_of_sums_and_limits_fuses_nothing(name, tmp_path):
    code = machine_code(*loaded(name, DTYPES[0]), tmp_path)
    assert not [x for x in code if x.startswith(("FFMA", "DFMA"))]
    assert code["DADD" if "limit" not in name else "FMUL"] > 0


@needs_nvdisasm
def test_fused_machine_code_is_found(tmp_path):
    from numba import cuda, types

    names = {"cuda": cuda}
    exec("def kernel(x):\n    x[0] = x[1] * x[2] + x[0]", names)
    assert machine_code(names["kernel"], (types.Array(types.float32, 1, "C"),), tmp_path)["FFMA"] > 0


# --- Planted faults -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statement", "planted"),
    [
        ("x[0] = x[1] * x[2]", "mul.f32"),
        ("x[0] = x[1] + x[2]", "add.f32"),
        ("x[0] = x[1] - x[2]", "sub.f32"),
        ("x[0] = x[1] * x[2] + x[0]", "fma.rn.f32"),
        ("x[0] = libdevice.fast_fdividef(x[1], x[2])", "div.approx"),
        ("x[0] = libdevice.rsqrtf(x[1])", "rsqrt.approx"),
    ],
)
def test_planted_faults_are_found(statement, planted):
    from numba import cuda, types
    from numba.cuda import libdevice

    names = {"cuda": cuda, "libdevice": libdevice}
    exec(f"def kernel(x):\n    {statement}", names)
    found = faults(compiled(names["kernel"], (types.Array(types.float32, 1, "C"),)))
    assert any(name.startswith(planted) for name in found), found


def test_planted_plain_multiply_in_an_update_rule_is_found(monkeypatch, tmp_path):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    scalar = lowering.scalar
    monkeypatch.setattr(
        lowering, "scalar", lambda f, calls=False: scalar(f, calls).replace("mul(c2, mul(g, g))", "c2 * mul(g, g)")
    )
    text = kernels.source(DTYPES[0])
    assert "c2 * mul(g, g)" in text
    module = lowering.load("planted", text)
    signature = kernels.signatures(DTYPES[0])["adam_none"]
    assert faults(compiled(module.adam_none, signature)) != []


def test_flushing_of_subnormals_is_found():
    assert faults("\tmul.rn.ftz.f32 \t%f1, %f2, %f3;\n\t@%p1 add.f64 %fd1, %fd2, %fd3;\n") == [
        "mul.rn.ftz.f32",
        "add.f64",
    ]
    assert (
        faults("\tmul.wide.s32 %rd1, %r1, 4;\n\tmad.lo.s64 %rd1, %rd2, %rd3, %rd4;\n\tadd.s64 %rd1, %rd2, 1;\n") == []
    )
