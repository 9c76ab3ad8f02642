"""Kill a process that saves checkpoints, again and again: the file must load, and hold a save that was completed.

    python tests/proofs/kill_save.py --kills 1000

A child saves an optimizer over and over and is killed (SIGKILL) at a random moment. Then the parent loads the file: it
must be whole, and no older than the last save that the child saw completed. Kills are counted as "in mid-save" by a
flag in shared memory that the child sets around each save. A naive writer, which writes the same bytes straight to the
file, is the control: it must lose some, or the kills prove nothing.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import signal
import struct
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import fastoptim as fo
from fastoptim.checkpoint import encoding, files, format
from fastoptim.optimizers import saving

SIZE = 100_000  # float32 elements; with Adam's states a file of 1.2 MB


def make():
    params = {"w": np.zeros(SIZE, np.float32), "b": np.zeros((), np.float32)}
    return params, fo.Adam(params, backend="numpy", threads=1)


def set_to(params, optimizer, number):
    """Give every array the value `number`, so that a mixture of two saves shows."""
    params["w"][...] = number
    params["b"][...] = number
    optimizer.param_groups[0]["lr"] = float(number)


def safe_save(optimizer, path):
    optimizer.save(path)


def naive_save(optimizer, path):
    """What a checkpoint writer often is: the same bytes, written straight to the file."""
    arrays = {}
    tree = encoding.encode(saving.optimizer_tree(optimizer), "", arrays)
    header = format.make_header(json.dumps(tree), list(arrays.items()), "optimizer")
    with open(path, "w+b") as file:
        format.write_file(file, header, list(arrays.values()))


def saving_child(save, path, shared, number):
    params, optimizer = make()
    optimizer.step({"w": np.zeros(SIZE, np.float32), "b": np.float32(0)})
    while True:
        number += 1
        set_to(params, optimizer, number)
        shared[0:1] = b"\1"
        save(optimizer, path)
        shared[0:1] = b"\0"
        shared[8:16] = struct.pack("<q", number)


def check(path, completed):
    """None if the checkpoint loads and is whole and new enough, else what is wrong."""
    params, optimizer = make()
    try:
        optimizer.load(path)
    except (files.CheckpointError, FileNotFoundError) as error:
        return f"{type(error).__name__}: {error}"
    values = {*np.unique(params["w"]).tolist(), float(params["b"]), optimizer.lr}
    if len(values) > 1:
        return f"a mixture of saves: {values}"
    if not completed <= values.pop() <= completed + 1:
        return "an older save than the last one that was completed"
    return None


def run(save, kills, folder, rng):
    """Kill `kills` times; returns (kills in mid-save, what went wrong each time, files left behind)."""
    path = folder / "run.ckpt"
    shared = mmap.mmap(-1, 16)
    middle, losses, number = 0, [], 0
    while number < kills:
        path.unlink(missing_ok=True)
        saved = 0
        params, optimizer = make()
        set_to(params, optimizer, 0)
        optimizer.save(path)
        for _ in range(min(10, kills - number)):  # ten children in a row on one file, then a fresh start
            shared[:16] = struct.pack("<bxxxxxxxq", 0, saved)
            pid = os.fork()
            if pid == 0:
                try:
                    saving_child(save, path, shared, saved)
                finally:
                    os._exit(1)
            while struct.unpack("<q", shared[8:16])[0] == saved and not shared[0]:
                time.sleep(0.0002)
            time.sleep(rng.random() * 0.03)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            number += 1
            middle += shared[0]
            completed = struct.unpack("<q", shared[8:16])[0]
            wrong = check(path, completed)
            if wrong:
                losses.append(wrong)
                break
            params, optimizer = make()
            optimizer.load(path)
            saved = int(optimizer.lr)
    left = sum(1 for entry in folder.iterdir() if entry.name.endswith(".tmp"))
    return middle, losses, left


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--control", type=int, default=200, help="kills of the naive writer")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "safe").mkdir()
        (Path(name) / "naive").mkdir()
        middle, losses, left = run(safe_save, arguments.kills, Path(name) / "safe", rng)
        print(
            f"checkpoint.write: {arguments.kills} kills, {middle} of them in mid-save, {len(losses)} checkpoints lost, "
            f"{left} temporary files left at the end"
        )
        for loss in losses[:5]:
            print(f"  {loss}")
        _, lost, _ = run(naive_save, arguments.control, Path(name) / "naive", rng)
        print(f"naive writer (control): {arguments.control} kills, {len(lost)} checkpoints lost")
    if losses or middle * 2 < arguments.kills or not lost or left > 2:
        print("FAILED", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
