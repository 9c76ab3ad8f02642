"""Every golden hash on other processors: compiled by GCC, as optimized as what is installed, and run in emulators.

    python -m tests.proofs.golden_elsewhere [NAME...]

x86-64 with SSE2, AVX2 and AVX-512, 64-bit and 32-bit ARM, RISC-V, POWER and the big-endian s390x; about a minute for
each, of which compiling takes the most, and three more for AVX-512, which qemu does not know and Bochs does
(`tests/support/bochs.py`). Compilers and emulators come from Debian: apt-get install qemu-user bochs xorriso isolinux
syslinux-common linux-image-cloud-amd64 gcc-aarch64-linux-gnu gcc-arm-linux-gnueabihf gcc-riscv64-linux-gnu
gcc-powerpc64le-linux-gnu gcc-s390x-linux-gnu, and libc6-dev-arm64-cross, -armhf-cross, -riscv64-cross, -ppc64el-cross,
-s390x-cross.
"""

from __future__ import annotations

import runpy
import shutil
import sys
import tempfile
from pathlib import Path

from tests.backends import test_emulated
from tests.support import ROOT, bochs

# name of qemu's program -> prefix of the compiler, byte order
PROCESSORS = {
    "x86_64": ("x86_64-linux-gnu", "<"),
    "aarch64": ("aarch64-linux-gnu", "<"),
    "arm": ("arm-linux-gnueabihf", "<"),
    "riscv64": ("riscv64-linux-gnu", "<"),
    "ppc64le": ("powerpc64le-linux-gnu", "<"),
    "s390x": ("s390x-linux-gnu", ">"),
}


def compare(name: str, folder: Path) -> str:
    """What came out, in words; "different" where a hash is another."""
    prefix, order = PROCESSORS[name]
    compiler, emulator = shutil.which(f"{prefix}-gcc"), shutil.which(f"qemu-{name}")
    if compiler is None or emulator is None:
        return f"SKIPPED: {prefix}-gcc or qemu-{name} is missing"
    exact = runpy.run_path(str(ROOT / "csrc" / "build_ffi.py"))["EXACT"].get(name, ())
    program = test_emulated.build(compiler, folder / name, "-static", *exact)
    wanted, said = test_emulated.GOLDEN["hashes"], []
    commands = [[emulator]]
    if name == "x86_64":
        commands = [[emulator, "-cpu", "Nehalem"], [emulator, "-cpu", "Haswell"]]
        if missing := bochs.missing():
            said.append(f"SKIPPED avx512: {missing}")
        else:
            commands.append(bochs.COMMAND)
    for command in commands:
        isa, found = test_emulated.run([*command, program], order)
        equal = sum(found.get(key) == wanted[key] for key in wanted)
        said.append(f"{isa} {equal} of {len(wanted)} golden hashes" + ("" if equal == len(wanted) else ": different"))
    return ", ".join(said)


def main() -> None:
    names, equal, failed = sys.argv[1:] or list(PROCESSORS), [], False
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            words = compare(name, Path(folder))
            failed |= "different" in words
            if not words.startswith("SKIPPED") and "different" not in words:
                equal.append(name)
            print(f"{name:8} {words}", flush=True)
    hashes = len(test_emulated.GOLDEN["hashes"])
    print(f"{len(equal)} of {len(names)} processors give the {hashes} golden hashes: {', '.join(equal)}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
