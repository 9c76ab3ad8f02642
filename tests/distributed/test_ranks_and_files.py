"""Ranks load the same file or none; the ranks' side is in ``tests/support/mpi_worker.py``."""

from __future__ import annotations

from functools import partial

import pytest

from tests.support import ROOT, mpi
from tests.support.platforms import needs_mpi

run = partial(mpi.run_worker, ROOT / "tests" / "support" / "mpi_worker.py")


@needs_mpi
@pytest.mark.parametrize("name", ["differing", "mapped_twice", "modes_of_files", "interrupted", "numbers"])
def test_ranks_and_files(tmp_path, name):
    run(2, name, tmp_path / "run")
