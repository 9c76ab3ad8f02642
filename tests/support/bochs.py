"""An x86-64 processor with AVX-512 for machines that have none: python tests/support/bochs.py PROGRAM [ARGUMENT...]

The emulator Bochs boots a Linux kernel that finds nothing but the program and its libraries, and runs it with this
command's standard input; its output, errors and exit status become this command's. That takes a minute, and a program
a hundred times as long as on a processor.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

COMMAND = [sys.executable, __file__]
INIT = Path(__file__).with_name("emulated") / "init.c"
LOADER = Path("/usr/lib/ISOLINUX/isolinux.bin"), Path("/usr/lib/syslinux/modules/bios/ldlinux.c32")
# Bochs and Linux do not agree on how large the state is that XSAVEC and XSAVES store, and Linux would leave AVX out.
OPTIONS = "quiet mitigations=off rdinit=/init clearcpuid=xsavec,xsaves"
MACHINE = """\
display_library: rfb, options="timeout=0"
memory: guest=2048, host=2048
romimage: file=/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest
cpu: model=corei7_skylake_x
ata0-master: type=cdrom, path={disc}, status=inserted
boot: cdrom
port_e9_hack: enabled=1
log: {log}
panic: action=fatal
"""


def kernel() -> Path | None:
    found = sorted(Path("/boot").glob("vmlinuz-*"), key=lambda path: ("cloud" not in path.name, path.name))
    return next((path for path in found if os.access(path, os.R_OK)), None)


def missing() -> str:
    """What to install; empty if nothing is missing."""
    lacks = [name for name in ("bochs", "xorriso") if shutil.which(name) is None]
    lacks += [] if all(path.exists() for path in LOADER) else ["isolinux", "syslinux-common"]
    lacks += [] if kernel() else ["linux-image-cloud-amd64"]
    return f"apt-get install {' '.join(lacks)}" if lacks else ""


def libraries(program: Path) -> list[Path]:
    found = subprocess.run(["ldd", program], capture_output=True, text=True, check=False)  # fails if it needs none
    return [Path(name) for name in re.findall(r"(/\S+) \(0x", found.stdout)]


def archive(files: dict[str, bytes]) -> bytes:
    """Files as Linux unpacks them into its first file system (cpio, "newc")."""
    folders = {str(folder) for name in files for folder in Path(name).parents if str(folder) != "."}
    entries = [(name, 0o040755, b"") for name in sorted(folders)]
    entries += [(name, 0o100755, data) for name, data in files.items()]
    parts = []
    for number, (name, mode, data) in enumerate([*entries, ("TRAILER!!!", 0, b"")], 1):
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        for part in (head, data):
            parts += [part, bytes(-len(part) % 4)]
    return b"".join(parts)


def run(program: Path, arguments: list[str], data: bytes) -> tuple[int, bytes, bytes]:
    """Status, output and errors of the program."""
    with tempfile.TemporaryDirectory() as folder:
        here, disc = Path(folder), Path(folder, "disc")
        disc.mkdir()
        subprocess.run(["gcc", "-O2", "-static", "-o", here / "init", INIT], check=True)
        files = {"init": here / "init", "program": program} | {str(x).lstrip("/"): x for x in libraries(program)}
        contents = {name: path.read_bytes() for name, path in files.items()}
        (disc / "files").write_bytes(archive({**contents, "input": data}))
        for source, name in ((kernel(), "vmlinuz"), *((path, path.name) for path in LOADER)):
            shutil.copy(source, disc / name)
        boot = f"DEFAULT a\nLABEL a\nKERNEL /vmlinuz\nAPPEND initrd=/files {OPTIONS} -- {' '.join(arguments)}\n"
        (disc / "isolinux.cfg").write_text(boot)
        make = ["xorriso", "-as", "mkisofs", "-quiet", "-o", here / "disc.iso", "-b", LOADER[0].name, "-c", "boot.cat"]
        make += ["-no-emul-boot", "-boot-load-size", "4", "-boot-info-table", disc]
        subprocess.run(make, check=True, capture_output=True)
        (here / "machine").write_text(MACHINE.format(disc=here / "disc.iso", log=here / "log"))
        (here / "start").write_text("c\n")  # for builds of Bochs that start in their debugger
        command = ["bochs", "-q", "-f", here / "machine", "-rc", here / "start"]
        said = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        answer = re.search(rb"^ANSWER (\d+) (\d+) (\d+)\n", said.stdout, re.MULTILINE)
        if answer is None:
            log = (here / "log").read_text(errors="replace").splitlines()
            raise SystemExit("\n".join(["bochs: the machine ended without an answer", *log[-5:]]))
    status, size, errors = map(int, answer.groups())
    start, end = answer.end(), answer.end() + size
    return os.waitstatus_to_exitcode(status), said.stdout[start:end], said.stdout[end : end + errors]


if __name__ == "__main__":
    status, output, errors = run(Path(sys.argv[1]), sys.argv[2:], sys.stdin.buffer.read())
    sys.stdout.buffer.write(output)
    sys.stderr.buffer.write(errors)
    sys.exit(status)
