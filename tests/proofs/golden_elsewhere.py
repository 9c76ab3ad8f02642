"""The golden hashes on processors that no wheel is for: cross-compiled by GCC, run under qemu.

    python -m tests.proofs.golden_elsewhere [NAME...]

32-bit ARM, RISC-V, POWER and the big-endian s390x; a minute or two. Compilers and emulators come from Debian: apt-get
install qemu-user gcc-arm-linux-gnueabihf gcc-riscv64-linux-gnu gcc-powerpc64le-linux-gnu gcc-s390x-linux-gnu, and
libc6-dev-armhf-cross, -riscv64-cross, -ppc64el-cross, -s390x-cross.
"""

from __future__ import annotations

import runpy
import shutil
import sys
import tempfile
from pathlib import Path

from tests.backends import test_emulated
from tests.support import ROOT

# name of qemu's program -> prefix of the compiler, byte order
PROCESSORS = {
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
    _, found = test_emulated.run([emulator, program], order)
    wanted = test_emulated.GOLDEN["hashes"]
    equal = sum(found.get(key) == wanted[key] for key in wanted)
    return f"{equal} of {len(wanted)} golden hashes" + ("" if equal == len(wanted) else ": different")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        said = {name: compare(name, Path(folder)) for name in sys.argv[1:] or PROCESSORS}
    for name, words in said.items():
        print(f"{name:8} {words}")
    sys.exit(any(words.endswith("different") for words in said.values()))


if __name__ == "__main__":
    main()
