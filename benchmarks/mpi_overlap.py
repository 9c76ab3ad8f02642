"""Time of a sharded Adam step against its parts: the communication alone and the kernel alone.

    python benchmarks/mpi_overlap.py --out benchmarks/results/mpi_overlap.json

Two ranks of one thread each, on one host (messages through shared memory) and, where that is allowed, on two hosts that
network namespaces simulate, joined by a cable of a given rate. In every round each of these is timed once, between
barriers, the slowest rank counting. Figures are the least of all rounds: whatever else the machine does only adds time.

    step            opt.step(grads)
    communication   the same messages and copies without the kernel
    kernel          the kernel on this rank's slice, without messages
    copies          packing and unpacking alone
    deterministic   opt.step(grads) with deterministic=True

"hidden" is the part of the shorter of communication and kernel that the step did not add to the longer one: 1 if they
run fully beside each other, 0 if one after the other, negative if the step takes longer than both together. The kernel
is short beside the messages, so that this is hard to measure; one more row has a slow kernel, NumPy's.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import fastoptim as fo
from tests import mpi
from tests.hosts import NotAllowed, two_hosts

Rounds = dict[str, list[float]]
TIMES = ("step", "communication", "kernel", "copies")


def parts_of_a_step(opt: Any, params: list[np.ndarray], grads: list[np.ndarray]) -> dict[str, Callable[[], None]]:
    """What is timed, as functions without arguments."""
    channel, rank = opt._channel, opt._channel.rank
    kept = [np.full(chunk.counts[rank], 0.25, chunk.dtype) for chunk in opt._chunks]

    def nothing(c: int, buffers: Any) -> None:
        pass

    def start_reduce(c: int, buffers: Any) -> None:
        channel.start_reduce(opt._chunks[c], grads, buffers)

    def own(c: int) -> list[np.ndarray]:
        return [params[number][start:stop] for number, start, stop in opt._chunks[c].parts[rank]]

    def reduce_then_gather(c: int, buffers: Any) -> None:
        channel.finish_reduce(opt._chunks[c], buffers)
        channel.start_gather(opt._chunks[c], own(c), buffers)

    def finish_gather(c: int, buffers: Any) -> None:
        channel.finish_gather(opt._chunks[c], params, buffers)

    def kernel() -> None:
        for c, piece in enumerate(opt._pieces):
            if piece is not None:
                optimizer = piece.optimizer
                optimizer._step_checked(optimizer._current_plan(), tuple(opt._split(c, kept[c])), 1.0, None, False)

    def copies() -> None:
        for i, chunk in enumerate(opt._chunks):
            packed = opt._buffers[i % 3].packed[: chunk.size * chunk.dtype.itemsize].view(chunk.dtype)
            for source, into in ((grads, True), (params, False)):
                end = 0
                for number, start, stop in (part for parts in chunk.parts for part in parts):
                    begin, end = end, end + stop - start
                    if into:
                        packed[begin:end] = source[number][start:stop]
                    else:
                        source[number][start:stop] = packed[begin:end]

    return {
        "step": lambda: opt.step(grads) and None,
        "communication": lambda: opt._pipeline(start_reduce, reduce_then_gather, finish_gather),
        "kernel": kernel,
        "copies": copies,
    }


def measure(count: int, buffer_bytes: int, rounds: int, backend: str) -> None:
    """What each rank does: one JSON line from rank 0."""
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    arrays = [np.full(count, 0.5, np.float32) for _ in range(3)]
    params, twins, grads = ([x] for x in arrays)
    opt = fo.distributed.ShardedOptimizer(fo.Adam, params, buffer_bytes=buffer_bytes, backend=backend)
    fixed = fo.distributed.ShardedOptimizer(
        fo.Adam, twins, buffer_bytes=buffer_bytes, backend=backend, deterministic=True
    )
    subjects = {"deterministic": lambda: fixed.step(grads) and None}
    opt.step(grads)
    fixed.step(grads)
    subjects |= parts_of_a_step(opt, params, grads)
    times: Rounds = {name: [] for name in subjects}
    for turn in range(rounds + 1):
        for name, subject in subjects.items():
            comm.Barrier()
            start = time.perf_counter()
            subject()
            seconds = np.array(time.perf_counter() - start)
            comm.Allreduce(MPI.IN_PLACE, seconds, MPI.MAX)
            if turn:
                times[name].append(float(seconds))
    if comm.rank == 0:
        row: dict[str, Any] = {name: min(x) for name, x in times.items()}
        shorter, longer = sorted((row["communication"], row["kernel"]))
        row["hidden"] = (longer + shorter - row["step"]) / shorter
        row["chunks"], row["rounds"] = len(opt._chunks), rounds
        sys.stdout.write(json.dumps(row) + "\n")


def table(rows: list[dict[str, Any]]) -> str:
    columns = ("between ranks", "kernel of", "parameters", "buffers", "chunks", *TIMES, "hidden", "deterministic")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in rows:
        times = " | ".join(f"{1e3 * row[name]:.2f} ms" for name in TIMES)
        lines.append(
            f"| {row['link']} | {row['backend']} | {row['parameters']:,} | {row['buffer_bytes'] / 2**20:g} MiB "
            f"| {row['chunks']} | {times} | {row['hidden']:.0%} | {row['deterministic'] / row['step']:.2f} x |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--parameters", type=int, nargs="+", default=[100_000, 1_000_000, 8_000_000])
    parser.add_argument("--mebibytes", type=float, nargs="+", default=[8.0, 32.0], help="sizes of the buffers")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--rates", nargs="*", default=["1gbit"], help="of the cable between two simulated hosts")
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        *numbers, backend = options.worker
        measure(*map(int, numbers), backend)
        return 0
    sizes = list(product(options.parameters, options.mebibytes, ["c"]))
    sizes.append((max(options.parameters), min(options.mebibytes), "numpy"))
    rows = []
    for link, (count, size, backend) in product(("shared memory", *options.rates), sizes):
        rounds = max(5, min(options.rounds, 10**8 // count))
        arguments = (__file__, "--worker", count, int(size * 2**20), rounds, backend)
        one_thread = {"FASTOPTIM_NUM_THREADS": "1", "MPIR_CVAR_ENABLE_HEAVY_YIELD": "0"}
        if link == "shared memory":
            done = mpi.run(2, *arguments, **one_thread)
        else:
            try:
                with two_hosts(link) as hosts:
                    done = hosts.run(1, *arguments, **one_thread)
            except NotAllowed as reason:
                print(f"no simulated hosts: {reason}")
                break
        if done.returncode:
            print(done.stderr[-3000:])
            return 1
        row = {"link": link, "parameters": count, "buffer_bytes": int(size * 2**20), "backend": backend}
        rows.append(row | json.loads(done.stdout))
        print(table(rows[-1:]).split("\n")[-1], flush=True)
    if options.out:
        about = {"machine": platform.machine(), "cores": os.cpu_count(), "load": os.getloadavg()[0]}
        about |= {"numpy": np.__version__, "fastoptim": fo.__version__}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
        options.out.with_suffix(".md").write_text(table(rows) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
