"""Work in a child made by fork."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable
from typing import Any

import pytest


def in_child(work: Callable[[], Any], seconds: int = 60) -> int:
    """Exit status of a forked child that does `work`; it is ended if it hangs."""
    if not hasattr(os, "fork"):
        pytest.skip("LOUD: this platform has no fork")
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.alarm(seconds)  # the default action ends the process
            status = 0 if work() else 2
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)
