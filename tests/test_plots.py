"""Pictures show what happened, need no window, and leave matplotlib as it was."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
import types

import numpy as np
import pytest

import fastoptim as fo
from fastoptim import cli, plots
from fastoptim.training.diagnosis import VERDICTS
from fastoptim.tuning.probe import Probe, ProbeResult

pytest.importorskip("matplotlib", reason='pictures need matplotlib: pip install ".[train]"')

CURVATURE = np.geomspace(0.01, 1.0, 10)


def loss_and_grad(params, batch):
    error = params["x"] - 1.0
    return 0.5 * np.sum(CURVATURE * error**2), {"x": CURVATURE * error}


@pytest.fixture
def run(tmp_path):
    """A run with schedule, validation and both kinds of log: (result, jsonl, csv)."""
    results = []
    for name in ("run.jsonl", "run.csv"):
        params = {"x": np.zeros(10)}
        results.append(
            fo.fit(
                loss_and_grad,
                params,
                None,
                "sgd",
                lr=fo.schedules.linear(1.0, 0.1, 40),
                steps=40,
                validation=lambda params: loss_and_grad(params, None)[0],
                validate_every=10,
                log=tmp_path / name,
                diagnose=False,
            )
        )
    return results[0], tmp_path / "run.jsonl", tmp_path / "run.csv"


def png(figure, tmp_path):
    """Size of the picture, which must not be blank."""
    from matplotlib.image import imread

    path = tmp_path / "picture.png"
    figure.savefig(path)
    pixels = imread(path)
    assert pixels[..., :3].std() > 0.02
    return pixels.shape[:2]


def drawn(axis, label):
    return next(line.get_ydata() for line in axis.lines if line.get_label() == label)


def position(axis, start):
    """Where the line stands whose label begins like that."""
    return next(line.get_xdata()[0] for line in axis.lines if line.get_label().startswith(start))


def test_smoothing_has_no_bias_and_passes_over_nan():
    losses = [3.0, 1.0, np.nan, 2.0]
    beta, mean, weight, expected = 0.8, 0.0, 0.0, []
    for loss in losses:
        if loss == loss:
            mean, weight = beta * mean + (1 - beta) * loss, beta * weight + 1 - beta
        expected.append(mean / weight)
    assert plots.smooth(losses, 0.8) == pytest.approx(expected)
    assert plots.smooth([5.0] * 10, 0.99) == pytest.approx([5.0] * 10)
    assert np.isnan(plots.smooth([np.nan, 1.0])[0])
    with pytest.raises(ValueError, match="smoothing"):
        plots.smooth([1.0], 1.0)


def test_smoothing_passes_over_masked_values_and_refuses_what_is_no_sequence():
    masked = np.ma.masked_array([3.0, 1e9, 2.0], [False, True, False])
    assert plots.smooth(masked) == pytest.approx(plots.smooth([3.0, np.nan, 2.0]))
    assert np.isnan(drawn(plots.loss(masked).axes[0], "loss of the minibatch")[1])
    for draw in (plots.smooth, plots.loss):
        with pytest.raises(TypeError, match="losses must be a sequence of numbers, got dict"):
            draw({0: 3.0})
    with pytest.raises(TypeError, match=r"runs: expected a mapping.*got list"):
        plots.compare([[1.0, 2.0]])


def test_a_log_is_drawn_like_the_result_it_belongs_to(run, tmp_path):
    result, jsonl, csv = run
    for source in (result, result.history, jsonl, str(jsonl), csv):
        figure = plots.loss(source, smoothing=0.9)
        top, bottom = figure.axes
        assert drawn(top, "loss of the minibatch") == pytest.approx(result.history.loss)
        assert drawn(top, "smoothed") == pytest.approx(plots.smooth(result.history.loss, 0.9))
        assert drawn(top, "validation") == pytest.approx(result.history.validation["loss"])
        checks = next(line for line in top.lines if line.get_label() == "validation")
        assert checks.get_xdata().tolist() == [9, 19, 29, 39]
        assert bottom.lines[0].get_ydata() == pytest.approx(result.history.lr)
        assert top.get_yscale() == "log"
        assert (top.get_ylabel(), bottom.get_ylabel(), bottom.get_xlabel()) == ("loss", "learning rate", "step")
    height, width = png(figure, tmp_path)
    assert height > 400
    assert width > 800


def test_mere_losses_are_drawn_without_a_schedule():
    figure = plots.loss([1.0, -0.5, -1.0])
    assert len(figure.axes) == 1
    assert figure.axes[0].get_yscale() == "linear"
    assert plots.loss([1.0, 0.5, 0.0]).axes[0].get_yscale() == "linear"
    with pytest.raises(ValueError, match=r"got shape \(1, 3\)"):
        plots.loss([[1.0, 2.0, 3.0]])


def test_a_loss_that_was_not_finite_leaves_a_gap(tmp_path):
    log = tmp_path / "x.jsonl"
    lines = [{"kind": "run", "version": 1}]
    lines += [{"kind": "step", "step": i, "loss": x, "lr": 0.1} for i, x in enumerate([2.0, None, 1.0])]
    log.write_text("\n".join(map(json.dumps, lines)) + '\n{"kind": "st')  # the last line was cut off
    curve = plots.read_log(log)
    assert np.isnan(curve.losses[1])
    assert curve.steps.tolist() == [0, 1, 2]
    assert np.isfinite(drawn(plots.loss(log).axes[0], "smoothed")).all()
    log.write_text(log.read_text() + "\n" + json.dumps(lines[-1]) + "\n")
    with pytest.raises(ValueError, match="line 5: not a line"):  # in the middle nothing is passed over
        plots.read_log(log)


def test_a_cut_log_gives_the_lines_before_the_cut_and_no_other_numbers(run, tmp_path):
    for log in run[1:]:
        whole, text, cut = plots.read_log(log), log.read_text(), tmp_path / f"cut{log.suffix}"
        for size in range(len(text) - 250, len(text) + 1):
            cut.write_text(text[:size])
            curve = plots.read_log(cut)
            lines = len(curve.steps)
            assert 35 <= lines <= 40
            assert np.array_equal(curve.losses, whole.losses[:lines])
            assert np.array_equal(curve.rates, whole.rates[:lines])
            checks = len(curve.validation_losses)
            assert np.array_equal(curve.validation_losses, whole.validation_losses[:checks])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.jsonl", "hello\nworld\n", "line 1: not a line"),
        ("x.jsonl", '{"kind": "run", "version": 2}\n{}\n', "line 1: .*version 2"),
        ("x.jsonl", '{"kind": "run", "version": 1}\n{"kind": "step"}\n{}\n', "line 2: not a line"),
        ("x.jsonl", '{"kind": "run", "version": 1}\n', "holds no steps"),
        ("x.jsonl", "", "holds no steps"),
        ("x.csv", "step,loss,lr,validation_loss\n1,x,2,\n", "line 2: not a line"),
        ("x.csv", "a,b\n1,2\n", "line 2: not a line"),
    ],
)
def test_other_files_are_refused(name, text, message, tmp_path, capsys):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        plots.read_log(tmp_path / name)
    assert cli.main(["plot", str(tmp_path / name)]) == 2
    assert name in capsys.readouterr().err


def test_the_probe_is_drawn_with_verdicts_and_the_choice(tmp_path):
    result = fo.probe_lr(loss_and_grad, {"x": np.zeros(10)}, None, "sgd")
    figure = plots.probe(result)
    left, right = figure.axes
    assert len(left.lines) == len(result.probes)
    verdicts = {probe.verdict for probe in result.probes}
    assert {"healthy", "diverged"} <= verdicts
    labels = [text.get_text() for text in left.get_legend().get_texts()]
    assert set(labels) == verdicts | {f"chosen: {result.lr:g}"}
    for line, probe in zip(left.lines, result.probes, strict=True):
        assert line.get_color() == plots.VERDICT_COLOURS[probe.verdict]
        assert (line.get_linewidth() > 2) == (probe.lr == result.lr)
    *points, circle = [line for line in right.lines if len(line.get_xdata()) == 1]
    for line, probe in zip(points, result.probes, strict=True):
        ceiling = 10 * probe.losses[0]
        assert line.get_xdata()[0] == probe.lr
        assert line.get_ydata()[0] == pytest.approx(min(probe.score, ceiling))
        assert line.get_color() == plots.VERDICT_COLOURS[probe.verdict]
        assert line.get_marker() == ("^" if probe.score > ceiling else "o")
    assert {line.get_marker() for line in points} == {"^", "o"}
    best = next(probe for probe in result.probes if probe.lr == result.lr)
    assert (circle.get_xdata()[0], circle.get_ydata()[0]) == (best.lr, best.score)
    for line, probe in zip(left.lines, result.probes, strict=True):
        shown = line.get_ydata()
        assert np.array_equal(
            shown, np.where(probe.losses <= 10 * probe.losses[0], probe.losses, np.nan), equal_nan=True
        )
    assert any(np.isnan(line.get_ydata()).any() for line in left.lines)
    marked = [line for line in right.lines if line.get_linestyle() == "--"]
    assert [line.get_xdata()[0] for line in marked] == [result.lr]
    assert right.get_xscale() == "log"
    written = {text.get_text(): text for text in left.texts}
    assert set(written) == {f"{probe.lr:g}" for probe in result.probes if np.isfinite(probe.losses[0])}
    for probe in result.probes:  # every curve is labelled by its rate, in its colour
        assert written[f"{probe.lr:g}"].get_color() == plots.VERDICT_COLOURS[probe.verdict]
    edge = sorted(text.get_position()[1] for text in left.texts if text.get_position()[0] > 1.0)
    assert len(edge) >= 2 and min(np.diff(edge)) > 0.04  # and none is written over another
    assert left.get_title() and right.get_title() and "fixed batch" in left.get_ylabel()
    png(figure, tmp_path)
    assert set(plots.VERDICT_COLOURS) == set(VERDICTS)
    assert len(set(plots.VERDICT_COLOURS.values())) == len(VERDICTS)


def test_a_rate_that_only_longer_trials_have_tried_is_drawn_and_marked():
    def probes(steps, *rates):
        losses = np.linspace(2.0, 1.0, steps + 1)
        return tuple(Probe(lr, losses, 1.0 + lr, fo.diagnose(losses, fixed_batch=True)) for lr in rates)

    result = ProbeResult(0.5, (0.2, 1.0), probes(20, 0.01, 0.02), False, probes(40, 0.02, 0.5, 1.0))
    lines = str(result).splitlines()
    assert "  after 40 steps" in lines
    assert [line.split()[1] for line in lines if line.lstrip().startswith("*")] == ["0.5"]
    dashed = [line for line in plots.probe(result).axes[1].lines if line.get_linestyle() == "--"]
    assert [line.get_xdata()[0] for line in dashed] == [0.5]


def test_a_probe_without_any_finite_loss_is_drawn(tmp_path):
    def cliff(x, batch):
        return (1.0 if (x == 1.0).all() else np.nan), x + 1.0

    result = fo.probe_lr(cliff, np.ones(2), None, "sgd", max_probes=2)
    assert len(plots.probe(result).axes) == 2
    png(plots.probe(result), tmp_path)


def test_the_sweep_is_drawn_with_its_findings(tmp_path):
    test = fo.lr_range_test(loss_and_grad, {"x": np.zeros(10)}, None, "sgd", high=100.0)
    axis = plots.range_test(test).axes[0]
    assert drawn(axis, "smoothed").tolist() == test.smoothed.tolist()
    assert axis.get_xscale() == "log"
    labels = [text.get_text() for text in axis.get_legend().get_texts()]
    assert f"steepest fall: {test.steepest:.2g}" in labels
    assert f"blow-up: {test.blow_up:.2g}" in labels
    assert (position(axis, "steepest"), position(axis, "blow-up")) == (test.steepest, test.blow_up)
    png(plots.range_test(test), tmp_path)


def test_the_valley_is_walked_by_the_optimizers(tmp_path):
    paths = plots.valley_paths()
    assert [name.split(",")[0].split(" ")[0] for name in paths] == ["SGD", "momentum", "Adam", "AdamW"]
    x = plots.VALLEY_START.copy()
    for i in range(5):
        assert paths["SGD, lr 1.8"][i] == pytest.approx(x)
        x -= 1.8 * plots.VALLEY * (x - plots.VALLEY_MINIMUM)
    for path in paths.values():
        losses = 0.5 * np.sum(plots.VALLEY * (path - plots.VALLEY_MINIMUM) ** 2, axis=1)
        assert losses[-1] < 0.01 * losses[0]
    across = paths["SGD, lr 1.8"][:10, 1] - plots.VALLEY_MINIMUM[1]
    assert (across[1:] * across[:-1] < 0).all()  # it jumps from wall to wall
    figure = plots.valley()
    assert len(figure.axes) == 4
    ends = {
        name.split(",")[0]: 0.5 * np.sum(plots.VALLEY * (path[-1] - plots.VALLEY_MINIMUM) ** 2)
        for name, path in paths.items()
    }
    assert ends["SGD"] > 5 * ends["momentum 0.9"] and ends["SGD"] > ends["Adam"]  # a narrow valley is what slows it
    for axis, (name, path) in zip(figure.axes, paths.items(), strict=True):
        assert axis.get_title().startswith(name)
        assert np.transpose(axis.lines[0].get_xydata()).tolist() == path.T.tolist()
        assert axis.lines[1].get_xydata().tolist() == [plots.VALLEY_MINIMUM.tolist()]
        for points, level in zip(axis.collections[0].allsegs, axis.collections[0].levels, strict=True):
            heights = 0.5 * np.sum(plots.VALLEY * (np.concatenate(points) - plots.VALLEY_MINIMUM) ** 2, axis=1)
            assert heights == pytest.approx(level, rel=0.2)  # the grid's lines are straight
        low, high = axis.get_xlim()
        assert low < path[:, 0].min() < path[:, 0].max() < high
    assert png(figure, tmp_path)[1] > 1000


@pytest.mark.parametrize("every", [1, 4])
def test_update_ratios_are_those_of_the_weights(every, tmp_path):
    params = {"a": np.full(3, 2.0, np.float32), "b": np.zeros(2)}

    def gradients(params, batch):
        return 1.0, {"a": np.ones(3, np.float32), "b": np.ones(2)}

    record = plots.UpdateRatios(params, every)
    fo.fit(gradients, params, None, fo.SGD(params, lr=0.1), steps=9, callbacks=[record], diagnose=False)
    assert record.names == ("a", "b")
    assert record.steps == list(range(0, 9, every))
    a = 2.0 - 0.1 * np.array(record.steps)
    assert np.array(record.ratios)[:, 0] == pytest.approx(0.1 / a, rel=1e-4)
    assert np.isnan(record.ratios[0][1])  # from weights of zero
    assert record.ratios[1][1] == pytest.approx(1.0 / record.steps[1])
    axis = plots.update_ratios(record).axes[0]
    for i, name in enumerate(record.names):
        assert np.array_equal(drawn(axis, name), [row[i] for row in record.ratios], equal_nan=True)
    png(plots.update_ratios(record), tmp_path)


@pytest.mark.parametrize("every", [1, 4])
def test_update_ratios_of_a_resumed_run_are_those_of_the_whole_run(every, tmp_path):
    def fit(steps, **options):
        w = np.ones(2)
        record = plots.UpdateRatios(w, np.int64(every))
        w *= 7.0  # the weights count that training begins with
        fo.fit(lambda p, batch: (1.0, 2 * p), w, None, "sgd", lr=0.1, steps=steps, callbacks=[record], **options)
        return dict(zip(record.steps, record.ratios, strict=True))

    path = tmp_path / "a.ckpt"
    whole, first = fit(13), fit(10, checkpoint=path, checkpoint_every=999)
    second = fit(13, resume=path)
    assert first | second == whole and min(second) == (10 if every == 1 else 12)
    assert whole[0] == [pytest.approx(0.2)]


def test_a_step_at_rate_zero_leaves_a_gap(tmp_path):
    w = np.ones(2)
    record = plots.UpdateRatios(w)
    rate = fo.schedules.linear(0.0, 0.1, 6)
    fo.fit(lambda p, batch: (1.0, 2 * p), w, None, "sgd", lr=rate, steps=6, callbacks=[record], diagnose=False)
    assert record.ratios[0][0] == 0.0
    axis = plots.update_ratios(record).axes[0]
    shown = drawn(axis, "0")
    assert np.isnan(shown[0]) and (shown[1:] > 0).all()
    assert axis.get_yscale() == "log" and axis.get_title()
    assert record.ratios[0][0] == 0.0  # what was measured stays
    png(plots.update_ratios(record), tmp_path)


def test_several_runs_are_compared_in_one_picture(run, tmp_path, capsys, monkeypatch):
    result, jsonl, _ = run
    other = tmp_path / "_other $x$.csv"
    other.write_text("iter,train_loss\n" + "".join(f"{i},{2 - 0.01 * i}\n" for i in range(50)))
    axis = plots.compare({"a": result, "b": jsonl, str(other): other}, smoothing=0.9).axes[0]
    labels = [text.get_text() for text in axis.get_legend().get_texts()]
    assert labels[:2] == ["a", "b"] and labels[2].replace("\\$", "$").endswith("_other $x$.csv")
    assert labels[2].count("\\$") == 2  # as it is, and no formula
    assert drawn(axis, "b") == pytest.approx(plots.smooth(result.history.loss, 0.9))
    smoothed = [line for line in axis.lines if line.get_label() in labels]
    assert len({line.get_color() for line in smoothed}) == 3
    checks = [line for line in axis.lines if line.get_linestyle() == "--" and line.get_marker() == "o"]
    assert [line.get_ydata().tolist() for line in checks] == [result.history.validation["loss"].tolist()] * 2
    assert "validation dashed" in axis.get_title()
    monkeypatch.chdir(tmp_path)
    assert cli.main(["plot", str(jsonl), str(other)]) == 0
    assert capsys.readouterr().out == "comparison.png\n"
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    assert cli.main(["plot", str(other), "--column", "train_loss", "--out", "one"]) == 0
    assert capsys.readouterr().out == "one.png\n"
    png(plots.compare({f"_{i}": [2.0, 1.0] for i in range(9)}), tmp_path)
    legend = plots.compare({0.1: [2.0, 1.0], 0.01: [2.0, 1.5]}).axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["0.1", "0.01"]


def test_a_log_is_not_overwritten_by_its_picture(tmp_path, capsys):
    log = tmp_path / "log.png"
    log.write_text("3\n2\n1\n")
    (tmp_path / "other").write_text("2\n1\n")
    for options in ([log], [tmp_path / "other", log, "--out", log]):
        assert cli.main(["plot", *map(str, options)]) == 2
        assert "--out" in capsys.readouterr().err
        assert log.read_text() == "3\n2\n1\n"


def test_a_picture_goes_into_a_folder_or_a_pipe(tmp_path, capfd):
    log = tmp_path / "log"
    log.write_text("3\n2\n1\n")
    (tmp_path / "pictures").mkdir()
    assert cli.main(["plot", str(log), "--out", str(tmp_path / "pictures")]) == 0
    assert (tmp_path / "pictures" / "log.png").read_bytes().startswith(b"\x89PNG")
    if os.path.exists("/dev/full"):
        assert cli.main(["plot", str(log), "--out", "/dev/full"]) == 2
        assert "No space left" in capfd.readouterr().err and not os.path.exists("/dev/full.png")


@pytest.mark.parametrize("suffix", ["png", "svg", "PDF"])
def test_a_picture_that_fails_leaves_the_old_one(suffix, tmp_path, monkeypatch, capsys):
    import matplotlib.figure

    log, out = tmp_path / "log", tmp_path / f"picture.{suffix}"
    log.write_text("3\n2\n1\n")
    command = ["plot", str(log), "--out", str(out)]
    assert cli.main(command) == 0
    before, drawn = out.read_bytes(), matplotlib.figure.Figure.savefig

    def half(figure, target, **options):
        drawn(figure, target, **options)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(matplotlib.figure.Figure, "savefig", half)
        assert cli.main(command) == 2
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *paths: half(matplotlib.figure.Figure(), io.BytesIO()))
        assert cli.main(command) == 2
    assert capsys.readouterr().err.count("No space left on device") == 2
    assert out.read_bytes() == before and sorted(os.listdir(tmp_path)) == ["log", out.name]


def test_every_picture_has_a_title(run):
    test = fo.lr_range_test(loss_and_grad, {"x": np.zeros(10)}, None, "sgd", high=100.0)
    figures = [plots.loss(run[0]), plots.range_test(test), plots.compare({"a": [2.0, 1.0]})]
    assert all(figure.axes[0].get_title() for figure in figures)
    assert plots.valley().get_suptitle()


def test_every_array_has_a_line_of_its_own():
    params = {f"p{i}": np.full(1, 2.0 + i) for i in range(10)}
    record = plots.UpdateRatios(params)
    gradients = {name: np.ones(1) for name in params}
    fo.fit(lambda p, batch: (1.0, gradients), params, None, "sgd", lr=0.1, steps=3, callbacks=[record], diagnose=False)
    lines = [line for line in plots.update_ratios(record).axes[0].lines if line.get_label() in params]
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 10


def test_update_ratios_of_float16_are_not_those_of_overflowed_squares():
    w = np.ones(70_000, np.float16)
    ratios = plots.UpdateRatios(w)
    ratios.begin(types.SimpleNamespace(steps=0))
    w -= np.float16(0.1)
    ratios(types.SimpleNamespace(steps=1))
    assert ratios.ratios[0][0] == pytest.approx(0.1, rel=1e-2)


def test_update_ratios_refuse_other_intervals():
    with pytest.raises(ValueError, match="at least 1"):
        plots.UpdateRatios(np.ones(1), 0)
    with pytest.raises(TypeError, match="an int"):
        plots.UpdateRatios(np.ones(1), 1.5)


def test_the_command_draws_a_log(run, tmp_path, capsys, monkeypatch):
    _, jsonl, csv = run
    asked, draw = [], plots.loss

    def loss(log, **options):
        asked.append(options)
        return draw(log, **options)

    monkeypatch.setattr(plots, "loss", loss)
    assert cli.main(["plot", str(jsonl)]) == 0
    assert capsys.readouterr().out.strip() == str(jsonl.with_suffix(".png"))
    assert jsonl.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert cli.main(["plot", str(csv), "--out", str(tmp_path / "other.svg"), "--smoothing", "0.5"]) == 0
    assert "<svg" in (tmp_path / "other.svg").read_text()
    assert asked == [{"smoothing": 0.95, "title": "run.jsonl"}, {"smoothing": 0.5, "title": "run.csv"}]
    assert cli.main(["plot", str(tmp_path / "missing.jsonl")]) == 2
    assert "missing.jsonl" in capsys.readouterr().err


def test_matplotlib_is_left_as_it_was(tmp_path):
    """No pyplot, no backend chosen, no setting changed; and nothing of it is loaded before a picture is asked for."""
    code = """
import sys
import numpy as np, fastoptim as fo
fo.plots
assert "matplotlib" not in sys.modules
import matplotlib
before = matplotlib.rcParams.copy()  # reading the backend one by one would choose it
fo.plots.valley().savefig("valley.png")
fo.plots.loss([3.0, 2.0, 1.0])
assert "matplotlib.pyplot" not in sys.modules
assert matplotlib.rcParams.copy() == before
print("unchanged")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.stdout.strip() == "unchanged", done.stderr


def test_a_missing_matplotlib_is_one_sentence(monkeypatch, tmp_path, capsys, run):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install matplotlib"):
        plots.valley()
    assert cli.main(["plot", str(run[1])]) == 2
    assert "pip install matplotlib" in capsys.readouterr().err
