"""Whether a job runs on threads (``csrc/pace.c``), on a fake clock: no time is measured here."""

from __future__ import annotations

from collections.abc import Callable

import pytest

c = pytest.importorskip("fastoptim.backends.c", reason="LOUD: the C extension is missing")

US, MS, S = 1e3, 1e6, 1e9  # in ns, as all times here
JOIN_BYTES, WAKE_BYTES, BURST = 560e3, 32e6, 200 * US
REFRESH, BACKOFF = 256, 64


def bearable(serial: float) -> float:
    """What a trial of threads may lose before it ends."""
    return 100 * US + min(4 * serial, 2 * MS)


def most_credit(serial: float) -> float:
    return max(20 * serial, 10 * MS)


class Job:
    """A job that is run again and again, as `fo_pool_run` does it, on a clock that its own times drive.

    `serial` and `threaded` give the time of run number i (ns); `waited` how much of a threaded run was spent waiting.
    """

    def __init__(self, serial: float, threaded: float, waited: float = 0.0, bytes: float = 1e6):
        self.serial: Callable[[int], float] = lambda i: serial
        self.threaded: Callable[[int], float] = lambda i: threaded
        self.waited, self.bytes = waited, bytes
        self.pace = c.ffi.new("fo_pace[2]")
        self.now = self.last_end = 0.0
        self.runs = 0

    def run(self, idle: float = 0.0, spinning: int = 0) -> bool:
        """One run after an idle time; whether it was one on threads."""
        self.now += idle
        in_burst = c.lib.fo_pace_in_burst(int(self.now - self.last_end), spinning)
        own = self.pace + in_burst
        on_threads = bool(c.lib.fo_pace_chooses_threads(own, in_burst, self.bytes))
        elapsed = (self.threaded if on_threads else self.serial)(self.runs)
        self.now += elapsed
        if on_threads:
            c.lib.fo_pace_observe_threaded(own, elapsed, self.waited)
        else:
            c.lib.fo_pace_observe_serial(own, elapsed)
        self.last_end, self.runs = self.now, self.runs + 1
        return on_threads

    def choices(self, runs: int, idle: float = 0.0) -> list[bool]:
        return [self.run(idle) for _ in range(runs)]

    @property
    def burst(self):
        return self.pace[1]


def trials(job: Job, runs: int) -> list[tuple[float, float]]:
    """For each trial of threads: what it lost against serial runs, and how long serial runs went on afterwards."""
    job.choices(3)  # what is known then: the time of a serial run
    found: list[tuple[float, float]] = []
    lost = alone = 0.0
    for _ in range(runs):
        refresh = job.runs % REFRESH in (1, 2)
        if job.run():
            if alone:
                found.append((lost, alone))
                lost = alone = 0.0
            lost += job.threaded(0) - job.serial(0)
        elif alone or not refresh:
            alone += job.serial(0)
    return found


def test_small_jobs_are_not_judged_and_middling_ones_not_worth_waking_for():
    assert not c.lib.fo_pace_worth_joining(JOIN_BYTES - 1) and c.lib.fo_pace_worth_joining(JOIN_BYTES)
    assert not c.lib.fo_pace_worth_waking(WAKE_BYTES - 1) and c.lib.fo_pace_worth_waking(WAKE_BYTES)


def test_a_burst_is_what_follows_closely_or_finds_workers_that_spin():
    assert c.lib.fo_pace_in_burst(int(BURST) - 1, 0)
    assert not c.lib.fo_pace_in_burst(int(BURST), 0)
    assert c.lib.fo_pace_in_burst(int(BURST), 1)


@pytest.mark.parametrize("serial", [30 * US, 1 * MS, 100 * MS])
def test_threads_that_gain_stay_on_but_for_refresh_runs(serial):
    chosen = Job(serial, 0.6 * serial).choices(4 * REFRESH)
    assert [i % REFRESH for i, on_threads in enumerate(chosen) if not on_threads] == [1, 2] * 4


def test_the_first_run_is_on_threads_and_judged_by_nothing():
    job = Job(1 * MS, 100 * S)
    assert job.choices(4) == [True, False, False, True]
    assert job.burst.serial_ns == 1 * MS


@pytest.mark.parametrize("serial", [30 * US, 200 * US, 1 * MS, 100 * MS])
@pytest.mark.parametrize("ratio", [1.08, 1.31, 3.0, 1000.0])
def test_threads_that_lose_are_given_up_after_a_bounded_loss(serial, ratio):
    job = Job(serial, ratio * serial, waited=(ratio - 1) * serial)
    job.choices(3)
    lost = 0.0
    while job.run():
        assert lost <= bearable(serial), "threads went on beyond the loss that ends a trial"
        lost += (ratio - 1) * serial
    assert lost > bearable(serial), "the trial ended too early"
    assert job.burst.serial_only_ns == pytest.approx(BACKOFF * lost - serial)


def test_two_interruptions_in_a_row_end_a_trial():
    """What the caller did not wait for workers counts no more than what ends a trial: it may have been interrupted."""
    job = Job(1 * MS, 10 * S)
    job.choices(3)
    assert job.choices(3) == [True, True, False]
    assert job.burst.serial_only_ns == pytest.approx(BACKOFF * 2 * bearable(1 * MS) - 1 * MS)


def test_a_loss_is_made_good_by_64_times_as_much_serial_work_and_twice_that_each_time_up_to_a_limit():
    serial = 1 * MS
    job = Job(serial, 1.5 * serial)
    found = trials(job, 40_000)
    factors = []
    for lost, alone in found:
        assert bearable(serial) < lost <= bearable(serial) + 0.5 * serial
        factors.append(round(alone / lost))
    # 2.5 ms lost is 160 ms, 320, 640, and 1280, which is beyond the limit of a second: no more doubling from there on.
    assert factors[:3] == pytest.approx([BACKOFF, 2 * BACKOFF, 4 * BACKOFF], abs=2)
    assert len(factors) > 20 and set(factors[3:]) <= set(range(8 * BACKOFF - 4, 8 * BACKOFF + 5))


def test_credit_that_is_full_forgives_earlier_failures():
    serial = 1 * MS
    job = Job(serial, 1.5 * serial)
    while job.burst.backoff <= BACKOFF:
        job.run()
    assert job.burst.backoff == 2 * BACKOFF
    job.threaded = lambda i: 0.5 * serial
    while job.burst.serial_only_ns > 0 or job.burst.credit_ns < most_credit(serial) - 1 * MS:
        job.run()
    assert job.burst.backoff == 2 * BACKOFF
    job.choices(5)
    assert job.burst.backoff == BACKOFF
    assert job.burst.credit_ns == most_credit(serial)


@pytest.mark.parametrize("serial", [50 * US, 2 * MS])
def test_credit_is_bounded_so_that_a_core_that_becomes_busy_is_noticed(serial):
    job = Job(serial, 0.5 * serial)
    job.choices(100 * REFRESH)
    assert job.burst.credit_ns == most_credit(serial)
    job.threaded = lambda i: 1.8 * serial
    lost = 0.0
    while job.burst.serial_only_ns <= 0:
        lost += 0.8 * serial if job.run() else 0.0
    assert most_credit(serial) + bearable(serial) < lost <= most_credit(serial) + bearable(serial) + 0.8 * serial


def test_a_core_that_is_busy_costs_little_and_threads_come_back_when_it_is_free():
    serial = 1 * MS
    job = Job(serial, 1.8 * serial)
    job.choices(3)
    start, runs = job.now, 5000
    job.choices(runs)
    assert (job.now - start) / (runs * serial) < 1.02
    job.threaded = lambda i: 0.6 * serial
    chosen = job.choices(3000)
    assert all(on_threads for i, on_threads in enumerate(chosen[2000:], 2000 + 3 + runs) if i % REFRESH not in (1, 2))


def test_one_interruption_does_not_condemn_threads():
    """However long the caller was kept from its own work; only what it waited for workers counts whole."""
    serial = 1 * MS
    job = Job(serial, 0.6 * serial)
    job.choices(20)
    assert job.burst.credit_ns == pytest.approx(17 * 0.4 * serial)
    job.threaded = lambda i: 10 * S
    assert job.run()
    assert job.burst.credit_ns == pytest.approx(17 * 0.4 * serial - bearable(serial))
    job.threaded = lambda i: 0.6 * serial
    assert all(job.choices(100))


def test_an_interruption_in_the_first_trial_does_not_condemn_threads():
    serial = 1 * MS
    job = Job(serial, 0.6 * serial)
    job.choices(3)
    job.threaded = lambda i: 10 * S
    assert job.run()
    job.threaded = lambda i: 0.6 * serial
    assert all(job.choices(100))


def test_a_long_wait_for_workers_counts_whole():
    serial = 1 * MS
    job = Job(serial, 0.6 * serial)
    job.choices(20)
    job.threaded, job.waited = (lambda i: 50 * MS), 49 * MS
    assert job.run()
    # 6.8 ms of credit less 49 ms.
    assert job.burst.serial_only_ns == pytest.approx(BACKOFF * (49 - 6.8) * MS)
    assert not any(job.choices(100))


def test_serial_times_are_the_least_seen_lately():
    job = Job(1 * MS, 0.5 * MS)
    job.burst.serial_only_ns = S  # serial runs only
    job.choices(10)
    assert job.burst.serial_ns == 1 * MS
    job.serial = lambda i: 0.7 * MS  # quicker: believed at once
    job.run()
    assert job.burst.serial_ns == 0.7 * MS
    job.serial = lambda i: 10 * S  # an interruption: believed a tenth of its own at most
    job.run()
    assert job.burst.serial_ns == pytest.approx(1.1 * 0.7 * MS)
    job.burst.serial_only_ns = S
    job.serial = lambda i: 0.8 * MS  # slower for good: believed by and by
    job.run()
    assert job.burst.serial_ns == pytest.approx(0.9 * 0.77 * MS + 0.1 * 0.8 * MS)
    job.choices(60)
    assert job.burst.serial_ns == pytest.approx(0.8 * MS, rel=1e-3)


def test_the_serial_run_right_after_threads_is_not_believed():
    """Its data lie in other cores' caches."""
    job = Job(1 * MS, 0.5 * MS)
    job.serial = lambda i: (9 if i % REFRESH == 1 else 1) * MS
    job.choices(2)
    assert job.burst.serial_ns == 0
    job.run()
    assert job.burst.serial_ns == 1 * MS
    job.choices(REFRESH)
    assert job.burst.serial_ns == 1 * MS


def test_refresh_runs_notice_that_serial_runs_became_quicker():
    """Threads gained over 2 ms, and lose when the caller alone needs 1: nothing but a serial run can tell."""
    job = Job(2 * MS, 1.5 * MS)
    job.choices(REFRESH)
    assert job.burst.credit_ns > 0
    job.serial = lambda i: 1 * MS
    chosen = job.choices(REFRESH)
    assert chosen[:1] == [True] and job.burst.serial_ns == 1 * MS
    assert not any(chosen[60:200])


def test_idle_starts_and_bursts_are_judged_apart():
    """Sleeping workers make threads lose after idle times; in bursts they gain. Neither verdict spoils the other."""
    serial = 1 * MS
    job = Job(serial, 0.6 * serial, bytes=WAKE_BYTES)
    after_idle, in_burst = [], []
    for _ in range(300):
        job.threaded = lambda i: 1.8 * serial
        after_idle.append(job.run(idle=BURST))
        job.threaded = lambda i: 0.6 * serial
        in_burst += job.choices(4)
    assert sum(after_idle) < 20 and not any(after_idle[10:70])
    assert [i % REFRESH for i, on_threads in enumerate(in_burst) if not on_threads] == [1, 2] * 5
    assert job.pace[0].runs == 300 and job.pace[1].runs == 1200


def test_after_idle_times_only_large_jobs_wake_workers():
    assert not any(Job(1 * MS, 0.5 * MS, bytes=WAKE_BYTES - 1).choices(1000, idle=BURST))
    chosen = Job(1 * MS, 0.5 * MS, bytes=WAKE_BYTES).choices(2 * REFRESH, idle=BURST)
    assert [i % REFRESH for i, on_threads in enumerate(chosen) if not on_threads] == [1, 2] * 2
    assert Job(1 * MS, 0.5 * MS, bytes=JOIN_BYTES).run(idle=BURST, spinning=1)


def test_serial_runs_after_idle_times_pay_nothing_off_in_bursts():
    job = Job(1 * MS, 1.5 * MS)
    while job.burst.serial_only_ns <= 0:
        job.run()
    before = job.burst.serial_only_ns
    job.choices(100, idle=BURST)
    assert job.burst.serial_only_ns == before
    job.choices(10)
    assert job.burst.serial_only_ns == before - 10 * MS


def test_choosing_changes_nothing():
    job = Job(1 * MS, 0.5 * MS)
    job.choices(50)
    before = bytes(c.ffi.buffer(job.pace))
    for _ in range(3):
        c.lib.fo_pace_chooses_threads(job.pace + 1, 1, 1e6)
    assert bytes(c.ffi.buffer(job.pace)) == before
