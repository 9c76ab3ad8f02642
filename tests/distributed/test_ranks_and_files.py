"""Ranks load the same file or none; the ranks' side is in ``tests/support/mpi_worker.py``."""

from __future__ import annotations

import pytest

from tests.support import ROOT, mpi

WORKER = ROOT / "tests" / "support" / "mpi_worker.py"

needs_mpi = pytest.mark.skipif(
    mpi.mpiexec() is None, reason='NOT TESTED: several processes; pip install ".[mpi]" brings what is missing'
)


@needs_mpi
@pytest.mark.parametrize("name", ["differing", "modes_of_files", "interrupted", "numbers"])
def test_ranks_and_files(tmp_path, name):
    done = mpi.run(2, WORKER, name, tmp_path / "run")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("done") == 2
