"""cffi build script of the extension ``fastoptim._c``: API mode, stable ABI."""

from pathlib import Path

import numpy
from cffi import FFI

HERE = Path(__file__).parent
SOURCES = ("bind.c", "plan.c", "pool.c", "pace.c", "kernels/cpu.c", "kernels/kernels.c")

# No contraction to FMA and no reassociation: they change bits. -fno-math-errno lets sqrt be vectorised, and
# -fno-trapping-math lets selects be; neither changes a result.
FLAGS = ("-O3", "-std=c11", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")

ffi = FFI()
ffi.cdef((HERE / "fastoptim.h").read_text() + "\nextern const char *const fo_flags;")
ffi.set_source(
    "fastoptim._c",
    f'#include "internal.h"\nstatic const char *const fo_flags = "{" ".join(FLAGS)}";',
    sources=[f"{HERE.name}/{name}" for name in SOURCES],  # relative to setup.py, as setuptools wants them
    depends=[str(path.relative_to(HERE.parent)) for path in sorted(HERE.rglob("*")) if path.suffix in (".h", ".inc")],
    include_dirs=[str(HERE), numpy.get_include()],
    extra_compile_args=list(FLAGS),
    libraries=["pthread", "m"],
    define_macros=[("Py_LIMITED_API", "0x030B0000")],
    py_limited_api=True,
)
