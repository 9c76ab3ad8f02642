"""Raises at any chosen instruction of the package, or from the handler of a signal that comes at some moment."""

from __future__ import annotations

import dis
import signal
import sys
from collections import Counter
from contextlib import contextmanager
from functools import cache

import pytest


class Interrupt(BaseException):
    pass


TOOL = 4  # of those that sys.monitoring leaves to whoever comes
_CALLS = ("CALL", "CALL_KW", "CALL_FUNCTION_EX", "RESUME")


@cache
def handled_before(code):
    """Offsets of the instructions before which CPython runs handlers: behind calls, and where loops begin again.

    What a handler raises behind a call comes from the call: not from an instruction that has left its block.
    """
    entries = getattr(dis.Bytecode(code), "exception_entries", None)  # documented nowhere
    if entries is None:
        pytest.skip("LOUD: this Python's dis does not say where blocks end, and so not where Ctrl-C's handler runs")
    blocks = [range(entry.start, entry.end) for entry in entries]
    found, before = set(), None
    for this in dis.get_instructions(code):
        if "BACKWARD" in this.opname:
            found.add(this.argval)
        elif before is not None and before.opname in _CALLS:
            found |= {this.offset} if all((before.offset in b) == (this.offset in b) for b in blocks) else set()
        before = this
    return found


def interrupted_at(n, call, where, pressed=False):
    """Whether `call` came to an end before instruction `n` of the files with `where` in their names.

    Or, if Ctrl-C is `pressed`, before place `n` of those where its handler can run, which may be deferred. Of a loop's
    turns, the first three count.
    """
    left, met = n, Counter()

    def before(code, offset):
        nonlocal left
        if pressed:
            if offset not in handled_before(code) or met[code, offset] == 3:
                return
            met[code, offset] += 1
        left -= 1
        if left == 0:
            if not pressed:
                raise Interrupt
            signal.raise_signal(signal.SIGINT)

    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with following(before, where):
            call()
    except (Interrupt, KeyboardInterrupt):
        return False
    finally:
        signal.signal(signal.SIGINT, handler)
    return left > 0


@contextmanager
def following(before, where):
    """Calls `before` with the code and the offset of every instruction of the files with `where` in their names."""
    if sys.version_info < (3, 12):

        def follow(frame, event, _):
            if event == "opcode":
                before(frame.f_code, frame.f_lasti)
            return follow

        def trace(frame, event, _):
            if where not in frame.f_code.co_filename:
                return None
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
            return follow

        earlier = sys.gettrace()
        sys.settrace(trace)
        try:
            yield
        finally:
            sys.settrace(earlier)
        return

    # From 3.12 on, tracing would see no instructions of a function's first call.
    monitoring, followed = sys.monitoring, []
    events = monitoring.events

    def entered(code, offset):
        if where in code.co_filename:
            monitoring.set_local_events(TOOL, code, events.INSTRUCTION)
            followed.append(code)
        return monitoring.DISABLE

    monitoring.use_tool_id(TOOL, __name__)
    try:
        for event in (events.PY_START, events.PY_RESUME):
            monitoring.register_callback(TOOL, event, entered)
        monitoring.register_callback(TOOL, events.INSTRUCTION, before)
        monitoring.restart_events()
        monitoring.set_events(TOOL, events.PY_START | events.PY_RESUME)
        yield
    finally:
        monitoring.set_events(TOOL, 0)
        for code in followed:
            monitoring.set_local_events(TOOL, code, 0)
        monitoring.free_tool_id(TOOL)


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
