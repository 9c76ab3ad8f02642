"""The object code: nothing fused, nothing approximate, vectors where there should be, and no instruction set leaks."""

from __future__ import annotations

import inspect
import os
import platform
import re
import runpy
import shutil
import subprocess
from pathlib import Path

import pytest

import fastoptim
from fastoptim.rules.table import RULES
from tests.support.csrc import CSRC, sources_with

if not CSRC.is_dir():
    pytest.skip("LOUD: no C sources beside the tests", allow_module_level=True)

BUILD = runpy.run_path(str(CSRC / "build_ffi.py"))
FLAGS = BUILD["FLAGS"]
SOURCES = [name for name in BUILD["SOURCES"] if name != "bind.c"]  # bind.c needs Python's headers

# What rounds once where the update rules round twice, or not correctly at all.
INEXACT = re.compile(
    r"v?fn?m(add|sub)\w*|vfm(addsub|subadd)\w*|v?rcp(ss|ps|14|28)\w*|v?rsqrt\w+|fml[as]|fn?m(add|sub)|frecp\w+|frsqrt\w+"
)
# Registers that a vector loop of an instruction set uses, and those that would be a leak into it.
VECTORS = {"baseline": "%xmm", "avx2": "%ymm", "avx512": "%zmm", "only": r"v\d+\.(4s|2d)"}
# Rules whose AVX-512 kernels take the narrower vectors.
NARROW = set(re.findall(r"X\((\w+), \d+, \d+, \w+, \w+, NARROW\)", (CSRC / "kernels" / "rule_table.h").read_text()))
LEAKS = {"baseline": "%[yz]mm", "avx2": r"%zmm|%[xy]mm(1[6-9]|[23]\d)|%k[0-7]", "avx512": "(?!)", "only": "(?!)"}
KERNEL = re.compile(r"(\w+)_(float|double)_(baseline|avx2|avx512|only)\b.*")
OTHER = re.compile(r"\w+_(baseline|avx2|avx512|only)\b.*")  # codecs, and loops over states of 16 bits
PACKED = {
    "*": r"v?mul(ps|pd)|fmul",
    "/": r"v?div(ps|pd)|fdiv",
    "sqrt(": r"v?sqrt(ps|pd)|fsqrt",
}


def tool(name, package):
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"LOUD: {name} is missing; apt-get install {package}")
    return path


def functions(path, objdump):
    """Name -> its instructions, as (mnemonic, operands)."""
    text = subprocess.run(
        [objdump, "-d", "--no-show-raw-insn", path], capture_output=True, text=True, check=True
    ).stdout
    found = {}
    for line in text.splitlines():
        if header := re.fullmatch(r"[0-9a-f]+ <(.+)>:", line):
            found[header[1]] = code = []
        elif instruction := re.match(r"\s+[0-9a-f]+:\s+(?:\{\w+\}\s+|lock |rep\w* )*(\S+)\s*(.*)", line):
            code.append((instruction[1], instruction[2]))
    return found


def complaints(found):
    """What is wrong with the code of some functions."""
    wrong = []
    for name, code in found.items():
        kernel = KERNEL.fullmatch(name)
        other = OTHER.fullmatch(name)
        rule, dtype, isa = kernel.groups() if kernel else (None, None, other[1] if other else "baseline")
        for mnemonic, operands in code:
            if INEXACT.fullmatch(mnemonic):
                wrong.append(f"{name}: {mnemonic} is not a rule's arithmetic")
            if re.search(LEAKS[isa], operands) or (isa == "baseline" and re.fullmatch(r"v[a-z]+\d*[sp][sd]", mnemonic)):
                wrong.append(f"{name}: {mnemonic} {operands} is not of {isa}")
        if rule in RULES and "." not in name:  # not of the parts that a compiler splits off
            source = inspect.getsource(RULES[rule].function)
            vectors = VECTORS["avx2" if isa == "avx512" and rule in NARROW else isa]
            for operator, pattern in PACKED.items():
                suffix = "4s|ps" if dtype == "float" else "2d|pd"
                packed = any(
                    re.fullmatch(pattern, mnemonic)
                    and re.search(vectors, operands)
                    and re.search(suffix, mnemonic + operands)
                    for mnemonic, operands in code
                )
                if operator in source and not packed:
                    wrong.append(f"{name}: no packed {operator}")
    return wrong


def kernels(found):
    return {m.groups() for name in found if (m := KERNEL.fullmatch(name)) and m[1] in RULES}


def compile_object(compiler, source, target, *more):
    headers = f"-I{source.parents[1] if source.parent.name == 'kernels' else source.parent}"
    command = [compiler, *FLAGS, *more, headers, "-fPIC", "-c", source, "-o", target]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return target


def check_every_source(compiler, objdump, folder, isas):
    found = {}
    for name in SOURCES:
        found |= functions(compile_object(compiler, CSRC / name, folder / f"{Path(name).stem}.o"), objdump)
    check(found, isas)


def check(found, isas, rules=RULES):
    assert complaints(found) == []
    assert kernels(found) == {(rule, dtype, isa) for rule in rules for dtype in ("float", "double") for isa in isas}


def test_objects_of_this_machine(tmp_path):
    """Those of the installed extension; where it was stripped of their names, its sources are compiled again."""
    objdump, x86 = tool("objdump", "binutils"), platform.machine() == "x86_64"
    isas = ("baseline", "avx2", "avx512") if x86 else ("only",)
    libraries = list(Path(fastoptim.__file__).parent.glob("_c*.so"))
    assert libraries, "the C extension is not installed"
    found = functions(libraries[0], objdump)
    if kernels(found):
        check(found, isas)
    elif x86:
        check_every_source(tool(os.environ.get("CC", "cc"), "gcc"), objdump, tmp_path, isas)
    else:
        pytest.skip(f"LOUD: {libraries[0].name} was stripped of its symbols, and this machine is not x86-64")


# --- The lint itself: each fault is planted once, in a copy of the sources that knows a single rule ---------------


@pytest.fixture
def small(tmp_path):
    if platform.machine() != "x86_64":
        pytest.skip("LOUD: this machine is not x86-64")
    # As baseline alone: the loops of other instruction sets are the same source.
    source = sources_with(["adam"], tmp_path / "csrc") / "kernels" / "kernels.c"
    source.write_text(source.read_text().replace("_only", "_baseline"))
    compiler, objdump = tool("gcc", "gcc"), tool("objdump", "binutils")

    def compiled(*more):
        target = compile_object(compiler, source, tmp_path / "kernels.o", "-DFO_BASELINE", *more)
        return complaints(functions(target, objdump))

    return compiled


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ((), None),
        (("-ffp-contract=fast", "-mfma"), "vfmadd"),
        (("-mavx2",), "is not of baseline"),
        (("-fno-tree-vectorize",), "no packed sqrt("),
        (("-ffast-math", "-mrecip"), "rsqrt"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, tuple) else "",
)
def test_planted_flags_are_found(small, flags, complaint):
    wrong = small(*flags)
    if complaint is None:
        assert wrong == []
    else:
        assert any(complaint in line for line in wrong), wrong[:5]
