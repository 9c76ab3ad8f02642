"""From the sources to a fresh environment, with a compiler and without; nothing is downloaded."""

from __future__ import annotations

import json
import os
import platform
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement

import fastoptim as fo
from tests.proofs.versions import PYTHONS
from tests.support import ROOT
from tests.support.csrc import sources_with

SOURCES = ("csrc", "fastoptim", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "CHANGELOG.md", "LICENSE")

if not (ROOT / "csrc").is_dir():
    pytest.skip("LOUD: no sources beside the tests", allow_module_level=True)
for package in ("setuptools", "cffi", "pip"):
    pytest.importorskip(package, reason=f"LOUD: packaging is not tested without {package} (pip install {package})")


def run(*command, cwd, fails=False, **environment):
    kept = {name: x for name, x in os.environ.items() if not name.startswith(("FASTOPTIM_", "PYTHON", "PIP_", "CC"))}
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=kept | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done


def build(kind, folder, fails=False, **environment):
    """What the packaging front ends call: `kind` is "sdist" or "wheel"."""
    code = f"from setuptools import build_meta; build_meta.build_{kind}('dist')"
    done = run(sys.executable, "-c", code, cwd=folder, fails=fails, **environment)
    return done if fails else next((folder / "dist").glob("*.tar.gz" if kind == "sdist" else "*.whl"))


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.so", "*.o"))
        else:
            shutil.copy2(ROOT / name, folder / name)
    return build("sdist", folder)


@pytest.fixture
def unpacked(sdist, tmp_path):
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    return next(tmp_path.iterdir())


def fresh_environment(folder, install=None, *options, **environment):
    """A virtual environment of its own that finds NumPy, Numba and cffi where this Python has them."""
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    python = folder / "bin" / "python"
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).stdout.strip()
    Path(site, "borrowed.pth").write_text(str(Path(np.__file__).parents[1]))
    pip = (sys.executable, "-m", "pip", "--python", python, "--quiet", "install", "--no-index", "--no-deps")
    run(*pip, "--no-build-isolation", *options, install, cwd=folder, **environment)
    return python


STEP = """
import warnings, numpy as np, fastoptim as fo
p = np.ones(1000, np.float32)
opt = fo.Adam(p, lr=0.1)
fo.SGD(np.ones(3))
opt.step(np.ones(1000, np.float32))
print(fo.__file__, opt.backend, float(p[0]).hex())
"""


def compile_quickly(folder):
    """The extension need not be fast here; optimizing it for each instruction set takes most of a minute."""
    flags = folder / "csrc" / "build_ffi.py"
    text = flags.read_text()
    assert '"-O3"' in text
    flags.write_text(text.replace('"-O3"', '"-O0", "-DFO_BASELINE"'))


def test_the_source_archive_holds_everything_that_a_build_needs(sdist):
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    tracked = {
        str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*") if path.suffix in (".c", ".h", ".inc", ".py")
    }
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "fastoptim").rglob("*.py")}
    assert len(tracked) > 10 and len(modules) > 10
    assert held >= tracked | modules | {"fastoptim/py.typed", "pyproject.toml", "setup.py", "LICENSE", "README.md"}
    assert [name for name in held if name.endswith((".so", ".o", ".pyc"))] == []


def test_wheel_from_the_source_archive_in_a_fresh_environment(unpacked, tmp_path):
    compile_quickly(unpacked)
    wheel = build("wheel", unpacked, FASTOPTIM_REQUIRE_C="1")
    assert "-cp311-abi3-" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        held = archive.namelist()
    modules = {str(path.relative_to(unpacked)) for path in (unpacked / "fastoptim").rglob("*.py")}
    assert set(held) >= modules | {"fastoptim/py.typed", "fastoptim/_c.abi3.so"}
    assert any(name.endswith("LICENSE") for name in held) and any(name.endswith("entry_points.txt") for name in held)
    assert {name.partition("/")[0].partition("-")[0] for name in held} == {"fastoptim"}, (
        "something else is in the wheel"
    )

    python = fresh_environment(tmp_path / "venv", wheel)
    done = run(python, "-W", "error", "-c", STEP, cwd=tmp_path, FASTOPTIM_REQUIRE_C="1")
    where, backend, _ = done.stdout.split()
    assert Path(where).is_relative_to(tmp_path / "venv") and backend == "c" and done.stderr == ""
    info = json.loads(run(python, "-m", "fastoptim", "info", "--json", cwd=tmp_path).stdout)
    assert info["auto"] == "c" and "-ffp-contract=off" in info["backends"]["c"]["flags"]
    assert "auto: c" in run(tmp_path / "venv" / "bin" / "fastoptim", "info", cwd=tmp_path).stdout


def test_the_links_of_the_readme_lead_from_a_package_index_into_the_repository(unpacked):
    def links():
        code = "from setuptools import build_meta; print(build_meta.prepare_metadata_for_build_wheel('.'))"
        folder = run(sys.executable, "-c", code, cwd=unpacked).stdout.split()[-1]
        text = (unpacked / folder / "METADATA").read_text(encoding="utf-8")
        assert "Description-Content-Type: text/markdown" in text and "# fastoptim" in text
        return re.findall(r"\]\(([^)#]+)", text)

    relative, repository = links(), "https://example.org/somebody/fastoptim"
    assert len(relative) > 20 and all((ROOT / link).exists() for link in relative)
    project = unpacked / "pyproject.toml"
    project.write_text(f'{project.read_text()}\n[project.urls]\nRepository = "{repository}"\n')
    assert links() == [f"{repository}/blob/v{fo.__version__}/{link}" for link in relative]


def test_editable_install(unpacked, tmp_path):
    """Without a compiler, since the extension is built as for a wheel: only the way to the sources is another."""
    python = fresh_environment(tmp_path / "venv", unpacked, "--editable", CC="/bin/false")
    (unpacked / "fastoptim" / "added.py").write_text("answer = 42\n")
    code = "import fastoptim.added as a; print(a.answer, a.__file__)"
    answer, where = run(python, "-c", code, cwd=tmp_path).stdout.split()
    assert answer == "42" and Path(where) == unpacked / "fastoptim" / "added.py"


def test_without_a_compiler(unpacked, tmp_path):
    refused = build("wheel", unpacked, fails=True, CC="/bin/false", FASTOPTIM_REQUIRE_C="1")
    assert "/bin/false" in refused.stdout + refused.stderr

    wheel = build("wheel", unpacked, CC="/bin/false")
    with zipfile.ZipFile(wheel) as archive:
        assert [name for name in archive.namelist() if name.endswith(".so")] == []
    python = fresh_environment(tmp_path / "venv", wheel)
    done = run(python, "-c", STEP, cwd=tmp_path)
    _, backend, value = done.stdout.split()
    assert backend in ("numba", "numpy")
    assert done.stderr.count("RuntimeWarning") == 1, done.stderr
    assert "the C extension of fastoptim is missing" in done.stderr and f"using the {backend} backend" in done.stderr
    assert value == run(sys.executable, "-c", STEP, cwd=tmp_path).stdout.split()[2]

    required = run(python, "-c", STEP, cwd=tmp_path, fails=True, FASTOPTIM_REQUIRE_C="1")
    assert "ImportError: the C extension of fastoptim is missing" in required.stderr


def test_what_a_build_lacks_is_said_in_a_sentence(unpacked, tmp_path):
    """An old cffi writes C that compiles and cannot be loaded, so it is refused by its number."""
    (tmp_path / "old" / "cffi-2.0.0.dist-info").mkdir(parents=True)
    (tmp_path / "old" / "cffi-2.0.0.dist-info" / "METADATA").write_text("Name: cffi\nVersion: 2.0.0\n")
    command = (sys.executable, "setup.py", "-q", "build_ext")
    old = {"PYTHONPATH": str(tmp_path / "old")}
    refused = run(*command, cwd=unpacked, fails=True, FASTOPTIM_REQUIRE_C="1", **old).stderr
    sentence = "building it needs cffi 2.1 or newer, but 2.0.0 is installed: pip install 'cffi>=2.1'"
    assert sentence in refused and "Traceback" not in refused
    assert f"was not built ({sentence}); Numba or NumPy" in run(*command, cwd=unpacked, **old).stderr
    refused = run(*command, cwd=unpacked, fails=True, FASTOPTIM_REQUIRE_C="1", CC="/nowhere/gcc").stderr
    assert "there is no C compiler '/nowhere/gcc': install GCC or Clang" in refused and "Traceback" not in refused


def test_microsofts_compiler_is_refused_in_a_sentence(unpacked):
    code = """
import types, setuptools, runpy, sys
setuptools.setup = lambda **k: kept.update(k)
kept = {}
runpy.run_path("setup.py")
command = kept["cmdclass"]["build_ext"](setuptools.Distribution())
command.compiler = types.SimpleNamespace(compiler_type="msvc")
try:
    command.build_extensions()
except RuntimeError as error:
    print(error)
"""
    said = run(sys.executable, "-c", code, cwd=unpacked).stdout
    assert said.startswith("Microsoft's compiler cannot build it") and len(said.splitlines()) == 1


def test_a_library_that_cannot_be_loaded_fails_the_build_where_c_is_required(unpacked):
    shutil.rmtree(unpacked / "csrc")
    sources_with(["adam"], unpacked / "csrc")
    compile_quickly(unpacked)
    with open(unpacked / "csrc" / "pace.c", "a") as file:
        file.write("\nvoid fo_nowhere(void);\nvoid fo_lost(void) { fo_nowhere(); }\n")
    said = run(sys.executable, "setup.py", "-q", "build_ext", cwd=unpacked, fails=True, FASTOPTIM_REQUIRE_C="1").stderr
    assert "it was compiled but cannot be loaded" in said and "fo_nowhere" in said and "Traceback" not in said


def test_nothing_that_an_earlier_build_left_is_packed(unpacked):
    build("wheel", unpacked, CC="/bin/false")
    (left,) = (unpacked / "build").glob("lib*/fastoptim")
    (left / "gone.py").write_text("")
    (left / "_c.abi3.so").write_text("")
    with zipfile.ZipFile(build("wheel", unpacked, CC="/bin/false")) as archive:
        held = archive.namelist()
    assert "fastoptim/functional.py" in held
    assert "fastoptim/gone.py" not in held and "fastoptim/_c.abi3.so" not in held


def test_wider_arithmetic_does_not_compile():
    """x87, and s390x in strict ISO mode, compute float in double or wider: other bits."""
    compiler = shutil.which("gcc")
    if compiler is None or platform.machine() != "x86_64":
        pytest.skip("LOUD: not shown that x87 is refused: this machine has no gcc for x86; apt-get install gcc")
    kernels = "csrc/kernels/kernels.c"
    command = (compiler, "-m32", "-march=i686", "-std=c11", "-fsyntax-only", "-Icsrc", kernels)
    assert "wider types" in run(*command, "-mfpmath=387", cwd=ROOT, fails=True).stderr
    exact = runpy.run_path(str(ROOT / "csrc" / "build_ffi.py"))["EXACT"]["i686"]
    done = subprocess.run([*command, *exact], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "wider types" not in done.stderr  # it may still lack the library's 32-bit headers


def test_the_pythons_that_are_tested_get_numba():
    """A marker keeps it from Pythons that have no wheels of it yet, and must not do so for longer."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (marker,) = [found.marker for found in map(Requirement, listed) if found.name == "numba"]
    numbers = [version for version in PYTHONS if version.replace(".", "").isdigit()]
    linux = {"implementation_name": "cpython", "sys_platform": "linux", "platform_machine": "x86_64"}
    assert [x for x in numbers if not marker.evaluate(linux | {"python_version": x})] == []
    workflow = ROOT / ".github" / "workflows" / "release.yml"
    if not workflow.is_file():
        pytest.skip("LOUD: no workflows beside the tests")
    assert f"python: {json.dumps(numbers)}" in workflow.read_text()


def test_every_action_is_pinned_to_a_commit():
    """A tag can be moved to other code, which would then run with the right to publish."""
    folder = ROOT / ".github" / "workflows"
    if not folder.is_dir():
        pytest.skip("LOUD: no workflows beside the tests")
    used = [x for path in folder.glob("*.yml") for x in re.findall(r"uses: (.*)", path.read_text())]
    assert len(used) > 10
    assert [x for x in used if not re.fullmatch(r"[\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", x)] == []
