"""The command line says what is wrong, in one line, and never shows a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

import fastoptim as fo
from fastoptim import cli, environment
from tests.support.platforms import needs_posix


def test_info_tells_what_is_here(capsys):
    assert cli.main(["info"]) == 0
    text = capsys.readouterr().out
    assert "isa:" in text and "usable cores:" in text and "-ffp-contract=off" in text
    assert "problems" not in text
    assert cli.main(["info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads(json.dumps(fo.info()))
    assert found["auto"] == "c" and "missing" not in found["backends"]["numpy"] and found["problems"] == []


def test_info_says_what_a_missing_backend_lacks(monkeypatch):
    get_backend = fo.backends.get_backend

    def only_numpy(name):
        if name != "numpy":
            raise ImportError("no such luck")
        return get_backend(name)

    monkeypatch.setattr(fo.backends, "get_backend", only_numpy)
    monkeypatch.delenv("FASTOPTIM_REQUIRE_C", raising=False)
    found = fo.info()
    assert found["auto"] == "numpy" and found["backends"]["c"] == {"missing": "no such luck"}


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("FASTOPTIM_NUM_THREADS", "abc", "must be an integer from 1 to 1024, got 'abc'"),
        ("FASTOPTIM_NUM_THREADS", "0", "must be an integer from 1 to 1024, got '0'"),
        ("FASTOPTIM_BACKEND", "foo", "must be one of auto, c, numba, numpy, cuda, got 'foo'"),
        ("FASTOPTIM_ISA", "bogus", "must be one of baseline, avx2, avx512, neon, got 'bogus'"),
        ("FASTOPTIM_REQUIRE_C", "yes", "must be one of 0, 1, got 'yes'"),
    ],
)
def test_info_names_settings_that_are_wrong(name, value, told, monkeypatch, capsys):
    monkeypatch.setenv(name, value)
    assert cli.main(["info"]) == 0
    assert f"problems: {name} {told}\n" in capsys.readouterr().out
    assert fo.info()["problems"] == [f"{name} {told}"]
    for command in (["bench", "--quick"], ["demo", "valley"]):
        assert cli.main(command) == 2
        seen = capsys.readouterr()
        assert seen.err == f"fastoptim {command[0]}: {name} {told}\n" and not seen.out


RIGHT = [
    *(["--help"], ["-h"], ["help"], ["help", "bench"], ["--version"], ["-V"], ["info", "--help"], ["bench", "--help"]),
    *(["bench", "compare", "--help"], ["demo", "--help"], ["plot", "--help"], ["diagnose", "--help"]),
    ["diagnose", "good.csv"],
]
FILES = {  # what wrong uses meet
    "good.csv": b"step,loss\n" + b"".join(b"%d,%.3f\n" % (i, 5 * 0.9**i) for i in range(60)),
    "empty": b"",
    "binary": bytes(range(256)) * 20,
    "words.csv": b"name,colour\na,red\nb,blue\n",
    "nan.csv": b"step,loss\n1,nan\n2,nan\n",
    "deep.json": b"[" * 100_000,
    "list.json": b"[1, 2",
    "escape.json": b'{"\x1b[31mloss": ["\x1b[2J"]}',
    "other.json": b'{"format": 999, "cases": 3}',
}
WRONG = [
    *([], ["help", "nothing"], ["nothing"], ["\x1b[31m"], ["info", "x"], ["info", "--json=1"], ["bench", "x"]),
    *(["bench", "--minutes", *x] for x in ([], ["0"], ["nan"], ["x"], ["-1"], ["inf"])),
    *(["bench", "--against", x] for x in ("nobody", "mine=", "c=module:function", "mine=no.module:f", "mine=:f")),
    *(["bench", "--only", "nothing"], ["bench", "--out", "good.csv", "--only", "nothing"], ["bench", "compare"]),
    *(["bench", "compare", x, x] for x in ("missing.json", "/", "/dev/null", "\0", *FILES)),
    ["bench", "compare", "missing.json"],
    *(
        ["demo", "nothing"],
        ["demo", "--epochs", "0"],
        ["demo", "--epochs", "x"],
        ["demo", "valley", "--out", "good.csv"],
    ),
    *(
        [command, *x]
        for command in ("plot", "diagnose")
        for x in ([], ["missing"], ["/"], ["\0"], ["empty"], ["binary"])
    ),
    *([command, "-"] for command in ("plot", "diagnose")),
    *([command, x] for command in ("plot", "diagnose") for x in ("words.csv", "deep.json", "list.json", "escape.json")),
    *(["diagnose", "good.csv", *x] for x in (["--lr", "x"], ["--lr", "nan"], ["--momentum", "2"], ["--start", "inf"])),
    *([command, "good.csv", *x] for command in ("plot", "diagnose") for x in (["--column", "no"], ["--pattern", "("])),
    *(["plot", "good.csv", *x] for x in (["--smoothing", "1"], ["--out", "/proc/none/x.png"], ["--out", "x.nothing"])),
    ["diagnose", "good.csv", "missing"],
]


def uses(arguments, capsys):
    """Exit status, output and errors of one use; nothing in them may be a traceback or command a terminal."""
    status = cli.main(arguments)
    seen = capsys.readouterr()
    for text in seen:
        assert "Traceback" not in text and "\x1b" not in text and "\0" not in text, arguments
    return status, seen.out, seen.err


def test_wrong_uses_say_so_and_right_ones_work(tmp_path, monkeypatch, capsys):
    """No traceback, the right exit status, and one line that says why, or the usage before it."""
    assert len(WRONG) >= 40
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", None)  # as where it is closed
    for arguments in RIGHT:
        status, out, err = uses(arguments, capsys)
        assert status == 0 and out and not err, arguments
    for arguments in WRONG:
        status, _, err = uses(arguments, capsys)
        assert status == 2 and err.strip(), arguments
        assert len(err.strip().splitlines()) == 1 or "usage: fastoptim" in err, (arguments, err)
        assert "Errno" not in err, arguments
    assert sorted(x.name for x in tmp_path.iterdir()) == sorted(FILES)


def test_no_command_prints_the_usage(capsys):
    assert cli.main([]) == 2
    assert capsys.readouterr().err.startswith("usage: fastoptim COMMAND")


def test_help_shows_defaults(capsys):
    cli.main(["help", "bench"])
    text = " ".join(capsys.readouterr().out.split())
    for default in ("default: bench_out", "default: whatever is installed", "default: up to 20", "default: 19"):
        assert default in text


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (FileNotFoundError(2, "No such file or directory", "run.jsonl"), "run.jsonl: No such file or directory"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (ValueError("two\nlines \x1b[31m"), r"two lines \x1b[31m"),
        (RuntimeError(), "RuntimeError"),
        (RecursionError("too deep"), "too deep"),
        (ImportError("pictures need matplotlib"), "pictures need matplotlib"),
    ],
)
def test_errors_are_one_line_that_says_what(error, told, monkeypatch, capsys):
    def fail(arguments):
        raise error

    monkeypatch.setattr(environment, "main", fail)
    assert cli.main(["info"]) == 2
    assert capsys.readouterr().err == f"fastoptim info: {told}\n"


def test_ctrl_c_is_no_error(monkeypatch, capsys):
    def interrupt(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(environment, "main", interrupt)
    assert cli.main(["info"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def run(command, **environment):
    return subprocess.run(
        ["/bin/bash", "-c", command], capture_output=True, text=True, env=os.environ | environment, check=False
    )


FASTOPTIM = f"{sys.executable} -m fastoptim"


@needs_posix
@pytest.mark.parametrize("buffered", ["0", ""])
@pytest.mark.parametrize("command", ["info", "help", "bench --help", "diagnose -"])
def test_a_pipe_that_is_closed_early_is_silent(command, buffered):
    given = "seq 100 -1 1 | " if command.endswith("-") else ""
    reads_nothing = f"{given}{FASTOPTIM} {command} | true; echo ${{PIPESTATUS[{int(bool(given))}]}}"
    done = run(reads_nothing, **({"PYTHONUNBUFFERED": "1"} if buffered else {}))
    assert done.stderr == "" and done.stdout.strip() in ("0", "141")


@needs_posix
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_an_error_without_traceback():
    done = run(f"{FASTOPTIM} info > /dev/full")
    assert done.returncode == 2
    assert done.stderr in (f"fastoptim{x}: No space left on device\n" for x in (" info", ": standard output"))


@needs_posix
def test_output_that_cannot_be_encoded_is_escaped():
    assert run(f"{FASTOPTIM} info", PYTHONIOENCODING="ascii", OMP_PLACES="µ").stdout.rstrip().endswith("\\xb5")


def test_module_runs():
    done = subprocess.run([sys.executable, "-m", "fastoptim", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == fo.__version__
