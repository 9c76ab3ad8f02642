"""Raises at any chosen instruction of the package, or from the handler of a signal that comes at some moment."""

from __future__ import annotations

import signal
import sys


class Interrupt(BaseException):
    pass


def interrupted_at(n, call, where):
    """Whether `call` came to an end before instruction `n` of the files with `where` in their names."""
    left = n

    def trace(frame, event, _):
        nonlocal left
        if where not in frame.f_code.co_filename:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            left -= 1
            if left == 0:
                raise Interrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except Interrupt:
        return False
    finally:
        sys.settrace(before)
    return True


def interrupted_after(seconds, call):
    """What a signal's handler raised within `call`, after about so many seconds; None if the signal came too late."""
    armed = True

    def handler(number, frame):
        nonlocal armed
        if armed:
            armed = False
            raise Interrupt

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-6))
        call()
        armed = False
    except Interrupt as error:
        return error
    finally:
        armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return None
