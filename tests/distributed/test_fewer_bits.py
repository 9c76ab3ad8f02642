"""Several processes with parameters and states in fewer bits: the bits of one, and checkpoints for any number."""

from __future__ import annotations

import pytest

from tests.support import ROOT, mpi

WORKER = ROOT / "tests" / "support" / "mpi_worker.py"

needs_mpi = pytest.mark.skipif(
    mpi.mpiexec() is None, reason='NOT TESTED: several processes; pip install ".[mpi]" brings what is missing'
)


@needs_mpi
@pytest.mark.parametrize("ranks", [1, 3])
def test_states_in_fewer_bits_saved_by_two_loaded_by_any_number(saved_low, ranks):
    done = mpi.run(ranks, WORKER, "load_low", saved_low)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("done") == ranks


@pytest.fixture(scope="module")
def saved_low(tmp_path_factory):
    pytest.importorskip("ml_dtypes", reason="bfloat16 and float8 come with ml_dtypes")
    path = tmp_path_factory.mktemp("low") / "run"
    done = mpi.run(2, WORKER, "save_low", path)
    assert done.returncode == 0, done.stderr[-3000:]
    return path
