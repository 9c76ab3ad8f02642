"""Make out the losses in anybody's training log: tables, JSON, bare numbers, lines of text."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from operator import itemgetter
from typing import Any

import numpy as np

# A comma may part thousands where a point follows. `2,5` and `2,345` are not read: nobody knows which is meant.
_THOUSANDS = r"\d{1,3}(?:,\d{3})+\.\d*"
_WITH_COMMA = re.compile(r"[-+]?(?:\d+|\d{1,3}(?:\.\d{3})+),\d+(?:[eE][-+]?\d+)?")
_DIGITS = rf"(?:{_THOUSANDS}|\d+\.\d*|\d+(?![\d.]|,\d)|\.\d+)(?:[eE][-+]?\d+)?"
# What C on Windows, C elsewhere and Fortran print for what is no number, or does not fit.
_NO_NUMBER = r"1\.#[A-Z]+\d*|nan\([\w-]*\)|\*{3,}"
_NUMBER = rf"[-+]?(?:{_NO_NUMBER}|(?:{_DIGITS}|nan|inf(?:inity)?)(?![\w.]*[A-Za-z_#]))"
# `loss: 0.25`, `train_loss=0.25`, `"loss": 0.25`, `Loss 0.25`, `loss | 0.25`, `loss: tensor(0.25, ...)`, `Cost after
# iteration 100: 0.25`, `0.25 avg loss`; no val_loss, no box_loss.
_NAME = r"(?:tr(?:ai)?n(?:ing)?[ _/-]?|total[ _/-])?loss(?:_total)?(?!\d)|cost after \w+ \d+"
_WRAPPED = r"(?:(?:tensor|array|(?:np\.|numpy\.)?float\d*)\((?:\[+(?=[^],]*\]))?)"  # no list of several losses
_IN_TEXT = re.compile(
    rf"""(?<![A-Za-z_\-./])(?:{_NAME})["']?\s*(?:[:=|]|is\b)?\s*{_WRAPPED}?({_NUMBER})|({_NUMBER}) avg loss""", re.I
)
# The words before a loss that say of which data it is; the last of them counts.
_OF_WHAT = re.compile(
    r"(?<![a-z_])(?:(tr(?:ai)?n(?:ing)?)|val|valid(?:ation)?|eval(?:uation)?|test(?:ing)?|dev)(?![a-z_])", re.I
)
_LOSS_IN_TEXT = re.compile(
    rf"""(?<![A-Za-z_\-./])(?:{_NAME})["']?\s*(?:[:=|]|is\b)?\s*{_WRAPPED}?([-+]?\d[^\s|;]*)""", re.I
)
_NAMED = re.compile(rf"""(?<![\w.])([A-Za-z][\w.]*(?: [A-Za-z][\w.]*)?)["']?\s*[:=]\s*(?:{_NUMBER})(?![\d:])""")
_STEP = re.compile(r"""\b(?:global[_ ])?(?:step|iter(?:ation)?)s?["']?\s*[:=\[]?\s*(\d+)""", re.I)
_EPOCH = re.compile(r"\bepochs?\W{0,4}(\d+)", re.I)
_VALIDATION = re.compile(r"val|eval|test|dev", re.I)
_RATES = (
    *("lr", "learning_rate", "learningrate", "current_lr", "currentlr"),
    *("train/lr", "train/learning_rate", "lr/pg0", "x/lr0", "lr-adam", "lr-adamw", "lr-sgd"),
)
_STEPS = (
    *("step", "global_step", "current_steps", "trainer/global_step", "_step"),
    *("iter", "iters", "iteration", "iterations", "batch", "epoch"),
)
_OTHER_NAMES = ("nll", "cost", "objective", "perplexity", "ppl", "error", "mse", "rmse", "mae", "cross_entropy", "bpc")
_MODES = ("mode", "split", "phase", "stage", "set")
_RUNS = ("run", "run_id", "run_name", "seed", "rank", "trial", "trial_id", "fold", "experiment", "worker")
_LABELS = ("metric", "tag", "key", "name", "variable")  # of records of one value each
_NO_LOSS = re.compile(
    r"loss_?(?:scale|scaling|weight|coeff?|factor)|(?:scale|weight|coeff?)_(?:of_)?loss|_(?:num|count|std|var|min|max)$"
)
_UNREAD = 0.05  # share of losses that may be unreadable


@dataclass(frozen=True)
class Curve:
    """The curve of one run: a loss for every step, and validation with steps of its own.

    Attributes
    ----------
    steps, losses : arrays of one length
        Blanks of a table are left out; a loss that was written but is no number is NaN.
    rates : array or None
        Learning rates, one for every step.
    validation_steps, validation_losses : arrays of one length
        Empty without validation.
    column : str
        What the losses are called in the log.
    others : tuple of str
        What else in the log may be a loss.
    told : dict
        What the log says of the run, as keywords of `diagnose`.
    left_out : int
        Losses of other runs before it in the same log.
    """

    steps: np.ndarray
    losses: np.ndarray
    rates: np.ndarray | None
    validation_steps: np.ndarray
    validation_losses: np.ndarray
    column: str = "loss"
    others: tuple[str, ...] = ()
    told: dict[str, Any] = field(default_factory=dict)
    left_out: int = 0


class _Columns(dict[str, list[float | None]]):
    """Columns of numbers by name, all of one length; None is a blank.

    Attributes
    ----------
    unread : dict
        By name, the cells with digits in them that are no numbers.
    left_out : int
        Records of other runs.
    """

    def __init__(self, columns: Mapping[str, list[float | None]], left_out: int = 0):
        super().__init__(columns)
        self.unread: dict[str, list[str]] = {}
        self.left_out = left_out


def make_out(text: str, column: str | None, pattern: str | None) -> Curve:
    """Make out the curve in a text; ValueError, which says what was found, if there is none."""
    if not text.strip():
        raise ValueError("it is empty")
    printed = _printed_in_notebook(text)
    if printed is not None:
        return _from_lines(printed, pattern, column)
    if pattern is not None:
        return _from_lines(text, pattern)
    columns = _from_json(text) or _from_table(text)
    if columns is not None:
        try:
            return _chosen(columns, column)
        except ValueError:  # lines of text may look like a table
            if column is not None or not any(map(_IN_TEXT.search, text.splitlines())):
                raise
    return _from_lines(text, None, column)


# --- Which column ---------------------------------------------------------------------------------------------------


def rank(name: str) -> int | None:
    """How much a name looks like that of the training loss: 0 most, None not at all."""
    key = re.sub(r"[\s/.\-]+", "_", name.strip().lower())
    if key in ("train_loss", "training_loss", "loss_train", "loss_training"):
        return 0
    if key == "loss":
        return 1
    if _NO_LOSS.search(key):
        return None
    if _VALIDATION.search(key):
        return 6 if "loss" in key else None
    if "loss" in key:
        if re.fullmatch(r"(?:train_)?(?:total_loss|loss_(?:total|step|epoch))", key):
            return 2
        return 3 if "train" in key else 4
    return 5 if re.sub(r"^tra?i?n_|_tra?i?n$", "", key) in _OTHER_NAMES else None


def _is_of_part(name: str) -> bool:
    """Whether only the group of a value is called a loss, as of ``Loss/scores/fake``, not the value itself."""
    return "loss" not in name.lower().removesuffix(".mean").split("/")[-1]


def _chosen(columns: _Columns, column: str | None) -> Curve:
    """The curve of one column: the one that was asked for, or the one that looks most like the training loss."""
    filled = {name: values for name, values in columns.items() if any(value is not None for value in values)}
    ranked = [(place, name) for name in filled if (place := rank(name)) is not None]
    candidates = [name for _, name in sorted(ranked, key=lambda pair: (pair[0], _is_of_part(pair[1])))]
    if column is None:
        candidates = candidates or _exported(filled)
        if not candidates:
            empty = [name for name in columns if rank(name) is not None]
            told = f"column {empty[0]!r} holds no numbers like 0.25" if empty else "no column looks like a loss"
            raise ValueError(f"{told}; choose one by --column: {_listed(filled)}")
        column = _most_likely(filled, candidates)
    elif column not in filled:
        state = "is blank" if column in columns else "is missing"
        raise ValueError(f"column {column!r} {state}; there are {_listed(filled)}")
    _check_readable(columns.unread.get(column, ()), sum(value is not None for value in filled[column]))
    steps = _of_name(filled, _STEPS)
    order = steps if steps is not None else list(range(len(filled[column])))
    rates, checks = _of_name(filled, _RATES), _validation_of(filled, column)
    where = [i for i, value in enumerate(filled[column]) if value is not None]
    if _is_sorted_otherwise([order[i] for i in where]):
        where.sort(key=lambda i: order[i] or 0.0)
    known = [math.nan if order[i] is None else order[i] for i in where]
    begun = last_run(np.array(known, float), _array(filled[column], where))
    known, where = known[begun:], where[begun:]
    since = where[0] if begun else 0
    there = [i for i, value in enumerate(checks or ()) if value is not None and order[i] is not None and i >= since]
    return Curve(
        np.array(known if np.isfinite(np.array(known, float)).all() else range(len(where)), float),
        _array(filled[column], where),
        None if rates is None or any(rates[i] is None for i in where) else _array(rates, where),
        _array(order, there),
        _array(checks or (), there),
        column,
        tuple(name for name in candidates if name != column),
        left_out=columns.left_out + begun,
    )


def _check_readable(unread: Sequence[str], count: int) -> None:
    """ValueError if too many of the losses are no numbers: the others may be the small ones, or of one part alone."""
    if len(unread) > _UNREAD * (len(unread) + count):
        raise ValueError(
            f"{len(unread)} of {len(unread) + count} losses are no numbers like 0.25 or 1234.5: {unread[0][:40]!r}"
        )


def _is_sorted_otherwise(steps: list[float | None]) -> bool:
    """Whether rows are sorted by something else than steps, or the newest comes first; every step is there once."""
    if None in steps or len({*steps}) < len(steps):
        return False
    return bool(np.sum(np.diff(np.array(steps, float)) < 0.0) > 0.25 * len(steps))


def last_run(steps: np.ndarray, losses: np.ndarray) -> int:
    """Where the last of several runs in one log begins: steps begin anew, and losses are as high as they were at first.

    Counts within epochs begin anew as well, but losses then go on where they were.
    """
    for i in np.flatnonzero((np.diff(steps) < 0.0) & (steps[1:] <= steps[0]))[::-1] + 1:
        parts = losses[:5], losses[max(0, i - 5) : i], losses[i : i + 5]
        first, before, after = (float(np.median(part)) for part in parts)
        if after - before > 0.5 * (first - before) > 0.0 and after > 1.5 * before:
            return int(i)
    return 0


def _exported(names: Iterable[str]) -> list[str]:
    """The values in a table of TensorBoard (Wall time, Step, Value) or of a series of pandas (no name, 0)."""
    first, *others = [*names, ""]
    if first.lower() == "wall time":
        return [name for name in others if name.lower() == "value"]
    return ["0"] if [first, *others] == ["column 1", "0", ""] else []


def _most_likely(columns: Mapping[str, list[float | None]], candidates: Sequence[str]) -> str:
    """The first candidate that is no mere summary: one with a fair number of values, if any has."""
    counts = {name: sum(value is not None for value in columns[name]) for name in candidates}
    enough = max(3.0, 0.05 * max(counts.values()))
    return next((name for name in candidates if counts[name] >= enough), candidates[0])


def _array(values: Sequence[float | None], where: Sequence[int]) -> np.ndarray:
    return np.array([values[i] for i in where], np.float64)


def _of_name(columns: Mapping[str, list[float | None]], names: Sequence[str]) -> list[float | None] | None:
    by_key = {name.strip().lower(): values for name, values in columns.items()}
    return next((by_key[name] for name in names if name in by_key), None)


def _validation_of(columns: Mapping[str, list[float | None]], column: str) -> list[float | None] | None:
    return next((values for name, values in columns.items() if rank(name) == 6 and name != column), None)


def _listed(names: Sequence[str] | Mapping[str, Any]) -> str:
    shown = ", ".join(repr(name) for name in list(names)[:20])
    return shown + (f" and {len(names) - 20} more" if len(names) > 20 else "") or "none with numbers"


# --- Notebooks ------------------------------------------------------------------------------------------------------


def _printed_in_notebook(text: str) -> str | None:
    """What the cell of a Jupyter notebook has printed that holds most losses, or all; None for anything else."""
    document = _parsed(text) if '"nbformat"' in text else None
    cells = document.get("cells") if isinstance(document, dict) else None
    if not isinstance(cells, list):
        return None
    printed = []
    for cell in cells:
        outputs = cell.get("outputs") if isinstance(cell, dict) else None
        texts = [output.get("text", "") for output in outputs or () if isinstance(output, dict)]
        printed.append("".join("".join(lines) for lines in texts))
    counts = [sum(1 for _ in _IN_TEXT.finditer(text)) for text in printed]
    return printed[counts.index(max(counts))] if any(counts) else "\n".join(printed)


# --- JSON -----------------------------------------------------------------------------------------------------------


def _from_json(text: str) -> _Columns | None:
    """The columns of a JSON document or of JSON lines; None if it is neither."""
    if text.lstrip()[:1] not in ("{", "["):
        return None
    whole = _parsed(text)
    if whole is not None:
        return _of_document(whole)
    rows = [row for line in text.splitlines() if isinstance(row := _parsed(line), dict)]
    return _of_records(rows) if rows else None


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _of_document(document: Any) -> _Columns | None:
    if isinstance(document, dict):
        for name in ("log_history", "history", "logs", "log"):
            if isinstance(document.get(name), (dict, list)):
                return _of_document(document[name])
        lists = {str(name): values for name, values in document.items() if _is_column(values)}
        if lists:
            longest = max(len(values) for values in lists.values())
            return _Columns({name: _padded(values, longest) for name, values in lists.items()})
        document = [row for row in document.values() if isinstance(row, dict)] or [document]
    if not isinstance(document, list):
        return None
    if _is_column(document):
        return _Columns({"loss": [*map(_number, document)]})
    return _of_records([row for row in document if isinstance(row, dict)])


def _padded(values: list[Any], length: int) -> list[float | None]:
    return [*map(_number, values), *[None] * (length - len(values))]


def _is_column(values: Any) -> bool:
    """Whether a value is a list of numbers, of which some may be missing."""
    if not isinstance(values, list) or not values:
        return False
    return all(item is None or (isinstance(item, (int, float, str)) and _number(item) is not None) for item in values)


def _of_records(rows: list[dict[str, Any]]) -> _Columns | None:
    """Columns from records; where they say of what they are (mode, split), only those of training.

    Of several runs that say which they are only the last is taken.
    """
    for key in dict.fromkeys(name for row in rows for name in row):
        said = [str(row[key]).lower() for row in rows if isinstance(row.get(key), str)]
        named = key.lower() in _MODES or any(_OF_WHAT.fullmatch(mode) and mode[:2] != "tr" for mode in said)
        if named and any(mode.startswith("train") for mode in said):
            rows = [row for row in rows if str(row.get(key, "train")).lower().startswith("train")]
            break
    count = len(rows)
    for key in dict.fromkeys(name for row in rows for name in row if name.lower() in _RUNS):
        last = next(row[key] for row in reversed(rows) if key in row)
        rows = [row for row in rows if row.get(key, last) == last]
    labelled = [_labelled(row) for row in rows]
    flat = [_flat(row) for row in labelled]
    names = dict.fromkeys(name for row in flat for name in row)
    columns = _Columns({name: [row.get(name) for row in flat] for name in names}, count - len(rows))
    for row in labelled:
        for name, value in row.items():
            if isinstance(value, str) and _number(value) is None and any(map(str.isdigit, value)):
                columns.unread.setdefault(name, []).append(value)
    return columns if rows else None


def _labelled(row: dict[str, Any]) -> dict[str, Any]:
    """A record of one value under the name that its label gives, as MLflow exports them; any other as it is."""
    label = next((row[name] for name in row if name.lower() in _LABELS), None)
    value = next((name for name in row if name.lower() == "value"), None)
    return row if value is None or not isinstance(label, str) else row | {label: row[value]}


def _flat(row: Mapping[str, Any], prefix: str = "", depth: int = 0) -> dict[str, float | None]:
    """The numbers of a record; those of records within it under dotted names."""
    flat: dict[str, float | None] = {}
    for name, value in row.items():
        if isinstance(value, dict) and depth < 4:
            flat |= _flat(value, f"{prefix}{name}.", depth + 1)
        elif isinstance(value, (int, float, str)) and not isinstance(value, bool):
            flat[prefix + name] = _number(value)
        elif value is None and rank(name) is not None:  # JSON has no NaN
            flat[prefix + name] = math.nan
    return flat


def _number(value: Any) -> float | None:
    """A number, or a text that is one; None for anything else."""
    if value is None or isinstance(value, bool):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        if not isinstance(value, str):
            return None
        if re.fullmatch(rf"[-+]?(?:{_NO_NUMBER})", value, re.I):
            return math.nan
        wrapped = re.fullmatch(rf"{_WRAPPED}({_NUMBER})\]*(?:,.*)?\)", value)
        if wrapped:
            return _number(wrapped[1])
        return float(value.replace(",", "")) if re.fullmatch(rf"[-+]?{_THOUSANDS}", value) else None
    except OverflowError:
        return math.inf if value > 0 else -math.inf


# --- Tables ---------------------------------------------------------------------------------------------------------


def _from_table(text: str) -> _Columns | None:
    """The columns of a table with a header, or of bare numbers; None if the text is no table."""
    lines = [line for line in text.splitlines() if line.strip()]
    comments = [line for line in lines if line.lstrip().startswith("#")]
    lines = [line for line in lines if not line.lstrip().startswith("#")]
    if not lines:
        return None
    split = _splitter(lines)
    rows = _with_points([split(line) for line in lines] if split is not _by_commas else _quoted(lines))
    if all(row[-1:] == [""] and _number(row[0]) is not None for row in rows):  # a comma ends every line
        rows = [row[:-1] for row in rows]
    if _is_numbered(rows):
        rows = rows[1:]
    first = rows[0]
    if all(_number(cell) is not None for cell in first) or (split is not str.split and _begins_at_once(rows)):
        return _bare(rows, split(comments[-1].lstrip("# ")) if comments else [])
    if len(first) == 1 and rank(first[0]) is None:
        return None
    if all(_is_step_word_number(row) for row in rows):
        return _of_records(
            [{"step": step, label + "_loss" * bool(_OF_WHAT.fullmatch(label)): value} for step, label, value in rows]
        )
    if split is str.split and any(_number(cell) is not None for cell in first):  # words and numbers: lines of text
        return None
    body = rows[1:]
    width = len(first)
    fitting = [row for row in body if len(row) in (width, width + 1)]
    numbers = sum(any(_number(cell) is not None for cell in row) for row in fitting)
    if not body or numbers < 0.5 * len(body) or len(fitting) < 0.5 * len(body):
        return None
    names = _distinct(first)
    return _of_records([dict(zip(names, row, strict=False)) for row in fitting])


def _is_numbered(rows: list[list[str]]) -> bool:
    """Whether a table has the header 0, 1, ... that pandas gives to columns without names."""
    whole = any(cell.isdecimal() for row in rows[1:] for cell in row)
    return len(rows) > 2 and not whole and rows[0] == [str(i) for i in range(len(rows[0]))]


def _begins_at_once(rows: list[list[str]]) -> bool:
    """Whether a table has no header: its first row has decimals in it, and is the second but for digits."""
    decimals = any(_number(cell) is not None and not cell.isdecimal() for cell in rows[0])
    without = [["" if _number(cell) is not None else re.sub(r"\d+", "", cell) for cell in row] for row in rows[:2]]
    return decimals and without[1:] == without[:1]


def _is_step_word_number(row: list[str]) -> bool:
    """Whether a row is a step, a word and a number, as in ``250 train 6.02``."""
    return len(row) == 3 and row[0].isdecimal() and row[1].isidentifier() and _number(row[2]) is not None


def _with_points(rows: list[list[str]]) -> list[list[str]]:
    """Rows in which a comma before decimals is a point, without the points between thousands there.

    It is one in a column if some number in it cannot have thousands there.
    """
    for i in range(max(map(len, rows))):
        found = {row[i] for row in rows if i < len(row) and _WITH_COMMA.fullmatch(row[i])}
        if not all(re.fullmatch(r"[-+]?[1-9]\d{0,2},\d{3}", cell) for cell in found):
            for row in rows:
                if i < len(row) and row[i] in found:
                    row[i] = row[i].replace(".", "").replace(",", ".")
    return rows


def _by_mark(mark: str, line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split(mark)]


def _by_commas(line: str) -> list[str]:
    return [cell.strip() for cell in next(csv.reader([line]), [])]


def _quoted(lines: list[str]) -> list[list[str]]:
    """Rows of a table with commas, in which a quoted cell may go on over lines."""
    try:
        return [[cell.strip() for cell in row] for row in csv.reader(io.StringIO("\n".join(lines))) if row]
    except csv.Error as error:
        raise ValueError(f"not a table ({error})") from error


def _splitter(lines: list[str]) -> Callable[[str], list[str]]:
    """What cuts a line into cells: at the mark that the first lines have equally often, else at blanks."""
    head = lines[: min(len(lines), 20)]
    if all(map(_WITH_COMMA.fullmatch, map(str.strip, lines))) and not _counted(lines):
        return lambda line: [line.strip()]
    for mark in ("\t", ";", ",", "|"):
        counts = {line.count(mark) for line in head}
        if (len(counts) == 1 and counts != {0}) or (mark == "," and lines[0].count(",") and '"' in lines[0]):
            return _by_commas if mark == "," else partial(_by_mark, mark)
    return str.split if "," not in lines[0] else _by_commas


def _counted(lines: list[str]) -> bool:
    """Whether whole numbers before a comma go up line by line, as steps do and what stands before decimals does not."""
    before = [float(line.partition(",")[0].replace(".", "")) for line in lines]
    return len(before) > 1 and all(earlier < later for earlier, later in pairwise(before))


def _bare(rows: list[list[str]], names: list[str]) -> _Columns | None:
    """Columns without a header: one of losses, or also one of steps, which rise, or as a comment names them."""
    width = len(rows[0])
    if len(rows) == 1 and width > 2:  # all in one line
        return _Columns({"loss": [*map(_number, rows[0])]})
    fitting = [row for row in rows if len(row) == width]
    if len(fitting) <= 0.5 * len(rows):
        return None
    table = [[*map(_number, row)] for row in fitting]
    if len(names) != width:
        names = ["loss"] if width == 1 else [str(i + 1) for i in range(width)]
        if width == 2 and _rises(row[0] for row in table):
            names = ["step", "loss"]
        elif width == 2 and all(row[1].isdecimal() for row in fitting) and _rises(row[1] for row in table):
            names = ["loss", "step"]
    return _Columns({name: [row[i] for row in table] for i, name in enumerate(_distinct(names))})


def _rises(values: Iterable[float | None]) -> bool:
    """Whether values go up, nearly always, as steps do."""
    rises = [(value or 0.0) <= (later or 0.0) for value, later in pairwise(values)]
    return sum(rises) >= 0.9 * len(rises)


def _distinct(names: Sequence[str]) -> list[str]:
    seen: dict[str, int] = {}
    distinct = []
    for i, name in enumerate(names):
        name = name or f"column {i + 1}"
        seen[name] = seen.get(name, 0) + 1
        distinct.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return distinct


# --- Lines of text --------------------------------------------------------------------------------------------------


def _is_of_other_data(words: str) -> bool:
    """Whether what stands before a loss says last that it is one of validation."""
    said = _OF_WHAT.findall(words)
    return bool(said) and not said[-1]


def _written(match: re.Match[str], group: int) -> str:
    """How the name of a loss is written, with the word or the marks before it, but without what pads numbers."""
    before = re.search(r"(?:[A-Za-z]+(?=\s+\Z))?\W*\Z", match.string[max(0, match.start() - 40) : match.start()])
    name = match.string[match.start() : match.start(group)] + match.string[match.end(group) : match.end()]
    return re.sub(r"\s+", " ", before[0] if before else "") + re.sub(r"[\s\d]+", "", name)


def _parted(text: str) -> str:
    """What a pattern has found, without commas between thousands."""
    return re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)


def _from_lines(text: str, pattern: str | None, column: str | None = None) -> Curve:
    """The first loss of every line: of the training, what stands after a name, or the pattern's first group."""
    if column is not None:
        pattern = rf"""(?<!\w){re.escape(column)}["']?\s*[:=|]?\s*{_WRAPPED}?({_NUMBER})"""
    try:
        wanted = _IN_TEXT if pattern is None else re.compile(pattern)
    except re.error as error:
        raise ValueError(f"--pattern is no regular expression: {error}") from error
    if wanted.groups < 1:
        raise ValueError("--pattern needs a group in round brackets around the loss")
    unread, plain = [], pattern is None
    taken: list[tuple[bool, str, float, float, float]] = []  # whether of other data, how written, loss, step, epoch
    for line in re.split(r"[\r\n]+", text):  # progress bars overwrite their line
        step, epoch = (float(count[1]) if count else math.nan for count in (_STEP.search(line), _EPOCH.search(line)))
        found = [
            (plain and _is_of_other_data(line[: match.start(group)]), _written(match, group), value, step, epoch)
            for match in wanted.finditer(line)
            if (group := 1 if pattern else match.lastindex or 1)
            if (value := _number(_parted(match[group] or ""))) is not None
        ]
        taken += sorted(found, key=itemgetter(0))[:1]
        if not found and plain and (written := _LOSS_IN_TEXT.search(line)):
            unread += [] if _is_of_other_data(line[: written.start()]) else [written[1]]
    of_training = [one for one in taken if not one[0]] or taken
    if plain and of_training:  # means over epochs, or what is said at the end, are written otherwise
        kinds = Counter(one[1] for one in of_training)
        usual = max(kinds, key=lambda written: (kinds[written], not written[:1].isalpha()))
        if kinds[usual] >= 0.25 * len(of_training):
            of_training = [one for one in of_training if one[1] == usual]
    _check_readable(unread, len(of_training))
    if not of_training:
        if column is not None:
            raise ValueError(f"no column, and no line of text, with {column!r} before a number can be made out")
        if pattern is not None:
            raise ValueError("no line matches --pattern")
        counts = Counter(_NAMED.findall(text)).most_common(20)
        names = [name for name, count in counts if count > 2 and name.lower() not in _STEPS]
        there = f" of {_listed(names)}" if names else ""
        raise ValueError(f"no loss is found; name its --column{there}, or give a --pattern")
    losses, steps, epochs = (np.array(column) for column in list(zip(*of_training, strict=True))[2:])
    begun = last_run(steps, losses) or last_run(epochs, losses)
    losses, steps = losses[begun:], steps[begun:]
    if not np.all(np.diff(steps, prepend=0.0) >= 0.0):  # one is missing, or they begin anew
        steps = np.arange(float(len(losses)))
    nothing = np.array([])
    name = column or ("loss" if pattern is None else "pattern")
    return Curve(steps, losses, None, nothing, nothing, name, left_out=begun)
