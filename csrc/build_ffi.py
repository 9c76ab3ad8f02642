"""cffi build script of the extension ``fastoptim._c``: API mode, stable ABI."""

import sys
import sysconfig
from pathlib import Path

import numpy
from cffi import FFI

HERE = Path(__file__).parent
KERNELS = ("kernels/avx512.c", "kernels/avx2.c", "kernels/kernels.c")  # what takes longest comes first
SOURCES = (*KERNELS, "kernels/cpu.c", "bind.c", "plan.c", "stored.c", "rows.c", "pool.c", "pace.c")

# Where a compiler would compute in wider types than it is told to; the kernels do not compile without these.
EXACT = {
    "s390x": ("-fexcess-precision=fast",),  # in spite of its name: -std=c11 would have float computed as double
    "i386": ("-msse2", "-mfpmath=sse"),
    "i686": ("-msse2", "-mfpmath=sse"),
}


def flags_for(machine):
    """Compiler flags for a processor, by the last word of `sysconfig.get_platform()`.

    No contraction to FMA and no reassociation: they change bits. -fno-math-errno lets sqrt be vectorised, and
    -fno-trapping-math lets selects be; neither changes a result. What an old cffi writes calls a function that nobody
    declares, and such a library cannot be loaded: that is an error at once.
    """
    return (
        *("-O3", "-std=c11", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"),
        "-Werror=implicit-function-declaration",
        *EXACT.get(machine, ()),
    )


# Without: symbols for a debugger take a third of the time and six times the size, and the last rounds of loops that are
# written out another third, for nothing. (The latter is an option of gcc; clang warns that it has no use for it.)
SMALL = ("-g0", "--param=max-completely-peel-times=1")
FLAGS = flags_for(sysconfig.get_platform().rpartition("-")[2])
# The stable ABI has no free-threaded form before Python 3.15.
LIMITED = not sysconfig.get_config_var("Py_GIL_DISABLED")

ffi = FFI()
ffi.cdef((HERE / "fastoptim.h").read_text() + "\nextern const char *const fo_flags;")
ffi.set_source(
    "fastoptim._c",
    f'#include "internal.h"\nstatic const char *const fo_flags = "{" ".join(FLAGS)}";',
    sources=[f"{HERE.name}/{name}" for name in SOURCES],  # relative to setup.py, as setuptools wants them
    depends=[
        str(path.relative_to(HERE.parent))
        for path in sorted(HERE.rglob("*"))
        if path.suffix in (".h", ".inc") or path.name == "build_ffi.py"
    ],
    include_dirs=[str(HERE), numpy.get_include()],
    extra_compile_args=[*FLAGS, *SMALL],
    libraries=[] if sys.platform == "win32" else ["pthread", "m"],
    define_macros=[("Py_LIMITED_API", "0x030B0000")] if LIMITED else [],
    py_limited_api=LIMITED,
)
