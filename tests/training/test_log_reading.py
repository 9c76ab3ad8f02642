"""Anybody's log can be read: the right column and rows, and one line of error where there is none."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest

import fastoptim as fo
from fastoptim import cli
from fastoptim.common.text import printable
from fastoptim.training.log_formats import rank
from fastoptim.training.log_reading import curve_of_text, read_curve, read_log

LOSSES = [2.5, 2.25, 2.0, 1.5]


def curve(text, **options):
    return curve_of_text("x.log", text.encode() if isinstance(text, str) else text, **options)


def table(mark, *rows):
    return "\n".join(mark.join(map(str, row)) for row in rows) + "\n"


HEADED = [("epoch", "loss", "acc"), *((i, loss, 0.5) for i, loss in enumerate(LOSSES))]
RECORDS = [{"iter": 10 * i, "loss": loss, "lr": 0.1} for i, loss in enumerate(LOSSES)]
LOGS = {
    "commas": table(",", *HEADED),
    "semicolons": table(";", *HEADED),
    "semicolons, with commas before decimals": table(";", *HEADED).replace(".", ","),
    "tabs": table("\t", *HEADED),
    "blanks": table("  ", *HEADED),
    "bars": table(" | ", *HEADED),
    "line ends of Windows": table(",", *HEADED).replace("\n", "\r\n"),
    "mark of UTF-8": ("\ufeff" + table(",", *HEADED)),
    "UTF-16, as PowerShell writes it": table(",", *HEADED).encode("utf-16"),
    "quoted": 'epoch,"loss",note\n' + "".join(f'{i},{loss},"a, b"\n' for i, loss in enumerate(LOSSES)),
    "header again where it was resumed": table(",", *HEADED[:3], *HEADED[:1], *HEADED[3:]),
    "a Keras CSV": table(",", ("epoch", "accuracy", "loss", "lr", "val_accuracy", "val_loss"),
                         *((i, 0.5, loss, 0.1, 0.4, 3.0) for i, loss in enumerate(LOSSES))),
    "a Lightning CSV with blanks": table(",", ("epoch", "step", "train_loss", "val_loss"),
                                         *(row for i, loss in enumerate(LOSSES)
                                           for row in ((i, i, loss, ""), (i, i, "", 3.0)))),
    "a YOLO CSV": table(",", ("  epoch", " train/box_loss", " train/cls_loss", " val/box_loss"),
                        *((f"  {i}", f"  {loss}", 9.0, 8.0) for i, loss in enumerate(LOSSES))),
    "JSON lines": "\n".join(map(json.dumps, RECORDS)),
    "JSON lines by mode": "\n".join(json.dumps(row) for loss in LOSSES for row in (
        {"mode": "train", "epoch": 1, "loss": loss}, {"mode": "val", "epoch": 1, "loss": 77.0})),
    "JSON lines after a description": '{"env_info": "x", "seed": null}\n' + "\n".join(map(json.dumps, RECORDS)),
    "nested JSON lines": "\n".join(json.dumps({"step": i, "train": {"loss": x}}) for i, x in enumerate(LOSSES)),
    "JSON lines that were cut": "\n".join(map(json.dumps, RECORDS)) + '\n{"iter": 40, "lo',
    "a trainer's state": json.dumps({"epoch": 1.0, "log_history": [
        *({"loss": loss, "learning_rate": 0.1, "step": i} for i, loss in enumerate(LOSSES)),
        {"eval_loss": 3.0, "step": 3}, {"train_runtime": 9.0, "train_loss": 2.06, "step": 3}]}),
    "a Keras history": json.dumps({"loss": LOSSES, "val_loss": [3.0] * 4, "accuracy": [0.5] * 4}),
    "a list of records": json.dumps(RECORDS, indent=2),
    "a list": json.dumps(LOSSES),
    "numbers": "\n".join(map(str, LOSSES)),
    "numbers with a comment": "# losses of a run\n" + "\n".join(map(str, LOSSES)),
    "steps and numbers": table(" ", *enumerate(LOSSES)),
    "names in a comment": "# step loss acc\n" + table(" ", *((i, loss, 0.5) for i, loss in enumerate(LOSSES))),
    "text": "".join(f"2026-01-01 INFO step {i} | loss: {loss} | val_loss: 9.0\n" for i, loss in enumerate(LOSSES)),
    "text with an equals sign": "".join(f"iter {i}: train_loss={loss}, time 10ms\n" for i, loss in enumerate(LOSSES)),
    "nanoGPT": "step 0: train loss 10.1, val loss 9.0\n"
    + "".join(f"iter {i}: loss {loss:.4f}, time 10.00ms, mfu 1.0%\n" for i, loss in enumerate(LOSSES)),
    "a progress bar": "".join(f"\r 10%|#   | {i}/4 [00:01, loss={loss}]" for i, loss in enumerate(LOSSES)),
    "words and numbers": "".join(f"step {i} loss {loss}\n" for i, loss in enumerate(LOSSES)),
    "words and one number": "".join(f"iter {i} loss={loss}\n" for i, loss in enumerate(LOSSES)),
    "validation in the same line": "".join(
        f"epoch {i} val loss: 9.0 train loss: {loss}\n" for i, loss in enumerate(LOSSES)),
    "validation in lines of its own": "".join(
        f"Epoch {i} Loss: {loss}\nTest set: Average loss: 9.0, Accuracy: 9/10\n" for i, loss in enumerate(LOSSES)),
    "fairseq": "".join(f"2026-01-01 | INFO | {what} | epoch {i:03d} | loss {loss} | ppl 7.0\n"
                       for i, x in enumerate(LOSSES) for what, loss in (("train", x), ("valid", 9.0))),
    "a machine named dev": "".join(f"[dev] step {i}: loss {loss}\n" for i, loss in enumerate(LOSSES)),
    "bars and words": "".join(f"{i} | loss {loss} | acc 0.5\n" for i, loss in enumerate(LOSSES)),
    "a CSV by phase": table(",", ("epoch", "Phase", "loss"),
                            *(row for i, loss in enumerate(LOSSES) for row in ((i, "train", loss), (i, "val", 77.0)))),
    "the newest row first": table(",", ("epoch", "loss"), *reversed(list(enumerate(LOSSES)))),
    "all numbers in one line": ", ".join(map(str, LOSSES)),
    "tensors": "".join(f"step {i}, loss: tensor({x}, device='cuda:0', grad_fn=<Nll>)\n" for i, x in enumerate(LOSSES)),
    "scalars of NumPy": "".join(f"step {i}: the loss is np.float64({loss})\n" for i, loss in enumerate(LOSSES)),
    "costs": "".join(f"Cost after iteration {100 * i}: {loss}\n" for i, loss in enumerate(LOSSES)),
    "Detectron2": "".join(f"eta: 1:02  iter: {i}  total_loss: {x}  loss_cls: 9.0\n" for i, x in enumerate(LOSSES)),
    "Darknet": "".join(f" {i}: 9.5, {loss} avg loss, 0.001 rate, 3.5 seconds\n" for i, loss in enumerate(LOSSES)),
    "Stable-Baselines": "".join(
        f"| train/     |      |\n|    loss    | {loss} |\n|    value_loss | 9.0 |\n" for loss in LOSSES),
    "TensorBoard's CSV": table(",", ("Wall time", "Step", "Value"), *((17e8, i, x) for i, x in enumerate(LOSSES))),
    "a series of pandas": table(",", ("", 0), *enumerate(LOSSES)),
    "emptied while open": "\0" * 5000 + "".join(f"step {i} | loss {loss} | lm 9.0\n" for i, loss in enumerate(LOSSES)),
    "MLflow's CSV": table(",", ("Run", "metric", "step", "timestamp", "value"),
                          *(row for i, x in enumerate(LOSSES) for row in ((1, "loss", i, 1, x), (1, "f1", i, 1, 9)))),
    "steps, words and numbers": "".join(
        f"{i} val 9.0\n{i} hella 0.3\n{i} train {loss}\n" for i, loss in enumerate(LOSSES)),
    "root mean squares of training": "# step rmse_val rmse_trn rmse_e_trn\n" + table(
        "  ", *((i, 9.0, loss, 8.0) for i, loss in enumerate(LOSSES))),
    "statistics of each value": "\n".join(json.dumps({"Loss/scores/fake": {"num": 64, "mean": -3.0, "std": 1.0},
                                                      "Loss/G/loss": {"num": 32, "mean": loss, "std": 0.5}})
                                          for loss in LOSSES),
    "a notebook": json.dumps({"nbformat": 4, "metadata": {}, "cells": [
        {"cell_type": "markdown", "source": ["loss: 1.0"]},
        {"cell_type": "code", "outputs": [{"output_type": "stream", "text": ["loss: 7.0\n"]}]},
        {"cell_type": "code", "outputs": [{"output_type": "display_data", "data": {}},
                                          {"text": [f"epoch {i} loss: {loss}\n" for i, loss in enumerate(LOSSES)]}]}]}),
    "no header, a word first": table("\t", *((f"epoch{i}", loss) for i, loss in enumerate(LOSSES))),
    "a comma at every end": "".join(f"{loss},\n" for loss in LOSSES),
    "a series of pandas without its index": table("", ("0",), *((loss,) for loss in LOSSES)),
    "numbers and steps": table(" ", *((loss, 100 * i) for i, loss in enumerate(LOSSES))),
    "tensors in JSON": json.dumps({"config": {"lr": 1.0}, "loss": [f"tensor({x}, device='cuda:0')" for x in LOSSES]}),
    "the total of others": "".join(f"[{i}/4]: loss_rmse:9.0 loss_total:{x} binary_loss:8.0\n"
                                   for i, x in enumerate(LOSSES)),
    "TensorFlow's estimator": "".join(f"INFO:tensorflow:loss = {loss}, step = {i} (0.1 sec)\n"
                                      for i, loss in enumerate(LOSSES))
    + "INFO:tensorflow:Saving dict for global step 4: eval_loss = 9.0, loss = 9.0\nINFO:tensorflow:  loss = 9.0\n",
    "means over epochs between": "".join(f"Epoch: [0][{i}/4]\tLoss {loss} (2.0)\n * ERR 3.0 LOSS 9.0\n"
                                         for i, loss in enumerate(LOSSES)) + "Training Error: 5.0  Loss: 8.0\n",
    "losses of parts, with words before": "".join(
        f"| entropy loss | 0.7 |\n| loss         | {loss} |\n| policy loss  | 0.1 |\n" for loss in LOSSES),
    "records as Python prints them": "".join(f"{{'loss': {loss}, 'epoch': {i}}}\n" for i, loss in enumerate(LOSSES)),
}  # fmt: skip


@pytest.mark.parametrize("name", LOGS)
def test_the_training_loss_is_found_without_options(name, tmp_path, capsys):
    found = curve(LOGS[name])
    assert found.losses.tolist() == LOSSES
    assert len(found.steps) == 4
    assert np.all(np.diff(found.steps) >= 0)
    path = tmp_path / "a.log"
    path.write_bytes(LOGS[name] if isinstance(LOGS[name], bytes) else LOGS[name].encode())
    assert cli.main(["diagnose", str(path)]) == 0
    out = capsys.readouterr().out
    assert "4 losses of" in out and "too short" in out


def test_steps_rates_and_validation_come_along():
    keras = curve(LOGS["a Keras CSV"])
    assert (keras.column, keras.others) == ("loss", ("val_loss",))
    assert keras.rates.tolist() == [0.1] * 4
    assert keras.validation_losses.tolist() == [3.0] * 4
    lines = curve(LOGS["JSON lines"])
    assert lines.steps.tolist() == [0, 10, 20, 30]
    lightning = curve(LOGS["a Lightning CSV with blanks"])
    assert lightning.validation_losses.tolist() == [3.0] * 4
    state = curve(LOGS["a trainer's state"])
    assert state.losses.tolist() == LOSSES
    assert state.validation_losses.tolist() == [3.0]


def test_the_training_loss_comes_before_others():
    order = ["train_loss", "loss", "train_loss_step", "train/box_loss", "box_loss", "nll", "val_loss", "accuracy"]
    places = [rank(name) for name in order]
    assert places[-1] is None
    assert places[:-1] == sorted(places[:-1]) and len(set(places[:-1])) == 7
    assert rank(" Train/Loss ") == rank("training-loss") == 0


def test_of_several_runs_in_one_log_the_last_is_read(tmp_path, capsys):
    """The second run begins where the first began: its rise was taken for an oscillation, and the rate was halved."""
    run = [(i, round(0.2 + 2.0 * 0.99**i, 4)) for i in range(300)]
    again = [*run, *run[:60]]
    for name, text in (
        ("table.csv", table(",", ("step", "loss"), *again)),
        ("text.log", "".join(f"step {i}: loss {loss}\n" for i, loss in again)),
    ):
        found = curve(text)
        assert (found.losses.tolist(), found.left_out) == ([loss for _, loss in run[:60]], 300)
        assert found.steps.tolist() == list(range(60))
        (tmp_path / name).write_text(text)
        assert cli.main(["diagnose", str(tmp_path / name)]) == 0
        out = capsys.readouterr().out
        assert "healthy" in out and "300 losses of other runs in it are left out" in out
    within = [(i % 50, loss) for i, loss in run]  # counted within each epoch
    assert curve(table(",", ("iter", "loss"), *within)).losses.tolist() == [loss for _, loss in run]


def test_epochs_that_begin_anew_begin_another_run():
    """Runs of one file seemed to be one whose loss is lost again: three of them in a project's losses.txt."""
    losses = [40.0 / (epoch + 1) for epoch in range(20)]
    once = "".join(f"Epoch: {epoch} Loss: {loss:.4f}\n" for epoch, loss in enumerate(losses))
    found = curve(3 * once)
    assert (found.left_out, found.steps.tolist()) == (40, list(range(20)))
    assert found.losses.tolist() == pytest.approx(losses, abs=1e-4)
    stages = "".join(f"Epoch: {epoch % 10} Loss: {loss:.4f}\n" for epoch, loss in enumerate(losses))
    assert len(curve(stages).losses) == 20  # counted anew, but the loss goes on where it was


def test_what_is_no_loss_is_not_judged(tmp_path, capsys):
    (tmp_path / "a.csv").write_text(table(",", ("step", "ep_rew_mean_reward"), *((i, 2.0 * i) for i in range(1, 200))))
    assert cli.main(["diagnose", str(tmp_path / "a.csv"), "--column", "ep_rew_mean_reward"]) == 0
    out = capsys.readouterr().out
    assert "more seems to be better" in out and "divide" not in out


def test_whole_numbers_in_the_first_row_are_a_header_only_above_decimals():
    assert curve("0\n5\n3\n").losses.tolist() == [0.0, 5.0, 3.0]
    found = curve("0,1\n1,0.5\n2,0.25\n")
    assert (found.steps.tolist(), found.losses.tolist()) == ([0.0, 1.0, 2.0], [1.0, 0.5, 0.25])
    assert curve("quantile,0.1,0.5\n0,3.5,2.5\n1,3.0,2.0\n", column="0.5").losses.tolist() == [2.5, 2.0]


def test_the_mark_of_utf_8_is_no_part_of_a_name():
    assert curve("\ufeffloss,acc\n2,1\n1,1\n").column == "loss"


def test_a_column_or_a_pattern_can_be_chosen():
    assert curve(LOGS["a Keras CSV"], column="val_loss").losses.tolist() == [3.0] * 4
    with pytest.raises(ValueError, match=r"x.log: column 'lss' is missing; there are 'epoch', 'loss', 'acc'"):
        curve(LOGS["commas"], column="lss")
    with pytest.raises(ValueError, match=r"no column looks like a loss; choose one by --column: 'a', 'b'"):
        curve("a,b\n1,2\n3,4\n")
    with pytest.raises(ValueError, match=r"no column looks like a loss; choose one by --column: '1', '2'"):
        curve("2.5 0.1\n2.25 0.2\n2 0.3\n")  # losses and accuracies: no steps
    with pytest.raises(ValueError, match="no loss is found; name its --column, or give a --pattern"):
        curve("Energy after iteration 0: 2.5\nEnergy after iteration 1: 2.25\n")  # no table
    game = "".join(f"(epoch: {i}, iters: 100, time: 0.2) G_GAN: {x} D_real: 0.5\n" for i, x in enumerate(LOSSES))
    with pytest.raises(ValueError, match="no loss is found; name its --column of 'time', 'G_GAN', 'D_real', or give"):
        curve(game)
    with pytest.raises(ValueError, match="no loss is found"):
        curve("note " + "a" * 500_000)  # a word is not read anew from each of its letters, which would take hours
    for text in ("4\n2.5, 2.25, 2.0, 1.5\n", "Loss: tensor([2.5, 2.25,\n        2.0, 1.5])\n"):
        with pytest.raises(ValueError, match="no loss is found"):  # one number of many
            curve(text)
    with pytest.raises(ValueError, match=r"no column looks like a loss; choose one by --column: '2', '3'"):
        curve("2026-01-01 00:39:08,1,2.5\n2026-01-01 00:39:14,2,2.25\n")  # no header
    found = curve(game, column="G_GAN")
    assert (found.losses.tolist(), found.column) == (LOSSES, "G_GAN")
    with pytest.raises(ValueError, match="no line of text, with 'GAN' before a number can be made out"):
        curve(game, column="GAN")
    book = json.dumps({"nbformat": 4, "cells": [{"outputs": [{"text": game}]}]})
    assert curve(book, column="G_GAN").losses.tolist() == curve(book, pattern=r"G_GAN: (\S+)").losses.tolist() == LOSSES
    assert curve("E=1.5 now\nE=1.0 now\n", pattern=r"E=([\d.]+) (now)").losses.tolist() == [1.5, 1.0]
    for pattern, text in (("(", "no regular expression"), ("E=", "needs a group"), ("x(.)", "no line matches")):
        with pytest.raises(ValueError, match=text):
            curve("E=1.5\n", pattern=pattern)


def test_a_comma_in_a_number_is_read_only_where_it_can_mean_one_thing():
    assert curve("iter 0 loss: 3,000.50\niter 1 loss: 900.5\n").losses.tolist() == [3000.5, 900.5]
    assert curve('step,loss\n0,"1,234,567.0"\n1,"1,000.5"\n2,9.5\n').losses.tolist() == [1234567.0, 1000.5, 9.5]
    assert curve("E=1,500 now\nE=2,5 now\n", pattern=r"E=([\d.,]+)").losses.tolist() == [1500.0]
    assert curve("loss 0.5,acc 1\nloss 0.25,0.5\n").losses.tolist() == [0.5, 0.25]
    for text in ("0,6931", "3,000", "2.1k", "2.1D-03"):
        with pytest.raises(ValueError, match=f"1 of 1 losses are no numbers like 0.25 or 1234.5: '{text}'"):
            curve(f"epoch 1, loss: {text}\n")
    with pytest.raises(ValueError, match="no loss is found"):
        curve("epoch 1, loss1: 0.5\n")
    with pytest.raises(ValueError, match=r"column 'loss' holds no numbers like 0.25; choose one by --column: 'epoch'"):
        curve("epoch;loss\n0;2,500\n1;2,400\n")  # thousands, or three decimals


def german(x):
    return f"{x:,.2f}".translate(str.maketrans(",.", ".,"))


def test_german_numbers_are_read_whole():
    """Rows over a thousand were dropped; of bare numbers what stands behind the comma was taken for the loss."""
    losses = [1234567.5, 2500.25, 999.5, 1.75]
    assert curve(table(";", ("epoch", "loss"), *enumerate(map(german, losses)))).losses.tolist() == losses
    quoted = table(",", ("epoch", "loss"), *((i, f'"{german(x)}"') for i, x in enumerate(losses)))
    assert curve(quoted).losses.tolist() == losses
    assert curve("\n".join(map(german, losses))).losses.tolist() == losses
    assert curve("0,7\n1,5\n2,3\n").steps.tolist() == [0, 1, 2]  # steps and losses
    mixed = curve('size,loss\n"32,64","1,000.5"\n"8,16","26,000.0"\n')
    assert mixed.losses.tolist() == [1000.5, 26000.0]


def test_losses_that_can_be_read_in_part_are_refused():
    """The large ones were left out without a word, which is another curve."""
    some = [*[f"{2.5 - 0.01 * i:.2f}k" for i in range(20)], *[str(900 - i) for i in range(80)]]
    texts = {
        "2.50k": (
            "".join(f"step {i} loss {x}\n" for i, x in enumerate(some)),
            table(",", ("epoch", "loss"), *enumerate(some)),
        ),
        "3,000": ("".join(f"step {i} loss: {x:,}\n" for i, x in enumerate(range(3000, 0, -100))),),
    }
    for first, written in texts.items():
        for text in written:
            with pytest.raises(ValueError, match=f"losses are no numbers like 0.25 or 1234.5: '{first}'"):
                curve(text)
    rows = [{"loss": x, "step": i} for i, x in enumerate(some)]
    with pytest.raises(ValueError, match="20 of 100 losses are no numbers"):
        curve("\n".join(map(json.dumps, rows)))
    assert len(curve("loss 0.5\n" * 99 + "loss 0.4x1\n").losses) == 99  # a damaged line
    assert len(curve("loss 0.5\nvalidation loss 2k\n").losses) == 1


@pytest.mark.parametrize("text", ["-nan(ind)", "1.#QNAN", "-1.#IND", "*******", "nan(0x8000)", "NaN"])
def test_spellings_of_what_is_no_number_are_known(text):
    """Windows and Fortran have their own: a run that had diverged was called healthy."""
    losses = [*[f"{2.0 - 0.01 * i:.2f}" for i in range(40)], *[text] * 20]
    for log in (table(",", ("step", "loss"), *enumerate(losses)), "".join(f"loss: {x}\n" for x in losses)):
        assert fo.diagnose(curve(log).losses).verdict == "diverged"


def test_tables_of_several_runs_or_data_sets_are_told_apart(tmp_path, capsys):
    """Rows that take turns were taken for an oscillation, and the rate was halved."""
    rng = np.random.default_rng(0)
    a, b = (level * np.exp(0.03 * rng.standard_normal(300)) for level in (1.5, 3.0))
    pairs = list(zip(range(300), b, a, strict=True))
    for key, other, ours in (("type", "test", "train"), ("dataset", "Validation", "Training"), ("seed", "0", "1")):
        rows = [row for i, x, y in pairs for row in ((other, i, x), (ours, i, y))]
        assert curve(table(",", (key, "epoch", "loss"), *rows)).losses.tolist() == a.tolist()
        lines = "\n".join(json.dumps({key: name, "epoch": i, "loss": x}) for name, i, x in rows)
        assert curve(lines).losses.tolist() == a.tolist()
    text = "".join(f"[{name}] step {i} loss {x}\n" for i, x, y in pairs for name, x in (("gpu0", x), ("gpu1", y)))
    (tmp_path / "a.log").write_text(text)
    assert cli.main(["diagnose", str(tmp_path / "a.log")]) == 0
    out = capsys.readouterr().out
    assert "unclear. It alternates, but has 2 losses for every step" in out and "halve" not in out


def test_rows_that_are_sorted_by_the_loss_are_put_in_order():
    """The best first: a good run seemed to grow."""
    losses = [*np.linspace(3.0, 1.0, 30)]
    rows = sorted(enumerate(losses), key=lambda row: row[1])
    assert curve(table(",", ("epoch", "loss"), *rows)).losses.tolist() == losses


def test_scales_and_weights_of_losses_are_no_losses():
    found = curve("step,loss_scale,loss_weight,train_nll\n0,65536,1,2.5\n1,65536,1,2.25\n")
    assert (found.column, found.others) == ("train_nll", ())


def test_blanks_are_left_out_and_what_is_no_number_stays():
    gaps = curve("step,loss\n0,2\n1,\n2,nan\n3,1\n")
    assert gaps.steps.tolist() == [0, 2, 3]
    assert np.isnan(gaps.losses[1])
    assert np.isnan(curve('{"step": 1, "loss": 2}\n{"step": 2, "loss": null}\n').losses[1])


def test_the_logs_of_fit_are_read_exactly(tmp_path):
    for name in ("a.jsonl", "a.csv"):
        w = np.ones(2)
        fo.fit(lambda w, batch: (float(w @ w), 2 * w), w, None, "sgd", lr=0.1, steps=12, log=tmp_path / name)
        ours, anybodys = read_log(tmp_path / name), read_curve(tmp_path / name)
        assert ours.losses.tolist() == anybodys.losses.tolist()
        assert ours.rates.tolist() == anybodys.rates.tolist() == [0.1] * 12


HOSTILE = {
    "empty": b"",
    "blank": b"\n \n\t\n",
    "a picture": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(range(256)),
    "deep JSON": b"[" * 100000,
    "deep JSON lines": b'{"loss": ' + b"[" * 50000 + b"\n{}",
    "a long number": b'{"loss": ' + b"9" * 5000 + b"}\n",
    "null everywhere": b'{"log_history": null}',
    "log_history of numbers": b'{"log_history": [1, [2], {"loss": {"a": {"b": {"c": {"d": {"e": 1}}}}}}]}',
    "ragged": b"a,b,loss\n1\n1,2,3,4,5,6\n,,\n",
    "a quote that never ends": b'a,"loss\n1,2\n3,4\n',
    "a huge cell": b"loss,note\n1," + b"x" * 300000 + b"\n",
    "prose": b"Once upon a time there was no number.\n" * 3,
    "escapes": b"\x1b]0;owned\x07,\x1b[2J,b\n1,2,3\n4,5,6\n",
    "first line of fit, then nothing": b'{"kind": "run", "version": 1}\n',
    "step without a loss": b'{"kind": "run", "version": 1}\n{"kind": "step", "step": "x", "loss": {}, "lr": []}\n{}\n',
    "a list for a line": b'{"kind": "run", "version": 1}\n[1]\n{}\n',
    "not UTF-8": b"\xff\xfa\xc3(\n" * 5,
    "half of UTF-16": b"\xff\xfea\0\n",
    "booleans": b'{"loss": true}\n{"loss": false}\n',
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("command_name", ["diagnose", "plot"])
def test_hostile_logs_give_one_line_and_no_terminal_escapes(name, command_name, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / ("bad.log" if os.name == "nt" else "bad\x1b[31m.log")  # no name of Windows can hold it
    path.write_bytes(HOSTILE[name])
    status = cli.main([command_name, str(path)])
    out, err = capsys.readouterr()
    assert status in (0, 2)
    assert (status == 2) == bool(err)
    assert "\x1b" not in out + err and "\x07" not in out + err
    assert err.count("\n") == (1 if err else 0) and "Traceback" not in err
    if name not in ("a long number", "a huge cell"):  # those hold a loss
        assert status == 2, out
        assert "recursion" not in err  # the message is about the log


def test_other_wrong_uses_are_one_line(tmp_path, capsys):
    (tmp_path / "a.csv").write_text(LOGS["commas"])
    good = str(tmp_path / "a.csv")
    for arguments, text in (
        ([str(tmp_path)], "Permission denied" if os.name == "nt" else "directory"),
        ([str(tmp_path / "missing")], "No such file"),
        ([good, "--column", "x"], "is missing"),
        ([good, "--lr", "-1"], "lr must be"),
        ([good, "--momentum", "1"], "momentum must be"),
        ([good, "--start", "nan"], "start must be"),
    ):
        assert cli.main(["diagnose", *arguments]) == 2
        err = capsys.readouterr().err
        assert text in err and err.startswith("fastoptim diagnose: ") and err.count("\n") == 1
    assert cli.main(["diagnose", str(tmp_path / "missing"), good]) == 2  # the others are read all the same
    assert "4 losses" in capsys.readouterr().out


def test_the_command_says_what_was_read_and_what_to_do(tmp_path, capsys):
    t = np.arange(300)
    rows = [("step", "loss", "val_loss"), *((i, loss, "") for i, loss in zip(t, np.exp(t / 30), strict=True))]
    (tmp_path / "a.csv").write_text(table(",", *rows[:-1], (299, 3e4, 5.0)))
    assert cli.main(["diagnose", str(tmp_path / "a.csv"), "--lr", "0.3"]) == 0
    out = capsys.readouterr().out
    assert "a.csv: 300 losses of 'loss'" in out
    assert "others in it (--column): val_loss" in out
    assert "diverged. The loss has risen" in out and "try 0.03" in out
    assert "begins at step" not in out


def test_a_log_that_begins_late_is_said_to(tmp_path, capsys):
    rows = [("step", "loss"), *((1000 + 10 * i, 3.3 - 0.0005 * i) for i in range(200))]
    (tmp_path / "late.csv").write_text(table(",", *rows))
    assert cli.main(["diagnose", str(tmp_path / "late.csv")]) == 0
    out = capsys.readouterr().out
    assert "begins at step 1000" in out and "--start" in out
    assert "multiply" not in out  # what the part that is missing would show is not guessed
    (tmp_path / "late.log").write_text("".join(f"Step {step}: loss {loss}\n" for step, loss in rows[1:]))
    assert cli.main(["diagnose", str(tmp_path / "late.log")]) == 0
    assert capsys.readouterr().out == out.replace("late.csv", "late.log")
    assert cli.main(["diagnose", str(tmp_path / "late.csv"), "--start", "10.8"]) == 0
    out = capsys.readouterr().out
    assert "dropped by 70.3%" in out and "multiply" not in out and "begins at" not in out


def test_standard_input_is_read(monkeypatch, capsys):
    class Input:
        buffer = io.BytesIO("\n".join(map(str, LOSSES)).encode())

    monkeypatch.setattr(sys, "stdin", Input)
    assert cli.main(["diagnose", "-"]) == 0
    assert "-: 4 losses" in capsys.readouterr().out


def test_control_characters_are_written_as_escapes():
    assert printable("a\x1b[31m\u202e\nß", keep="\n") == "a\\x1b[31m\\u202e\nß"


def test_the_module_answers_on_the_command_line(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(map(str, np.linspace(3, 1, 200))))
    done = subprocess.run(
        [sys.executable, "-m", "fastoptim", "diagnose", "a.txt"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )
    assert "healthy" in done.stdout
