"""Every snippet of the guides and the README runs, and prints what they say it prints; so does the demo."""

from __future__ import annotations

import contextlib
import io
import linecache
import re
from pathlib import Path

import numpy as np
import pytest

from fastoptim import cli, demo

pytest.importorskip("sklearn", reason='the guide needs scikit-learn: pip install ".[examples]"')

DOCS = Path(__file__).resolve().parent.parent / "docs"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"[-+]?\d+\.?\d*(?:e[-+]?\d+)?")


def snippets(text):
    """``(code, what it prints or None)`` of every Python block, in order."""
    blocks = BLOCK.findall(text)
    for i, (language, body) in enumerate(blocks):
        if language == "python":
            follows = i + 1 < len(blocks) and blocks[i + 1][0] == "text"
            yield body, blocks[i + 1][1] if follows else None


def differs(printed, expected):
    """Whether two texts differ in more than the last digits of their numbers, which depend on the BLAS."""
    words, numbers = NUMBER.sub("#", printed).split(), [float(x) for x in NUMBER.findall(printed)]
    expected_numbers = [float(x) for x in NUMBER.findall(expected)]
    if words != NUMBER.sub("#", expected).split() or len(numbers) != len(expected_numbers):
        return True
    return not np.allclose(numbers, expected_numbers, rtol=0.1, atol=0.02)


def run(code, namespace):
    out, name = io.StringIO(), f"<guide {hash(code)}>"
    linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)  # as notebooks do
    with contextlib.redirect_stdout(out):
        exec(compile(code, name, "exec"), namespace)
    return out.getvalue()


@pytest.mark.parametrize(
    ("guide", "least"), [("guide.md", 14), ("optimizers.md", 7), ("own_rules.md", 4), ("../README.md", 2)]
)
def test_every_snippet_runs_and_prints_what_it_says(guide, least, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "guide"}
    count = 0
    for code, expected in snippets((DOCS / guide).read_text()):
        printed = run(code, namespace)
        assert expected is not None, f"nothing is said about what this prints:\n{code}"
        assert not differs(printed, expected), f"{code}\nprints\n{printed}\nnot\n{expected}"
        count += 1
    assert count >= least
    if guide != "guide.md":
        return
    assert cli.main(["plot", "run.jsonl"]) == 0
    assert (tmp_path / "run.png").exists()


def test_the_exercise_is_answered_on_a_real_run():
    """The run does fall and then jump from step to step, and the remedies do what the guide says."""
    namespace = {"__name__": "guide"}
    code = [code for code, _ in snippets((DOCS / "guide.md").read_text()) if "def logistic" in code or "halved" in code]
    run("import numpy as np\nimport fastoptim as fo\n" + "\n".join(code), namespace)
    losses, finding = namespace["losses"], namespace["finding"]
    assert losses[40:60].min() < 0.3 * losses[0]
    assert 0.2 < np.mean(np.diff(losses[-100:]) > 0) < 0.8
    assert finding.verdict == "oscillating"
    assert finding.lr_factor == 0.5
    for cured in (namespace["halved"], namespace["adam"]):
        assert np.ptp(cured[-20:]) < 0.01
        assert cured[-1] < losses[-50:].mean()


def test_the_comparison_of_printed_texts_can_fail():
    assert not differs("lr 0.5: healthy", "lr 0.501: healthy")
    assert differs("lr 0.5: healthy", "lr 0.5: plateau")
    assert differs("lr 0.5: healthy", "lr 0.7: healthy")
    assert differs("1 2", "1")


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
