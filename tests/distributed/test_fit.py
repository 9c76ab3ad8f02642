"""fit on several ranks: what differs is named on all, what one rank has alone works, resuming is exact on each."""

from __future__ import annotations

from functools import partial

import pytest

from tests.support import ROOT, mpi
from tests.support.platforms import needs_mpi

run = partial(mpi.run_worker, ROOT / "tests" / "support" / "fit_worker.py")
pytestmark = needs_mpi


@pytest.mark.parametrize("name", ["differences", "generators", "lengths"])
def test_what_differs_is_named_on_every_rank(name):
    run(2, name)


@pytest.mark.parametrize(
    "name",
    [
        *("one_sided", "own_states", "own_averages", "one_checkpoint", "loaded_by_hand"),
        *("files", "best_taken_back", "failures", "interrupted", "unwritable", "counts_and_names", "other_folders"),
    ],
)
def test_two_ranks(name, tmp_path):
    run(2, name, tmp_path)


def test_shares_of_the_batches_are_one_run():
    run(2, "shares")


def test_a_run_goes_on_in_new_processes(tmp_path):
    for epochs in (2, 4):
        run(2, "goes_on", tmp_path / "run.ckpt", epochs)


def test_another_number_of_ranks_goes_on(tmp_path):
    path = tmp_path / "run.ckpt"
    for ranks, epochs in ((2, 1), (3, 2), (3, 3)):
        run(ranks, "other_number", path, epochs)
