/* Whether a job runs on threads or on the caller alone: judged by what its earlier runs took.
 *
 * Pure functions. Times come as arguments, in ns, and all that is remembered lies in an fo_pace, so tests drive them on a
 * fake clock; pool.c holds the real one.
 *
 * Threads earn credit with every run that is quicker than the caller alone was, and lose it with every slower one. While
 * they have credit they stay on. When they have lost a bounded time beyond it, they are given up, and tried again after
 * many times as much serial work; each failed trial in a row doubles that. So idle times, small arrays and a core that is
 * busy elsewhere never make a step much slower than it is on one thread.
 *
 * Where the numbers come from: variants of this file were run side by side, interleaved, on a busy machine. Beside one
 * thread's time, threads chosen by size alone cost up to 1.40 (median 1.06), a simpler judge that compares two means up to
 * 1.37, and this one up to 1.21 (median 0.98). Joining a job costs 1 us with workers that spin and about 50 us with workers
 * that sleep; JOIN_BYTES and WAKE_BYTES are the traffic from which that can pay. The others were chosen by such
 * comparisons. */
#include "internal.h"

/* Smaller jobs are not tried on threads at all; without spinning workers, only those of WAKE_BYTES are. */
static const double JOIN_BYTES = 560e3, WAKE_BYTES = 32e6;
/* The most credit that is kept: CREDIT_NS, or CREDIT_RUNS serial runs if that is more. */
static const double CREDIT_NS = 10e6, CREDIT_RUNS = 20;
/* What a trial may lose: TRIAL_NS and TRIAL_RUNS serial runs, these at most TRIAL_RUNS_NS. */
static const double TRIAL_NS = 100e3, TRIAL_RUNS = 4, TRIAL_RUNS_NS = 2e6;
/* A loss is made good by BACKOFF times as much serial work; twice as much each time in a row, until it reaches RETRY_NS. */
static const double BACKOFF = 64, RETRY_NS = 1e9;
/* Two serial runs in so many keep the comparison fresh. */
enum { REFRESH = 256, FIRST_REFRESH = 1, SECOND_REFRESH = 2 };

static double lesser(double a, double b) { return a < b ? a : b; }
static double greater(double a, double b) { return a > b ? a : b; }

static int position(const fo_pace *pace) { return (int)(pace->runs % REFRESH); }

int fo_pace_worth_joining(double bytes) { return bytes >= JOIN_BYTES; }

int fo_pace_worth_waking(double bytes) { return bytes >= WAKE_BYTES; }

int fo_pace_in_burst(int64_t idle_ns, int spinning) { return spinning || idle_ns < FO_BURST_NS; }

int fo_pace_chooses_threads(const fo_pace *pace, int in_burst, double bytes)
{
    int refresh = position(pace) == FIRST_REFRESH || position(pace) == SECOND_REFRESH;
    return !refresh && pace->serial_only_ns <= 0 && (in_burst || fo_pace_worth_waking(bytes));
}

void fo_pace_observe_serial(fo_pace *pace, double elapsed_ns)
{
    pace->serial_only_ns -= elapsed_ns;
    /* Right after a run on threads, data still lie in the other cores' caches: that run is not typical. */
    if (position(pace) != FIRST_REFRESH) {
        double mean = 0.9 * pace->serial_ns + 0.1 * elapsed_ns;
        if (pace->serial_ns <= 0 || elapsed_ns < mean)
            pace->serial_ns = elapsed_ns;
        else /* an interrupted run says little */
            pace->serial_ns = lesser(mean, 1.1 * pace->serial_ns);
    }
    pace->runs++;
}

static void give_threads_up(fo_pace *pace)
{
    pace->serial_only_ns = -pace->backoff * pace->credit_ns;
    if (pace->serial_only_ns < RETRY_NS)
        pace->backoff *= 2;
    pace->credit_ns = 0;
}

void fo_pace_observe_threaded(fo_pace *pace, double elapsed_ns, double waited_ns)
{
    pace->runs++;
    if (pace->serial_ns <= 0)
        return;
    double trial = TRIAL_NS + lesser(TRIAL_RUNS * pace->serial_ns, TRIAL_RUNS_NS);
    double most = greater(CREDIT_RUNS * pace->serial_ns, CREDIT_NS);
    /* The caller may have been interrupted while it worked, which is no fault of threads; waiting for them is. */
    double worst = greater(waited_ns, trial);
    pace->credit_ns += greater(pace->serial_ns - elapsed_ns, -worst);
    if (pace->credit_ns > most || pace->backoff <= 0)
        pace->backoff = BACKOFF;
    pace->credit_ns = lesser(pace->credit_ns, most);
    if (pace->credit_ns < -trial)
        give_threads_up(pace);
}
