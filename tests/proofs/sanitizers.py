"""The C code under a compiler's sanitizers: all golden hashes, with threads of the pool and several callers at once.

    python -m tests.proofs.sanitizers [compiler, clang] [sanitizers, thread] [callers, 3]
    python -m tests.proofs.sanitizers clang address,undefined 1

A report of the sanitizer ends the program. `tests/backends/test_emulated.py` does so with gcc, for a few rules.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.backends import test_emulated as emulated

if __name__ == "__main__":
    compiler, sanitizers, callers = [*sys.argv[1:], *("clang", "thread", "3")[len(sys.argv) - 1 :]]
    flags = ["-O1", "-DFO_BASELINE", f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"]
    with tempfile.TemporaryDirectory() as folder:
        program = emulated.build(compiler, Path(folder, "steps"), *flags)
        isa, hashes = emulated.run([program, f"-{callers}"])
    wrong = [name for name, found in hashes.items() if found != emulated.GOLDEN["hashes"][name]]
    print(f"{compiler} -fsanitize={sanitizers}, {callers} callers, {isa}: {len(hashes)} hashes, others: {wrong or 0}")
    sys.exit(bool(wrong))
