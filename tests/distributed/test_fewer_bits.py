"""Several processes with parameters and states in fewer bits: the bits of one, and checkpoints for any number."""

from __future__ import annotations

from functools import partial

import pytest

from tests.support import ROOT, mpi
from tests.support.platforms import needs_mpi

run = partial(mpi.run_worker, ROOT / "tests" / "support" / "mpi_worker.py")


@needs_mpi
@pytest.mark.parametrize("ranks", [1, 3])
def test_states_in_fewer_bits_saved_by_two_loaded_by_any_number(saved_low, ranks):
    run(ranks, "load_low", saved_low)


@pytest.fixture(scope="module")
def saved_low(tmp_path_factory):
    pytest.importorskip("ml_dtypes", reason="bfloat16 and float8 come with ml_dtypes")
    path = tmp_path_factory.mktemp("low") / "run"
    run(2, "save_low", path)
    return path
