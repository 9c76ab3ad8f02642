"""What tests ask of the operating system."""

from __future__ import annotations

import os

import pytest

from . import mpi

_POSIX = "NOT TESTED: shells, signals to other processes, and modes, links, locks and long names of files are POSIX's"
needs_posix = pytest.mark.skipif(os.name != "posix", reason=_POSIX)
needs_mpi = pytest.mark.skipif(
    mpi.mpiexec() is None, reason='NOT TESTED: several processes; pip install ".[mpi]" brings what is missing'
)
