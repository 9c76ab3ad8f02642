"""Builds the C extension where that can be done; without a compiler the package installs all the same.

FASTOPTIM_REQUIRE_C=1 makes a failed build an error. At run time a missing extension is announced by one warning.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from setuptools import setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

REQUIRED = os.environ.get("FASTOPTIM_REQUIRE_C") == "1"
# What building takes (pyproject.toml says the same to those who build in isolation).
NEEDED = {"cffi": (2, 1), "numpy": (2, 0)}


def lacking():
    """A sentence about what is missing for building the extension; None if nothing is."""
    for name, least in NEEDED.items():
        wanted = ".".join(map(str, least))
        try:
            found = version(name)
        except PackageNotFoundError:
            return f"building it needs {name} {wanted} or newer, which is not installed: pip install '{name}>={wanted}'"
        if tuple(map(int, re.findall(r"\d+", found)[:2])) < least:
            return (
                f"building it needs {name} {wanted} or newer, but {found} is installed: pip install '{name}>={wanted}'"
            )
    return None


class OptionalBuild(build_ext):
    def run(self):
        try:
            if reason := lacking():
                raise RuntimeError(reason)
            super().run()
            if REQUIRED:
                self.load()
        except Exception as error:
            if REQUIRED:
                raise SystemExit(
                    f"fastoptim: the C extension was not built, and FASTOPTIM_REQUIRE_C=1: {error}"
                ) from error
            print(f"fastoptim: the C extension was not built ({error}); Numba or NumPy will be used", file=sys.stderr)

    def build_extensions(self):
        if self.compiler.compiler_type == "msvc":
            raise RuntimeError(
                "Microsoft's compiler cannot build it, GCC and Clang can: install a wheel, or build with MinGW-w64"
            )
        command = getattr(self.compiler, "compiler_so", None) or [""]
        if command[0] and shutil.which(command[0]) is None:
            raise RuntimeError(f"there is no C compiler {command[0]!r}: install GCC or Clang, or name one by CC")
        alone = self.compiler.compile

        def together(sources, **options):
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                return [name for names in pool.map(lambda x: alone([x], **options), sources) for name in names]

        self.compiler.compile = together
        super().build_extensions()

    def load(self):
        """Import what was built: a library may link and still lack a function."""
        for extension in self.extensions:
            path = self.get_ext_fullpath(extension.name)
            code = (
                "from importlib.util import module_from_spec, spec_from_file_location as find; import sys; "
                "spec = find(sys.argv[1], sys.argv[2]); spec.loader.exec_module(module_from_spec(spec))"
            )
            command = [sys.executable, "-c", code, extension.name, path]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"it was compiled but cannot be loaded: {done.stderr.strip().splitlines()[-1]}")

    def copy_extensions_to_source(self):
        # An editable install puts the library beside its sources. Never write into a file that a process has mapped.
        for extension in self.extensions:
            path = self.get_ext_fullpath(extension.name)
            if os.path.exists(path):
                os.unlink(path)
        super().copy_extensions_to_source()


class FreshBuild(build_py):
    """Setuptools packs whatever lies in ``build/``, also what an earlier version or a failed build has left there."""

    def run(self):
        left = Path(self.build_lib, "fastoptim")
        if not self.editable_mode and left.exists():
            print(f"fastoptim: removing {left}, which an earlier build has left", file=sys.stderr)
            shutil.rmtree(left)
        super().run()


def described():
    """README.md, whose links lead into the repository once that has an address: a package index has no other files."""
    text = Path("README.md").read_text(encoding="utf-8")
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    if "urls" not in project:
        return text
    release = re.search('__version__ = "(.+)"', Path("fastoptim", "__init__.py").read_text(encoding="utf-8"))[1]
    return re.sub(r"\]\((?!\w+:|#)", f"]({project['urls']['Repository'].rstrip('/')}/blob/v{release}/", text)


free_threaded = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
setup(
    cmdclass={"build_ext": OptionalBuild, "build_py": FreshBuild},
    long_description=described(),
    long_description_content_type="text/markdown",
    options={} if free_threaded else {"bdist_wheel": {"py_limited_api": "cp311"}},
    # Without cffi setuptools does not know the first of these, and without an extension it builds none.
    **(
        {"ext_modules": [], "has_ext_modules": lambda: True}
        if lacking()
        else {"cffi_modules": ["csrc/build_ffi.py:ffi"]}
    ),
)
