"""Every snippet of the documentation, its notebook and the README runs and prints what it says; so does the demo."""

from __future__ import annotations

import contextlib
import io
import json
import linecache
import re
import warnings
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest

from fastoptim import cli, demo

pytest.importorskip("sklearn", reason='the guide needs scikit-learn: pip install ".[examples]"')

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
# A block that no test can run stands behind a comment that says why.
BLOCK = re.compile(r"(?:^<!-- not run: (.*?) -->\n\n?)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"[-+]?\d+\.?\d*(?:e[-+]?\d+)?")
# What a page may need that not everybody has installed.
LIBRARIES = ("autograd", "jax", "matplotlib", "ml_dtypes", "mpi4py", "optax", "sklearn", "thinc", "torch")


def snippets(text):
    """``(code, what it prints or None)`` of every Python block that is to be run, in order."""
    blocks = BLOCK.findall(text)
    for i, (why_not, language, body) in enumerate(blocks):
        if language == "python" and not why_not:
            follows = i + 1 < len(blocks) and blocks[i + 1][1] == "text"
            yield body, blocks[i + 1][2] if follows else None


def cells(notebook):
    """The same of a notebook's cells, without the commands that only notebooks know."""
    for cell in json.loads(notebook)["cells"]:
        if cell["cell_type"] == "code":
            code = "".join(line for line in cell["source"] if not line.startswith("%"))
            printed = ["".join(out["text"]) for out in cell["outputs"] if out["output_type"] == "stream"]
            yield code, "".join(printed) or None


def differs(printed, expected):
    """Whether two texts differ in more than one unit of the last decimal of a number, which may depend on the BLAS."""
    words, numbers = NUMBER.sub("#", printed).split(), NUMBER.findall(printed)
    expected_numbers = NUMBER.findall(expected)
    if words != NUMBER.sub("#", expected).split() or len(numbers) != len(expected_numbers):
        return True
    return any(abs(Decimal(a) - Decimal(b)) > unit(a, b) for a, b in zip(numbers, expected_numbers, strict=True))


def unit(*numbers):
    """One in the last decimal of the number that has the most; 0 for whole numbers and numbers with an exponent."""
    if any("e" in x for x in numbers):
        return Decimal(0)
    decimals = max(len(x.partition(".")[2]) for x in numbers)
    return Decimal(1).scaleb(-decimals) if decimals else Decimal(0)


def run(code, namespace):
    out, name = io.StringIO(), f"<guide {hash(code)}>"
    linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)  # as notebooks do
    with contextlib.redirect_stdout(out):
        exec(compile(code, name, "exec"), namespace)
    return out.getvalue()


def missing(code):
    """The libraries that a block imports and that are not installed."""
    for library in re.findall(rf"^\s*(?:from|import) ({'|'.join(LIBRARIES)})\b", code, re.MULTILINE):
        try:
            __import__(library)
        except ImportError:
            yield library


PAGES = [
    path
    for path in [ROOT / "README.md", *sorted(DOCS.rglob("*.md")), *sorted(DOCS.rglob("*.ipynb"))]
    if "_build" not in path.parts
]


def blocks_of(path):
    return list((cells if path.suffix == ".ipynb" else snippets)(path.read_text()))


@pytest.mark.parametrize(
    "path", [p for p in PAGES if blocks_of(p)], ids=lambda p: p.relative_to(ROOT).as_posix().removeprefix("docs/")
)
def test_every_snippet_runs_and_prints_what_it_says(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # a page may save a block as a module and import that in the next
    namespace = {"__name__": "guide"}
    for code, expected in blocks_of(path):
        if absent := sorted(set(missing(code))):
            pytest.skip(f"LOUD: from here on {path.name} goes untested without {', '.join(absent)}")
        if name := re.match(r"# (\w+\.py)\n", code):
            (tmp_path / name[1]).write_text(code)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some examples show bad training, others end early
            printed = run(code, namespace)
        said = "" if expected is None else expected
        assert not differs(printed, said), f"{code}\nprints\n{printed}\nnot\n{said}"
    if path.name == "training_loop.md":
        assert cli.main(["plot", "run.jsonl"]) == 0
        assert (tmp_path / "run.png").exists()


def test_the_guide_has_its_snippets():
    found = {path.name: len(blocks_of(path)) for path in PAGES}
    assert sum(found[f"{name}.md"] for name in ("how_updates_work", "learning_rate", "choosing", "exercise")) >= 8
    least = {
        "optimizers.md": 5,
        "README.md": 2,
        "first_model.md": 3,
        "from_torch.md": 2,
        "training.md": 3,
        "notebook.ipynb": 5,
    }
    assert {name: found[name] for name in least if found[name] < least[name]} == {}


def test_no_block_is_passed_over():
    """One that is indented, or spelled otherwise, would go untested without a word."""
    for path in (p for p in PAGES if p.suffix == ".md"):
        text = path.read_text()
        assert len(re.findall(r"```\{?(?:py|code)", text)) == len(blocks_of(path)) + text.count("<!-- not run: "), path


def test_a_snippet_that_prints_something_else_is_seen():
    text = "```python\nprint(1)\n```\n\n```text\n2\n```\n\n<!-- not run: no GPU -->\n```python\nx\n```\n"
    [(code, said)] = snippets(text)
    assert differs(run(code, {}), said)
    assert list(missing("import numpy\nfrom torch_of_nobody import x")) == []


def test_the_exercise_is_answered_on_a_real_run():
    """The run does fall and then jump from step to step, and the remedies do what the guide says."""
    namespace = {"__name__": "guide"}
    run("\n".join(code for code, _ in blocks_of(DOCS / "guide" / "exercise.md")), namespace)
    losses, finding = namespace["losses"], namespace["finding"]
    assert losses[40:60].min() < 0.3 * losses[0]
    assert 0.2 < np.mean(np.diff(losses[-100:]) > 0) < 0.8
    assert finding.verdict == "oscillating"
    assert finding.lr_factor == 0.5
    for cured in (namespace["halved"], namespace["adam"]):
        assert np.ptp(cured[-20:]) < 0.01
        assert cured[-1] < losses[-50:].mean()


def test_the_comparison_of_printed_texts_can_fail():
    assert not differs("lr 0.500: healthy", "lr 0.501: healthy")
    assert not differs("at 0.2", "at 0.19")
    assert differs("lr 0.5: healthy", "lr 0.5: plateau")
    assert differs("lr 0.5: healthy", "lr 0.7: healthy")
    assert differs("1 2", "1")
    assert differs("[0.0461] [0.0142]", "[0.0461] [0.0041]")
    assert differs("around 0.027", "around 0.03")
    assert differs("[0.90250003]", "[0.9025]")
    assert differs("880 steps", "881 steps")
    assert differs("1e-07 [3.]", "1e-06 [3.]")


# --- The demo -----------------------------------------------------------------------------------------------------


def test_the_demo_walks_from_advice_to_result(tmp_path, capsys):
    assert cli.main(["demo", "--out", str(tmp_path / "out"), "--epochs", "4"]) == 0
    text = capsys.readouterr().out
    for part in ("Which optimizer?", "Which learning rate?", "Training:", "What did it take?", "fo.diagnose reads"):
        assert part in text
    shares = [float(share) for share in re.findall(r"([\d.]+)% of the test", text)]
    assert len(shares) == 3
    assert shares[0] > 92 > shares[1]  # the probed rate against plain SGD at its default
    assert shares[2] > 90  # and SGD at a probed rate
    end = text.split("What did it take?")[1]
    assert "0.001 is too slow" in end
    assert "keep the learning rate." not in end  # the bad example is not praised
    for name in ("probe.png", "loss.png", "update_ratios.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "out" / "run.jsonl").exists()


def test_the_demo_draws_the_valley(tmp_path, capsys):
    assert cli.main(["demo", "valley", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "valley.png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out.strip() == str(tmp_path / "valley.png")


def test_the_demos_gradients_are_right():
    params, loss_and_grad, accuracy = demo.network((5, 4, 3), seed=1)
    params = {name: p.astype(np.float64) for name, p in params.items()}
    rng = np.random.default_rng(0)
    batch = (rng.standard_normal((6, 5)), rng.integers(0, 3, 6))
    grads = loss_and_grad(params, batch)[1]
    for name, p in params.items():
        for i in np.ndindex(p.shape):
            kept, sides = p[i], []
            for h in (1e-6, -1e-6):
                p[i] = kept + h
                sides.append(loss_and_grad(params, batch)[0])
            p[i] = kept
            assert grads[name][i] == pytest.approx((sides[0] - sides[1]) / 2e-6, abs=1e-6)
    assert 0.0 <= accuracy(params, batch) <= 1.0


def test_the_demo_refuses_what_it_cannot_do(tmp_path, capsys):
    assert cli.main(["demo", "--epochs", "0"]) == 2
    (tmp_path / "file").write_text("")
    assert cli.main(["demo", "valley", "--out", str(tmp_path / "file")]) == 2
    assert "fastoptim demo:" in capsys.readouterr().err
