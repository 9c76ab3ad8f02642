"""Train a NumPy network on real handwritten digits in several processes, each with its share of every minibatch.

    mpiexec -n 2 python examples/digits_mpi.py            # also -n 1, -n 3, ...

Every process computes the gradients of its part of a batch; `ShardedOptimizer` adds them up, updates the slice of the
parameters that this process owns (and keeps Adam's states for that slice only), and sends it to all others. `fit` does
the rest: sharing batches, averaging losses, one process that shows progress and writes checkpoints.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from _data import digits
from digits import Network

import fastoptim as fo


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=["auto", "mnist", "sklearn"], default="auto")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=60, help="examples in a batch, shared by all processes")
    parser.add_argument("--hidden", type=int, default=256, help="width of the two hidden layers")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--checkpoint", type=Path, help="file to write to after every epoch, and to go on from")
    options = parser.parse_args(arguments)
    try:
        from mpi4py import MPI
    except ImportError:
        raise SystemExit("several processes need mpi4py: pip install mpi4py mpich") from None

    comm = MPI.COMM_WORLD
    x, labels, x_test, labels_test, name = digits(options.data)
    network = Network([x.shape[1], options.hidden, options.hidden, 10])
    network.initialise(seed=1)  # the same in every process, because the seed is
    params = network.params
    optimizer = fo.distributed.ShardedOptimizer(fo.Adam, params, lr=options.lr, comm=comm)
    start = time.perf_counter()
    result = fo.fit(
        lambda params, batch: (network.loss_and_gradients(*batch), network.grads),
        params,
        (x, labels),
        optimizer,
        epochs=options.epochs,
        batch_size=options.batch,
        drop_last=True,
        max_norm=5.0,
        checkpoint=options.checkpoint,
        resume=options.checkpoint is not None,
        diagnose=False,
    )
    seconds = time.perf_counter() - start

    mine = hashlib.sha256(b"".join(p.tobytes() for p in params.values())).hexdigest()[:16]
    own = sum(x.nbytes for parts in optimizer.state.values() for x in _arrays(parts))
    reports = comm.gather((mine, own))
    if comm.rank:
        return 0
    accuracy = network.accuracy(x_test, labels_test)
    losses = result.history.loss
    print(f"{name}: {len(x):,} images to train on, {len(x_test):,} to test")
    print(f"{comm.size} processes, {result.steps} steps of {options.batch} images in {seconds:.1f} s")
    first, last = np.mean(losses[:10]), np.mean(losses[-10:])
    print(f"loss {first:.3f} at first, {last:.4f} at last; test accuracy {accuracy:.1%}")
    for rank, (digest, size) in enumerate(reports):
        print(f"  rank {rank}: {size:,} bytes of states, parameters {digest}")
    same = len({digest for digest, _ in reports}) == 1
    print("parameters are the same in all processes" if same else "parameters DIFFER between processes")
    return 0 if same else 1


def _arrays(states: object) -> list[np.ndarray]:
    """All arrays among one parameter's states: one entry in a single process, else a list of this process's parts."""
    entries = states if isinstance(states, list) else [states]
    return [x for entry in entries for x in entry.values() if isinstance(x, np.ndarray)]


if __name__ == "__main__":
    sys.exit(main())
