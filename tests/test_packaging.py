"""From the sources to a fresh environment, with a compiler and without; nothing is downloaded."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
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
