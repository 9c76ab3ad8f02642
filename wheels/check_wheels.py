"""Check what ``wheels/make_wheels.py`` made: files by auditors, object code by reading, bits by running the kernels.

    python wheels/check_wheels.py [--out dist] [--audits] [--code] [--bits] [--installed] [NAME...]     # default: all

The bits are those of ``tests/support/golden.json``; the program that runs is linked from the very objects that are in
the wheel. The wheel for this machine is installed, too, where there is no compiler and nothing but what it needs. What
a machine lacks (an emulator, the headers of another system) is skipped and said so. Exit status 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import platform
import re
import shutil
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "wheels")]

from make_wheels import TARGETS, Target, run  # noqa: E402

from tests.backends import test_emulated, test_objects  # noqa: E402
from tests.support import bochs  # noqa: E402

# x86 executables that this machine runs are asked for every instruction set that it has.
ISAS = {"x86_64": ("baseline", "avx2", "avx512"), "aarch64": ("neon",)}
CODECS = ("decode_bfloat16", "decode_float16", "decode_float8", "bfloat16_stochastic", "float8_nearest")


def wheel_of(out: Path, target: Target) -> Path:
    found = list(out.glob(f"*-{target.tag}.whl"))
    if len(found) != 1:
        raise SystemExit(f"{len(found)} wheels for {target.triple} in {out}, expected one: run wheels/make_wheels.py")
    return found[0]


def audit(out: Path, target: Target) -> str:
    """Run the auditors; they end the program where they find something."""
    wheel = wheel_of(out, target)
    seen = run(sys.executable, "-m", "abi3audit", "--strict", "--report", wheel)
    if target.extension.name not in seen:
        raise SystemExit(f"{wheel.name}: abi3audit found no extension: {seen}")
    run(sys.executable, "-m", "check_wheel_contents", wheel)
    run(sys.executable, "-m", "twine", "check", "--strict", wheel)
    if target.system == "linux":
        # Not this machine's libraries, which are another processor's or another C library's.
        said = " ".join(run(sys.executable, "-m", "auditwheel", "show", "--ldpaths", ROOT / "wheels", wheel).split())
        if f'following platform tag: "{target.tag.partition(".")[0]}"' not in said:
            raise SystemExit(f"{wheel.name}: auditwheel says: {said}")
    return "audits clean"


def look_at_code(target: Target) -> str:
    """No fused or approximate arithmetic in any object, other than glue that computes nothing."""
    tool = shutil.which("llvm-objdump")
    if tool is None:
        return "SKIPPED: the object code was not looked at without llvm-objdump: apt-get install llvm"
    seen, wrong, names = 0, [], ""
    for path in target.folder.glob("*.o"):
        for name, code in test_objects.functions(path, tool).items():
            seen += len(code)
            names += f" {name}"
            wrong += [f"{name}: {x}" for x, _ in code if test_objects.INEXACT.fullmatch(x)]
    if wrong or seen < 10_000:
        raise SystemExit(f"{target.triple}: of {seen} instructions, these are no rule's arithmetic: {wrong[:5]}")
    bare = re.findall(r"\bU (_?Py[A-Z_]\w*)", run(tool.replace("objdump", "nm"), "-u", *target.folder.glob("*.o")))
    if bare and target.system == "windows":  # None, for one, would be the code that jumps to it
        raise SystemExit(f"{target.triple}: not imported from Python's library: {sorted(set(bare))}")
    if absent := [name for name in CODECS if name not in names]:
        raise SystemExit(f"{target.triple}: the code of the codecs was not seen: {absent}")
    return f"{seen} instructions, none fused or approximate"


def runner(target: Target) -> list[str] | str:
    """The command that runs a program of this target, or why there is none."""
    if target.system == "macos":
        return "built, not run: nothing on Linux runs programs of macOS"
    if target.system == "windows":
        if target.machine != platform.machine():
            return "built, not run: nothing here runs Windows programs for ARM"
        tool = shutil.which("wine64") or shutil.which("wine")
        return [tool] if tool else "SKIPPED: wine is missing: apt-get install wine wine64"
    if target.machine == platform.machine():
        return []  # for musl it is linked statically
    tool = shutil.which(f"qemu-{target.machine}")
    if tool is None:
        return f"SKIPPED: qemu-{target.machine} is missing: apt-get install qemu-user"
    root = Path(f"/usr/{target.machine}-linux-gnu")
    if "gnu" in target.triple and not root.is_dir():
        return f"SKIPPED: the C library for {target.machine} is missing: apt-get install libc6-arm64-cross"
    return [tool, "-L", str(root)]


def compare_bits(target: Target) -> str:
    command = runner(target)
    if isinstance(command, str):
        return command
    equal = []
    wanted = test_emulated.GOLDEN["hashes"]
    for isa in ISAS[target.machine]:
        runs, said = command, test_emulated.started([*command, target.steps, isa])[1]
        if "lacks that instruction set" in said:
            lacks = bochs.missing() if target.system == "linux" else "Bochs has it for Linux only"
            if lacks:
                equal.append(f"SKIPPED {isa}, which this machine lacks: {lacks}")
                continue
            runs = bochs.COMMAND
        chosen, found = test_emulated.run([*runs, target.steps, isa])
        wrong = [name for name in wanted if found.get(name) != wanted[name]]
        if isa not in chosen or wrong:
            raise SystemExit(f"{target.triple} {isa}: {chosen} chosen; other bits: {wrong[:5]}")
        equal.append(f"{isa} {len(found)} of {len(wanted)} golden hashes")
    return ", ".join(equal)


def install(out: Path, target: Target) -> str:
    """Install the wheel where there is nothing else, and no compiler on the path; then compare bits and run tests."""
    if target.system != "linux" or target.machine != platform.machine() or "musl" in target.triple:
        return "not installed here"
    wheel = wheel_of(out, target)
    with tempfile.TemporaryDirectory() as folder:
        venv.create(Path(folder, "venv"), with_pip=False)
        python = Path(folder, "venv", "bin", "python")
        shutil.copytree(ROOT / "tests", Path(folder, "tests"))  # beside them lie neither the package nor C sources
        pip = (sys.executable, "-m", "pip", "--python", python, "install", "-q", "--only-binary", ":all:")
        alone = {"PATH": str(python.parent), "PYTHONPATH": "", "FASTOPTIM_REQUIRE_C": "1"}
        run(*pip, "--no-deps", wheel, "numpy", "cffi", "pycparser")
        bits = run(python, "-m", "tests.support.golden", cwd=folder, **alone).strip().splitlines()
        run(*pip, "pytest")
        tests = ("tests/backends/test_bits.py", "tests/backends/test_golden.py")
        said = run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests, cwd=folder, **alone)
    return f"installed with NumPy and cffi alone: {', '.join(bits)}; {said.strip().splitlines()[-1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    for name in ("audits", "code", "bits", "installed"):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("names", nargs="*", metavar="NAME")
    options = parser.parse_args()
    everything = not (options.audits or options.code or options.bits or options.installed)
    if options.audits or everything:
        run(sys.executable, "-m", "twine", "check", "--strict", *options.out.glob("*.tar.gz"))
    for target in TARGETS:
        if options.names and not any(name in target.triple for name in options.names):
            continue
        parts = []
        if options.audits or everything:
            parts.append(audit(options.out, target))
        if options.code or everything:
            parts.append(look_at_code(target))
        if options.bits or everything:
            parts.append(compare_bits(target))
        if options.installed or everything:
            parts.append(install(options.out, target))
        print(f"{re.sub('[.]2[.]17', '', target.triple):20} {'; '.join(parts)}", flush=True)


if __name__ == "__main__":
    main()
