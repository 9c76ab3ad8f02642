"""Ctrl-C as a terminal has it, the order of files, and skipped tests that ask for another operating system."""

from __future__ import annotations

import os
import signal
import threading
import traceback
from pathlib import Path

import pytest

# Processes that a shell starts in the background inherit that Ctrl-C is ignored.
if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call():
    try:
        return (yield)
    except (AttributeError, ImportError) as error:
        by_a_test = Path(traceback.extract_tb(error.__traceback__)[-1].filename).is_relative_to(Path(__file__).parent)
        if os.name == "posix" or not by_a_test:
            raise
        pytest.skip(f"NOT TESTED: the test needs a POSIX system: {error}")


# A process takes one file after the other: of those that begin last, the longest leaves the others without work.
LONGEST_FIRST = (
    "test_cuda_simulator",
    "test_emulated",
    "test_cuda_host",
    "test_ptx",
    "test_numba",
    "test_worker",
    "test_hostile",
    "test_packaging",
    "test_distributed",
    "test_bits",
    "test_probe",
    "test_objects",
    "test_gpu_mlp",
    "test_runner",
)


def pytest_collection_modifyitems(items):
    places = {name: i for i, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))
