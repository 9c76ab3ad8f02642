"""Measures how busy other processes keep the machine while a benchmark runs."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

CLOCK_SLACK = 0.02  # the kernel counts in hundredths of a second, for the machine and for a process apart


def _fields(path: str) -> list[str]:
    try:
        return Path(path).read_text().split("\n", 1)[0].rpartition(")")[2].split()
    except OSError:
        return []


def _busy_seconds() -> float | None:
    """CPU seconds that all processes of the machine have used; None where the system does not tell."""
    fields = _fields("/proc/stat")
    if len(fields) < 9:
        return None
    user, nice, system, _idle, _wait, irq, soft, steal = (int(field) for field in fields[1:9])
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")


def _seconds_of(pids: Iterable[int]) -> float:
    """CPU seconds that these processes and this one have used."""
    times = os.times()
    total = times.user + times.system
    for pid in pids:
        fields = _fields(f"/proc/{pid}/stat")
        if len(fields) > 12:
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


class LoadMeter:
    """Measures how much other processes use the machine while these ones work."""

    def __init__(self, pids: Iterable[int]):
        self.pids = list(pids)
        self.start, self.busy, self.own = time.monotonic(), _busy_seconds(), _seconds_of(self.pids)

    def others(self) -> float:
        """Return the share of the CPU time that other processes have used since; 0 where the system does not tell."""
        busy = _busy_seconds()
        if busy is None or self.busy is None:
            return 0.0
        available = (time.monotonic() - self.start) * (os.cpu_count() or 1)
        used = (busy - self.busy) - (_seconds_of(self.pids) - self.own) - CLOCK_SLACK
        return min(1.0, max(0.0, used / available)) if available else 0.0
