"""Signals wait, none is lost, and what others have asked the operating system for stays."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from fastoptim.common import signals
from fastoptim.common.signals import Interrupts, deferred_signals

pytestmark = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="NOT TESTED: this platform has no setitimer")


@pytest.fixture
def handled():
    """A function that sets a signal's handler for the length of the test."""
    before = {}

    def handle(number, handler):
        before.setdefault(number, signal.getsignal(number))
        signal.signal(number, handler)

    yield handle
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_signal_that_comes_a_thousand_times_runs_its_handler_once(handled):
    """Thousands came where a timer ticked every .1 ms during a step of .7 s; each was a level of recursion."""
    calls = []
    handled(signal.SIGALRM, lambda *_: calls.append(1))
    with deferred_signals():
        for _ in range(3000):
            signal.raise_signal(signal.SIGALRM)
        assert not calls
    assert calls == [1]


def test_a_timer_that_ticks_all_the_time(handled):
    calls = []
    handled(signal.SIGALRM, lambda *_: calls.append(1))
    with deferred_signals():
        signal.setitimer(signal.ITIMER_REAL, 1e-4, 1e-4)
        end = time.perf_counter() + 0.3
        while time.perf_counter() < end:
            pass
        signal.setitimer(signal.ITIMER_REAL, 0)
    assert calls == [1]


def test_signals_are_neither_lost_nor_seen_inside_while_a_timers_handler_raises(handled):
    """Whenever an exception of the handler arrives, handlers are back or pass on what comes."""
    inside, armed, raised = [], True, 0

    def ring(*_):
        nonlocal armed
        assert not inside
        if armed:
            armed = False  # the next one would come while this test deals with this one
            raise TimeoutError

    handled(signal.SIGALRM, ring)
    handled(signal.SIGUSR1, ring)
    end = time.perf_counter() + 2
    while time.perf_counter() < end:
        armed = True
        try:
            signal.setitimer(signal.ITIMER_REAL, 1e-5 + raised % 40 * 1e-6, 2e-5)
            for _ in range(100):
                with deferred_signals():
                    inside.append(1)
                    inside.pop()
        except TimeoutError:
            raised += 1
        armed = False  # an assignment cannot be interrupted, stopping the timer can
        signal.setitimer(signal.ITIMER_REAL, 0)
        time.sleep(1e-4)  # for the last one, which another thread may have got
        for number in (signal.SIGALRM, signal.SIGUSR1):  # whatever happened, it is heard
            armed = True
            with pytest.raises(TimeoutError):
                signal.raise_signal(number)
    assert raised > 100, raised


def test_two_handlers_that_raise_while_they_are_put_back(handled, monkeypatch):
    """The handlers that are not back yet pass signals on, and go back as soon as one comes."""
    calls = []

    def raising(number, frame):
        calls.append(number)
        raise TimeoutError

    numbers = [signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM]
    for number in numbers:
        handled(number, raising)
    handled(signal.SIGINT, signal.getsignal(signal.SIGINT))  # it stays behind, too, until the end of the test
    set_handler, failures = signals.set_handler, []

    def failing(number, handler, action):
        if handler is raising and len(failures) < 5:
            failures.append(number)
            raise TimeoutError  # as if that of another signal had run
        set_handler(number, handler, action)

    with pytest.raises(TimeoutError):  # noqa: SIM117
        with deferred_signals():
            monkeypatch.setattr(signals, "set_handler", failing)
    monkeypatch.setattr(signals, "set_handler", set_handler)
    assert len(failures) == 5
    assert [signal.getsignal(number) for number in numbers] == [raising] * 3

    def refusing(number, handler, action):
        if handler is raising:
            raise RecursionError
        set_handler(number, handler, action)

    with pytest.raises(RecursionError):  # noqa: SIM117
        with deferred_signals():
            monkeypatch.setattr(signals, "set_handler", refusing)
    monkeypatch.setattr(signals, "set_handler", set_handler)
    for number in numbers:
        assert signal.getsignal(number) is not raising
        with pytest.raises(TimeoutError):
            signal.raise_signal(number)
        assert calls.pop() == number and signal.getsignal(number) is raising


def test_a_handler_that_raises_twice_while_others_are_replaced_takes_no_signal_away(handled, monkeypatch):
    calls, set_handler = [], signals.set_handler

    def raising(self):
        raise TimeoutError  # as if that of another signal had run before its first statement

    def failing(number, handler, action):
        set_handler(number, handler, action)
        if number == signal.SIGUSR1:
            raise TimeoutError

    def hearing(number, frame):
        calls.append(number)

    handled(signal.SIGUSR1, hearing)
    handled(signal.SIGINT, signal.getsignal(signal.SIGINT))
    monkeypatch.setattr(deferred_signals, "_restore", raising)
    monkeypatch.setattr(signals, "set_handler", failing)
    with pytest.raises(TimeoutError):
        deferred_signals().__enter__()
    monkeypatch.undo()
    signal.raise_signal(signal.SIGUSR1)
    assert calls == [signal.SIGUSR1] and signal.getsignal(signal.SIGUSR1) is hearing


@pytest.mark.parametrize("first", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT])
def test_all_handlers_run_and_are_put_back_whatever_others_raise(handled, first):
    calls, numbers = [], [signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT]

    def raising(number, frame):
        calls.append(number)
        raise TimeoutError(number)

    for number in numbers:
        handled(number, raising)
    in_order = sorted(numbers, key=lambda number: number != first)
    with pytest.raises(TimeoutError) as caught:  # noqa: SIM117
        with deferred_signals():
            for number in in_order:
                signal.raise_signal(number)
            assert not calls
    assert calls == in_order and [signal.getsignal(number) for number in numbers] == [raising] * 3
    assert caught.value.__context__.args == (in_order[1],)
    assert caught.value.__context__.__context__.args == (first,)


def test_an_inner_block_hands_its_signals_to_the_outer_one(handled):
    calls = []
    handled(signal.SIGUSR1, lambda *_: calls.append(1))
    with deferred_signals():
        with deferred_signals():
            signal.raise_signal(signal.SIGUSR1)
        assert not calls
    assert calls == [1]


def test_a_signal_that_another_thread_receives_waits_too(handled):
    """A mask of the main thread would not keep its handler from running here."""
    calls = []
    handled(signal.SIGUSR1, lambda *_: calls.append(threading.current_thread()))
    stop = threading.Event()
    other = threading.Thread(target=stop.wait)
    other.start()
    try:
        with deferred_signals():
            signal.pthread_kill(other.ident, signal.SIGUSR1)
            time.sleep(0.05)
            assert not calls
        assert calls == [threading.main_thread()]
    finally:
        stop.set()
        other.join()


def caught(number):
    """Whether a call that blocks goes on after a signal (SA_RESTART), read from the system itself."""
    reader, writer = os.pipe()
    code = (
        f"import os, time; time.sleep(.1); os.kill({os.getpid()}, {int(number)}); time.sleep(.1); "
        f"os.write({writer}, b'x')"
    )
    with subprocess.Popen([sys.executable, "-c", code], pass_fds=[writer]) as child:
        buffer = ctypes.create_string_buffer(1)
        got = ctypes.CDLL(None, use_errno=True).read(reader, buffer, 1)
        child.wait()
    os.close(reader)
    os.close(writer)
    return got == 1


@pytest.mark.parametrize("block", [deferred_signals, Interrupts])
@pytest.mark.parametrize("number", [signal.SIGINT])
def test_interrupted_calls_go_on_if_that_was_asked_for(handled, number, block):
    handled(number, lambda *_: None)
    assert not caught(number)
    signal.siginterrupt(number, False)
    assert caught(number)
    with block():
        assert caught(number)
    assert caught(number)


def test_faulthandler_goes_on_dumping():
    code = (
        "import faulthandler, os, signal, sys\n"
        "from fastoptim.common.signals import deferred_signals\n"
        "signal.signal(signal.SIGUSR1, lambda *_: print('handled', flush=True))\n"
        "faulthandler.register(signal.SIGUSR1, file=sys.stdout, chain=True)\n"
        "with deferred_signals():\n"
        "    signal.raise_signal(signal.SIGUSR1)\n"
        "    print('inside', flush=True)\n"
        "signal.raise_signal(signal.SIGUSR1)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = [line for line in done.stdout.splitlines() if line.split()[0] in ("Current", "handled", "inside")]
    assert [line.split()[0] for line in lines] == ["Current", "inside", "handled", "Current", "handled"]


def test_every_signal_that_is_looked_at_can_be_asked_for():
    """On Windows, 0 and 1 are members of signal.Signals and no signals."""
    code = """
import enum, signal
members = {x.name: int(x) for x in signal.Signals} | {"CTRL_C_EVENT": 0}
signal.Signals = enum.IntEnum("Signals", members)
from fastoptim.common import signals
with signals.deferred_signals():
    print(len(signals._NUMBERS))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 20


def test_a_usual_disposition_is_known_again_whatever_was_on_the_stack(handled, monkeypatch):
    """glibc leaves a part of its stack in what it says: each time another disposition was remembered, and set anew."""
    monkeypatch.setattr(signals, "_usual", set())
    handled(signal.SIGALRM, lambda *_: None)

    def deep(i):
        if i:
            max([0], key=lambda _: deep(i - 1))  # a level of C's stack, too
        with deferred_signals():
            pass

    deep(20)
    assert 1 <= len(signals._usual) <= 4  # two of SIGINT, two of SIGALRM
