"""Ctrl-C as a terminal has it, and tests that ask more of the operating system than this one has are skipped."""

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
