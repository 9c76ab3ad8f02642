"""What tests ask of the operating system."""

from __future__ import annotations

import os

import pytest

from . import mpi

needs_posix = pytest.mark.skipif(os.name != "posix", reason="NOT TESTED: modes, links and locks of files are POSIX's")
needs_mpi = pytest.mark.skipif(
    mpi.mpiexec() is None, reason='NOT TESTED: several processes; pip install ".[mpi]" brings what is missing'
)
