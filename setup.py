"""Builds the C extension where that can be done; without a compiler the package installs all the same.

FASTOPTIM_REQUIRE_C=1 makes a failed build an error. At run time a missing extension is announced by one warning.
"""

import os
import sys

from setuptools import setup
from setuptools.command.build_ext import build_ext

REQUIRED = os.environ.get("FASTOPTIM_REQUIRE_C") == "1"


class OptionalBuild(build_ext):
    def run(self):
        try:
            super().run()
        except Exception as error:
            if REQUIRED:
                raise
            print(f"fastoptim: the C extension was not built ({error}); Numba or NumPy will be used", file=sys.stderr)

    def copy_extensions_to_source(self):
        # An editable install puts the library beside its sources. Never write into a file that a process has mapped.
        for extension in self.extensions:
            path = self.get_ext_fullpath(extension.name)
            if os.path.exists(path):
                os.unlink(path)
        super().copy_extensions_to_source()


setup(
    cffi_modules=["csrc/build_ffi.py:ffi"],
    cmdclass={"build_ext": OptionalBuild},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
