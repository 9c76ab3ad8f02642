"""Time of a sharded Adam step against its parts: the communication alone and the kernel alone.

    python benchmarks/mpi_overlap.py --out benchmarks/results/mpi_overlap.json

Two ranks of one thread each, on one host (messages through shared memory) and, where that is allowed, on two hosts that
network namespaces simulate, joined by a cable of a given rate. In every round each of these is timed once, in an order
that changes from round to round, between barriers, the slowest rank counting:

    step            opt.step(grads)
    communication   opt.step(grads) whose buckets have no kernel: the same messages, copies and checks
    kernel          the kernel on this rank's slice, without messages
    copies          packing and unpacking alone
    deterministic   opt.step(grads) with deterministic=True
    clipped         opt.step(grads, max_norm=...): gradients are added up twice

Figures are medians over rounds, spreads the distance of their quartiles. "hidden" is the part of the shorter of
communication and kernel that the step did not add to the longer one, computed in every round from that round's times: 1
if they run fully beside each other, 0 if one after the other, negative if the step takes longer than both together.
Where (communication + kernel - step) is spread by more than the shorter of them takes, it is called not resolvable.

`mpi_model.py` writes the table into the documentation. Beside the results goes a picture: communication, kernel and
step of every row; and when the gradients of each bucket of a step were added up, its parameters updated and gathered.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import fastoptim as fo
from tests.support import mpi
from tests.support.hosts import NotAllowed, two_hosts

Row = dict[str, Any]

TIMES = ("step", "communication", "kernel", "copies")

# NumPy's kernel of the longest rule is there because it is slow: it takes about as long as the messages.
KERNELS: dict[str, dict[str, Any]] = {
    "C": {"backend": "c"},
    "NumPy, AMSGrad": {"backend": "numpy", "amsgrad": True, "weight_decay": 0.01},
}
ROWS = (  # kernel, dtype, parameters, MiB of buffers
    ("C", "float32", 4_000_000, 32),
    ("C", "float32", 4_000_000, 8),
    ("C", "float32", 4_000_000, 2),
    ("C", "float64", 4_000_000, 2),
    ("NumPy, AMSGrad", "float32", 4_000_000, 8),
    ("NumPy, AMSGrad", "float32", 4_000_000, 2),
)
# Else the C library hands the memory of NumPy's temporary arrays back to the system after every use.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "1000000000", "MALLOC_TRIM_THRESHOLD_": "1000000000"}
SHARED, UNLIMITED = "shared memory", "cable without limit"
TIMELINE = ("2.5gbit", "NumPy, AMSGrad")  # the link and the kernel of the step that is drawn


def parts_of_a_step(opt: Any, params: list[np.ndarray], grads: list[np.ndarray]) -> dict[str, Callable[[], None]]:
    """What is timed, as functions without arguments."""
    rank, pieces = opt._channel.rank, opt._pieces
    reduced = [np.full(bucket.counts[rank], 0.25, bucket.dtype) for bucket in opt._buckets]

    def communication() -> None:
        opt._pieces = [None] * len(pieces)
        opt.step(grads)
        opt._pieces = pieces

    def kernel() -> None:
        for c, piece in enumerate(pieces):
            optimizer = piece.optimizer
            optimizer._step_checked(optimizer._current_plan(), tuple(opt._split(c, reduced[c])), 1.0, None, False)

    def copies() -> None:
        for i, bucket in enumerate(opt._buckets):
            buffers = opt._buffers[i % len(opt._buffers)]
            packed = buffers.packed[: bucket.size * bucket.dtype.itemsize].view(bucket.dtype)
            for source, into in ((grads, True), (params, False)):
                end = 0
                for number, start, stop in (part for parts in bucket.parts for part in parts):
                    begin, end = end, end + stop - start
                    if into:
                        packed[begin:end] = source[number][start:stop]
                    else:
                        source[number][start:stop] = packed[begin:end]

    return {
        "step": lambda: opt.step(grads) and None,
        "communication": communication,
        "kernel": kernel,
        "copies": copies,
        "clipped": lambda: opt.step(grads, max_norm=1e9) and None,
    }


def timeline(opt: Any, grads: list[np.ndarray]) -> Row:
    """One step: when each bucket's reduction and gather were under way, from their start until they were found done."""
    events: list[list[tuple[float, float]]] = [[(0.0, 0.0)] * 3 for _ in opt._buckets]
    channel, began = opt._channel, {}
    names = "start_reduce", "finish_reduce", "start_gather", "finish_gather"
    plain = {name: getattr(channel, name) for name in names}

    def watch(name: str, column: int) -> Callable[..., Any]:
        def watched(bucket: Any, *args: Any) -> Any:
            result = plain[name](bucket, *args)
            c, now = opt._buckets.index(bucket), time.perf_counter()
            if name.startswith("start"):
                began[c, column] = now
            else:
                events[c][column] = (began[c, column], now)
            if name == "finish_reduce":
                began[c, 1] = now
            return result

        return watched

    def watch_kernel(c: int, step: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any) -> Any:
            start = time.perf_counter()
            result = step(*args)
            events[c][1] = (start, time.perf_counter())
            return result

        return watched

    for name in names:
        setattr(channel, name, watch(name, 0 if name.endswith("reduce") else 2))
    for c, piece in enumerate(opt._pieces):
        piece.optimizer._step_checked = watch_kernel(c, piece.optimizer._step_checked)
    channel.comm.Barrier()
    start = time.perf_counter()
    opt.step(grads)
    seconds = time.perf_counter() - start
    for name in names:
        delattr(channel, name)
    for piece in opt._pieces:
        del piece.optimizer._step_checked
    return {
        "step": seconds,
        "buckets": [[[round(a - start, 7), round(b - start, 7)] for a, b in row] for row in events],
    }


def quartiles(values: Any) -> list[float]:
    return [float(x) for x in np.percentile(values, [25, 50, 75])]


def measure(kernel: str, dtype: str, count: int, mebibytes: int, seconds: float) -> None:
    """What each rank does: one JSON line from rank 0."""
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    params, twins, grads = ([np.full(count, 0.5, dtype)] for _ in range(3))
    options = {"buffer_bytes": mebibytes << 20} | KERNELS[kernel]
    opt = fo.distributed.ShardedOptimizer(fo.Adam, params, **options)
    fixed = fo.distributed.ShardedOptimizer(fo.Adam, twins, deterministic=True, **options)
    subjects = parts_of_a_step(opt, params, grads) | {"deterministic": lambda: fixed.step(grads) and None}
    times: dict[str, list[float]] = {name: [] for name in subjects}

    def one_round(turn: int) -> float:
        names = list(subjects)
        random.Random(turn).shuffle(names)
        for name in names:
            comm.Barrier()
            start = time.perf_counter()
            subjects[name]()
            times[name].append(comm.allreduce(time.perf_counter() - start, MPI.MAX))
        return sum(x[-1] for x in times.values())

    one_round(-2)  # warms everything
    rounds = min(101, max(15, int(seconds / one_round(-1))))
    for x in times.values():
        x.clear()
    for turn in range(rounds):
        one_round(turn)
    traced = sorted((timeline(opt, grads) for _ in range(5)), key=lambda found: found["step"])
    if comm.rank == 0:
        row: Row = {name: quartiles(x) for name, x in times.items() if name in TIMES}
        seen = {name: np.array(x) for name, x in times.items()}
        gain = seen["communication"] + seen["kernel"] - seen["step"]
        shorter = np.minimum(seen["communication"], seen["kernel"])
        row["hidden"] = quartiles(gain / shorter)
        low, _, high = quartiles(gain)
        row["resolvable"] = bool(high - low <= np.median(shorter))
        for name in ("deterministic", "clipped"):
            row[name] = quartiles(seen[name] / seen["step"])
        row["buckets"], row["rounds"], row["timeline"] = len(opt._buckets), rounds, traced[2]
        sys.stdout.write(json.dumps(row) + "\n")


def hidden_text(row: Row) -> str:
    low, middle, high = row["hidden"]
    return f"{middle:.0%} ({low:.0%} to {high:.0%})" if row["resolvable"] else "not resolvable"


def table(rows: list[Row]) -> str:
    columns = (
        "between ranks",
        "kernel of",
        "parameters",
        "buffers",
        "buckets",
        *TIMES,
        "hidden",
        "deterministic",
        "clipped",
    )
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in rows:
        times = " | ".join(f"{1e3 * row[name][1]:.1f} ms ± {500 * (row[name][2] - row[name][0]):.1f}" for name in TIMES)
        ratios = " | ".join(f"{row[name][1]:.2f} x" for name in ("deterministic", "clipped"))
        lines.append(
            f"| {row['link']} | {row['kernel of']}, {row['dtype']} | {row['parameters']:,} "
            f"| {row['mebibytes']} MiB | {row['buckets']} | {times} | {hidden_text(row)} | {ratios} |"
        )
    return "\n".join(lines)


def draw(rows: list[Row], path: Path) -> None:
    """Draw the rows with small buffers that could be resolved."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    from fastoptim.plots import COLOURS

    def name(row: Row) -> str:
        return (
            f"{row['link']}: {row['kernel of']}, {row['dtype']}, {row['parameters'] / 1e6:g} M, {row['mebibytes']} MiB"
        )

    least = min(row["mebibytes"] for row in rows)
    shown = [row for row in rows if row["resolvable"] and row["mebibytes"] == least]
    figure = Figure(figsize=(11, 5.5 + 0.4 * len(shown)), dpi=110, layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=[0.4 * len(shown), 4])
    colours = dict(zip(("communication", "kernel", "step"), COLOURS, strict=False))
    for y, row in enumerate(shown):
        communication, kernel, step = (row[part][1] for part in colours)
        total = communication + kernel
        above.barh(y - 0.2, communication / total, 0.36, color=colours["communication"])
        above.barh(y - 0.2, kernel / total, 0.36, left=communication / total, color=colours["kernel"])
        spread = [[(step - row["step"][0]) / total], [(row["step"][2] - step) / total]]
        above.barh(y + 0.2, step / total, 0.36, xerr=spread, color=colours["step"], ecolor="black", capsize=2)
        longer = max(communication, kernel) / total
        above.plot([longer, longer], [y - 0.42, y + 0.42], color="black", linestyle=":")
        text = f"{1e3 * communication:.1f} + {1e3 * kernel:.1f} ms; step {1e3 * step:.1f} ms; hidden {hidden_text(row)}"
        above.text(max(1.0, row["step"][2] / total) + 0.02, y, text, va="center", fontsize=8)
    above.set_yticks(range(len(shown)), [name(row) for row in shown], fontsize=8)
    above.set_ylim(len(shown) - 0.4, -0.6)
    above.set_xlim(0, 2.5)
    above.set_xlabel("time / (communication alone + kernel alone)")
    above.set_title("A step, and above it its parts alone", loc="left")
    handles = [Patch(color=colour, label=part) for part, colour in colours.items()]
    handles.append(Line2D([], [], color="black", linestyle=":", label="the longer part"))
    figure.legend(handles=handles, loc="outside upper right", ncols=4)

    row = next((row for row in rows if (row["link"], row["kernel of"]) == TIMELINE), rows[-1])
    stages = {"gradients on their way": COLOURS[5], "kernel": colours["kernel"], "parameters on their way": COLOURS[2]}
    for c, bucket in enumerate(row["timeline"]["buckets"]):
        for stage, colour in enumerate(stages.values()):
            start, stop = (1e3 * x for x in bucket[stage])
            below.barh(c + (stage - 1) * 0.27, stop - start, 0.27, left=start, color=colour)
    below.set_xlim(0)
    below.invert_yaxis()
    below.set_yticks(range(row["buckets"]))
    below.set_ylabel("bucket")
    below.set_xlabel("milliseconds since the start of the step")
    below.set_title(f"One step on rank 0; {name(row)}", loc="left")
    below.legend(handles=[Patch(color=colour, label=stage) for stage, colour in stages.items()], loc="upper right")
    with matplotlib.rc_context({"svg.hashsalt": "fastoptim", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="results (.json); the picture (.svg) goes beside them")
    parser.add_argument("--links", nargs="*", default=[SHARED, UNLIMITED, "5gbit", "2.5gbit", "1gbit"])
    parser.add_argument("--rows", type=int, nargs="*", default=list(range(len(ROWS))), help="numbers of rows of ROWS")
    parser.add_argument("--seconds", type=float, default=4.0, help="time for the rounds of a row; at least 15 rounds")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        measure(*ROWS[options.worker], options.seconds)
        return 0
    rows: list[Row] = []
    about = {"machine": platform.machine(), "cores": os.cpu_count(), "load_before": os.getloadavg()[0]}
    about |= {"numpy": np.__version__, "fastoptim": fo.__version__}
    for link, number in product(options.links, options.rows):
        arguments = (__file__, "--worker", number, "--seconds", options.seconds)
        one_thread = {"FASTOPTIM_NUM_THREADS": "1", "MPIR_CVAR_ENABLE_HEAVY_YIELD": "0"} | KEEP_MEMORY
        if link == SHARED:
            done = mpi.run(2, *arguments, **one_thread)
        else:
            try:
                with two_hosts(None if link == UNLIMITED else link) as hosts:
                    done = hosts.run(1, *arguments, **one_thread)
            except NotAllowed as reason:
                print(f"no simulated hosts: {reason}")
                break
        if done.returncode:
            print(done.stderr[-3000:])
            return 1
        row = {"link": link} | dict(zip(("kernel of", "dtype", "parameters", "mebibytes"), ROWS[number], strict=True))
        rows.append(row | json.loads(done.stdout))
        print(table(rows[-1:]).split("\n")[-1], flush=True)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({"about": about, "rows": rows}) + "\n")
        draw(rows, options.out.with_suffix(".svg"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
