"""Mutate checkpoint files and load them: nothing but CheckpointError may come out, and memory stays bounded.

    python tests/proofs/fuzz_checkpoint.py --files 100000

Mutations: bytes flipped, cut, inserted, repeated and moved, lengths changed, and values inside the header and inside
the saved tree replaced by hostile ones. Half of the files get a valid checksum afterwards, so that what lies behind the
checksum is tried too. Files are loaded by ``optimizer.load`` and by ``fit(resume=...)``; some are slices, or name the
slices, of a checkpoint that several processes wrote; some hold bfloat16 parameters with master copies and float8 states
with scales, and are loaded where they are stored so, or otherwise. Without a new checksum, every altered file must be
refused. With one, a file may load (an altered weight is still a weight); then the optimizer must be able to step. Where
loading fails, parameters, states, seed and the position in the data must be as they were.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import numpy as np

import fastoptim as fo
from fastoptim.arrays.storage import is_scales, small_dtype
from fastoptim.checkpoint import format, slices
from fastoptim.checkpoint.files import CheckpointError
from fastoptim.checkpoint.format import DIGITS, PREFIX
from fastoptim.optimizers import saving
from fastoptim.rules.codecs import BLOCK

ADDRESS_SPACE = 1 << 30  # bytes that a load may take beyond what the process has: more is a MemoryError, thus a failure

HOSTILE = [
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    7,
    2**31,
    2**63 - 1,
    2**63,
    -(2**63) - 1,
    2**64,
    10**30,
    10**400,
    0.5,
    -0.0,
    1e308,
    5e-324,
    "",
    "x",
    "F32",
    "F64",
    "BOOL",
    "BF16",
    "F16",
    "F8_E4M3",
    "float8",
    "nearest",
    "../../etc/passwd",
    "$tensor",
    "\ud800",
    "A" * 5000,
    [],
    [[]],
    {},
    [0, 0],
    [0, 2**62],
    [2**40, 2**40],
    [1] * 40,
    {"$tensor": "params/w"},
    {"$tensor": "missing"},
    {"$tensor": "params/w", "form": "F"},
    {"$tensor": "params/w", "form": "scalar"},
    {"$tensor": []},
    {"$tuple": 3},
    {"$tuple": [1, 2, 3]},
    {"$float": "nan"},
    {"$float": "inf"},
    {"$float": []},
    {"$items": [[[], 1]]},
    {"$items": [["lr", 1], ["lr", 2]]},
    {"$items": 5},
]


# What the optimizers of a file and of its loader store in fewer bits; "other" files are loaded into another storage.
STORED = {"state_dtype": "float8", "master": True, "seed": 5}
STORED_KINDS = ("stored", "other")


def problem(kind):
    w, b = np.asfortranarray(np.arange(12.0, dtype=np.float32).reshape(3, 4)), np.zeros((), np.float64)
    if kind.split()[0] in STORED_KINDS:
        b = np.zeros(130, small_dtype("bfloat16"))  # two blocks
    return {"w": w, "b": b}, (np.arange(40.0).reshape(20, 2), np.arange(20))


def gradients(params, value=1.0):
    return {name: np.full_like(p, value) for name, p in params.items()}


def loss_and_grad(params, batch):
    return float(params["b"].flat[0]), gradients(params, batch[1].mean())


class Memory:
    """A callback with a state that takes care of what it is given."""

    def __init__(self):
        self.value = 0.0

    def __call__(self, loop):
        self.value += loop.loss

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = float(state["value"])


def make(kind):
    """(snapshot function, load function, step function) of a fresh target for a file of that kind."""
    params, data = problem(kind)
    stored = {"stored": STORED, "other": {"state_dtype": "bfloat16", "seed": 5}}.get(kind.split()[0], {})
    optimizer = fo.Adam(params, lr=0.01, amsgrad=True, backend="numpy", threads=1, **stored)
    batches = fo.minibatches(data, 6)
    plateau, memory = fo.schedules.Plateau(0.01), Memory()

    def snapshot():
        state = optimizer.state_dict()
        arrays = [*params.values()] + [x for entry in state["state"].values() for x in entry.values()]
        rest = (
            state["param_groups"],
            state.get("storage"),
            batches.state_dict(),
            plateau.state_dict(),
            memory.state_dict(),
        )
        return b"".join(np.asarray(x).tobytes() for x in arrays) + repr(rest).encode()

    def train(path, resume, steps=8):
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fo.fit(
                loss_and_grad,
                params,
                batches,
                optimizer,
                lr=plateau,
                steps=steps,
                validation=lambda p: 1.0,
                restore_best=True,
                callbacks=[memory],
                checkpoint=None if resume else path,
                resume=path if resume else False,
                diagnose=False,
            )

    def load(path):
        if kind.endswith("training"):
            train(path, resume=True)
        elif kind.endswith("slice"):  # the whole is intact, one of its slices is not
            whole = path.parent / f"{kind}s.ckpt"
            second = next(whole.parent.glob(f"{whole.name}.*.1"))
            intact = second.read_bytes()
            second.write_bytes(path.read_bytes())
            try:
                optimizer.load(whole)
            finally:
                second.write_bytes(intact)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of another storage
                optimizer.load(path)

    def step():
        with np.errstate(all="ignore"):
            optimizer.step(gradients(params))

    return snapshot, load, step, train, optimizer


def save_slices(optimizer, path):
    """What two processes write that share the optimizer: a slice each, and the file that names them."""
    token, written = "0123456789abcdef", []
    tree = saving.optimizer_tree(optimizer)
    size = {name: x.size for name, x in tree["params"].items()}
    cuts = [("w", 0, 5)], [("w", 5, size["w"]), ("b", 0, size["b"])]
    if "storage" in tree["optimizer"]:  # between two blocks
        cuts = [("w", 0, size["w"]), ("b", 0, BLOCK)], [("b", BLOCK, size["b"])]
    for rank, spans in enumerate(cuts):
        parts = []
        for name, start, stop in spans:
            contents = {"parameter": tree["params"][name].reshape(-1)[start:stop]}
            entry = dict(tree["optimizer"]["state"][name])
            numbers = {"step": entry.pop("step")}
            for slot, x in entry.items():
                unit = BLOCK if is_scales(slot, entry) else 1
                contents[slot] = x.reshape(-1)[start // unit : -(-stop // unit)]
            parts.append([name, start, stop, numbers, contents])
        file = slices.slice_path(str(path), token, rank)
        format.write(file, {"token": token, "parts": parts}, kind="slice")
        written.append({"file": Path(file).name, "parts": [list(span) for span in spans]})
    params = {name: {"shape": list(x.shape), "dtype": x.dtype.name} for name, x in tree["params"].items()}
    whole = {"token": token, "params": params, "optimizer": tree["optimizer"] | {"state": {}}, "slices": written}
    format.write(path, whole, kind="slices")


def originals(folder):
    """One file of each kind, and the bytes of it."""
    files = {}
    stored = ("stored optimizer", "stored training") if small_dtype("bfloat16") else ()
    for kind in ("slices", "stored slices")[: 2 if stored else 1]:
        _, _, step, _, optimizer = make(kind)
        step()
        save_slices(optimizer, folder / f"{kind}.ckpt")
        files[kind] = (folder / f"{kind}.ckpt").read_bytes()
        files[kind[:-1]] = next(folder.glob(f"{kind}.ckpt.*.1")).read_bytes()
    for kind in ("optimizer", "training", *stored):
        _, _, step, train, optimizer = make(kind)
        path = folder / f"{kind}.ckpt"
        step()
        if kind.endswith("optimizer"):
            optimizer.save(path)
        else:
            train(path, resume=False, steps=6)
        files[kind] = path.read_bytes()
        if kind in stored:
            files[kind.replace("stored", "other")] = files[kind]
    if not stored:
        print("LOUD: no files with bfloat16 and float8: pip install ml_dtypes")
    return files


# --- Mutations ----------------------------------------------------------------------------------------------------


def mutate_bytes(data, rng):
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5, 30))):
        kind, at = rng.randrange(9), rng.randrange(max(1, len(data)))
        length = rng.choice((1, 2, 8, 64, 700))
        if kind == 0 and data:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and data:
            data[at] = rng.randrange(256)
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            del data[at : at + length]
        elif kind == 4:
            data[at:at] = rng.randbytes(length)
        elif kind == 5:
            data[at:at] = data[at : at + length]
        elif kind == 6:
            data[:8] = rng.choice((0, 1, 99, 100, 2**24, 2**24 + 1, 2**40, 2**63, 2**64 - 1, len(data))).to_bytes(
                8, "little"
            )
        elif kind == 7 and len(data) > 8:
            data[:8] = max(0, int.from_bytes(data[:8], "little") + rng.choice((-8, -1, 1, 8))).to_bytes(16, "little")[
                :8
            ]
        else:
            at = rng.randrange(min(400, len(data)) or 1)
            data[at : at + 1] = rng.choice(
                (b'"', b"{", b"}", b"[", b"]", b",", b":", b"9", b"-", b"\\", b"\0", b"\xff")
            )
    return bytes(data)


def places(value, found=None):
    """Every (container, key) within a JSON value."""
    found = [] if found is None else found
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        found.append((value, key))
        places(value[key], found)
    return found


def mutate_value(root, rng):
    container, key = rng.choice(places(root))
    value, kind = container[key], rng.randrange(8)
    if kind == 0:
        del container[key]
    elif kind == 1 and isinstance(container, dict):
        container[rng.choice(("x", "$tensor", "$tuple", "$items", "step", "params", "\ud800"))] = container.pop(key)
    elif kind == 2 and isinstance(value, (int, float)) and not isinstance(value, bool):
        container[key] = rng.choice((value + 1, value - 1, -value, value * 2, value * 10**20, float(value), str(value)))
    elif kind == 3:
        other, name = rng.choice(places(root))
        container[key], other[name] = other[name], value
    elif kind == 4 and isinstance(value, list):
        container[key] = value * rng.choice((2, 3)) if len(value) < 1000 else value[:-1]
    elif kind == 5:
        for _ in range(rng.choice((1, 10, 200, 2000))):
            value = [value]
        container[key] = value
    else:
        container[key] = json.loads(json.dumps(rng.choice(HOSTILE)))


def mutate_structure(data, rng):
    """Alter the header or the tree that it holds; the lengths are made to fit."""
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    try:
        for _ in range(rng.choice((1, 1, 2, 4))):
            if rng.random() < 0.7:
                tree = json.loads(header["__metadata__"]["tree"])
                mutate_value(tree, rng)
                header["__metadata__"]["tree"] = json.dumps(tree)
            else:
                mutate_value(header, rng)
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError, OverflowError):
        pass  # what an earlier mutation left cannot be mutated further
    try:
        text = json.dumps(header)
    except (ValueError, RecursionError):
        return mutate_bytes(data, rng)
    if rng.random() < 0.03:
        text = text.replace(":", rng.choice((": " + "[" * 100_000, ": 1e99999,", ": NaN,", ": " + "9" * 5000 + ",")), 3)
    if rng.random() < 0.05:
        body = body[: rng.randrange(len(body) + 1)]
    raw = text.replace('{"__metadata__": {"sha256": "', PREFIX.decode(), 1).encode(errors="replace")
    return len(raw).to_bytes(8, "little") + raw + body


def sign(data):
    """`data` with a valid checksum, where its place is still there."""
    at = 8 + len(PREFIX)
    blank = data[:at] + b"0" * DIGITS + data[at + DIGITS :]
    return (
        data[:at] + hashlib.sha256(blank).hexdigest().encode() + data[at + DIGITS :]
        if len(data) > at + DIGITS
        else data
    )


# --- Trials -------------------------------------------------------------------------------------------------------


def main() -> int:
    import resource  # which is not on Windows, where tests take other functions from here

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    outcomes: Counter[str] = Counter()
    failures: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        files = originals(Path(name))
        targets = {kind: make(kind) for kind in files}
        for kind, (snapshot, load, step, *_) in targets.items():
            (Path(name) / "whole.ckpt").write_bytes(files[kind])
            load(Path(name) / "whole.ckpt")  # everything that is loaded once has been allocated
            step()
            snapshot()
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + ADDRESS_SPACE, hard))
        path = Path(name) / "mutated.ckpt"
        for number in range(arguments.files):
            kind = rng.choice(list(files))
            data = (mutate_bytes if rng.random() < 0.4 else mutate_structure)(files[kind], rng)
            signed = rng.random() < 0.5
            if signed:
                data = sign(data)
            if data == files[kind]:
                outcomes["unaltered"] += 1
                continue
            path.write_bytes(data)
            snapshot, load, step, *_ = targets[kind]
            before = snapshot()
            try:
                load(path)
            except CheckpointError as error:
                outcomes["refused, checksum valid" if signed else "refused"] += 1
                if snapshot() != before:
                    failures.append(f"file {number}: something changed though loading failed: {error}")
                continue
            except BaseException as error:
                failures.append(f"file {number} ({kind}): {type(error).__name__}: {str(error)[:200]}")
                targets[kind] = make(kind)
                continue
            outcomes["loaded, checksum valid" if signed else "loaded"] += 1
            if not signed:
                failures.append(f"file {number}: loaded, though it was altered")
            try:
                step()
            except Exception as error:
                text = f"{type(error).__name__}: {str(error)[:200]}"
                failures.append(f"file {number} ({kind}): a step after loading: {text}")
            targets[kind] = make(kind)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident) / 1024
    largest = max(map(len, files.values()))
    print(
        f"{arguments.files} mutated files of about {largest / 1024:.0f} KiB: "
        + ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))
    )
    print(f"{len(failures)} failures; the process grew by {grown:.0f} MiB at most")
    for failure in failures[:20]:
        print(f"  {failure}")
    if failures or not math.isfinite(grown) or grown > 64 or not outcomes["refused, checksum valid"]:
        print("FAILED", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
